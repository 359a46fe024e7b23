import functools

import haiku as hk
import jax
from matplotlib.cbook import get_sample_data
from PIL import Image

from lrp_jax import plan, relevance


def network(x: jax.Array) -> jax.Array:
    x = jax.nn.relu(hk.Conv2D(16, 5, stride=2)(x))
    x = jax.nn.relu(hk.Conv2D(32, 5, stride=2)(x))
    return hk.Linear(10, name="logits")(x.mean((1, 2)))


photograph = Image.open(get_sample_data("grace_hopper.jpg")).resize((64, 64))  # or your own
x = jax.numpy.asarray(photograph)[None] / 255
transformed = hk.transform(network)
params = transformed.init(jax.random.key(0), x)  # or yours

model = functools.partial(transformed.apply, params, None)  # None is the key, as nothing is drawn at random
print(plan(model, x))
explanation = relevance(model, x)
print(explanation.summary())
explanation.to_png("relevance.png")
