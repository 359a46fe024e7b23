import timm
import torch
import torchax
from matplotlib.cbook import get_sample_data
from PIL import Image

from lrp_jax import composites, relevance

torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", depth=3).eval()
to_input = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
photograph = Image.open(get_sample_data("grace_hopper.jpg"))  # or your own
x = to_input(photograph)[None].numpy()

weights, apply = torchax.extract_jax(model)
explanation = relevance(lambda x: apply(weights, (x,)), x, rules=composites.AttnLRP())
print(explanation.summary())
explanation.to_png("relevance.png", channel_axis=0)
