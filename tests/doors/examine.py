"""Asks of whole architectures what must hold of their explanations, and writes the table on "Bring your own model".

python -P examine.py [NAME ...]      # those that are named, or all: writes book/measured/architectures.json and .md
python -P examine.py --print NAME    # one, whose answers are printed as JSON
"""

import functools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.append(str(Path(__file__).parent))  # last, so that no door hides a package

import architectures
import jax
import numpy as np

from lrp_jax import ledger, relevance

MEASURED = Path(__file__).parents[2] / "book" / "measured"
PACKAGES = ["jax", "torch", "torchax", *dict.fromkeys(one.library for one in architectures.ARCHITECTURES)]
ROUNDINGS = 5  # as one alone may decide every maximum as before
QUESTIONS = {
    "value": "same output",
    "finite": "a map, not zero",
    "ledger": "ledger closes",
    "names": "own names",
    "units": "any unit",
    "jit": "under jit",
}


def examine(name: str) -> dict[str, Any]:
    """The answers for one architecture; or why there are none."""
    (architecture,) = (one for one in architectures.ARCHITECTURES if one.name == name)
    try:
        return _answers(architecture.make())
    except Exception as error:
        without_place = re.sub(r" at \S+:\d+ \(\S+\)", "", str(error))
        return {"refused": f"{type(error).__name__}: {without_place}".split("\n")[0]}


def _answers(model: architectures.Model) -> dict[str, Any]:
    target = np.argmax(model.value, -1)
    explain = lambda function, x: relevance(function, x, target)
    explanation = explain(model.function, model.x)
    rounded = functools.cache(lambda: [explain(model.function, _rounded(model.x, seed)) for seed in range(ROUNDINGS)])
    book = ledger(model.function, model.x, target)
    names = [row.path for row in book.rows if row.kind in {"dense", "conv"}]

    def same(kind: str, found: Any, tolerance: float) -> bool:
        """Whether a value is that of the explanation, but for what other roundings change in it."""
        expected = np.asarray(getattr(explanation, kind))
        change = abs(np.asarray(found) - expected).max()
        if change <= tolerance * abs(expected).max() or model.x.dtype.kind != "f":
            return bool(change <= tolerance * abs(expected).max())
        return bool(change <= 2 * max(abs(np.asarray(getattr(one, kind)) - expected).max() for one in rounded()))

    def same_map(function: Callable[[Any], Any], x: Any) -> bool:
        return same("relevance", explain(function, x).relevance, 1e-3)

    in_other_units = lambda x: model.function(x / 255)
    if model.x.dtype.kind != "f":
        answers = {"jit": same_map(jax.jit(model.function), model.x)}
    elif same_map(jax.jit(in_other_units), 255 * model.x):
        answers = {"units": True, "jit": True}
    else:
        answers = {"units": same_map(in_other_units, 255 * model.x), "jit": same_map(jax.jit(model.function), model.x)}
    found = answers | {
        "value": same("output", model.value, 1e-4),
        "finite": bool(np.isfinite(explanation.relevance).all() and np.any(explanation.relevance)),
        "ledger": bool(abs(book.unaccounted) <= 1e-4 * max(abs(row.arrived) for row in book.rows)),
        "names": all(not model.layers.isdisjoint(_names_of_module(name)) for name in names),
    }
    return found | {"layers": len(names), "arrived": float(book.inputs / book.explained)}


def _names_of_module(layer: str) -> tuple[str, str]:
    """What the module of a layer may be called: as the layer, or without the name of one of several weights."""
    name = layer.rstrip("'")
    return name, name.rpartition(".")[0]


def _rounded(x: Any, seed: int) -> Any:
    """The input with the least that rounding may change in it, which can decide a maximum in another way."""
    noise = np.random.default_rng(seed).standard_normal(x.shape)
    return (x * (1 + np.finfo(x.dtype).eps * noise)).astype(x.dtype)


def examine_apart(name: str) -> dict[str, Any]:
    """As `examine`, in a process of its own."""
    command = [sys.executable, "-P", "-W", "ignore", __file__, "--print", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"refused": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def _write(rows: dict[str, dict[str, Any]]) -> None:
    listed = [one for one in architectures.ARCHITECTURES if one.name in rows]
    versions = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    record = {
        "versions": versions,
        "rows": [{"name": one.name, "library": one.library, **rows[one.name]} for one in listed],
    }
    (MEASURED / "architectures.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        "| library | architecture | layers | " + " | ".join(QUESTIONS.values()) + " | reaches the input |",
        "| --- | --- | ---: |" + " :---: |" * len(QUESTIONS) + " ---: |",
    ]
    for row in record["rows"]:
        start = f"| {row['library']} | {row['name']} "
        if "refused" in row:
            lines.append(start + "| |" + " |" * len(QUESTIONS) + " refused |")
            continue
        marks = (("yes" if row[question] else "no") if question in row else "" for question in QUESTIONS)
        arrived = f"{round(100 * row['arrived'])} %".replace("-", "−")
        lines.append(start + f"| {row['layers']} | " + " | ".join(marks) + f" | {arrived} |")
    lines += ["", *(f"- **{row['name']}**: {row['refused']}" for row in record["rows"] if "refused" in row)]
    lines += ["", ", ".join(f"{package} {number}" for package, number in versions.items()) + "."]
    (MEASURED / "architectures.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Examines what is named on the command line."""
    if sys.argv[1:2] == ["--print"]:
        print(json.dumps(examine(sys.argv[2])))
        return
    path = MEASURED / "architectures.json"
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    for name in sys.argv[1:] or [one.name for one in architectures.ARCHITECTURES]:
        rows[name] = examine_apart(name)
        print(name, rows[name], flush=True)
        _write(rows)


if __name__ == "__main__":
    main()
