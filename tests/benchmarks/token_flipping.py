"""Which tokens of small transformers count: what flipping them says of three methods and of three baselines.

    python token_flipping.py [--resume]

The transformer, its pictures and its training are those of the page "Explain a transformer", whose code this program
runs. It trains eight of them on those pictures, and eight on pictures with blots, in which ink misleads.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from myst_nb.core.read import read_myst_markdown_notebook
from numpy.typing import NDArray
from results import FOLDER, origin
from scipy import stats

from lrp_book.bands import Band

SEEDS = range(8)
PICTURES = 200
FILE = FOLDER / "token-flipping.json"

Pictures = Callable[[int, int], tuple[NDArray[np.float32], NDArray[np.int64]]]


def code_of_the_page() -> dict[str, Any]:
    """What the page imports and defines."""
    page = read_myst_markdown_notebook((FOLDER.parent / "transformers.md").read_text())
    names: dict[str, Any] = {}
    for cell in page.cells:
        if cell.cell_type == "code" and cell.source.startswith(("from dataclasses", "class ", "def ", "@")):
            exec(cell.source.split("\n\n\nmodel = ")[0], names)
    return names


def with_blots(pictures: Pictures) -> Pictures:
    """The same pictures with black squares in three of the four corners, which say nothing about the class."""

    def drawn(number: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        images, labels = pictures(number, seed)
        empty = np.random.default_rng([seed, 1]).integers(0, 4, number)
        for corner, (row, column) in enumerate([(1, 1), (1, 22), (22, 1), (22, 22)]):
            images[empty != corner, row : row + 5, column : column + 5] = 1
        return images, labels

    return drawn


def measured(page: dict[str, Any], pictures: Pictures, seed: int) -> dict[str, Any]:
    """The accuracy of a transformer, and how far its logit falls on average in the order of each method."""
    model = page["trained"](seed, pictures)
    images, labels = pictures(1000, 0)
    tokens = jnp.asarray(page["as_tokens"](images))
    accuracy = float((model(tokens).argmax(1) == labels).mean())
    few, their_labels = tokens[:PICTURES], labels[:PICTURES]
    drops = {
        name: round(float(page["drop"](model, few, their_labels, order).mean()), 4)
        for name, order in page["scores"](model, few, their_labels).items()
    }
    return {"seed": seed, "accuracy": accuracy, "drops": drops}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The mean drops in Markdown, and how far they exceed that in the order of ink in the same network."""
    tasks = list(dict.fromkeys(row["pictures"] for row in rows))
    headings = ["Order", *(heading for task in tasks for heading in (f"Drop, {task}", "Beyond ink"))]
    lines = [headings, ["---"] * len(headings)]
    for name in rows[0]["drops"]:
        cells = [name]
        for task in tasks:
            cells.append(interval([row["drops"][name] for row in rows if row["pictures"] == task]))
            cells.append("" if name == "ink" else interval(differences(rows, task, name, "ink")))
        lines.append(cells)
    numbers = ", ".join(f"{sum(row['pictures'] == task for row in rows)} networks for {task}" for task in tasks)
    closer = " and ".join(f"{interval(differences(rows, task, 'AttnLRP', 'CP-LRP'))} for {task}" for task in tasks)
    note = f"Means over networks, with their 95 % interval (t); {numbers}. AttnLRP exceeds CP-LRP by {closer}."
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + f"\n{note}\n"


def differences(rows: Sequence[dict[str, Any]], task: str, one: str, other: str) -> list[float]:
    """How far the logit falls beyond another order, in each network."""
    return [row["drops"][one] - row["drops"][other] for row in rows if row["pictures"] == task]


def interval(values: Sequence[float]) -> str:
    """The mean over networks, and in brackets its 95 % interval."""
    mean = np.mean(values)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return Band(mean, mean - half, mean + half).as_text()


def main() -> None:
    """Measures, and writes the file after each transformer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resume", action="store_true")
    resume = parser.parse_args().resume
    page = code_of_the_page()
    tasks = {"lines": page["shapes"], "lines and blots": with_blots(page["shapes"])}
    rows = json.loads(FILE.read_text())["rows"] if resume and FILE.exists() else []
    done = {(row["pictures"], row["seed"]) for row in rows}
    about = {"what": (__doc__ or "").splitlines()[0], **origin("lrp_jax", "jax", "flax")}
    for seed, name in itertools.product(SEEDS, tasks):
        if (name, seed) not in done:
            rows.append({"pictures": name} | measured(page, tasks[name], seed))
            FILE.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
            print(rows[-1], flush=True)
    FILE.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
