"""The errors that lrp_jax raises. All derive from `LRPError`."""

import importlib
from types import ModuleType

__all__ = [
    "ArrayError",
    "InputError",
    "LRPError",
    "LRPWarning",
    "MissingExtraError",
    "ModelError",
    "RuleError",
    "SelectorError",
    "StoreError",
    "UnsupportedOperationError",
]


class LRPError(Exception):
    """Base of every error that lrp_jax raises."""


class MissingExtraError(LRPError, ImportError):
    """An optional package is missing. The message names it, and the extra that installs it."""


class ArrayError(LRPError, ValueError):
    """An array has the wrong shape, or holds values that are not finite."""


class StoreError(LRPError, ValueError):
    """A store or file of explanations is damaged, cannot be written, belongs to another run, or there is none."""


_DISTRIBUTIONS = {"PIL": "pillow", "absl": "absl-py", "orbax": "orbax-checkpoint"}  # that have other names than modules


def import_extra(module: str, extra: str, *, instead: str | None = None) -> ModuleType:
    """Imports an optional dependency.

    Args:
        module: Dotted name of the module.
        extra: The extra of lrp_jax that brings it.
        instead: What the user can do without the module, if there is something.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If the module is not installed.

    Example:
        >>> import_extra("math", "book").sqrt(4.0)
        2.0
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        distribution = _DISTRIBUTIONS.get(package, package.replace("_", "-"))
        raise MissingExtraError(
            f"{distribution} is missing: pip install {distribution} (the extra {extra!r} brings it)"
            + (f". Or {instead}." if instead else "")
        ) from error


class UnsupportedOperationError(LRPError, NotImplementedError):
    """Relevance reaches an operation that has no treatment."""


class InputError(LRPError, ValueError):
    """An argument of a call does not fit: its dtype, its shape, a target, a name that does not exist."""


class RuleError(InputError):
    """A rule has a parameter that makes no sense, or cannot be applied to a layer."""


class SelectorError(LRPError, ValueError):
    """A composite does not fit the layers of the function: a selector that matches none, or a layer without a rule."""


class ModelError(LRPError, ValueError):
    """A function cannot be explained as it is: it is in training mode, branches on values, or has NaN in it."""


class LRPWarning(UserWarning):
    """Something was computed, but is suspicious or could not be kept, such as inputs outside the bounds of z-box."""
