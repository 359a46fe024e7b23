"""Compilation for tests, most of whose time it takes.

The default run has XLA optimise nothing, which takes a third of the time; the nightly run compiles as users do. Without
optimisation, a value that is computed twice may be fused into one multiply-add in one place and rounded in the other: a
largest value is then equal to none of the values among which it was found, and its gradient is zero or not a number.
So the default run keeps to AVX, which has no such instruction. Machines of other makers cannot, and optimise little.
It also reaches into JAX, where its programs are lowered one by one, and saves what each of them would begin with, and
where arrays are made of numbers, which takes no program.
`quick_jit` optimises nothing by day and by night, and is for relevance that is compared with something else.
`jit_by_day` is for what may be compiled or not: it is compiled in the default run, and computed operation by operation,
which takes longer, in the nightly one.
"""

import functools
import os
import platform
import threading

import jax
from jax._src import core
from jax._src.interpreters import mlir
from nightly import NIGHTLY

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
QUICK = {
    "xla_backend_optimization_level": 0 if IS_X86 else 1,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
    **({"xla_cpu_max_isa": "AVX"} if IS_X86 else {}),
}
AS_USUAL = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_parallel_codegen_split_count": 32,
    "xla_cpu_max_isa": "",
}

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
jit_by_day = (lambda function: function) if NIGHTLY else jax.jit


def as_flags(options: dict[str, int | bool | str]) -> str:
    """Options of the compiler as flags of XLA."""
    as_text = lambda value: str(value).lower() if isinstance(value, bool) else str(value)
    return " ".join(f"--{name}={as_text(value)}" for name, value in options.items())


def compile_quickly() -> None:
    """Lets XLA optimise nothing in this process and those that it starts, unless flags of XLA are given."""
    os.environ.setdefault("XLA_FLAGS", as_flags(QUICK))
    share_contexts()
    make_arrays_without_programs()


def share_contexts(programs: int = 64) -> None:
    """Has so many programs in a row lowered by JAX in one context of MLIR.

    To make one for each, as JAX does, takes a third of the time that a small program is lowered in. A context keeps
    what its programs consist of, constants included, and so it is replaced now and then.
    """
    make, of_thread = mlir.make_ir_context, threading.local()

    def shared():
        of_thread.left = getattr(of_thread, "left", 0) - 1
        if of_thread.left < 0:
            of_thread.context, of_thread.left = make(), programs - 1
        return of_thread.context

    mlir.make_ir_context = shared


def make_arrays_without_programs() -> None:
    """Has JAX place an array of NumPy or a number where it is asked for one of its own.

    Since JAX 0.10, `jnp.asarray` compiles a program for each shape, which returns what it is given.
    """
    if (stage := getattr(core, "stage_p", None)) is not None:
        stage.def_impl(jax.device_put)
