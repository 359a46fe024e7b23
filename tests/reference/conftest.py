"""Keeps pytest from importing the script that needs zennit's own environment."""

collect_ignore = ["make_zennit.py"]
