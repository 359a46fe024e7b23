"""What the package says of where it is published: the address in the environment variable LRP_JAX_URL, if any."""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

IMAGE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<path>[^):]+)\)\n*")
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<path>[^):#]+)\)")


class PublishedAt(MetadataHookInterface):
    """Adds the links of the project and its description, the README."""

    def update(self, metadata: dict[str, object]) -> None:
        """Adds them to the metadata of the package."""
        address = os.environ.get("LRP_JAX_URL", "").rstrip("/")
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": description(readme, address)}
        metadata["urls"] = urls(address)


def urls(address: str) -> dict[str, str]:
    """Returns the links of the project.

    Args:
        address: Of the repository, without a slash at its end; empty if it is not published.
    """
    if not address:
        return {}
    changelog, issues = f"{address}/blob/HEAD/CHANGELOG.md", f"{address}/issues"
    return {"Repository": address, "Changelog": changelog, "Issues": issues}


def description(readme: str, address: str) -> str:
    """Returns the README as it can be read elsewhere: its images and links with the address of the repository.

    Args:
        readme: The README, whose links into the repository are relative.
        address: Of the repository. If it is empty, images are left out, and links are their text.
    """
    image = rf"![\g<text>]({address}/raw/HEAD/\g<path>)\n\n" if address else ""
    link = rf"[\g<text>]({address}/blob/HEAD/\g<path>)" if address else r"\g<text>"
    return LINK.sub(link, IMAGE.sub(image, readme))
