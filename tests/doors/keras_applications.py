import os

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import keras
from keras.applications import vgg16
from matplotlib.cbook import get_sample_data
from PIL import Image

from lrp_jax import relevance

keras.utils.set_random_seed(0)
model = vgg16.VGG16(weights=None, classifier_activation=None)  # with trained weights: weights="imagenet"
photograph = Image.open(get_sample_data("grace_hopper.jpg")).resize((224, 224))  # or your own
x = vgg16.preprocess_input(keras.utils.img_to_array(photograph)[None])

explanation = relevance(model, x, at=["block5_conv3"])
print(explanation.summary())
explanation.to_png("relevance.png", channel_axis=-1)
