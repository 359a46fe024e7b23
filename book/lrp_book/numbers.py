"""Numbers as the book writes them: a true minus sign, few digits, powers of ten where zeros would be counted."""

import math
import re

_NUMBER = re.compile(r"([-+]?)(\d[\d,.]*|inf|nan)(?:e([-+]?\d+))?")
_SIGNS = str.maketrans("-", "−")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NOT_FINITE = {"inf": "∞", "nan": "not a number"}


def typeset(text: str) -> str:
    r"""A number as Python's formats write it in the book's notation, and any other text as it is.

    Example:
        >>> [typeset(text) for text in ("1.6e-07", "1e-07", "-0.36", "12,345", "2026-11-29")]
        ['1.6\xa0×\xa010⁻⁷', '10⁻⁷', '−0.36', '12,345', '2026-11-29']
    """
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text
    sign, mantissa, exponent = number.groups()
    sign = sign.translate(_SIGNS)
    if exponent is None:
        return sign + _NOT_FINITE.get(mantissa, mantissa)
    power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return sign + (power if mantissa == "1" else f"{mantissa}\xa0×\xa0{power}")


def as_text(number: float, digits: int = 3) -> str:
    r"""A number with few digits.

    Args:
        number: The number.
        digits: How many significant digits it has at most; integers have all of theirs.

    Example:
        >>> [as_text(number) for number in (12345, 0.00000042, -2.5, 1234.5, 99.96)]
        ['12,345', '4.2\xa0×\xa010⁻⁷', '−2.5', '1,234', '100']
    """
    if isinstance(number, int) or not math.isfinite(number):
        return typeset(f"{number:,}")
    exponent = int(f"{number:e}".partition("e")[2])
    if not -4 <= exponent < 6:
        mantissa, _, power = f"{number:.{digits - 1}e}".partition("e")
        return typeset(f"{_without_zeros(mantissa)}e{power}")
    return typeset(_without_zeros(f"{number:,.{max(0, digits - 1 - exponent)}f}"))


def with_decimals(number: float, digits: int = 2) -> str:
    """A number with a fixed number of decimals, and no sign in front of zero.

    Example:
        >>> with_decimals(-0.125), with_decimals(-0.001), with_decimals(0.5)
        ('−0.12', '0.00', '0.50')
    """
    return typeset(f"{round(number, digits) + 0.0:.{digits}f}")


def _without_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
