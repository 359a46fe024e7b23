import os

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported
from keras import Sequential, layers, utils

from lrp_jax import plan, relevance

photograph = utils.load_img("photo.jpg", target_size=(64, 64))
x = utils.img_to_array(photograph)[None] / 255
first = [layers.Input((64, 64, 3)), layers.Conv2D(8, 3, name="conv1"), layers.ReLU()]
model = Sequential([*first, layers.GlobalAvgPool2D(), layers.Dense(10, name="logits")])
explanation = relevance(model, x)
explanation.to_png("relevance.png")

print(explanation.summary())
print(plan(model, x))
