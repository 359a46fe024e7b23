"""Layer-wise relevance propagation as a JAX function transformation.

`lrp(fun, rules)` has the same value as `fun`, but its vector-Jacobian product is relevance propagation.
"""

from importlib import metadata
from typing import TYPE_CHECKING

from lrp_jax import composites, mark, rules, target, treatments
from lrp_jax.core.transform import lrp
from lrp_jax.errors import LRPError
from lrp_jax.explain.ledger import Ledger, ledger, plan
from lrp_jax.explain.relevance import Explanation, relevance

__all__ = [
    "Explanation",
    "LRPError",
    "Ledger",
    "composites",
    "ledger",
    "lrp",
    "mark",
    "plan",
    "relevance",
    "rules",
    "target",
    "treatments",
]

__version__: str

if not TYPE_CHECKING:  # for which any other name would be one of the library's, too

    def __getattr__(name: str) -> str:
        if name == "__version__":
            return metadata.version("lrp_jax")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
