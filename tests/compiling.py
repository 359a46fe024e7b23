"""Compilation for tests, most of whose time it takes.

The default run has XLA optimise little, which takes half of the time; the nightly run compiles as users do. At level 0
the gradient of a largest value among others may come out as not a number, without the library: `quick_jit`, which has
that level, is for relevance that is compared with something else.
`jit_by_day` is for what may be compiled or not: it is compiled in the default run, and computed operation by operation,
which takes longer, in the nightly one.
"""

import functools
import os

import jax
from nightly import NIGHTLY

QUICK = {
    "xla_backend_optimization_level": 1,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
AS_USUAL = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
jit_by_day = (lambda function: function) if NIGHTLY else jax.jit


def as_flags(options: dict[str, int | bool]) -> str:
    """Options of the compiler as flags of XLA."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())


def compile_quickly() -> None:
    """Lets XLA optimise little in this process and those that it starts, unless flags of XLA are given."""
    os.environ.setdefault("XLA_FLAGS", as_flags(QUICK))
