import torch
import torchax
from matplotlib.cbook import get_sample_data
from PIL import Image
from torchvision.models import ResNet18_Weights, resnet18

from lrp_jax import relevance

torch.manual_seed(0)
about = ResNet18_Weights.DEFAULT
model = resnet18().eval()  # with trained weights: resnet18(weights=about)
photograph = Image.open(get_sample_data("grace_hopper.jpg"))  # or your own
x = about.transforms()(photograph)[None].numpy()

weights, apply = torchax.extract_jax(model)
explanation = relevance(lambda x: apply(weights, (x,)), x, at=["layer4.0.conv1"])
names = about.meta["categories"]
print(explanation.summary(classes=names))
explanation.to_png("relevance.png", classes=names, channel_axis=0)
