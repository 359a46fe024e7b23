"""Sphinx extension: the numbers that a run puts into a sentence are written as the rest of the book writes numbers.

Formats of Python write 1.6e-07 and a hyphen; readers expect 1.6 × 10⁻⁷ and a minus sign.
"""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

NUMBER = re.compile(r"([-+]?)(\d[\d,.]*)(?:e([-+]?\d+))?")
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def written(text: str) -> str:
    r"""Returns a number in the book's notation, and any other text as it is.

    Example:
        >>> [written(text) for text in ("1.6e-07", "1e-07", "-0.36", "12,345", "2026-11-29")]
        ['1.6\xa0×\xa010⁻⁷', '10⁻⁷', '−0.36', '12,345', '2026-11-29']
    """
    number = NUMBER.fullmatch(text)
    if number is None:
        return text
    sign, mantissa, exponent = number.groups()
    sign = sign.replace("-", "−")
    if exponent is None:
        return sign + mantissa
    power = f"10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return sign + (power if mantissa == "1" else f"{mantissa}\xa0×\xa0{power}")


def write_numbers(_app: Sphinx, doctree: nodes.document) -> None:
    """Rewrites the numbers that the run has put into the text of a page."""
    for pasted in doctree.findall(nodes.inline):
        if "pasted-text" in pasted["classes"]:
            pasted.children = [nodes.Text(written(pasted.astext()))]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx."""
    app.connect("doctree-read", write_numbers)
    return {"parallel_read_safe": True}
