from flax import nnx
from matplotlib import pyplot as plt

from lrp_jax import plan, relevance

x = plt.imread("photo.jpg")[None, ::8, ::8] / 255  # every eighth pixel
rngs = nnx.Rngs(0)
first = [nnx.Conv(3, 8, (5, 5), 2, rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.relu]
model = nnx.Sequential(*first, lambda x: x.mean((1, 2)), nnx.Linear(8, 10, rngs=rngs))
model.eval()  # batch normalisation with its running statistics, no dropout
explanation = relevance(model, x)
explanation.to_png("relevance.png")

print(explanation.summary())
print(plan(model, x))
