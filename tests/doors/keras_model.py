import os

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import keras
from keras import layers
from matplotlib.cbook import get_sample_data
from PIL import Image

from lrp_jax import plan, relevance

keras.utils.set_random_seed(0)
photograph = Image.open(get_sample_data("grace_hopper.jpg")).resize((64, 64))  # or your own
x = keras.utils.img_to_array(photograph)[None] / 255
blocks = [layers.Conv2D(16, 3, activation="relu", name="conv1"), layers.BatchNormalization(), layers.MaxPooling2D()]
blocks += [layers.Conv2D(32, 3, activation="relu", name="conv2"), layers.GlobalAveragePooling2D()]
model = keras.Sequential([keras.Input((64, 64, 3)), *blocks, layers.Dense(10, name="logits")])
print(plan(model, x))
explanation = relevance(model, x)
print(explanation.summary())
explanation.to_png("relevance.png")
