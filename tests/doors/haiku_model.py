import haiku as hk
import jax
from matplotlib.cbook import get_sample_data
from PIL import Image

from lrp_jax import relevance

photograph = Image.open(get_sample_data("grace_hopper.jpg")).resize((128, 128))  # or your own
x = jax.numpy.asarray(photograph)[None] / 255
network = hk.transform_with_state(lambda x, train: hk.nets.ResNet18(10)(x, train))
params, state = network.init(jax.random.key(0), x, True)  # or yours

model = lambda x: network.apply(params, state, None, x, False)[0]
explanation = relevance(model, x, at=["res_net18/~/initial_conv"])
print(explanation.summary())
explanation.to_png("relevance.png")
