import jax
from equinox import nn
from matplotlib import pyplot as plt

from lrp_jax import plan, relevance

x = plt.imread("photo.jpg").transpose(2, 0, 1)[None, :, ::8, ::8] / 255
first = [nn.Conv2d(3, 16, 5, 2, key=jax.random.key(0)), nn.Lambda(jax.nn.relu)]
last = [nn.Lambda(lambda x: x.mean((1, 2))), nn.Linear(16, 10, key=jax.random.key(1))]
model = jax.vmap(nn.inference_mode(nn.Sequential(first + last)))  # for many samples
explanation = relevance(model, x)
explanation.to_png("relevance.png")

print(explanation.summary())
print(plan(model, x))
