"""What is printed into which file: the contents of the book, and what its pages say of themselves."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Part:
    """Pages that stand together in the contents.

    Attributes:
        caption: The heading above them.
        pages: Their names, in their order.
        sections: Those among them that belong to the page before.
    """

    caption: str
    pages: Sequence[str]
    sections: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Volume:
    """What becomes one file.

    Attributes:
        title: The title of the book.
        subtitle: What of the book it has, where it is not the chapters.
        opening: The page that stands before the others; None if there is none.
        parts: The others.
    """

    title: str
    subtitle: str
    opening: str | None
    parts: Sequence[Part]

    @property
    def pages(self) -> list[str]:
        """All pages in their order."""
        opening = [self.opening] if self.opening else []
        return opening + [page for part in self.parts for page in part.pages]


def volumes(root: Path) -> dict[str, Volume]:
    """The files by their names: the first part of the contents with the pages it needs, and all the others.

    A page of another part says in its head, as `printed_with: Chapters`, that the first file needs it, too.

    Args:
        root: The folder of `_toc.yml`.
    """
    contents = yaml.safe_load((root / "_toc.yml").read_text())
    title = yaml.safe_load((root / "_config.yml").read_text())["title"]
    chapters, *others = map(_part, contents["parts"])
    pages = [page for part in others for page in part.pages]
    needed = Part("Appendix", [page for page in pages if _head(root, page).get("printed_with") == chapters.caption])
    return {
        "book": Volume(title, "", contents["root"], [chapters, needed]),
        "reference": Volume(title, "Guides and reference", None, others),
    }


def _part(part: Mapping[str, Any]) -> Part:
    sections = {chapter["file"]: [page["file"] for page in chapter.get("sections", [])] for chapter in part["chapters"]}
    pages = [page for chapter, below in sections.items() for page in [chapter, *below]]
    return Part(part["caption"], pages, frozenset(page for below in sections.values() for page in below))


def _head(root: Path, page: str) -> dict[str, Any]:
    """What stands in the head of a page's source."""
    found = re.match(r"---\n(.*?)\n---\n", (root / f"{page}.md").read_text(), re.DOTALL)
    return yaml.safe_load(found[1]) if found else {}
