import equinox as eqx
import jax
from equinox import nn
from matplotlib.cbook import get_sample_data
from PIL import Image

from lrp_jax import plan, relevance

keys = jax.random.split(jax.random.key(0), 3)
relu, mean = nn.Lambda(jax.nn.relu), nn.Lambda(lambda x: x.mean((1, 2)))
layers = [nn.Conv2d(3, 16, 5, 2, key=keys[0]), relu, nn.Conv2d(16, 32, 5, 2, key=keys[1]), relu, mean]
model = nn.Sequential([*layers, nn.Linear(32, 10, key=keys[2])])
photograph = Image.open(get_sample_data("grace_hopper.jpg")).resize((64, 64))  # or your own
x = jax.numpy.asarray(photograph).transpose(2, 0, 1)[None] / 255

network = jax.vmap(eqx.nn.inference_mode(model))  # for many samples, as a module of Equinox takes one
print(plan(network, x))
explanation = relevance(network, x)
print(explanation.summary())
explanation.to_png("relevance.png")
