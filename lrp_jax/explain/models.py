"""A model, taken apart into its arrays and the rest, and traced."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax

from lrp_jax.core import held_arrays
from lrp_jax.core.arguments import check_callable
from lrp_jax.core.calling import call_model
from lrp_jax.core.held_arrays import is_array
from lrp_jax.core.hints import add_note, check_model, check_takes
from lrp_jax.core.inference import Inference
from lrp_jax.core.keras_models import stateless
from lrp_jax.core.trace import TracedCall, explaining, trace_call
from lrp_jax.errors import LRPError


@dataclass(frozen=True)
class _Path:
    """Stands where an array was taken out of a model."""

    name: str


@dataclass(frozen=True)
class StaticModel:
    """What remains of a model without its arrays.

    Attributes:
        structure: The structure of the model as a pytree.
        leaves: Its leaves; where an array was, its path in the pytree.
        names: What the arrays are called in the model, by their paths in the pytree.
    """

    structure: Any
    leaves: tuple[Any, ...]
    names: Mapping[str, str]

    def call(self, arrays: Mapping[str, Any], x: Any) -> Any:
        """Calls the model with its arrays put back."""
        leaves = [arrays[leaf.name] if isinstance(leaf, _Path) else leaf for leaf in self.leaves]
        model = jax.tree.unflatten(self.structure, leaves)
        check_takes(model, x)
        try:
            return call_model(model, x)
        except LRPError:
            raise
        except Exception as error:
            add_note(error, model, x)
            raise


def as_pytree(model: Any) -> Any:
    """Turns what is one leaf, and holds arrays, into a pytree: a `functools.partial` and a Keras model."""
    if isinstance(model, functools.partial):
        return jax.tree_util.Partial(model.func, *model.args, **model.keywords)
    return stateless(model)


def split_model(model: Callable[[Any], Any]) -> tuple[dict[str, Any], StaticModel]:
    """Takes a model apart into its arrays, by path, and the rest."""
    check_model(model)
    check_callable(model, "The model")
    with_paths, structure = jax.tree_util.tree_flatten_with_path(as_pytree(model))
    arrays: dict[str, Any] = {}
    leaves = []
    for path, leaf in with_paths:
        if is_array(leaf):
            leaf_path = _Path(jax.tree_util.keystr(path, simple=True, separator="."))
            arrays[leaf_path.name] = leaf
            leaves.append(leaf_path)
        else:
            leaves.append(leaf)
    found = zip(arrays, held_arrays.names_of(model, list(arrays.values())), strict=True)
    names = {path: name or held_arrays.name_of_parameter(path) for path, name in found}
    return arrays, StaticModel(structure, tuple(leaves), names)


def trace_model(
    model: Callable[[Any], Any],
    x: Any,
    target: Callable[[Any], Any] | None = None,
    *,
    inference: Inference = "checked",
) -> tuple[TracedCall, Any]:
    """Traces a model, and the function of its output that is explained.

    Returns:
        The call, with the arrays of the model, by path, and x as its arguments; and the shapes of the model's output.
    """
    arrays, static = split_model(model)
    return trace_static(static, model, arrays, x, target, inference)


def trace_static(
    static: StaticModel,
    holder: Any,
    arrays: Mapping[str, Any],
    x: Any,
    target: Callable[[Any], Any] | None,
    inference: Inference,
) -> tuple[TracedCall, Any]:
    """As `trace_model`, for a model that was taken apart; `holder` is what it was, where its arrays have names."""
    call, output = trace_call(static.call, (1,), (arrays, x), {}, tokens=True, holder=holder, inference=inference)
    paths = (*jax.tree.leaves(dict(static.names)), *call.text.paths[len(static.names) :])
    call = replace(call, text=replace(call.text, paths=paths))
    return call if target is None else explaining(call, output, target), output
