import jax
from flax import linen as nn
from matplotlib import pyplot as plt

from lrp_jax import plan, relevance

x = plt.imread("photo.jpg")[None, ::8, ::8] / 255  # every eighth pixel
first = [nn.Conv(16, (5, 5), 2), nn.BatchNorm(use_running_average=True), nn.relu]
network = nn.Sequential([*first, lambda x: x.mean((1, 2)), nn.Dense(10)])
model = network.bind(network.init(jax.random.key(0), x))  # or your own variables
explanation = relevance(model, x)
explanation.to_png("relevance.png")

print(explanation.summary())
print(plan(model, x))
