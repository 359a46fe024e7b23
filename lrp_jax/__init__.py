"""Layer-wise relevance propagation as a JAX function transformation.

`lrp(fun, rules)` has the value of `fun`, and its vector-Jacobian product is relevance propagation.
"""

from lrp_jax import rules
from lrp_jax.errors import LRPError
from lrp_jax.transform import lrp

__all__ = ["LRPError", "lrp", "rules"]
