import onnx
import torch
from jaxonnxruntime import call_onnx
from torchvision import io, models

from lrp_jax import relevance

x = models.ResNet18_Weights.DEFAULT.transforms()(io.decode_image("photo.jpg"))[None]
torch.onnx.export(models.resnet18().eval(), x, "my.onnx", input_names=["x"], dynamo=False)
function, weights = call_onnx.call_onnx_model(onnx.load("my.onnx"), {"x": x.numpy()})
explanation = relevance(lambda x: function(weights, {"x": x})[0], x.numpy())
explanation.to_png("relevance.png", channel_axis=0)

print(explanation.summary())
