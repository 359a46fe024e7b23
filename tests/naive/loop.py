"""Relevance of a random program by a plain backward loop in numpy and float64, without the library's code.

A value may be read by rules of two kinds, and has a cotangent for each: the ratio of relevance and value, for rules
that split in proportion to values, and relevance itself, for rules that give some to values that are zero. The two
travel separately down to the input, whose relevance is x * ratio + relevance. The conventions:

- A constant addend passes both on unchanged: in ratio form it keeps its own share.
- Elementwise operations between two values, with numbers alone beside them, are one function f of one value u. It
  passes on the ratio times (f(u) - f(0)) / u, at zero f'(0), and relevance one to one. A constant that is added on the
  only way before a function that is zero at zero is an addend of its own. Where a piecewise-linear function is not zero
  at zero, its derivative counts unless it is zero.
- Constants that scale or shift what a layer returns belong to the layer, whoever else reads the values on the way.
- Of two live factors a gate is held: a function of one value that is bounded, nowhere negative, and not zero at zero.
- Between the two forms nothing is stabilized: a division by zero is zero.

Layers and the rules on their matrices are those of `layers.py`. The loop carries a bound for the error of rounding, so
that a test can tell a wrong result from a program whose denominators cancel; where the conventions leave something
open, it is infinite.
"""

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
from naive.layers import layer_matrix, shares_of, stabilizer_of

from lrp_jax.rules import Epsilon, Flat, Gradient, Norm, Pass, WSquare, ZBox, Zero

NOISE = 1e3  # what is smaller than so many units of rounding has no sign
MOVES = ("reshape", "flip", "crop", "transpose", "cast")
BINARY = ("add", "subtract", "multiply", "maximum")
PIECEWISE_LINEAR = ("relu", "leaky_relu", "relu6", "abs", "clip", "where", "hard_sigmoid", "floor at a half")
BENT = ("hard_sigmoid", "floor at a half")  # piecewise linear, and not zero at zero
PROPORTIONAL = (Zero, Epsilon, Norm, Gradient)


class Undefined(Exception):  # noqa: N818
    """The conventions leave the relevance of a program open, or rounding decides it."""


# Functions of one value: f(u) and f'(u)


def _logistic(u):
    return np.exp(-np.logaddexp(0, -u))


def _tanh_gelu(u):
    inner, slope = np.sqrt(2 / np.pi) * (u + 0.044715 * u**3), np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * u**2)
    half = (1 + np.tanh(inner)) / 2
    with np.errstate(over="ignore"):
        return u * half, half + u / 2 * slope / np.cosh(np.clip(inner, -300, 300)) ** 2


def _erf(u):
    return np.array([math.erf(v) for v in u.ravel()]).reshape(u.shape)


FUNCTIONS = {
    "relu": lambda u: (np.maximum(u, 0), (u > 0) * 1.0),
    "leaky_relu": lambda u: (np.where(u >= 0, u, 0.01 * u), np.where(u >= 0, 1, 0.01)),
    "relu6": lambda u: (np.clip(u, 0, 6), ((u > 0) & (u < 6)) * 1.0),
    "elu": lambda u: (np.where(u > 0, u, np.expm1(np.minimum(u, 0))), np.where(u > 0, 1, np.exp(np.minimum(u, 0)))),
    "tanh": lambda u: (np.tanh(u), 1 - np.tanh(u) ** 2),
    "gelu": _tanh_gelu,
    "silu": lambda u: (u * _logistic(u), _logistic(u) * (1 + u * (1 - _logistic(u)))),
    "abs": lambda u: (np.abs(u), np.sign(u)),
    "softplus": lambda u: (np.logaddexp(u, 0), _logistic(u)),
    "sigmoid": lambda u: (_logistic(u), _logistic(u) * (1 - _logistic(u))),
    "clip": lambda u: (np.clip(u, -0.5, 0.7), ((u > -0.5) & (u < 0.7)) * 1.0),
    "where": lambda u: (np.where(u > 0, u, -0.25 * u), np.where(u > 0, 1, -0.25)),
    "hard_sigmoid": lambda u: (np.clip(u + 3, 0, 6) / 6, ((u > -3) & (u < 3)) / 6),
    "floor at a half": lambda u: (np.maximum(u, 0.5), (u > 0.5) * 1.0),
    "1 + tanh": lambda u: (1 + np.tanh(u), 1 - np.tanh(u) ** 2),
    "1 + erf": lambda u: (0.5 * (1 + _erf(u)), np.exp(-(np.clip(u, -30, 30) ** 2)) / np.sqrt(np.pi)),
}
SHIFTED = ("1 + tanh", "1 + erf")  # in which a number is added last
GRID = np.concatenate([-np.geomspace(1e4, 1e-2, 40), [0.0], np.geomspace(1e-2, 1e4, 40)])


