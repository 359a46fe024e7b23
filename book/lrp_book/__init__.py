"""What the book needs and an installed library does not: data sets, networks, training and pretrained weights."""

from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
"""The folder of the data that come with the book: MNIST, photographs, and the weights of a network."""
