import matplotlib.pyplot as plt
import torch
import torchax
from matplotlib.cbook import get_sample_data
from PIL import Image
from torchvision.models import ResNet18_Weights, resnet18

from lrp_jax import plotting, relevance

torch.manual_seed(0)
model = resnet18().eval()  # resnet18(weights="DEFAULT") has learned something
photograph = Image.open(get_sample_data("grace_hopper.jpg"))  # or your own
x = ResNet18_Weights.DEFAULT.transforms()(photograph)[None].numpy()

weights, apply = torchax.extract_jax(model)
network = lambda x: apply(weights, (x,))
explanation = relevance(network, x, at=["layer4.0.conv1"])

print(explanation.output.shape, explanation.relevance.shape)
plotting.heatmap(explanation.relevance[0], plt.gca(), channels="first")
plt.savefig("relevance.png")
