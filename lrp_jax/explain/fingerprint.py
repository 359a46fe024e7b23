"""What identifies samples, parameters and runs: names, shapes and digests, the same in every process."""

import hashlib
import re
from typing import Any

import jax
import numpy as np

from lrp_jax.core.text import array_digest


def named(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree, by their paths."""
    with_paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in with_paths}


def describe(tree: Any) -> str:
    """The shapes and dtypes of a pytree in words."""
    arrays = named(tree).items()
    return ", ".join(" ".join(filter(None, (name, f"{leaf.dtype}{list(leaf.shape)}"))) for name, leaf in arrays)


def without_addresses(text: str) -> str:
    """What the text says in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def digest(tree: Any) -> np.ndarray:
    """The SHA-256 of the arrays in a pytree, as 32 bytes in an array."""
    return np.frombuffer(bytes.fromhex(hash_of(tree)), np.uint8)


def hash_of(tree: Any) -> str:
    """The SHA-256 of the arrays in a pytree, in hexadecimal digits."""
    running = hashlib.sha256()
    for name, leaf in named(tree).items():
        running.update(" ".join((name, *array_digest(leaf))).encode())
    return running.hexdigest()
