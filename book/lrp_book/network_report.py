"""How good a classifier of digits is: its training, its mistakes, and whether its probabilities can be believed."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from lrp_book.datasets import Split, as_float
from lrp_book.figures import INK, MUTED, RED
from lrp_book.models import ConvolutionalNetwork
from lrp_book.tables import Table
from lrp_book.training import History, accuracy


def parameter_count(module: nnx.Module) -> int:
    """The number of weights and biases."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def parameters_of_steps(network: ConvolutionalNetwork, steps: Mapping[str, jax.Array]) -> Table:
    """The shape of everything that a network computes, and the number of parameters that it needs for it.

    Args:
        network: The network.
        steps: Batches by their names: "convolution 1", ..., "dense", "logits", and others without parameters.
    """
    layers: dict[str, nnx.Module] = dict(zip(("dense", "logits"), network.dense, strict=True))
    layers |= {f"convolution {number}": layer for number, layer in enumerate(network.convolutions, 1)}
    rows: list[list[str | int | None]] = [
        [name, " × ".join(map(str, value.shape[1:])), parameter_count(layers[name]) if name in layers else None]
        for name, value in steps.items()
    ]
    return Table(["step", "shape", "parameters"], [*rows, ["all", None, parameter_count(network)]])


def accuracies(networks: Mapping[str, nnx.Module], data: Split) -> Table:
    """What networks recognise, with the interval of Wilson, which holds for other images of the same kind."""
    rows: list[list[str | int]] = []
    for name, network in networks.items():
        number = len(data.labels)
        right = round(accuracy(network, data) * number)
        interval = binomtest(right, number).proportion_ci(method="wilson")
        between = f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"
        rows.append([name, parameter_count(network), f"{100 * right / number:.2f}", between, number - right])
    return Table(["network", "parameters", "right (%)", "95 % interval", "errors"], rows)


class Answers(NamedTuple):
    """What a network reads.

    Attributes:
        truth: The class of each image.
        read: The class that the network reads.
        probabilities: The probability of each class, of shape (images, classes).
    """

    truth: NDArray[np.int32]
    read: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    @property
    def wrong(self) -> NDArray[np.int64]:
        """The numbers of the images that are read wrongly."""
        return np.flatnonzero(self.read != self.truth)


def answers_of(model: Any, data: Split) -> Answers:
    """Reads all images of a split."""
    predict = jax.jit(lambda x: jax.nn.softmax(model(x)))
    batches = np.array_split(as_float(data.images), 10)
    probabilities = np.concatenate([predict(batch) for batch in batches])
    return Answers(data.labels, probabilities.argmax(axis=1), probabilities)


def confusion(answers: Answers, classes: int = 10) -> NDArray[np.int64]:
    """How many images of each class (rows) are read as which class (columns)."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (answers.truth, answers.read), 1)
    return counts


def mistakes_in_numbers(answers: Answers, others: Answers) -> dict[str, float]:
    """What kind of mistakes a network makes, and whether another network makes the same."""
    mistakes = confusion(answers) * (1 - np.eye(10, dtype=int))
    often = np.unravel_index(mistakes.argmax(), mistakes.shape)
    wrong, sureness = answers.wrong, answers.probabilities.max(axis=1)
    also = others.read[wrong] != others.truth[wrong]
    doubtful = sureness < 0.9
    return {
        "pairs": int((mistakes > 0).sum()),
        "often-true": int(often[0]),
        "often-read": int(often[1]),
        "often-count": int(mistakes.max()),
        "second-right": 100
        * float((np.argsort(answers.probabilities[wrong], axis=1)[:, -2] == answers.truth[wrong]).mean()),
        "sure-errors": int((sureness[wrong] > 0.9).sum()),
        "doubtful": int(doubtful.sum()),
        "doubtful-wrong": int((answers.read != answers.truth)[doubtful].sum()),
        "also-dense": 100 * float(also.mean()),
        "dense-alone": 100 * len(others.wrong) / len(others.truth),
        "same-answer": 100 * float((others.read[wrong] == answers.read[wrong])[also].mean()),
    }


def draw_training(history: History, test_accuracy: float) -> Figure:
    """Draws loss and accuracy of each epoch, a ring around the one that was kept, and the accuracy on the test set."""
    epochs = range(1, len(history.train_loss) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(4.8, 1.9))
    left.plot(epochs, history.train_loss, "o-", label="training")
    left.plot(epochs, history.validation_loss, "s--", label="validation")
    left.set(ylabel="cross-entropy", ylim=(0, None))
    left.legend()
    validation = 100 * np.array(history.validation_accuracy)
    right.plot(epochs, 100 * np.array(history.train_accuracy), "o-")
    right.plot(epochs, validation, "s--")
    kept = history.best_epoch
    right.plot(kept, validation[kept - 1], "o", markersize=12, markerfacecolor="none", color=INK)
    right.axhline(100 * test_accuracy, color=INK, linestyle=":", linewidth=1.2)
    right.set(ylabel="recognised (%)")
    for ax in (left, right):
        ax.set(xlabel="epoch", xticks=epochs)
    return figure


def draw_confusion(answers: Answers) -> Figure:
    """Draws the confusion matrix, in which only mistakes have a colour."""
    counts = confusion(answers)
    colours = LinearSegmentedColormap.from_list("mistakes", [f"{RED}00", f"{RED}c0"])
    figure, ax = plt.subplots(figsize=(5.4, 4.6))
    drawn = ax.imshow(counts * (1 - np.eye(10, dtype=int)), cmap=colours, vmin=0)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = MUTED if row == column else INK
            ax.text(column, row, str(count), ha="center", va="center", fontsize=10, color=colour)
    ax.set(xlabel="read as", ylabel="class", xticks=range(10), yticks=range(10))
    figure.colorbar(drawn, ax=ax, label="mistakes", shrink=0.8)
    return figure


def draw_surest_mistakes(answers: Answers, images: ArrayLike) -> Figure:
    """Draws the twelve mistakes of which the network is most certain."""
    sureness = answers.probabilities[answers.wrong].max(axis=1)
    figure, axes = plt.subplots(2, 6, figsize=(6.2, 2.9))
    for ax, number in zip(axes.flat, answers.wrong[np.argsort(-sureness)][:12], strict=True):
        ax.imshow(np.asarray(images)[number, ..., 0], cmap="gray")
        probability = answers.probabilities[number].max()
        ax.set_title(f"{answers.truth[number]} → {answers.read[number]}\n{probability:.3f}", fontsize=10)
        ax.set(xticks=[], yticks=[])
    return figure


class Calibration(NamedTuple):
    """Images grouped by the probability of the class that is read.

    Attributes:
        rows: For each group its limits, how many images it has, their mean probability, and the share that is right.
        error: The mean difference of the last two, weighted by the number of images.
    """

    rows: list[list[str | int | float]]
    error: float


def calibration(answers: Answers, edges: tuple[float, ...] = (0.0, 0.6, 0.8, 0.9, 0.97, 0.99, 1.0)) -> Calibration:
    """Whether as many answers are right as their probabilities say."""
    sureness, right = answers.probabilities.max(axis=1), answers.read == answers.truth
    rows: list[list[str | int | float]] = []
    error = 0.0
    for low, high in itertools.pairwise(edges):
        group = (sureness > low) & (sureness <= high)
        mean, share = float(sureness[group].mean()), float(right[group].mean())
        rows.append([f"{low} to {high}", int(group.sum()), mean, share])
        error += abs(mean - share) * group.mean()
    return Calibration(rows, error)
