"""Pictures of relevance: of images, of series, and of texts.

What is called without axes returns a figure that shows itself in a notebook and belongs to no pyplot session;
`figure.savefig(path)` writes it. Where an image or a map goes in, `channel_axis` says which axis of one sample holds
its channels.

Needs the extra `plot` (matplotlib, Pillow): `pip install 'lrp_jax[plot]'`.
"""

from lrp_jax.plotting.arrays import COLORMAP, Explained
from lrp_jax.plotting.images import grid, heatmap, overlay
from lrp_jax.plotting.series import strips
from lrp_jax.plotting.text import words, words_as_html

__all__ = ["COLORMAP", "Explained", "grid", "heatmap", "overlay", "strips", "words", "words_as_html"]
