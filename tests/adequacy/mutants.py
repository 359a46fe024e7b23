"""Draws mutants at random and runs the tests against each of them, for `make mutation`.

mutmut writes the mutants and notes which tests reach which function. JAX does not survive a fork, by which mutmut
itself runs its mutants, so here each has a process of its own: first with the tests that reach it, those of its own
module before others and the fastest first, then with all of its module and those of whole models. It is killed by the
first that fails.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path("mutants")
RESULTS = FOLDER / "drawn.json"
SEED = 2020
SECONDS = 600  # that each of the two runs of a mutant may take; one that takes longer is not counted as killed
WHOLE_MODELS = ("everyones_models", "bad_input", "tokens", "marks", "attention", "maxima", "networks", "transform")


def all_names() -> list[str]:
    """The names of all mutants that mutmut has written."""
    notes = [json.loads(file.read_text()) for file in FOLDER.rglob("*.meta")]
    return sorted(name for note in notes for name in note["exit_code_by_key"])


def drawn(number: int) -> list[str]:
    """As many names of mutants, always the same."""
    names = all_names()
    return random.Random(SEED).sample(names, min(number, len(names)))


def tests_that_reach(name: str) -> list[str]:
    """The tests that run the function that a mutant changes: those of its module, then others, the fastest first."""
    noted = json.loads((FOLDER / "mutmut-stats.json").read_text())
    own_file = f"test_{module_of(name)}.py::"
    tests = noted["tests_by_mangled_function_name"].get(name.rpartition("__mutmut_")[0], [])
    return sorted(tests, key=lambda test: (own_file not in test, noted["duration_by_test"][test]))


def module_of(name: str) -> str:
    """The module of a mutant, which is `rules` for `lrp_jax.rules.xǁZBoxǁshares__mutmut_3`."""
    return name.split(".")[-2]


def status(name: str) -> str:
    """What becomes of a mutant: "killed", "survived" or "timeout"."""
    files = [path.relative_to(FOLDER).as_posix() for path in (FOLDER / "tests").rglob("test_*.py")]
    wider = [file for test in (module_of(name), *WHOLE_MODELS) for file in files if file.endswith(f"test_{test}.py")]
    found = "survived"
    for tests in (tests_that_reach(name), wider):
        if tests and (found := _run(name, tests)) == "killed":
            break
    return found


def _run(name: str, tests: Sequence[str]) -> str:
    arguments = FOLDER / "tests-of-a-mutant"
    arguments.write_text("\n".join(tests))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-pno:cacheprovider", "-pno:xdist", f"@{arguments.name}"]
    paths = os.pathsep.join(str((FOLDER / part).resolve()) for part in (".", "book"))
    environment = os.environ | {"MUTANT_UNDER_TEST": name, "PYTHONPATH": paths}
    try:
        done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "timeout"
    return "killed" if done.returncode in (1, 2) else "survived"  # 2: not even collected


def main(number: int) -> None:
    """Runs the mutants that are drawn and writes what became of them; those that are there are not run again."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in drawn(number):
        if name not in known:
            known[name] = status(name)
            RESULTS.write_text(json.dumps(known, indent=1) + "\n")
            print(name, known[name], flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
