"""Where measurements are kept: `book/measured`, as JSON with the machine and the versions, and as a table."""

import ctypes
import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "book" / "measured"


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


Times = dict[str, list[float]]


def interleaved(timer: Callable[[str], float], methods: Iterable[str], ratios: Times, times: Times) -> None:
    """One round: every method between two gradients.

    Args:
        timer: Runs a method, or "gradient", and returns its seconds.
        methods: The names of the methods.
        ratios: Takes the time of each method relative to the mean of the gradients before and after it.
        times: Takes the seconds of each method and of the gradient.
    """
    before = timer("gradient")
    for method in methods:
        took, after = timer(method), timer("gradient")
        ratios.setdefault(method, []).append(2 * took / (before + after))
        times.setdefault(method, []).append(took)
        times.setdefault("gradient", []).append(before := after)


def peak_memory(call: Callable[[], Any]) -> int:
    """The memory that a call needs at its peak beyond what the process holds before it, in bytes; Linux only."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def machine() -> str:
    """The processor, its cores in use and the operating system."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].split(":")[1].strip() if models else platform.machine()
    return f"{model} ({platform.machine()}), {len(os.sched_getaffinity(0))} cores, {platform.system()}"


def versions(*packages: str) -> dict[str, str]:
    """The versions of packages, Python's in front."""
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def origin(*packages: str) -> dict[str, Any]:
    """When, where and with which versions something is measured."""
    today = datetime.datetime.now(datetime.UTC).date()
    return {"date": today.isoformat(), "machine": machine(), "versions": versions(*packages)}


def save(
    name: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], about: Mapping[str, Any], note: str
) -> None:
    """Writes `name`.json with all that was measured, and `name`.md with a table of it.

    Args:
        name: Of the files.
        rows: What was measured.
        columns: The heading and the format of each column of the table, by the key in the rows.
        about: The machine and the versions.
        note: What the table shows.
    """
    FOLDER.mkdir(exist_ok=True)
    record = {"machine": machine(), "versions": about, "rows": list(rows)}
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    headings = [column.split("|") for column in columns.values()]
    cells = [
        [format(row[key], form) if key in row else "" for key, (_, form) in zip(columns, headings, strict=True)]
        for row in rows
    ]
    lines = [
        "| " + " | ".join(heading for heading, _ in headings) + " |",
        "| " + " | ".join("---" if form == "" else "---:" for _, form in headings) + " |",
        *("| " + " | ".join(row) + " |" for row in cells),
        "",
        f"{note} {record['machine']}; " + ", ".join(f"{key} {value}" for key, value in about.items()) + ".",
    ]
    (FOLDER / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)
