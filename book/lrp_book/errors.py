"""The errors that only the book's package raises, beside those of `lrp_jax.errors`."""

from lrp_jax.errors import LRPError


class DatasetError(LRPError):
    """A data set is unknown, damaged, or can neither be found nor downloaded."""


class CheckpointError(LRPError):
    """A checkpoint cannot be written, or is damaged, incomplete or not the one asked for."""
