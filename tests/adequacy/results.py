"""Condenses what coverage.py and the mutants found to `book/data/testing.json`, for the page "How this is tested".

Run by `make coverage` as `python results.py coverage`, by `make mutation` as `python results.py mutation`.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import mutants

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "book" / "data" / "testing.json"
REASONS = Path(__file__).with_name("survivors.toml")


def coverage() -> dict[str, Any]:
    """What `_build/coverage.json` says: how many lines and branches there are, how many ran, and which did not."""
    report = json.loads((ROOT / "_build" / "coverage.json").read_text())
    totals = report["totals"]
    return {
        "lines": totals["num_statements"],
        "lines run": totals["covered_lines"],
        "branches": totals["num_branches"],
        "branches taken": totals["covered_branches"],
        "not run": {
            Path(file).name: _not_run(entry["missing_lines"], entry["missing_branches"])
            for file, entry in report["files"].items()
            if entry["missing_lines"] or entry["missing_branches"]
        },
    }


def _not_run(lines: list[int], branches: list[list[int]]) -> list[str]:
    """Lines, and the ways between lines that ran; a way to a negative number leads out of the function."""
    ways = [f"{a} to {b}" if b > 0 else f"{a} to the end" for a, b in branches if b not in lines]
    return [*map(str, lines), *ways]


def mutation() -> dict[str, Any]:
    """How many of the mutants that were drawn the tests told from the code, by file, and why the others survived.

    A mutant is killed if a test failed. One that ran out of time is not counted as killed.
    """
    files: dict[str, dict[str, int]] = {}
    survivors = []
    for name, status in json.loads((ROOT / mutants.RESULTS).read_text()).items():
        function, file = _function_of(name)
        counts = files.setdefault(file, {"mutants": 0, "killed": 0})
        counts["mutants"] += 1
        counts["killed"] += status == "killed"
        if status != "killed":
            survivors.append({"function": function, **_change(name), "status": status})
    reasons = {_key(entry): entry["reason"] for entry in tomllib.loads(REASONS.read_text()).get("survivor", [])}
    for survivor in survivors:
        survivor["reason"] = reasons.get(_key(survivor), "")
    return {"files": files, "survivors": survivors, "written": len(mutants.all_names())}


def _mutmut(*arguments: str) -> str:
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _function_of(name: str) -> tuple[str, str]:
    """The function of a mutant and its file: `lrp_jax.rules.xǁGammaǁshares__mutmut_3` is Gamma.shares of rules.py."""
    module, mangled = name.rsplit(".", 1)
    function = mangled.rsplit("__mutmut_", 1)[0].removeprefix("xǁ").removeprefix("x_").replace("ǁ", ".")
    return function, module.removeprefix("lrp_jax.") + ".py"


def _change(name: str) -> dict[str, str]:
    diff = [line for line in _mutmut("show", name).splitlines() if line[:3] not in {"---", "+++"}]
    return {
        "code": "\n".join(line[1:].strip() for line in diff if line.startswith("-")),
        "mutant": "\n".join(line[1:].strip() for line in diff if line.startswith("+")),
    }


def _key(survivor: dict[str, str]) -> tuple[str, str, str]:
    return survivor["function"], survivor["code"], survivor["mutant"]


def main(part: str) -> None:
    """Writes one part of the results; the other stays as it is."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[part] = {"coverage": coverage, "mutation": mutation}[part]()
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    for survivor in results[part].get("survivors", []):
        if not survivor["reason"]:
            print(f"No reason in {REASONS.name} for this survivor ({survivor['status']}):", *_key(survivor), sep="\n  ")


if __name__ == "__main__":
    main(sys.argv[1])
