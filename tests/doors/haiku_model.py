import haiku as hk
from jax import nn, random
from matplotlib import pyplot as plt

from lrp_jax import plan, relevance

x = plt.imread("photo.jpg")[None, ::8, ::8] / 255  # every eighth pixel
network = hk.transform(lambda x: hk.Linear(10)(nn.relu(hk.Conv2D(8, 5)(x)).mean((1, 2))))
params = network.init(random.key(0), x)  # or yours
model = lambda x: network.apply(params, None, x)  # no key, as nothing is drawn
explanation = relevance(model, x)
explanation.to_png("relevance.png")

print(explanation.summary())
print(plan(model, x))
