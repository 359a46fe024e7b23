"""Numbers with the range around them, for the text of a page and its tables."""

from dataclasses import dataclass

from lrp_book.numbers import with_decimals


@dataclass(frozen=True)
class Band:
    """A mean and two bounds around it.

    Attributes:
        mean: The mean.
        low: The lower bound: the lowest of several values, a quantile of them, or the end of an interval of the mean.
        high: The upper bound.
    """

    mean: float
    low: float
    high: float

    def as_text(self, factor: float = 1, digits: int = 2, unit: str = "") -> str:
        """The mean, with the two bounds in brackets.

        Args:
            factor: What the numbers are multiplied with.
            digits: How many digits they have after the point.
            unit: What follows the mean.

        Example:
            >>> Band(0.5, -0.25, 0.75).as_text(), Band(0.5, 0.25, 0.75).as_text(100, 0, " %")
            ('0.50 (−0.25 to 0.75)', '50 % (25 to 75)')
        """
        mean, low, high = (with_decimals(factor * value, digits) for value in (self.mean, self.low, self.high))
        return f"{mean}{unit} ({low} to {high})"
