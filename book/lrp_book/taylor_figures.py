"""Figures of the chapter on deep Taylor decomposition."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lrp_book import figures
from lrp_book.draggable_root import LEAST, MOST, DraggableRoot
from lrp_book.fitted_relevance import MODELS, STEPS
from lrp_book.measured_relevance_models import Training
from lrp_jax.deep_taylor import TaylorDecomposition


def moved_to_the_boundary(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, root: jax.Array, parts: TaylorDecomposition
) -> Figure:
    """A function of two inputs with the way from x to a root, and the decomposition there as bars."""
    side = jnp.linspace(-0.6, 2.4, 201)
    first, second = jnp.meshgrid(side, side)
    values = function(jnp.stack([first, second]))
    figure = Figure(figsize=(6.2, 3.1))
    plane, bars = figure.subplots(1, 2, width_ratios=[1.5, 1])
    bands = jnp.floor(2 * values) / 2 + 0.25
    drawn = plane.imshow(bands, cmap="RdBu_r", vmin=-3, vmax=3, origin="lower", extent=(-0.6, 2.4, -0.6, 2.4))
    plane.contour(first, second, values, [0.0], colors="black", linewidths=2)
    plane.annotate("", root, x, arrowprops={"arrowstyle": "->"})
    plane.plot([x[0], root[0], root[0]], [x[1], x[1], root[1]], ":", color="black")
    plane.plot(*x, "o", color="black")
    plane.plot(*root, "o", color="black", markerfacecolor="white")
    plane.annotate("$x$", x, (6, 4), textcoords="offset points")
    plane.annotate(r"$\hat x$", root, (-14, -10), textcoords="offset points")
    plane.text(-0.55, 2.08, "$f = 0$")
    plane.set(xlabel="$x_1$", ylabel="$x_2$")
    figure.colorbar(drawn, ax=plane, label="$f(x)$", ticks=range(-3, 4))
    heights = np.array([*parts.relevance, parts.remainder])
    bottoms = [0, heights[0], heights[:2].sum(), 0]
    colours = [figures.RED, figures.RED, figures.GREY, figures.INK]
    bars.bar(["$R_1$", "$R_2$", r"$\Delta$", "$f(x)$"], [*heights, function(x)], bottom=bottoms, color=colours)
    bars.set_ylabel("share of the evidence")
    return figure


def remainder_by_distance(far: ArrayLike, share: ArrayLike, distances: ArrayLike, remainders: ArrayLike) -> Figure:
    """The remainder against the distance to the root: of a smooth function, and of digits."""
    far, share = np.asarray(far), np.asarray(share)
    figure = Figure(figsize=(6.2, 2.9))
    left, right = figure.subplots(1, 2)
    left.loglog(far, share, "o-", markersize=3, color=figures.INK)
    left.loglog(far[:16], share[0] * far[:16] / far[0], ":", color=figures.RED, label="slope 1")
    left.legend()
    left.set(xlabel="distance to the root", ylabel="remainder (% of $f$)", title="detector")
    right.plot(distances, remainders, "o", color=figures.INK, markersize=4, alpha=0.5, markeredgewidth=0)
    right.axhline(0, color=figures.MUTED, linewidth=0.8)
    right.set(xlabel="distance to the root (%)", title="digits, downhill")
    return figure


def roots_of_a_neuron(neuron: DraggableRoot) -> Figure:
    """The plane of a neuron with its roots under w^2, z+ and z-box, for weights of which the second is negative."""
    extent = (LEAST, MOST, LEAST, MOST)
    side = np.linspace(LEAST, MOST, 301)
    first, second = np.meshgrid(side, side)
    z = np.maximum(first * neuron.w[0] + second * neuron.w[1], 0)
    figure = Figure(figsize=(5.4, 4.4))
    plane = figure.subplots()
    drawn = plane.imshow(z, cmap="RdBu_r", vmin=-8, vmax=8, origin="lower", extent=extent)
    plane.plot(side, -side * neuron.w[0] / neuron.w[1], color="black", linewidth=2)
    (left, lower), (right, upper) = neuron.low, neuron.high
    plane.plot([left, right, right, left, left], [lower, lower, upper, upper, lower], "--", color="black", linewidth=1)
    ends = {"w²": None, "z⁺": (0.0, neuron.x[1]), "z-box": (left, upper)}
    places = {"w²": (-22, 4), "z⁺": (8, -14), "z-box": (-38, -4)}
    for (name, end), colour in zip(ends.items(), (figures.GREEN, figures.PURPLE, figures.ORANGE), strict=True):
        root = tuple(neuron.root(name).tolist())
        if end is not None:
            plane.plot(*zip(root, end, strict=True), ":", color=colour)
            plane.plot(*end, "s", color=colour, markerfacecolor="none")
        plane.annotate("", root, neuron.x, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.8})
        plane.plot(*root, "o", color=colour)
        plane.annotate(name, root, places[name], textcoords="offset points", color=colour)
    plane.plot(*neuron.x, "o", color="black")
    plane.annotate("$x$", neuron.x, (7, -3), textcoords="offset points")
    plane.set(xlabel="$x_1$", ylabel="$x_2$", xlim=extent[:2], ylim=extent[2:])
    bar = figure.colorbar(drawn, ax=plane, label="activation", ticks=range(0, 9, 2))
    bar.ax.set_ylim(0, 8)
    return figure


def relevance_models(brief: Training, long: Training) -> Figure:
    """How well the models fit in each detector, and what they err on the way to the roots."""
    colours = {"1": figures.BLUE, "2": figures.ORANGE}
    figure = Figure(figsize=(6.2, 3.6))
    left, right = figure.subplots(1, 2)
    names = ["training-free", *(name for name, _, _ in MODELS)]
    for row, name in enumerate(names):
        for training, layer, shift in [(brief, "1", 0.06), (long, "1", -0.24), (brief, "2", 0.24), (long, "2", -0.06)]:
            inside = colours[layer] if training is long else "none"
            values = training.values("fit", layer, name)
            places = np.full(len(values), row + shift)
            left.plot(values, places, "o", color=colours[layer], markerfacecolor=inside, markersize=4)
    left.set_yticks(range(len(names)), ["one constant", "1 neuron", "1, above", "4 neurons", "4, above"])
    left.invert_yaxis()
    left.set(xlabel="$R^2$")
    for layer, colour in colours.items():
        for model, style in (("training-free", "-"), ("min-max", "--")):
            for number, errors in enumerate(long.values("way", layer, model)):
                label = None if number else f"{model}, layer {layer}"
                right.plot(STEPS, errors, style, color=colour, linewidth=1.2, label=label)
    right.set(xlabel="way to the root", ylabel="error (%)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


Rows = Sequence[Sequence[str | int | float | None]]


def rows_of_fits(brief: Training, long: Training) -> Rows:
    """The rows of a table: what each model explains in layers 1 and 2, after the long training and the brief."""
    names = ["training-free", *(name for name, _, _ in MODELS)]
    columns = [(training, layer) for training in (long, brief) for layer in "12"]
    return [[name, *(one.band("fit", layer, name).as_text() for one, layer in columns)] for name in names]


def texts_of_models(trainings: Mapping[str, Training]) -> dict[str, str]:
    """What the chapter says of relevance models, by name, with the mean over the detectors, the lowest and highest."""
    found = {}
    for name, one in trainings.items():
        found[f"{name}-right"] = one.band("accuracy").as_text(100, 1, " %")
        for layer in "12":
            found[f"{name}-free-{layer}"] = one.band("fit", layer, "training-free").as_text()
            for model in ("training-free", "min-max"):
                found[f"{name}-way-{layer}-{model}"] = one.worst_on_the_way(layer, model).as_text(1, 0, " %")
        for model in ("training-free", "min-max", "LRP-0"):
            found[f"{name}-share-{model}"] = one.band("maps", f"share {model}").as_text(1, 0, " %")
        for key in ("sum", "sum low", "sum high", "correlation min-max", "correlation LRP-0"):
            found[f"{name}-{key.replace(' ', '-')}"] = one.band("maps", key).as_text()
    return found
