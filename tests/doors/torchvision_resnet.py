import torchax
from torchvision import io, models

from lrp_jax import plan, relevance

about = models.ResNet18_Weights.DEFAULT
model = models.resnet18().eval()  # with trained weights: .resnet18(weights=about)
x = about.transforms()(io.decode_image("photo.jpg"))[None].numpy()
weights, apply = torchax.extract_jax(model)
network = lambda x: apply(weights, (x,))
explanation = relevance(network, x)
explanation.to_png("relevance.png", classes=about.meta["categories"], channel_axis=0)

print(explanation.summary(classes=about.meta["categories"]))
print(plan(network, x))
