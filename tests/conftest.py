"""What all tests share."""

import collections
import contextlib
import gc
import re
import runpy
import shutil
import sys
from pathlib import Path

import jax
import pytest
from compiling import compile_quickly
from nightly import NIGHTLY

collect_ignore_glob = ["benchmarks/*", "adequacy/*"]  # programs, not tests
# A grammar of addresses, made into a parser for two seconds when notebooks are first read: none has such an address.
sys.modules.setdefault("rfc3987_syntax", None)

if not NIGHTLY:
    compile_quickly()


def pytest_ignore_collect(collection_path, config):
    """Leaves out a file that is not named, and all of whose tests have a mark that is left out: some import much."""
    if collection_path.suffix != ".py" or any(collection_path.name in argument for argument in config.args):
        return None
    mark = re.search(r"^pytestmark = pytest\.mark\.(\w+)$", collection_path.read_text(), re.MULTILINE)
    return True if mark and f"not {mark[1]}" in config.option.markexpr else None


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Looks for no garbage while the tests are collected, nor later among what they and what they import consist of.

    Among all else it is looked for seldom: a trace makes many objects and little garbage, and the search took one part
    in twenty of the time.
    """
    gc.disable()
    result = yield
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()
    return result


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Leaves all but a part of the cases of tests that are marked with `sampled` to the nightly run.

    With names of parameters, the cases that share the values of these are taken together or not at all. Who asks for
    cases by name gets all of them.
    """
    if NIGHTLY or config.option.keyword or any("[" in argument for argument in config.args):
        return
    seen = collections.defaultdict(dict)
    kept, others = [], []
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker is None:
            kept.append(item)
            continue
        every, *names = marker.args
        numbers = seen[item.location[0], item.originalname]
        case = tuple(item.callspec.params[name] for name in names) if names else item.nodeid
        (others if numbers.setdefault(case, len(numbers)) % every else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=others)


@pytest.fixture
def collected():
    """Collects what is no longer used, of what is made from now on: all else is frozen, and not looked at."""
    gc.collect()
    gc.freeze()
    return gc.collect


@pytest.fixture
def float64():
    """Switches JAX to double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def compiled():
    """The names of the functions that JAX compiles during one test, as they come."""
    names = []

    def note(event, _, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(details["fun_name"].removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture(scope="module")
def browser():
    """The Chromium that prints the book; the tests are skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    printing = runpy.run_path(str(Path(__file__).parents[1] / "book" / "_pdf" / "chromium.py"))
    path = next(filter(None, map(shutil.which, printing["BROWSERS"])), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(printing['BROWSERS'])} is installed")
    with (
        api.sync_playwright() as playwright,
        contextlib.closing(playwright.chromium.launch(executable_path=path, args=printing["ARGUMENTS"])) as browser,
    ):
        yield browser