def is_number(step):
    return step.arrays["c"].ndim == 0


def evaluate(steps, number, root, u):
    """The function between two values, and its derivative, at the numbers u."""
    if number == root:
        return u, np.ones_like(u)
    step = steps[number]
    (x, dx), *others = (evaluate(steps, i, root, u) for i in step.operands)
    y, dy = others[0] if others else (None, None)
    match step.name:
        case "scale" | "shift":
            scale, shift = (float(a) for a in scale_and_shift(step))
            return scale * x + shift, scale * dx
        case "elementwise":
            value, slope = FUNCTIONS[step.options["function"]](x)
            return value, slope * dx
        case "add":
            return x + y, dx + dy
        case "subtract":
            return x - y, dx - dy
        case "multiply":
            return x * y, x * dy + y * dx
        case "maximum":
            return np.maximum(x, y), np.where(x >= y, dx, dy)
    return x, dx


def between(steps, output, start):
    """The steps on the ways from one value to another, the first left out."""
    found, waiting = set(), [output]
    while waiting:
        number = waiting.pop()
        if number != start and number not in found:
            found.add(number)
            waiting.extend(steps[number].operands)
    return found


def is_piecewise_linear(steps, numbers):
    return all(
        steps[i].name in (*MOVES, "scale", "shift", "add", "subtract", "maximum")
        or (steps[i].name == "elementwise" and steps[i].options["function"] in PIECEWISE_LINEAR)
        for i in numbers
    )


# What belongs to a layer, and what is a function of one value


def behind_layers(steps):
    """For every value that is a layer's, moved, scaled and shifted by constants: the layer, and the steps behind it."""
    found = {}
    for number, step in enumerate(steps):
        if step.rule is not None:
            found[number] = (number, ())
        elif step.name in ("scale", "shift", *MOVES) and step.operands[0] in found:
            layer, tail = found[step.operands[0]]
            found[number] = (layer, (*tail, number))
    return found


@dataclass
class Reading:
    """How a program is read: of which value each value is an elementwise function, element by element."""

    steps: tuple
    shapes: list
    layers: dict
    roots: list
    places: list
    split: set = field(default_factory=set)

    def places_in(self, number, of):
        """Which elements of `of`, on the way to its root, the elements of the value `number` are made of."""
        where = {place: i for i, place in enumerate(self.places[of].ravel())}
        return np.array([where[place] for place in self.places[number].ravel()], int)


def read(program, shapes):
    steps = program.steps
    layers = behind_layers(steps)
    reading = Reading(steps, shapes, layers, [], [])
    for number, step in enumerate(steps):
        root, places = number, np.arange(int(np.prod(shapes[number]))).reshape(shapes[number])
        operands = step.operands
        if number in layers and step.name not in MOVES:
            pass
        elif step.name in MOVES:
            root, places = reading.roots[operands[0]], moved(reading.places[operands[0]], step)
        elif step.name == "elementwise" or (step.name in ("scale", "shift") and is_number(step)):
            root, places = reading.roots[operands[0]], reading.places[operands[0]]
        elif step.name in BINARY and len({reading.roots[i] for i in operands}) == 1:
            first, second = (reading.places[i] for i in operands)
            if _adds_what_is_shifted(steps, number, reading.roots[operands[0]]):
                reading.split.add(number)
            elif np.array_equal(first, second):
                root, places = reading.roots[operands[0]], first
        reading.roots.append(root)
        reading.places.append(places)
    return reading


def _adds_what_is_shifted(steps, number, root):
    """Whether a number is added before a bend in a piecewise linear sum, as in u + relu(u - 1): this is no function."""
    if steps[number].name not in ("add", "subtract") or not is_piecewise_linear(steps, between(steps, number, root)):
        return False
    bent = [i for i in between(steps, number, root) if steps[i].name in ("elementwise", "maximum")]
    return any(steps[i].name == "shift" for k in bent for i in between(steps, k, root))


