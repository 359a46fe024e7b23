"""Sphinx extension: executed chapters are kept for one state of `lrp_jax`, the book's modules and their dependencies.

The notebook cache looks at the cells of a chapter alone and would keep numbers of an older
package. So each state of the package gets a folder of its own.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

ROOT = Path(__file__).parents[2]


def package_state(root: Path = ROOT) -> str:
    """Returns a hash of the package's files, the book's modules, the pinned versions and Python's version."""
    files = [root / "constraints.txt", *(root / "book").glob("*.py")]
    files += (path for path in (root / "lrp_jax").rglob("*") if "__pycache__" not in path.parts)
    state = hashlib.sha256(sys.version.encode())
    for path in sorted(filter(Path.is_file, files)):
        state.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


def set_cache_path(app: Sphinx, config: Config) -> None:
    """Gives the present state of the package its own folder of executed chapters."""
    config.nb_execution_cache_path = str(Path(app.outdir).parent / ".jupyter_cache" / package_state())


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx."""
    app.connect("config-inited", set_cache_path)
    return {"parallel_read_safe": True}
