"""Runs a door: a script that explains a model of another library, as "Bring your own model" shows it.

    python doors.py [NAME ...]

writes what these doors, or all, print to `expected/NAME.txt`, and the picture that they save to `expected/NAME.png`,
where the book and the tests find them. Look at both before you commit them. No door may have the name of a package.

A door finds a photograph in its folder, as a user has one there. Keras and PyTorch draw weights at random, with seeds
that are set here: a program needs none once its weights are trained.
"""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib.cbook import get_sample_data

FOLDER = Path(__file__).parent
EXPECTED = FOLDER / "expected"
PHOTOGRAPH = "photo.jpg"
PICTURE = "relevance.png"
SEED = "import random; random.seed(0)"  # from which Keras takes its own
SEED_OF_TORCH = "import torch; torch.manual_seed(0)"
DOORS = sorted(path.stem for path in EXPECTED.glob("*.txt"))


def code_until_picture(name: str) -> list[str]:
    """The lines of code of a door, from the first to the one that saves the picture."""
    lines = (FOLDER / f"{name}.py").read_text().splitlines()
    saved = next(i for i, line in enumerate(lines) if line.startswith("explanation.to_png("))
    return [line for line in lines[: saved + 1] if line and not line.startswith("#")]


def imported(name: str) -> set[str]:
    """The packages that a door imports."""
    found = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


def missing(name: str) -> list[str]:
    """Those of them that are not installed."""
    return sorted(package for package in imported(name) if importlib.util.find_spec(package) is None)


def run(name: str, folder: Path) -> str:
    """Runs a door in a folder with a photograph, on the CPU, and returns what it prints.

    Raises:
        RuntimeError: If it ends with an error.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore", "COLUMNS": "80"}
    shutil.copy(get_sample_data("grace_hopper.jpg", asfileobj=False), folder / PHOTOGRAPH)
    seeds = [SEED, SEED_OF_TORCH] if {"torch", "torchax"} & imported(name) else [SEED]
    program = "\n".join([*seeds, "import runpy, sys", "runpy.run_path(sys.argv[1])"])
    command = [sys.executable, "-P", "-c", program, str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}.py ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Writes what is expected of the doors that are named, or of all of them."""
    for name in sys.argv[1:] or DOORS:
        with tempfile.TemporaryDirectory() as folder:
            (EXPECTED / f"{name}.txt").write_text(run(name, Path(folder)))
            (EXPECTED / f"{name}.png").write_bytes((Path(folder) / PICTURE).read_bytes())
        print(f"{name}.txt, {name}.png")


if __name__ == "__main__":
    main()