def kind_of_factor(reading, number, holds_attention):
    """Whether a value is "held", a "gate" or a "signal" where it multiplies another one; None where that is open."""
    steps, root = reading.steps, reading.roots[number]
    on_the_way = between(steps, number, root)
    is_affine = all(steps[i].name in (*MOVES, "scale", "shift") for i in on_the_way)
    source = steps[root]
    if root in reading.split:
        return None  # it may be a hard sigmoid
    if root not in reading.layers and is_affine and source.operands:
        if source.name == "softmax":
            only_moved = all(steps[i].name in MOVES for i in on_the_way)
            return "signal" if not holds_attention else "held" if only_moved else None
        carries = ("pad", "concatenate", "max_pool", "maximum", "mean", "sum", "mean_pool", "scale", "shift", *BINARY)
        if source.name in carries:
            below = {kind_of_factor(reading, i, holds_attention) for i in source.operands}
            return "signal" if below == {"signal"} and not _may_be_shifted_to_a_gate(reading, source) else None
        return "signal"
    # Numbers in front count: relu6(z + 3) / 6 is a gate, though the 3 is the bias of the layer z.
    while root in reading.layers and steps[root].rule is None:
        step = steps[root]
        if step.name not in MOVES and not is_number(step):
            break
        root = step.operands[0]
    values, _ = evaluate(steps, number, root, GRID)
    if np.all(values == values[0]):
        return None
    size = values.max()
    is_level = max(abs(values[0] - values[5]), abs(values[-1] - values[-6])) <= 1e-6 * size
    if np.all(values >= 0) and is_level and size > 0 and values[40] > 0:
        return "gate"
    positive = values[40:]
    if np.all(positive > 0) and np.all(np.diff(positive) <= 0) and root not in reading.layers:
        return None  # a normaliser, if its root is known not to be negative
    holds = holds_attention and steps[root].name == "softmax"
    return None if holds else "signal"


def _may_be_shifted_to_a_gate(reading, step):
    """Whether an array is added to a bounded function of one value, as in b + tanh(x)."""
    if step.name != "shift":
        return False
    number = step.operands[0]
    values, _ = evaluate(reading.steps, number, reading.roots[number], GRID)
    return bool(abs(values[-1]) < 1e3 and abs(values[0]) < 1e3)


def rises(reading, number):
    values, _ = evaluate(reading.steps, number, reading.roots[number], GRID)
    return np.all(np.diff(values) >= 0)


# The loop


@dataclass
class Cotangents:
    """What has arrived at a value: ratio and relevance, each with a bound for its error."""

    ratio: np.ndarray
    relevance: np.ndarray
    ratio_error: np.ndarray
    relevance_error: np.ndarray

    @classmethod
    def zeros(cls, size):
        return cls(*np.zeros((4, size)))

    def add(self, ratio=0.0, relevance=0.0, ratio_error=0.0, relevance_error=0.0):
        self.ratio = self.ratio + ratio
        self.relevance = self.relevance + relevance
        self.ratio_error = self.ratio_error + ratio_error
        self.relevance_error = self.relevance_error + relevance_error


