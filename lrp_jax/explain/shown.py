"""What an explanation shows of itself: a picture, a file of it, a summary, a line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lrp_jax.core.arguments import as_new_file
from lrp_jax.errors import StoreError
from lrp_jax.explain.display import Classes, described, explanation_as_html, summary_of
from lrp_jax.explain.growth import account_line
from lrp_jax.explain.pictures import draw_explanation
from lrp_jax.plotting.figures import as_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Shown:
    """What shows itself as a picture, a text and in a notebook: an explanation."""

    x: Any
    relevance: Any
    output: Any
    at: Mapping[str, Any]
    rules: Any
    explained: Any

    def plot(
        self,
        *,
        classes: Classes | None = None,
        tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
        channel_axis: int | None = None,
        samples: Sequence[int] | None = None,
    ) -> Figure:
        """Draws some samples: images above their maps, series as strips, texts in coloured words.

        Args:
            classes: The names of all classes, or a mapping from their numbers to them. Each sample shows the one with
                the largest output.
            tokens: The words of a text, one for each position; for several texts, a list of words for each sample.
            channel_axis: Which axis of one sample holds the channels of images or series, as NumPy counts: 0 or -1. If
                None, it is inferred from the shape, if only one fits.
            samples: Which samples, by their index; the first eight if None.

        Returns:
            A figure that shows itself in a notebook. `savefig` writes it to a file, as `to_png` does.

        Raises:
            ArrayError: If the input has none of these shapes, it cannot be told where its channels are, the numbers of
                classes or tokens are others, there is no such sample, or a value is not finite.
            MissingExtraError: If matplotlib is not installed.

        Example:
            >>> import jax.numpy as jnp
            >>> from lrp_jax import relevance
            >>> weight = jnp.ones((64, 2))
            >>> explanation = relevance(lambda x: x.reshape(-1, 64) @ weight, jnp.ones((3, 8, 8)))
            >>> len(explanation.plot(classes=["cat", "dog"]).axes)  # three images, their maps, a colour bar
            7
        """
        return draw_explanation(
            self.x,
            self.relevance,
            self.output,
            classes=classes,
            tokens=tokens,
            channel_axis=channel_axis,
            samples=samples,
        )

    def to_png(
        self,
        path: str | os.PathLike[str],
        *,
        classes: Classes | None = None,
        tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
        channel_axis: int | None = None,
        samples: Sequence[int] | None = None,
    ) -> None:
        """Writes what `plot` draws to a PNG file.

        Args:
            path: The file, which ends with ".png" or nothing; one that is there is replaced. Its folder must exist.
            classes: As in `plot`.
            tokens: As in `plot`.
            channel_axis: As in `plot`.
            samples: As in `plot`.

        Raises:
            ArrayError: As in `plot`.
            MissingExtraError: If matplotlib is not installed.
            StoreError: If the path cannot be written, or ends as files of another format do.
        """
        figure = self.plot(classes=classes, tokens=tokens, channel_axis=channel_axis, samples=samples)
        write_png(figure, path)

    def summary(self, classes: Classes | None = None) -> str:
        """Says in a few lines what was explained: the samples, their largest outputs, and the sums of their relevance.

        The summary also names the rules, and says how much of the explained output arrived at the input.

        Args:
            classes: As in `plot`.

        Returns:
            A text to print.

        Raises:
            ArrayError: If there is another number of classes.

        Example:
            >>> import jax.numpy as jnp
            >>> from lrp_jax import relevance, rules
            >>> explanation = relevance(lambda x: x @ jnp.eye(2), jnp.array([[1.0, 3.0]]), 1, rules.Zero())
            >>> print(explanation.summary(["cat", "dog"]))
            Relevance of 1 sample. Rules: any_layer: Zero()
            Of 3 that are explained, 3 arrived at the input.
            sample  largest outputs  sum of the relevance
            0       dog: 3, cat: 1   3
        """
        return summary_of(*self._parts(), classes)

    def __repr__(self) -> str:
        parts = {"output": self.output, "relevance": self.relevance} | ({"at": self.at} if self.at else {})
        shown = [f"{name}={described(part)}" for name, part in parts.items()]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_html_(self) -> str:
        return explanation_as_html(*self._parts())

    def _parts(self) -> tuple[Any, Any, Any, Mapping[str, Any], list[str], str]:
        """What is shown: input, relevance, output and hidden relevance; in words the rules, and what arrived."""
        pairs = () if self.rules is None else self.rules.rules
        rules = [f"{selector}: {rule}" for selector, rule in pairs]
        return self.x, self.relevance, self.output, self.at, rules, account_line(self.explained, self.relevance)


def write_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure to a PNG file of 200 pixels for each inch.

    Raises:
        StoreError: If the path cannot be written, or ends as files of another format do.
    """
    file = as_new_file(path, "path", StoreError)
    ending = file.suffix.removeprefix(".").lower()
    if ending != "png" and ending in figure.canvas.get_supported_filetypes():
        raise StoreError(
            f"to_png writes a PNG file, but {str(file)!r} ends as one of another format. End it with .png, or write "
            f"the other format with plot().savefig({str(file)!r})."
        )
    content = as_png(figure, dpi=200)
    try:
        file.write_bytes(content)
    except OSError as error:
        raise StoreError(f"{str(file)!r} cannot be written: {error}.") from error
