"""What runs on the devices: the samples of a batch are shared out over them, and each explains its own."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrp_jax.core.inference import Inference
from lrp_jax.core.programs import Computation, computation
from lrp_jax.errors import InputError
from lrp_jax.explain.checks import Checks
from lrp_jax.explain.fingerprint import named
from lrp_jax.explain.models import StaticModel, trace_static
from lrp_jax.explain.propagation import Request, explain_in_trace


def explain_batch(
    static: StaticModel,
    holder: Any,
    structure: Any,
    kind: str,
    function: Callable[[Any], Any] | None,
    reduce: Callable[[Any], Any] | None,
    inference: Inference,
    numbers: list[Any],
    arrays: dict[str, Any],
    x: Any,
    targets: Any,
) -> tuple[dict[str, jax.Array], Checks]:
    """What is stored of a batch, by name, and what was found in it."""
    call, _ = trace_static(static, holder, arrays, x, function, inference)
    output, maps, _, checks = explain_in_trace(structure, Request((), ()), kind, numbers, call, targets, [])
    if kind == "all":
        maps = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), maps)
    explained = {"relevance": reduce(maps) if reduce else maps, "output": output}
    if kind in ("largest", "index"):
        explained["target"] = (output.argmax(-1) if kind == "largest" else targets).astype(jnp.int32)
    (samples, *_) = {len(leaf) for leaf in jax.tree.leaves(x)}
    arrays_by_name = named(explained)
    if not jax.tree.leaves(explained["relevance"]):
        raise InputError(
            f"reduce returned {explained['relevance']!r}, and no array: nothing would be stored. Return what is to be "
            "kept of the relevance."
        )
    if len(arrays_by_name) < len(jax.tree.leaves(explained)):
        raise InputError(
            f"Two arrays would be stored under one name: there are {', '.join(arrays_by_name)}. Rename a key."
        )
    for name, leaf in arrays_by_name.items():
        if jnp.shape(leaf)[:1] != (samples,):
            raise InputError(
                f"{name} has the shape {jnp.shape(leaf)} for {samples} samples, but model and reduce must return them "
                "in the first dimension."
            )
    return arrays_by_name, jax.tree.map(lambda leaf: leaf[None], replace(checks, flow=None))


def explain_shared(
    mesh: Mesh, explain: Callable[..., Any], numbers: list[Any], arrays: dict[str, Any], x: Any, targets: Any
) -> tuple[dict[str, jax.Array], Checks]:
    """Each device along the first axis of the mesh explains samples of its own: none has to wait for another."""
    (axis, *_) = mesh.axis_names
    everything, share = PartitionSpec(), PartitionSpec(axis)
    return jax.shard_map(
        explain,
        mesh=mesh,
        in_specs=(everything, everything, share, share),
        out_specs=share,
        axis_names={axis},
    )(numbers, arrays, x, targets)


def local_mesh(mesh: Mesh | None) -> Mesh:
    """The devices of this process on which samples are explained; all of them if None.

    Raises:
        InputError: If the mesh holds devices of another process.
    """
    if mesh is None:
        return Mesh(np.array(jax.local_devices()), "samples")
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise InputError(
            "The mesh holds devices of another process, but each process explains samples of its own. Make it of "
            "jax.local_devices()."
        )
    return Mesh(mesh.devices, mesh.axis_names)  # its axes are left to the compiler


def _placed(array: Any, mesh: Mesh) -> jax.Array:
    is_there = isinstance(array, jax.Array) and array.sharding.device_set == set(mesh.devices.flat)
    if is_there and isinstance(array.sharding, NamedSharding):
        return jax.device_put(array, NamedSharding(mesh, array.sharding.spec))
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec()))


@dataclass
class Explainer:
    """Explains batches on all devices of a mesh, each of which explains samples of its own.

    Attributes:
        explain: As `explain_batch`, a function of its last four arguments.
        numbers: The numbers of the rules.
        arrays: The arrays of the model.
        mesh: The devices; the samples are shared out over its first axis.
        batch_size: The number of samples in a batch, which is filled up to a multiple of the number of devices.
    """

    explain: Callable[..., Any]
    numbers: list[Any]
    arrays: dict[str, Any]
    mesh: Mesh
    batch_size: int
    _shared: Computation | None = field(default=None, init=False)

    def start(self, samples: Sequence[Any], targets: np.ndarray | None) -> Any:
        """Begins to explain a batch, and does not wait for what `explain_batch` returns."""
        (axis, *_) = self.mesh.axis_names
        place = functools.partial(jax.device_put, device=NamedSharding(self.mesh, PartitionSpec(axis)))
        width = -(-self.batch_size // self.mesh.shape[axis]) * self.mesh.shape[axis]
        x, targets = place(_stacked(samples, width)), place(_filled(targets, width))
        if self._shared is None:
            self.arrays = {name: _placed(array, self.mesh) for name, array in self.arrays.items()}
            explain = functools.partial(explain_shared, self.mesh, self.explain)
            made = computation(explain, self.numbers, self.arrays, x, targets)
            self._shared = replace(made, arrays=[_placed(array, self.mesh) for array in made.arrays])
        return self._shared(self.numbers, self.arrays, x, targets)


def _stacked(samples: Sequence[Any], width: int) -> Any:
    """The samples of a batch in one array, the last of them repeated to fill the batch up."""
    return jax.tree.map(lambda *leaves: _filled(np.stack(leaves), width), *samples)


def _filled(array: np.ndarray | None, width: int) -> np.ndarray | None:
    if array is None:
        return None
    return np.pad(array, [(0, width - len(array))] + [(0, 0)] * (array.ndim - 1), mode="edge")
