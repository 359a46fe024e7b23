"""How a model has to be called: what is no model is refused, and errors are told what is likely wrong with the call."""

import inspect
import traceback
from collections.abc import Callable
from typing import Any

import jax

from lrp_jax.core.arguments import check_function, in_words, kind_of, signature_of
from lrp_jax.core.keras_models import KerasModel, is_keras_model
from lrp_jax.errors import InputError

_PASS_PARAMETERS = (
    "Pass its apply together with its parameters: functools.partial(network.apply, params), with None after params "
    "where a key comes next, as in Haiku"
)
_ONE_SAMPLE = "It takes one sample at a time: pass jax.vmap(model), and the samples first in x."
_SEE_WHETHER = (
    "If jax.jit(model)(x) raises it, too, the error is in the model or in x, which has the samples in the first "
    "dimension."
)
_TUPLE_FOR_TORCH = (
    "A function of torchax takes the weights, and a tuple of the module's arguments: lambda x: function(weights, (x,))."
)
PASS_TORCHAX = (
    "Turn it into a function with torchax: weights, function = torchax.extract_jax(module.eval()), and pass "
    "lambda x: function(weights, (x,))."
)
_UNTRANSLATED = {"OperatorNotFound", "AssertionError", "AttributeError"}
_TRANSLATED = (
    "torchax cannot translate this call, with or without lrp_jax. All arguments have to be arrays of JAX. A tensor "
    "that forward makes needs the device of its input, as in torch.ones(2, device=x.device). A parametrization, such "
    "as weight_norm, has to be removed before: "
    'torch.nn.utils.parametrize.remove_parametrizations(layer, "weight").'
)


def check_model(model: Any) -> None:
    """Refuses what is taken for a model, but is none that JAX can call.

    Raises:
        InputError: If the model is a class, a PyTorch module, or the pair of functions that Haiku makes.
    """
    if isinstance(model, type):
        raise InputError(
            f"The model is the class {model.__name__}, and no instance of it. Make one: {model.__name__}(...)."
        )
    if derives_from(model, "torch") and not is_keras_model(model):
        raise InputError(
            f"The model is the PyTorch module {type(model).__name__}, which JAX cannot trace. {PASS_TORCHAX}"
        )
    if not callable(model) and callable(getattr(model, "init", None)) and callable(getattr(model, "apply", None)):
        raise InputError(f"The model is {kind_of(model)}, with the functions init and apply. {_PASS_PARAMETERS}.")


def check_takes(model: Callable[..., Any], x: Any) -> None:
    """Refuses a model that cannot be called with x alone.

    Raises:
        InputError: If it takes fewer or more arguments.
    """
    try:
        check_function(model, "The model", "x")
    except InputError as error:
        hint = _hint(model, x) or "Give it the others before, as in lambda x: model(x, ...)."
        raise InputError(f"{error} {hint}") from error.__cause__


def add_note(error: Exception, model: Callable[..., Any], x: Any) -> None:
    """Adds to what a model has raised when it was called with x what to look at.

    Raises:
        InputError: If x has not the inputs of a functional Keras model, of which Keras says something else.
    """
    inputs = [one.name for one in getattr(model.model, "inputs", None) or ()] if isinstance(model, KerasModel) else []
    if inputs and (len(jax.tree.leaves(x)) != len(inputs) or (isinstance(x, dict) and not x.keys() >= set(inputs))):
        raise InputError(
            f"The Keras model has the inputs {', '.join(inputs)}, but it was called with x: {in_words(x)}. Let x be a "
            "list of them, or a dictionary by name."
        ) from error
    hint = _hint_of_torch(error) or ("" if inputs else _hint(model, x))
    hint = hint or (_ONE_SAMPLE if _takes_one_sample(model, x) else _SEE_WHETHER)
    error.add_note(f"The model raised this when it was called with x: {in_words(x)}. {hint}")


def _hint_of_torch(error: Exception) -> str:
    """What an error within a function of torchax means; empty if it is another one, or about shapes or values."""
    packages = packages_of(error)
    if "torchax" not in packages:
        return ""
    if isinstance(error, TypeError) and "positional argument" in str(error):
        return _TUPLE_FOR_TORCH
    is_of_torchax = packages[-1] == "torchax" and type(error).__name__ in _UNTRANSLATED
    return _TRANSLATED if is_of_torchax or "numpy.ndarray" in str(error) else ""


def packages_of(error: Exception) -> list[str]:
    """The packages of the functions through which an error went, but for JAX; the one that raised it last."""
    frames = (frame.f_globals for frame, _ in traceback.walk_tb(error.__traceback__))
    packages = (str(names.get("__name__")).partition(".")[0] for names in frames)
    return [package for package in packages if package != "jax"]


def _hint(model: Callable[..., Any], x: Any) -> str:
    """What is likely wrong with how a model is called, as a sentence; empty if nothing is known."""
    first = next(iter(_signature(model).parameters), "")
    if str(getattr(model, "__module__", "")).partition(".")[0] == "torchax":
        return _TUPLE_FOR_TORCH
    if first in {"params", "parameters", "variables"}:
        return f"Its first argument, {first}, stands for its parameters. {_PASS_PARAMETERS}."
    if first == "rng":
        return "Its first argument, rng, is a key: functools.partial(network.apply, params, None), if it draws nothing."
    if first == "state":
        return "Its first argument is a state. In Haiku, pass lambda x: network.apply(params, state, None, x)[0]."
    if isinstance(x, tuple | list) and len(x) > 1 and _takes(model, *x):
        return f"If the {len(x)} parts of x are arguments of their own, pass lambda x: model(*x)."
    if isinstance(x, dict) and _takes(model, **x):
        return "If the entries of x are arguments of their own, pass lambda x: model(**x)."
    return ""


def _takes_one_sample(model: Callable[..., Any], x: Any) -> bool:
    """Whether a model that does not take x can be called with a part of it, as most modules of Equinox can."""
    try:
        jax.eval_shape(model, jax.tree.map(lambda array: array[0], x))
    except Exception:  # of the model
        return False
    return True


def derives_from(model: Any, package: str) -> bool:
    """Whether something is of a class of a package, or of one that is derived from such."""
    return any(cls.__module__.partition(".")[0] == package for cls in type(model).__mro__)


def _signature(model: Callable[..., Any]) -> inspect.Signature:
    return signature_of(model.model.call if isinstance(model, KerasModel) else model)


def _takes(model: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    try:
        _signature(model).bind(*args, **kwargs)
    except TypeError:
        return False
    return True
