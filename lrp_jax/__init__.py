"""Layer-wise relevance propagation as a JAX function transformation.

`lrp(fun, rules)` has the value of `fun`, and its vector-Jacobian product is relevance propagation.
"""

from lrp_jax import composites, mark, operations, rules
from lrp_jax.attribution import Explanation, relevance
from lrp_jax.errors import LRPError
from lrp_jax.inspection import Ledger, ledger, plan
from lrp_jax.transform import lrp

__all__ = [
    "Explanation",
    "LRPError",
    "Ledger",
    "composites",
    "ledger",
    "lrp",
    "mark",
    "operations",
    "plan",
    "relevance",
    "rules",
]
