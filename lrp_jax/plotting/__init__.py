"""Pictures of relevance: of images, of series, and of texts.

A function that is called without axes returns a figure, which shows itself in a notebook and belongs to no pyplot
session; `figure.savefig(path)` writes it. For images and maps, `channel_axis` says which axis of one sample holds the
channels.

Needs the extra `plot` (matplotlib, Pillow): `pip install 'lrp_jax[plot]'`.
"""

from lrp_jax.plotting.arrays import COLORMAP, Explained
from lrp_jax.plotting.images import grid, heatmap, overlay
from lrp_jax.plotting.series import strips
from lrp_jax.plotting.text import words, words_as_html

__all__ = ["COLORMAP", "Explained", "grid", "heatmap", "overlay", "strips", "words", "words_as_html"]
