"""Draws `book/measured/peers.svg` from `peers.json`: the time of each library's rules on each network.

python plot.py
"""

import json

import matplotlib.pyplot as plt
from results import FOLDER

from lrp_book import figures

MARKERS = {"lrp_jax": "o", "zennit": "s", "captum": "^", "autolrp": "D"}


def main() -> None:
    """Draws the figure."""
    figures.use()
    rows = json.loads((FOLDER / "peers.json").read_text())["rows"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    rules = list(dict.fromkeys(row["rules"] for row in rows if row["rules"] != "gradient"))
    figure, panels = plt.subplots(1, len(networks), figsize=(6.2, 3.4), sharey=True)
    for panel, network in zip(panels, networks, strict=True):
        for library, marker in MARKERS.items():
            chosen = [r for r in rows if r["network"] == network and r["library"] == library]
            at = [rules.index(row["rules"]) for row in chosen]
            panel.plot([row["ratio"] for row in chosen], at, marker, label=library, alpha=0.9)
        panel.axvline(1, color=figures.INK, linewidth=0.8)
        panel.set(title=network, xscale="log", xticks=[1, 2, 4, 8], xticklabels=["1", "2", "4", "8"])
        panel.minorticks_off()
        panel.grid(axis="x")
    panels[0].set_yticks(range(len(rules)), rules)
    panels[0].invert_yaxis()
    figure.supxlabel("time / time of the library's own input gradient", fontsize=9.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(MARKERS))
    (FOLDER / "peers.svg").write_text(figures.as_svg(figure))


if __name__ == "__main__":
    main()
