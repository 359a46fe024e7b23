import jax
from flax import nnx
from matplotlib.cbook import get_sample_data
from PIL import Image

from lrp_jax import plan, relevance


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 16, (5, 5), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (5, 5), strides=2, rngs=rngs)
        self.logits = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv1(x)))
        return self.logits(nnx.relu(self.conv2(x)).mean((1, 2)))


model = Network(nnx.Rngs(0))
model.eval()  # batch normalisation with its running statistics, no dropout
photograph = Image.open(get_sample_data("grace_hopper.jpg")).resize((64, 64))  # or your own
x = jax.numpy.asarray(photograph)[None] / 255

print(plan(model, x))
explanation = relevance(model, x)
print(explanation.summary())
explanation.to_png("relevance.png")
