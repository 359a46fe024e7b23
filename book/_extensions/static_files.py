"""Sphinx extension: pages are written again when a style sheet or a script of the book has changed.

Sphinx copies these files only in a build that writes pages, and each page names them with a checksum.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx


def digest(folders: Sequence[Path]) -> str:
    """Returns a text that is another one if a file in the folders is."""
    contents = hashlib.sha256()
    for folder in folders:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            contents.update(f"{file.relative_to(folder)} {file.stat().st_size} ".encode())
            contents.update(file.read_bytes())
    return contents.hexdigest()


def setup(app: Sphinx) -> dict[str, Any]:
    """Makes the files a part of the configuration on which the written pages depend."""

    def now(config: Any) -> str:
        return digest([Path(app.confdir) / name for name in config.html_static_path])

    app.add_config_value("static_digest", now, "html")
    return {"parallel_read_safe": True}
