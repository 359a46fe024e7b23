"""Keeps pytest from importing the scripts that need zennit's or Captum's own environment."""

collect_ignore = ["make_conventions.py", "make_zennit.py"]
