"""Keras models, known by what they can do, so that Keras need not be installed.

A Keras model keeps its weights in variables, which it reads and writes while it runs. Its `stateless_call` takes the
values of the variables as arguments and returns what they would become.
"""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.core.arguments import kind_of
from lrp_jax.errors import ModelError


def is_keras_model(value: Any) -> bool:
    """Whether something is a model or a layer of Keras 3: its class has `stateless_call` and variables of two kinds."""
    names = ("stateless_call", "trainable_variables", "non_trainable_variables")
    return not isinstance(value, type) and all(hasattr(type(value), name) for name in names)


def variables_of(model: Any) -> dict[str, Any]:
    """The variables of a Keras model, the trainable ones first.

    Returns:
        The variables by name: the names of the layers, from the outermost that is not the model itself to the one that
        holds the variable, and that of the variable, such as "block1_conv1.kernel" or "encoder/dense.bias".
    """
    names: dict[int, str] = {}
    for layers, variable in _variables_by_layers(model, ()):
        names.setdefault(id(variable), f"{'/'.join(layers)}.{variable.name}" if layers else variable.name)
    found: dict[str, Any] = {}
    for variable in (*model.trainable_variables, *model.non_trainable_variables):
        name, number = names.get(id(variable), variable.path), 1
        layer, _, own = name.rpartition(".")
        while name in found:  # of layers that have one name
            number += 1
            name = f"{layer}_{number}.{own}"
        found[name] = variable
    return found


def _variables_by_layers(layer: Any, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The variables within a layer, each with the names of the layers within which it is."""
    inner = getattr(layer, "layers", ())
    for one in inner if isinstance(inner, Iterable) else ():
        yield from _variables_by_layers(one, (*names, one.name))
    for variable in (*layer.trainable_variables, *layer.non_trainable_variables):
        path = variable.path.split("/")[:-1]
        start = len(path) - path[::-1].index(layer.name) if layer.name in path else 0
        yield (*names, *path[start:]), variable


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class KerasModel:
    """What a Keras model computes in inference mode; a pytree whose leaves are its weights.

    Attributes:
        model: The model.
        names: The names of its variables, the trainable ones first.
        weights: Their values.
    """

    model: Any
    names: tuple[str, ...]
    weights: tuple[Any, ...]

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        """The weights by name, and the model."""
        keys = map(jax.tree_util.DictKey, self.names)
        return tuple(zip(keys, self.weights, strict=True)), (self.model, self.names)

    @classmethod
    def tree_unflatten(cls, static: Any, weights: Iterable[Any]) -> "KerasModel":
        """The model with other weights."""
        model, names = static
        return cls(model, names, tuple(weights))

    def __call__(self, *args: Any) -> Any:
        """The model's output.

        Raises:
            ModelError: If the model changes its variables.
        """
        trainable = len(self.model.trainable_variables)
        takes_training = "training" in inspect.signature(self.model.call).parameters
        output, after = self.model.stateless_call(
            list(self.weights[:trainable]),
            list(self.weights[trainable:]),
            *args,
            **({"training": False} if takes_training else {}),
        )
        pairs = zip(self.names[trainable:], self.weights[trainable:], after, strict=True)
        changed = [name for name, before, now in pairs if jnp.issubdtype(now.dtype, jnp.floating) and now is not before]
        if changed:
            raise ModelError(
                f"The Keras model {self.model.name} changes its state while it runs, though it is called with "
                f"training=False: {', '.join(changed)}. Let its layers take `training`, and change nothing without it."
            )
        return output


def stateless(model: Any) -> Any:
    """A Keras model as a `KerasModel` with the weights that it has now; anything else as it is.

    Raises:
        ModelError: If the model has no weights yet, or they are no arrays of JAX.
    """
    if not is_keras_model(model):
        return model
    if not model.built:
        raise ModelError(f"The Keras model {model.name} has no weights yet. Call it once on data, as in model(x).")
    variables = variables_of(model)
    weights = tuple(variable.value for variable in variables.values())
    for name, weight in zip(variables, weights, strict=True):
        if not isinstance(weight, jax.Array):
            raise ModelError(
                f"The Keras model {model.name} does not run on JAX: its weight {name} is {kind_of(weight)}. Set the "
                "environment variable KERAS_BACKEND to jax before Keras is imported, and make the model again."
            )
    return KerasModel(model, tuple(variables), weights)
