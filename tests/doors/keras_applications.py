import os

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported
from keras import utils
from keras.applications import vgg16

from lrp_jax import relevance

photograph = utils.load_img("photo.jpg", target_size=(224, 224))
x = vgg16.preprocess_input(utils.img_to_array(photograph)[None])
model = vgg16.VGG16(weights=None, classifier_activation=None)  # or "imagenet"
explanation = relevance(model, x, at=["block5_conv3"])
explanation.to_png("relevance.png", channel_axis=-1)

print(explanation.summary())
