"""Keeps pytest from importing what is no test: it needs the packages of `constraints-doors.txt`."""

from pathlib import Path

collect_ignore = [path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_")]
