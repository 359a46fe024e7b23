import io

import onnx
import torch
from jaxonnxruntime import call_onnx
from matplotlib.cbook import get_sample_data
from PIL import Image
from torchvision.models import ResNet18_Weights, resnet18

from lrp_jax import relevance

torch.manual_seed(0)
photograph = Image.open(get_sample_data("grace_hopper.jpg"))  # or your own
x = ResNet18_Weights.DEFAULT.transforms()(photograph)[None]
torch.onnx.export(resnet18().eval(), (x,), file := io.BytesIO(), input_names=["x"], dynamo=False)
exported = onnx.load_from_string(file.getvalue())  # or onnx.load("your_model.onnx")

function, weights = call_onnx.call_onnx_model(exported, {"x": x.numpy()})
explanation = relevance(lambda x: function(weights, {"x": x})[0], x.numpy())
print(explanation.summary())
explanation.to_png("relevance.png", channel_axis=0)
