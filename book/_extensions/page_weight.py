"""Sphinx extension: a page loads what it shows, and not what a theme might need.

Without it every page loads two thousand icons, twice: as a script and as a font, with their names in a style sheet, of
which the book shows twenty; and the front page loads MathJax, as other pages have formulas.
"""

import re
from pathlib import Path
from typing import Any

from fontTools import subset
from sphinx.application import Sphinx

ICON = re.compile(
    r'(?:"(?P<quoted>[\w-]+)"|(?P<plain>[A-Za-z_$][\w$]*))'
    r':\[\d+,\d+,\[(?P<others>[^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?'
)
ICON_STYLES = re.compile(r'(?:\.fa-[\w-]+:before,?)+\{content:"[^"]*"\}')
CLASS = re.compile(r"\bfa-([a-z0-9][\w-]*)")
SOURCES_OF_FONT = re.compile(r'url\((?P<path>[^)]*/webfonts/fa-[^)]*)\.woff2\) format\("woff2"\),')
SYMBOL = re.compile("[\ue000-\uf8ff]")  # what fonts use for characters of their own
FORMULA = re.compile(r'class="[^"]*\bmath\b')


def leave_mathjax_out(app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Takes MathJax from a page that has no formula, whatever the pages below it have."""
    if app.builder.name == "html" and not FORMULA.search(context.get("body", "")):
        context["script_files"] = [script for script in context["script_files"] if not is_mathjax(script)]


def is_mathjax(script: Any) -> bool:
    """Whether a script is MathJax or its settings."""
    return "mathjax" in str(script.filename) or "MathJax" in script.attributes.get("body", "")


def leave_icons_out(app: Sphinx, exception: Exception | None) -> None:
    """Takes the icons that no page shows from what the theme brings."""
    static = Path(app.outdir, "_static")
    script, sheet = static / "scripts" / "fontawesome.js", static / "styles" / "pydata-sphinx-theme.css"
    if exception is None and app.builder.format == "html":
        names = icons_of(Path(app.outdir), script)
        script.write_text(script_with(script.read_text(), names))
        sheet.write_text(sheet_with(sheet.read_text(), names))
        for font in (static / "vendor" / "fontawesome" / "webfonts").glob("*.ttf"):
            keep_characters(font, set(map(ord, SYMBOL.findall(sheet.read_text()))))


def icons_of(outdir: Path, icons: Path) -> set[str]:
    """Returns the names of all icons in the pages and scripts of the book, but for the script that draws them."""
    files = [*outdir.rglob("*.html"), *outdir.rglob("*.js")]
    return {name for file in files if file != icons for name in CLASS.findall(file.read_text())}


def script_with(script: str, names: set[str]) -> str:
    """Returns the script that draws icons with those of some names alone."""

    def kept(icon: re.Match[str]) -> str:
        own = {icon["quoted"] or icon["plain"], *re.findall(r'"([\w-]+)"', icon["others"])}
        return icon.group() if own & names else ""

    return ICON.sub(kept, script)


def sheet_with(sheet: str, names: set[str]) -> str:
    """Returns the theme's style sheet with the icons of some names alone, and their fonts in the format that is cut."""

    def kept(styles: re.Match[str]) -> str:
        return styles.group() if names & set(CLASS.findall(styles.group())) else ""

    return SOURCES_OF_FONT.sub("", ICON_STYLES.sub(kept, sheet))


def keep_characters(font: Path, codes: set[int]) -> None:
    """Leaves some characters in a font, and no others."""
    options = subset.Options(drop_tables=["FFTM"], notdef_outline=True)
    with subset.load_font(font, options) as loaded:
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=codes)
        subsetter.subset(loaded)
        subset.save_font(loaded, font, options)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx, behind those that add scripts to a page."""
    app.connect("html-page-context", leave_mathjax_out, priority=900)
    app.connect("build-finished", leave_icons_out)
    return {"parallel_read_safe": True}
