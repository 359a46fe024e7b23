"""What can be known of a primitive of JAX. What is known of which stands in `lrp_jax.core.primitives`."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from lrp_jax.core import ranges, samples
from lrp_jax.core.control import Control
from lrp_jax.core.maxima import Maximum
from lrp_jax.core.ranges import Bounds
from lrp_jax.core.samples import Samples
from lrp_jax.treatments import Treatment


class Family(enum.Flag):
    """What an operation does with the elements of its operands. An operation may be of several families."""

    NONE = 0
    """None of those below."""
    ELEMENTWISE = enum.auto()
    """Every element of the output depends on the operands' elements at the same place alone."""
    IDENTITY = enum.auto()
    """It returns what it is given, up to rounding."""
    MOVE = enum.auto()
    """It returns elements of its operands at other places."""
    REARRANGEMENT = enum.auto()
    """A move of all of one value: it makes no difference which of this and an elementwise operation comes first."""
    ORDER = enum.auto()
    """It returns elements of its operands in an order that depends on their values."""
    WRITE = enum.auto()
    """It puts elements of one operand into another, or adds them."""
    STEP = enum.auto()
    """Its derivative is zero wherever there is one, so that what comes out of it alone is held."""
    ADDITION = enum.auto()
    """It adds or subtracts values, element by element."""
    AFFINE = enum.auto()
    """It adds a number to a value or multiplies with one, where its other operands are numbers."""
    PIECEWISE_LINEAR = enum.auto()
    """It is straight between kinks in all operands together, element by element."""
    CHOICE = enum.auto()
    """Each element of the output is one of those at the same place of its operands."""
    PRODUCT = enum.auto()
    """It multiplies or divides two values."""
    LINEAR_MAP = enum.auto()
    """A product that is a layer of some kind (`lrp_jax.core.kinds`) where one factor is a parameter."""
    EXPONENTIAL = enum.auto()
    """A number to the power of its operand."""
    POWER = enum.auto()
    """A power of its operand, or a product."""
    SUM = enum.auto()
    """It adds up elements of one value, or products with elements of another."""
    REDUCTION = enum.auto()
    """It makes one element of all along the dimensions in its parameter `axes`."""
    CUMULATIVE = enum.auto()
    """It makes an element of all so far along the dimension in its parameter `axis`."""
    WINDOW = enum.auto()
    """It makes an element of all in a window."""
    BITS = enum.auto()
    """It computes with the bits of integers."""
    DRAW = enum.auto()
    """It draws random numbers."""
    CONTROL = enum.auto()
    """It runs functions: a loop, a branch or a `jax.shard_map`."""
    UNCHANGED = IDENTITY | MOVE
    """The elements of its output are elements of its operands."""


Compute: TypeAlias = Callable[..., np.ndarray]
Choice: TypeAlias = Callable[[Sequence[int], int], Treatment | None]
"""A treatment as a function of the positions of the live operands and of the number of all; None refuses."""


@dataclass(frozen=True)
class Primitive:
    """What is known of a primitive of JAX.

    Attributes:
        treatment: What happens to relevance, always or by circumstances; None if relevance does not get there.
        summary: The same in words; empty if the treatment says it.
        family: What it does with elements.
        bounds: The rule for the range of what it returns.
        compute: What it computes element by element, in NumPy's double precision; None if JAX has to be asked.
        data: Which operands hold the elements; the others say where to or which.
        samples: The rule for where the dimension of the samples goes.
        maximum: How it is decided who wins, of a maximum or minimum.
        called: Of a call, the parameter that holds the program.
        control: How it runs its bodies, if it has some that could be looked into.
        advice: What can be done where it is refused, if that is not just a treatment of the user's own.
    """

    treatment: Treatment | Choice | None = None
    summary: str = ""
    family: Family = Family.NONE
    bounds: Bounds = ranges.free
    compute: Compute | None = None
    data: slice = field(default_factory=lambda: slice(None))
    samples: Samples = samples.KEPT
    maximum: Maximum | None = None
    called: str = ""
    control: Callable[[Any], Control] | None = None
    advice: str = ""

    def treatment_for(self, live: Sequence[int], number: int) -> Treatment | None:
        """What happens to relevance with live operands at some positions, of a number of all; None if refused."""
        return self.treatment(live, number) if callable(self.treatment) else self.treatment
