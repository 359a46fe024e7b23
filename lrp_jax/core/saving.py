"""What can be written to a file. How that is done is no concern of the core: `lrp_jax.explain.files` says it."""

import os
from typing import Any, ClassVar, Self

from lrp_jax.errors import StoreError


class Saved:
    """What can be written to a file: explanations, composites and rules."""

    _files: ClassVar[Any]  # the module that writes and reads them, which the package puts here

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes this to a file that holds no code, beside its place first, and moves it there when it is complete.

        Args:
            path: The file; one that is there is replaced. Its folder must exist.

        Raises:
            InputError: If something in it cannot be written: a rule, a selector or a treatment of your own, a random
                key, a value that is traced, a class of another library.
            StoreError: If the path cannot be written.
        """
        self._files.write(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` has written.

        Args:
            path: The file.

        Returns:
            What was written, with JAX arrays of the same dtypes; with a NumPy array where JAX would cut off 64 bits.

        Raises:
            StoreError: If there is no such file, it is none of these or damaged, or was written by a later version.
        """
        loaded = cls._files.read(path)
        if not isinstance(loaded, cls):
            kind = type(loaded).__name__
            raise StoreError(f"{os.fspath(path)!r} holds a {kind}, and no {cls.__name__}: call {kind}.load.")
        return loaded
