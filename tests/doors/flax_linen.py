import jax
from flax import linen as nn
from matplotlib.cbook import get_sample_data
from PIL import Image

from lrp_jax import plan, relevance


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(16, (5, 5), 2)(x))
        x = nn.relu(nn.Conv(32, (5, 5), 2)(nn.relu(x)))
        return nn.Dense(10, name="logits")(x.mean((1, 2)))


photograph = Image.open(get_sample_data("grace_hopper.jpg")).resize((64, 64))  # or your own
x = jax.numpy.asarray(photograph)[None] / 255
variables = Network().init(jax.random.key(0), x)  # or yours, with all collections
model = Network().bind(variables)

print(plan(model, x))
explanation = relevance(model, x)
print(explanation.summary())
explanation.to_png("relevance.png")
