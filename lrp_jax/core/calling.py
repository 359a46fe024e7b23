"""Calling a model that is traced, so that nothing of it gets lost: refused is what a trace does not carry."""

import contextlib
import inspect
import operator
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.core.arguments import is_array_like, kind_of
from lrp_jax.core.equations import is_of_user
from lrp_jax.core.graph import Status
from lrp_jax.core.held_arrays import is_floating, is_linen_module, keras_models_of, name_of_path, things_of
from lrp_jax.core.hints import PASS_TORCHAX, derives_from, packages_of
from lrp_jax.core.inference import HOW_TO_SWITCH
from lrp_jax.core.keras_models import KerasModel, stateless, variables_of
from lrp_jax.core.reader import Input, read
from lrp_jax.errors import LRPError, ModelError

_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
_WITHOUT_VALUES = "Write it with jnp.where, jax.lax.cond, jax.lax.scan or jnp."
_WITHOUT_VALUES_IN_TORCH = (
    "Write it with torch.where. The models of Hugging Face do without values if they are made with "
    'attn_implementation="eager" and are given an attention mask: function(weights, (x,), {"attention_mask": mask}).'
)
# What Flax says of a Linen module that has no variables.
_ONLY_BOUND = "only accessible from inside 'init' or 'apply'"
_UNBOUND = {"CallCompactUnboundModuleError", "CallSetupUnboundModuleError"}
_NO_HASH = "__hash__ on modules that hold variables"
_LACKS_COLLECTION = {"ScopeCollectionNotFound", "ApplyScopeInvalidVariablesTypeError"}
# Errors of Flax and Haiku that say the same: a module writes to its variables, or dropout asks for a key.
_CHANGES_STATE = {"TraceContextError", "ModifyScopeVariableError", "InvalidRngError", "MissingRNGError"}
# What Flax NNX says, in errors of several kinds, of a module that a transformation of its own would write to.
_OTHER_LEVEL = "different trace level"
_COPY_OF_NNX = (
    " If it is in inference mode, it is a module of Flax NNX that runs nnx.scan, nnx.remat or nnx.jit, as nnx.RNN "
    "does, and is read from a variable of the function. Pass the module itself, or a copy: "
    "lambda x: nnx.clone(model)(x)."
)
# What Equinox says where dropout asks for a key.
_LACKS_KEY = "requires a key when running in non-deterministic mode"


