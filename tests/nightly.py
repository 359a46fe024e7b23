"""Whether this is the nightly run, which takes all cases and draws many more (make nightly)."""

import os

NIGHTLY = "FUZZ_PROGRAMS" in os.environ


def drawn(by_day: int) -> int:
    """How many random programs or networks are drawn: by day the given number."""
    return int(os.environ.get("FUZZ_PROGRAMS", by_day))