class Loop:
    """The backward pass for one sample."""

    def __init__(self, program, values, precision):
        self.program, self.steps, self.precision = program, program.steps, precision
        self.values = [np.asarray(value, np.float64) for value in values]
        self.reading = read(program, [value.shape for value in self.values])
        self.at = [Cotangents.zeros(value.size) for value in self.values]
        self.sizes = []
        self.fixed = []
        for number, step in enumerate(self.steps):
            self.sizes.append(self._size(number, step))
            self.fixed.append(np.broadcast_to(self._fixed(number, step), self.values[number].shape))

    def _fixed(self, number, step):
        """Where a value is a constant: padding, what a mask leaves out, and what is computed of such place by place."""
        parts = [self.fixed[i] for i in step.operands]
        match step.name:
            case "pad":
                sources = moved(np.arange(parts[0].size).reshape(parts[0].shape), step)
                return (sources < 0) | parts[0].ravel()[sources]
            case "mask":
                return parts[0] | (step.arrays["mask"] == 0)
            case "concatenate":
                return np.concatenate(parts, -1)
            case "max_pool":
                windows = _windows(parts[0].shape, self.values[number].shape, step.options)
                return np.reshape([parts[0].ravel()[inputs].all() for inputs in windows], self.values[number].shape)
            case "add" | "subtract" | "maximum":
                return parts[0] & parts[1]
            case "multiply":
                kinds = [kind_of_factor(self.reading, i, self.program.holds_attention) for i in step.operands]
                signals = [part for part, kind in zip(parts, kinds, strict=True) if kind == "signal"]
                return np.all(signals or parts, 0)
            case "shift" | "scale" | "elementwise" | "divide by norm":
                return parts[0]
        return moved(parts[0], step) if step.name in MOVES else np.False_

    def _size(self, number, step):
        """What the terms of a value add up to without their signs: rounding is relative to that."""
        value = np.abs(self.values[number])
        parts = [self.sizes[i] for i in step.operands]
        if step.rule is not None:
            matrix, _, b, _ = layer_matrix(step, self.values[step.operands[0]].shape)
            return (np.abs(matrix) @ parts[0].ravel() + np.abs(b)).reshape(value.shape)
        match step.name:
            case "add" | "subtract" | "maximum":
                return parts[0] + parts[1]
            case "shift" | "center":
                spread = parts[0].max() if step.name == "center" else np.abs(step.arrays["c"])
                return parts[0] + spread
            case "scale":
                return parts[0] * np.abs(scale_and_shift(step)[0])
            case "elementwise":
                _, slope = FUNCTIONS[step.options["function"]](self.values[step.operands[0]])
                return np.maximum(value, np.minimum(np.abs(slope), 10) * parts[0])
            case "sum" | "mean" | "mean_pool":
                return np.maximum(value, parts[0].mean() if step.name != "sum" else parts[0].sum())
        if step.name in MOVES or step.name == "pad":
            return np.abs(moved(parts[0], step))
        return value

    # Handing over

    def hand(self, number, ratio=0.0, relevance=0.0, ratio_error=0.0, relevance_error=0.0):
        self.at[number].add(ratio, relevance, ratio_error, relevance_error)

    def as_ratio(self, number):
        """All that has arrived, in ratio form."""
        here, y, size = self.at[number], self.values[number].ravel(), self.sizes[number].ravel()
        arrived = (here.relevance != 0) | (here.relevance_error != 0)
        if np.any(arrived & (y != 0) & (np.abs(y) <= NOISE * self.precision * size)):
            raise Undefined
        if np.any(arrived & (y == 0) & (size > 0)):
            raise Undefined  # in other compilations it may be small instead
        divide = lambda a: np.divide(a, y, out=np.zeros_like(y), where=y != 0)
        rounding = 64 * self.precision * np.abs(divide(divide(here.relevance)) * size)
        return here.ratio + divide(here.relevance), here.ratio_error + np.abs(divide(here.relevance_error)) + rounding

    def as_relevance(self, number):
        """All that has arrived, as relevance."""
        here, y, size = self.at[number], self.values[number].ravel(), self.sizes[number].ravel()
        error = here.relevance_error + np.abs(y) * here.ratio_error + 64 * self.precision * np.abs(here.ratio) * size
        return here.ratio * y + here.relevance, error

    def linear(self, operand, number, matrix, size=None):
        """A linear operation: ratios by its derivatives (outputs, inputs), whose terms, of a `size`, may cancel."""
        ratio, error = self.as_ratio(number)
        rounding = 64 * self.precision * np.abs(matrix if size is None else size).T @ np.abs(ratio)
        self.hand(operand, matrix.T @ ratio, 0.0, np.abs(matrix.T) @ error + rounding)

    def along(self, operand, number, matrix, scale=1.0):
        """Moves both along with the values; ratios are scaled as the values are."""
        here = self.at[number]
        rounding = 64 * self.precision * np.abs(scale * here.ratio)
        self.hand(
            operand,
            matrix.T @ (scale * here.ratio),
            matrix.T @ here.relevance,
            matrix.T @ (np.abs(scale) * here.ratio_error + rounding),
            matrix.T @ (here.relevance_error + 64 * self.precision * np.abs(here.relevance)),
        )

    # Running

    def run(self, seed):
        y = self.values[-1].ravel()
        self.hand(len(self.steps) - 1, np.asarray(seed, np.float64).ravel() + 0 * y)
        for number in range(len(self.steps) - 1, 0, -1):
            here = self.at[number]
            if not np.any([here.ratio, here.relevance, here.ratio_error, here.relevance_error]):
                continue
            if self.reading.roots[number] != number:
                self._function(number)
            elif number in self.reading.layers:
                self._layer(number)
            else:
                self._operation(number)
        x = self.values[0]
        relevance, error = self.as_relevance(0)
        return relevance.reshape(x.shape), error.reshape(x.shape)

    def _function(self, number):
        """Through a function of one value: to its root, or to what stands before an addend of its own."""
        steps, root = self.steps, self.reading.roots[number]
        start, addend = self._start(number, root)
        places = self.reading.places_in(number, start)
        u, size = self.values[start].ravel()[places], self.sizes[start].ravel()[places]
        slope, error = self._slope(number, start, u, size)
        end, sign = start, 1.0
        if addend:
            end, sign = steps[start].operands[0], float(scale_and_shift(steps[start])[0])
            places = self.reading.places_in(number, end)
        here = self.at[number]
        matrix = np.eye(self.values[end].size)[places]
        live = here.ratio != 0
        error = np.where(live, error, 0) * np.abs(here.ratio)
        self.along(end, number, matrix, sign * np.where(live, slope, 0))
        self.hand(end, ratio_error=matrix.T @ (error + np.abs(slope) * np.where(live, 0, here.ratio_error)))

    def _start(self, number, root):
        """Where the function begins: at the root, or at the last value on the only way that is shifted by a number."""
        steps = self.steps
        all_steps = between(steps, number, root)
        is_linear = is_piecewise_linear(steps, all_steps)
        for i in sorted(all_steps, reverse=True):
            holds_addend = i != number and steps[i].options.get("function") in SHIFTED
            is_shift = steps[i].name == "shift" or holds_addend
            if not is_shift or root in {j for k in between(steps, number, i) for j in steps[k].operands}:
                continue
            if i != number and i not in {j for k in between(steps, number, i) for j in steps[k].operands}:
                continue
            at_zero, _ = evaluate(steps, number, i, np.zeros(1))
            if at_zero[0] == 0 or is_linear:
                return i, not holds_addend
            if is_piecewise_linear(steps, between(steps, number, i)):
                raise Undefined
        functions = [steps[i].options.get("function") for i in all_steps]
        if root in self.reading.layers and "hard_sigmoid" in functions:
            raise Undefined  # the 3 in relu6(z + 3) / 6 may be the layer's bias or part of the function
        is_shifted_layer = root in self.reading.layers and any(
            steps[i].name == "shift" and is_number(steps[i]) for i in self.reading.layers[root][1]
        )
        if is_shifted_layer and not is_linear and evaluate(steps, number, root, np.zeros(1))[0][0] != 0:
            raise Undefined  # a number may be the layer's bias or part of the function
        return root, False

    def _slope(self, number, start, u, size):
        """What a ratio is multiplied with, and a bound for the error of that."""
        steps = self.steps
        (y, derivative), (at_zero, slope_at_zero) = (evaluate(steps, number, start, v) for v in (u, np.zeros_like(u)))
        secant = np.divide(y - at_zero, u, out=slope_at_zero.copy(), where=u != 0)
        slope = secant
        rounding = np.divide(np.abs(y) + np.abs(at_zero), np.abs(u), out=np.abs(slope_at_zero), where=u != 0)
        error = 64 * self.precision * rounding
        if is_piecewise_linear(steps, between(steps, number, start)):
            if np.any(at_zero != 0):
                if np.any((derivative == 0) & (np.abs(y - at_zero) > 1e-9)):
                    raise Undefined  # a hard sigmoid in saturation, whose spellings differ
                slope = derivative
            elif np.any((derivative != 0) & (np.abs(secant - derivative) > 1e-9 * np.abs(derivative))):
                raise Undefined  # two conventions, the secant and gradient times input
            error = 64 * self.precision * np.abs(slope)
        elif any(steps[i].options.get("function") in BENT for i in between(steps, number, start)):
            raise Undefined  # bent at a constant, but not piecewise linear
        else:  # near zero the derivative at zero may stand for the secant
            near = np.abs(u) < (1e-4 if self.precision < 1e-10 else 1e-2)
            error = np.where(near, np.maximum(error, np.abs(secant - slope_at_zero)), error)
        tiny = np.full_like(u, 1e-9)
        _, above = evaluate(steps, number, start, tiny)
        _, below = evaluate(steps, number, start, -tiny)
        is_noise = (u != 0) & (np.abs(u) <= NOISE * self.precision * size)
        # At zero itself a relu has the slope 0; a bend between two other slopes has none.
        is_bend = (u == 0) & (size > 0) & (above != 0) & (below != 0)
        return slope, np.where((is_noise | is_bend) & (np.abs(above - below) > 1e-6), np.inf, error)

    def _layer(self, number):
        steps, (layer, tail) = self.steps, self.reading.layers[number]
        step, rule = steps[layer], steps[layer].rule
        (operand,) = step.operands
        x = self.values[operand].ravel()
        matrix, connected, b, groups = layer_matrix(step, self.values[operand].shape)
        places = np.arange(len(matrix)).reshape(self.values[layer].shape)
        scale, shift, changes_size = np.ones(len(matrix)), b, False
        for i in tail:
            if steps[i].name in MOVES:
                order = moved(np.arange(places.size).reshape(places.shape), steps[i])
                places, scale, shift = places.ravel()[order], scale[order.ravel()], shift[order.ravel()]
                changes_size |= steps[i].name == "crop"
            else:
                a, c = (np.broadcast_to(array, places.shape).ravel() for array in scale_and_shift(steps[i]))
                scale, shift = a * scale, a * shift + c
        places = places.ravel()
        matrix, connected, b, groups = scale[:, None] * matrix[places], connected[places], shift, groups[places]
        z = self.values[number].ravel()
        contributions = matrix * x
        total, size = contributions.sum(1) + b, np.abs(contributions).sum(1) + np.abs(b)
        if isinstance(rule, Pass):
            relevance, error = self.as_relevance(number)
            back = np.zeros((len(x), len(z)))
            back[places, np.arange(len(z))] = 1
            self.hand(operand, 0.0, back @ relevance, 0.0, back @ error)
            return
        is_exact = isinstance(rule, Gradient) or (isinstance(rule, Zero) and rule.bias == "absorb")
        if is_exact:
            self.linear(operand, number, matrix)
            return
        is_relative = getattr(rule, "relative", False) or stabilizer_of(rule) is None
        if changes_size and is_relative:
            raise Undefined
        shares = shares_of(rule, matrix, connected, b, x, groups)
        undecided = (np.sign(total) != np.sign(z)) & (size > 0)
        condition = np.zeros(len(z))
        for numerator, of_bias, weight, denominator, mask in shares.terms:
            raw, absolute = numerator.sum(1) + of_bias, np.abs(numerator).sum(1) + np.abs(of_bias)
            relative = np.divide(absolute, np.abs(denominator), out=np.zeros(len(raw)), where=denominator != 0)
            relative[(raw != 0) & (np.abs(raw) < NOISE * self.precision * absolute)] = np.inf
            condition = np.maximum(condition, np.where(mask.astype(bool) & (weight != 0), relative, 0))
        condition = np.where(undecided, np.inf, condition)
        relevance, error = self.as_relevance(number)
        of_relevance = shares.matrix
        if isinstance(rule, WSquare | Flat | ZBox):
            self.hand(
                operand, 0.0, of_relevance @ relevance, 0.0, self._bound(of_relevance, relevance, error, condition)
            )
            return
        by_x = lambda a: np.divide(a, x[:, None], out=np.zeros_like(a), where=x[:, None] != 0)
        of_ratio = by_x(of_relevance)
        if isinstance(rule, PROPORTIONAL):
            # A ratio is defined where x is zero, too; what is spread of the bias is none of it.
            ((_, _, weight, denominator, _),) = shares.terms
            fraction = np.divide(weight, denominator, out=np.zeros(len(z)), where=denominator != 0)
            of_ratio = np.where(x[:, None] == 0, (matrix * fraction[:, None]).T, of_ratio)
        self.hand(operand, of_ratio @ relevance, 0.0, self._bound(of_ratio, relevance, error, condition))

    def _bound(self, matrix, relevance, error, condition):
        with np.errstate(invalid="ignore"):  # 0 times infinity
            rounding = np.abs(matrix) * np.nan_to_num((1 + condition) * np.abs(relevance), nan=0.0, posinf=np.inf)
            return np.abs(matrix) @ error + 64 * self.precision * np.nan_to_num(rounding, nan=0.0, posinf=np.inf).sum(1)

    def _operation(self, number):
        step, y = self.steps[number], self.values[number]
        xs = [self.values[i] for i in step.operands]
        one_to_one = np.eye(y.size)
        first = step.operands[0]
        match step.name:
            case "shift":
                self.along(first, number, one_to_one, scale_and_shift(step)[0].ravel()[0])
            case "scale":
                self.along(first, number, one_to_one, np.broadcast_to(scale_and_shift(step)[0], y.shape).ravel())
            case "divide by norm":
                norm = np.sqrt((xs[0] ** 2).mean(-1, keepdims=True) + 1e-5)
                self.along(first, number, one_to_one, np.broadcast_to(1 / norm, y.shape).ravel())
            case "mask":
                here = np.broadcast_to(step.arrays["mask"] != 0, y.shape).ravel()
                self.along(first, number, one_to_one * here)
            case "pad":
                sources = moved(np.arange(xs[0].size).reshape(xs[0].shape), step).ravel()
                self.along(first, number, (np.arange(xs[0].size) == sources[:, None]).astype(float))
            case "concatenate":
                starts = np.cumsum([0] + [x.shape[-1] for x in xs])
                order = np.arange(y.size).reshape(y.shape)
                for i, start, stop in zip(step.operands, starts, starts[1:], strict=False):
                    self.along(i, number, one_to_one[:, order[..., start:stop].ravel()])
            case "maximum":
                a, b = (x.ravel() for x in xs)
                size = sum(self.sizes[i].ravel() for i in step.operands)
                if np.any((a != b) & (np.abs(a - b) <= NOISE * self.precision * size)):
                    raise Undefined
                is_second = (a < b) | (
                    (a == b) & ~self.fixed[step.operands[0]].ravel() & self.fixed[step.operands[1]].ravel()
                )
                self.along(step.operands[0], number, np.diag(~is_second * 1.0))
                self.along(step.operands[1], number, np.diag(is_second * 1.0))
            case "max_pool":
                self._max_pool(number)
            case "mean_pool":
                sums = np.zeros((y.size, xs[0].size))
                for j, inputs in enumerate(_windows(xs[0].shape, y.shape, step.options)):
                    sums[j, inputs] = 1
                size = np.prod(step.options["size"]) if step.options["counts_padding"] else sums.sum(1, keepdims=True)
                self.linear(first, number, sums / size)
            case "mean" | "sum":
                sums = np.tile(np.eye(y.size), xs[0].size // y.size)
                self.linear(first, number, sums * (y.size / xs[0].size if step.name == "mean" else 1.0))
            case "add" | "subtract":
                for sign, i in zip((1, 1 if step.name == "add" else -1), step.operands, strict=True):
                    self.linear(i, number, sign * one_to_one)
            case "multiply":
                self._product(number)
            case "center":
                width = y.shape[-1]
                self.linear(first, number, np.kron(np.eye(y.size // width), np.eye(width) - 1 / width))
            case "softmax":
                s, width = y.ravel(), y.shape[-1]
                same = np.kron(np.eye(y.size // width), np.ones((width, width)))
                derivative, size = (s[:, None] * same * (np.eye(y.size) + sign * s) for sign in (-1, 1))
                self.linear(first, number, derivative, size)
            case "scores":
                query, key = xs
                a = np.einsum("jd,ik->ijkd", key, np.eye(len(query)))
                b = np.einsum("id,jk->ijkd", query, np.eye(len(key)))
                self.linear(step.operands[0], number, a.reshape(y.size, -1) / 2)
                self.linear(step.operands[1], number, b.reshape(y.size, -1) / 2)
            case "mix":
                weights, value = xs
                a = np.einsum("jd,ik->idkj", value, np.eye(len(weights))).reshape(y.size, -1)
                b = np.einsum("ij,de->idje", weights, np.eye(value.shape[1])).reshape(y.size, -1)
                share = 1.0 if self.program.holds_attention else 0.5
                self.linear(step.operands[1], number, share * b)
                if not self.program.holds_attention:
                    self.linear(step.operands[0], number, share * a)
            case _:
                raise AssertionError(step.name)

    def _product(self, number):
        operands = self.steps[number].operands
        kinds = [kind_of_factor(self.reading, i, self.program.holds_attention) for i in operands]
        if None in kinds:
            raise Undefined
        a, b = (self.values[i].ravel() for i in operands)
        one_to_one = np.eye(len(a))
        ranks = [("signal", "gate", "held").index(kind) for kind in kinds]
        if ranks[0] != ranks[1]:
            signal = int(np.argmin(ranks))
            self.along(operands[signal], number, one_to_one, (b, a)[signal])
            return
        if kinds.count("gate") == 2 and not all(rises(self.reading, i) for i in operands):
            raise Undefined
        self.linear(operands[0], number, np.diag(b / 2))
        self.linear(operands[1], number, np.diag(a / 2))

    def _max_pool(self, number):
        step, y = self.steps[number], self.values[number]
        (operand,) = step.operands
        x = self.values[operand]
        x_flat, sizes, fixed = x.ravel(), self.sizes[operand].ravel(), self.fixed[operand].ravel()
        windows = list(_windows(x.shape, y.shape, step.options))
        matrix, sums = np.zeros((y.size, x.size)), np.zeros((y.size, x.size))
        for j, inputs in enumerate(windows):
            sums[j, inputs] = 1
            gaps = x_flat[inputs].max() - x_flat[inputs]
            noise = NOISE * self.precision * sizes[inputs].max()
            if self.program.pooling == "winner" and np.any((gaps > 0) & (gaps <= noise)):
                raise Undefined
            matrix[j, max(inputs, key=lambda i: (x_flat[i], fixed[i], -i))] = 1
        relevance, error = self.as_relevance(number)
        match self.program.pooling:
            case "winner":
                self.along(operand, number, matrix)
            case "evenly":
                even = (sums / sums.sum(1, keepdims=True)).T
                self.hand(operand, 0.0, even @ relevance, 0.0, even @ (error + 64 * self.precision * np.abs(relevance)))
            case "in proportion":
                # The default stabilizer is small beside the sums of a sample: it is left to the bound of the error.
                total, unit = sums @ x_flat, 1e-6 * np.sqrt(np.mean((sums @ np.abs(x_flat)) ** 2))
                denominator = total + np.where(total >= 0, unit, -unit)
                with np.errstate(divide="ignore", invalid="ignore"):
                    ratio = np.nan_to_num(relevance / denominator, nan=0.0)
                    uncertain = np.abs(ratio) * np.nan_to_num(10 * unit / np.abs(total), nan=np.inf, posinf=np.inf)
                uncertain = np.where(relevance == 0, 0, uncertain)
                spread = np.nan_to_num(error / np.maximum(np.abs(denominator), 1e-300), posinf=np.inf)
                self.hand(operand, sums.T @ ratio, 0.0, sums.T @ (uncertain + spread))


def relevance_of_input(program, values, seed, precision=2.0**-52):
    """Runs the loop for one sample.

    Args:
        program: The program.
        values: The values of all its steps for this sample.
        seed: What the output is multiplied with.
        precision: The relative precision with which the result to be judged was computed.

    Returns:
        The relevance of the input, and the bound for the error of rounding: infinite where the conventions leave the
        relevance open.
    """
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            relevance, error = Loop(program, values, precision).run(seed)
    except Undefined:
        return np.zeros(np.shape(values[0])), np.full(np.shape(values[0]), np.inf)
    is_open = ~np.isfinite(relevance) | ~np.isfinite(error)
    return np.where(is_open, 0, relevance), np.where(is_open, np.inf, error)


# Everything that is not a layer


def scale_and_shift(step):
    c = np.asarray(step.arrays["c"], np.float64)
    if step.name == "scale":
        return (1 / c if step.options["divides"] else c), np.zeros_like(c)
    return (-1.0 if step.options["reverse"] else 1.0) * np.ones_like(c), c


def moved(x, step):
    """Applies a step that moves values to an array of one sample."""
    match step.name:
        case "cast":
            return x
        case "reshape":
            return x.reshape(step.options["shape"])
        case "transpose":
            return np.swapaxes(x, 0, 1)
        case "flip":
            return np.flip(x, step.options["axis"])
        case "crop":
            return x[1:]
        case "pad":
            before, after = step.options["width"]
            x = x[-before:] if before < 0 else x
            return np.pad(x, [(max(before, 0), after), *[(0, 0)] * (x.ndim - 1)], constant_values=-1)
    raise AssertionError(step.name)


def _windows(shape, out_shape, options):
    """For each element of a pooling's output, the numbers of the inputs in its window."""
    places = np.arange(np.prod(shape)).reshape(shape)
    starts = []
    for axis in (0, 1):
        n, size, stride = shape[axis], options["size"][axis], options["stride"][axis]
        padded = max((out_shape[axis] - 1) * stride + size - n, 0) if options["padding"] == "SAME" else 0
        starts.append([i * stride - padded // 2 for i in range(out_shape[axis])])
    for row, column, channel in itertools.product(*starts, range(shape[2])):
        rows = slice(max(row, 0), row + options["size"][0])
        columns = slice(max(column, 0), column + options["size"][1])
        yield places[rows, columns, channel].ravel()