def call_model(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a model that is traced, and sees to it that this has no effect but its value.

    A module is copied, so that it may count random numbers while it is traced.

    Raises:
        ModelError: If it needs values in Python that a trace does not have, changes its state, keeps traced values, or
            is a module of Flax Linen without variables.
    """
    model = stateless(model)
    before, structure = jax.tree.flatten(model)
    copied = jax.tree.unflatten(structure, before)
    kept_before = _traced_values(model)
    try:
        with _variables_restored(model):
            value = copied(*args, **kwargs)
    except LRPError:
        raise
    except Exception as error:
        refusal = _refusal(model, error)
        if refusal is None:
            raise
        raise refusal from error
    changed = _changed_numbers(before, model, copied)
    if changed and _depend_on_arguments(list(changed), model, args, kwargs):
        raise ModelError(
            f"The model changes its state while it runs: {', '.join(changed)}. It is in training mode, or keeps "
            f"a cache. {HOW_TO_SWITCH}."
        )
    for leaf in jax.tree.leaves(value):
        if not is_array_like(leaf):
            raise ModelError(
                f"The function returns {kind_of(leaf)}, and relevance needs arrays. Return them alone{_entry_of(leaf)}."
            )
    kept = [name for identity, name in _traced_values(model).items() if identity not in kept_before]
    if kept:
        raise ModelError(
            f"The model keeps what it computes in {', '.join(kept)}, where it is no array after the trace. Let it "
            "return what you need; jax.debug.print shows values on the way."
        )
    return value


def _entry_of(value: Any) -> str:
    """How to return the first array in an object instead of it, as the end of a sentence; empty if it holds none."""
    entries = {f"[{key!r}]": entry for key, entry in value.items()} if isinstance(value, Mapping) else {}
    attributes = getattr(value, "__dict__", {})
    entries |= {f".{name}": entry for name, entry in attributes.items() if not name.startswith("_")}
    found = next((path for path, entry in entries.items() if is_array_like(entry) and jnp.ndim(entry)), "")
    return f", as in lambda x: model(x){found}" if found else ""


@contextlib.contextmanager
def _variables_restored(model: Callable[..., Any]) -> Iterator[None]:
    """Gives the variables of Keras models that a function reads the values back that they have now.

    Raises:
        ModelError: If they have others at the end, or a model has got its weights meanwhile.
    """
    are_some = "keras" in sys.modules and not isinstance(model, KerasModel)
    models = keras_models_of(model) if are_some else []
    before = {id(variable): variable.value for one in models if one.built for variable in variables_of(one).values()}
    made, changed = [], []
    try:
        yield
    finally:
        for name, variable in [named for one in models for named in variables_of(one).items()]:
            value = before.get(id(variable))
            if value is None:
                made += [name] * isinstance(variable.value, jax.core.Tracer)
            elif variable.value is not value:
                changed.append(name)
                variable.assign(value)
    if made:
        raise ModelError(
            "A Keras model that the function calls had no weights before, and those that it has now are of no use: "
            f"{', '.join(made)}. Make it again, and call it once on data, as in model(x)."
        )
    if changed:
        raise ModelError(
            f"A Keras model that the function calls changes its state: {', '.join(changed)}. Call it with "
            "training=False."
        )


def _refusal(model: Callable[..., Any], error: Exception) -> ModelError | None:
    """What an error that a model has raised means, and what to do; None if nothing is known of it."""
    if isinstance(error, _NEEDS_VALUES) or "Tracer" in str(error):
        refusal = _refusal_of_others(model, error)
        if refusal is not None:
            return refusal
    if isinstance(error, _NEEDS_VALUES):
        how = _WITHOUT_VALUES_IN_TORCH if "torchax" in packages_of(error) else _WITHOUT_VALUES
        return ModelError(
            f"The model needs the value of an array in Python{_line_of(error)}: in an if, a loop, float(), numpy or "
            f"a mask as an index. Relevance is propagated through the operations of JAX alone. {how}"
        )
    kind = type(error).__name__
    copy = _COPY_OF_NNX if _OTHER_LEVEL in str(error) else ""
    if kind in _CHANGES_STATE or _LACKS_KEY in str(error) or copy:
        return ModelError(
            f"The model is in training mode, or changes its state{_line_of(error)}: "
            f"{str(error).partition(', got')[0].rstrip('.')}. {HOW_TO_SWITCH}.{copy}"
        )
    if kind in _UNBOUND or _ONLY_BOUND in str(error) or _is_unbound(model):
        return ModelError(
            f"The model is a Flax Linen module without its variables{_line_of(error)}. Pass "
            "functools.partial(module.apply, variables), or module.bind(variables)."
        )
    if kind in _LACKS_COLLECTION:
        return ModelError(
            f"The variables of a Flax Linen module lack a collection: {error}. They are all that module.init has "
            'returned: functools.partial(module.apply, {"params": params, ...}).'
        )
    if _NO_HASH in str(error):
        return ModelError(
            "The model is a Flax Linen module that is bound to its variables, under jax.jit, which takes no such "
            "module. Leave jax.jit out, or pass jax.jit(lambda x: module.apply(variables, x))."
        )
    return None


def _refusal_of_others(model: Callable[..., Any], error: Exception) -> ModelError | None:
    """What an error about traced values means where a function calls a model that does not run on JAX; None if none."""
    packages = packages_of(error)
    try:
        for one in keras_models_of(model):
            stateless(one)
    except ModelError as refusal:  # of another backend
        return refusal
    if packages[-1] == "keras":  # which hides what it calls
        return ModelError(
            f"The model calls something of Keras that JAX cannot trace{_line_of(error)}, such as predict. Pass the "
            "Keras model itself, or lambda x: model(x, training=False)."
        )
    if "torchax" not in packages and any(derives_from(held, "torch") for held in things_of(model)):
        return ModelError(f"The model calls a PyTorch module{_line_of(error)}, which JAX cannot trace. {PASS_TORCHAX}")
    return None


def _is_unbound(model: Any) -> bool:
    """Whether a model is a module of Flax Linen, or a method of one, that holds no variables."""
    owner = getattr(model, "__self__", model)
    return is_linen_module(owner) and owner.scope is None


def _changed_numbers(before: Sequence[Any], model: Any, copied: Any) -> dict[str, Any]:
    """The floating-point leaves that a call has replaced in the copy of a model, by name."""
    after = jax.tree.leaves(copied)
    if len(after) == len(before) and all(map(operator.is_, after, before)):
        return {}
    names = [path for path, _ in jax.tree_util.tree_leaves_with_path(model)]
    known = dict(jax.tree_util.tree_leaves_with_path(copied))
    pairs = zip(names, before, strict=True)
    return {
        name_of_path(path): known.get(path) for path, leaf in pairs if is_floating(leaf) and known.get(path) is not leaf
    }


def _depend_on_arguments(names: Sequence[str], model: Any, args: Any, kwargs: Any) -> bool:
    """Whether what a call writes to the model depends on its arguments; else it computes it from its parameters anew.

    A module whose weights are normalised in each call does so, and one that is called under `nnx.remat`.
    """

    def written(arguments: Any) -> list[Any]:
        leaves, structure = jax.tree.flatten(model)
        copied = jax.tree.unflatten(structure, leaves)
        copied(*arguments[0], **arguments[1])
        return list(_changed_numbers(leaves, model, copied).values())

    program = jax.make_jaxpr(written)((args, kwargs))
    graph = read(program, [Input(Status.LIVE) for _ in program.jaxpr.invars])
    return not all(map(graph.is_constant, graph.outputs))


def _traced_values(model: Callable[..., Any]) -> dict[int, str]:
    """The names of traced values in the attributes of a model that is no pytree, and in the variables of a function."""
    function = inspect.unwrap(getattr(model, "func", model))
    owner = getattr(function, "__self__", model)
    named = {} if not jax.tree_util.all_leaves([owner]) else dict(getattr(owner, "__dict__", {}))
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        named |= {**variables.globals, **variables.nonlocals}
    return {
        id(leaf): name + jax.tree_util.keystr(path)
        for name, value in named.items()
        for path, leaf in _leaves_with_path(value)
        if isinstance(leaf, jax.core.Tracer)
    }


def _leaves_with_path(holder: Any) -> Sequence[tuple[Any, Any]]:
    try:
        return jax.tree_util.tree_leaves_with_path(holder)
    except (TypeError, ValueError):  # a dictionary whose keys have no order
        return []


def _line_of(error: Exception) -> str:
    """The user's line that an error comes from, as a part of a sentence; empty if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_of_user(frame.filename)]
    return f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].name})" if frames else ""
