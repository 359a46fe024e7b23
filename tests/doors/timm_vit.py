import timm
import torchax
from PIL import Image

from lrp_jax import composites, relevance

# With trained weights: pretrained=True instead of depth=3.
model = timm.create_model("vit_tiny_patch16_224", depth=3).eval()
to_input = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
x = to_input(Image.open("photo.jpg"))[None].numpy()
weights, apply = torchax.extract_jax(model)
explanation = relevance(lambda x: apply(weights, (x,)), x, rules=composites.AttnLRP())
explanation.to_png("relevance.png", channel_axis=0)

print(explanation.summary())
