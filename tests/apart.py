"""Python in a process of its own, with further flags of XLA."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
INHERITED = ("PATH", "HOME", "PYTHONPATH", "MUTANT_UNDER_TEST")  # the last for mutation testing


def run_apart(call: str, flags: str) -> str:
    """Runs a line of Python that may import the tests, with further flags of XLA, and returns the last line printed."""
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, [environment.get("PYTHONPATH")])])
    environment |= {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}", "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [sys.executable, "-c", call],
        cwd=TESTS / "core",
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()[-1]
