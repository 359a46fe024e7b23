"""How far relevance in float32 and in half precision is from float64, for each rule.

    python accuracy.py

The error of an image is the largest difference of a pixel's relevance, relative to the largest relevance of the image.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from networks import CASES
from results import save, versions

from lrp_jax import composites, lrp, rules

RULES: dict[str, rules.Rule] = {
    "Zero": rules.Zero(),
    "Epsilon": rules.Epsilon(),
    "Epsilon, relative, 0.25": rules.Epsilon(0.25, relative=True),
    "Gamma": rules.Gamma(),
    "ZPlus": rules.ZPlus(),
    "AlphaBeta": rules.AlphaBeta(),
    "WSquare": rules.WSquare(),
    "Flat": rules.Flat(),
    "ZBox": rules.ZBox(-3.0, 3.0),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def errors(rule: rules.Rule, dtypes: dict[str, Any]) -> dict[str, np.ndarray]:
    """The error of every image in each dtype; the rule holds in all layers, bounds and weights alone in the first."""
    first_only = isinstance(rule, rules.ZBox | rules.WSquare | rules.Flat)
    assignment = [(composites.first, rule), (composites.any_layer, rules.ZPlus())] if first_only else rule
    case = CASES["LeNet"]
    structure, state = nnx.split(case.make(rngs=nnx.Rngs(0)))
    images = jnp.clip(jax.random.normal(jax.random.key(1), case.shape), -3, 3)

    def explain(dtype: Any) -> np.ndarray:
        weights, x = jax.tree.map(lambda a: a.astype(dtype), (state, images))
        model = nnx.merge(structure, weights)
        relevance = jax.jit(jax.grad(lambda x: lrp(model, assignment)(x)[:, 1].sum()))(x)
        return np.asarray(relevance.astype(jnp.float64)).reshape(len(images), -1)

    exact = explain(jnp.float64)
    scale = np.abs(exact).max(1)
    return {name: np.abs(explain(dtype) - exact).max(1) / scale for name, dtype in dtypes.items()}


def save_errors(name: str, errors_of: Callable[[rules.Rule], dict[str, np.ndarray]], about: Any, note: str) -> None:
    """Writes the table of the errors that each rule has in each kind of numbers."""
    rows, columns = [], {"rule": "Rule|"}
    for title, rule in RULES.items():
        row: dict[str, Any] = {"rule": title}
        for numbers, values in errors_of(rule).items():
            row |= {f"{numbers} median": float(np.median(values)), f"{numbers} worst": float(values.max())}
            columns |= {f"{numbers} median": f"{numbers}, median|.1e", f"{numbers} worst": "worst|.1e"}
        rows.append(row)
    save(name, rows, columns, about, note)


def main() -> None:
    """Measures and writes the table."""
    jax.config.update("jax_enable_x64", True)
    note = "LeNet with random weights, 128 random images; median and worst image."
    save_errors("accuracy", lambda rule: errors(rule, DTYPES), versions("lrp_jax", "jax", "flax"), note)


if __name__ == "__main__":
    main()
