"""Random programs: networks as data, with a rule for every layer, and what they are in JAX.

A program is a list of steps, each with the numbers of the steps whose values it reads. `programs` draws one; `values`
runs it with JAX, one sample in each row of a batch.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import strategies as st
from jax import lax

from lrp_jax import treatments
from lrp_jax.composites import Composite, any_layer, index
from lrp_jax.rules import AlphaBeta, Epsilon, Flat, Gamma, Gradient, Norm, Pass, Rule, WSquare, ZBox, Zero, ZPlus

BATCH = 2
ELEMENTWISE = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "relu6": jax.nn.relu6,
    "elu": jax.nn.elu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "abs": jnp.abs,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "clip": lambda x: jnp.clip(x, -0.5, 0.7),
    "where": lambda x: jnp.where(x > 0, x, -0.25 * x),
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "floor at a half": lambda x: jnp.maximum(x, 0.5),
    "1 + tanh": lambda x: 1 + jnp.tanh(x),
    "1 + erf": lambda x: 0.5 * (1 + lax.erf(x)),
}
GATES = ("sigmoid", "hard_sigmoid", "1 + tanh", "1 + erf")
POOLINGS = {
    "winner": treatments.winner_takes_all,
    "in proportion": treatments.pooled_in_proportion,
    "evenly": treatments.pooled_evenly,
}


@dataclass(frozen=True)
class Step:
    """One operation: its name, the steps that it reads, its options, its parameters, and the rule if it is a layer."""

    name: str
    operands: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    rule: Rule | None = None


@dataclass(frozen=True)
class Program:
    """A network, its input (step 0), and what the output's values are multiplied with to start relevance."""

    steps: tuple[Step, ...]
    x: np.ndarray
    seed: np.ndarray
    pooling: str = "winner"
    holds_attention: bool = False

    @property
    def layers(self):
        """The numbers of the steps that are layers."""
        return [number for number, step in enumerate(self.steps) if step.rule is not None]

    @property
    def composite(self):
        """The rules as the library takes them."""
        pairs = [(index[i], self.steps[number].rule) for i, number in enumerate(self.layers)]
        # It may pool what attention is computed from, which takes nothing where it is held: no treatment is required.
        treatments = {"reduce_window_max": POOLINGS[self.pooling]}
        pairs = pairs or [(any_layer, Zero())]
        return Composite(pairs, treatments, holds_attention=self.holds_attention, strict=False)

    def values(self, x):
        """The values of all steps, in JAX."""
        values = [x]
        for step in self.steps[1:]:
            values.append(run(step, *(values[i] for i in step.operands)))
        return values

    def __call__(self, x):
        return self.values(x)[-1]


def run(step, *operands):
    """Applies a step to batches of its operands, in JAX, wrapped as the step says."""
    apply = lambda *operands: _run(step, *operands)
    match step.options.get("wrap"):
        case "jit":
            return jax.jit(apply)(*operands)
        case "vmap":
            one = lambda *samples: apply(*(x[None] for x in samples))[0]
            return jax.vmap(one)(*operands)
        case "checkpoint":
            return jax.checkpoint(apply)(*operands)
        case "scan":
            one = lambda _, samples: (None, apply(*(x[None] for x in samples))[0])
            return lax.scan(one, None, operands)[1]
    return apply(*operands)


def _run(step, *operands):
    x = operands[0]
    options = {name: value for name, value in step.options.items() if name not in ("wrap", "weight")}
    arrays = {name: jnp.asarray(array, x.dtype) for name, array in step.arrays.items() if array.ndim}
    numbers = {name: array.item() for name, array in step.arrays.items() if not array.ndim}
    c = arrays.get("c", numbers.get("c"))
    if "w" in arrays:
        arrays["w"] = WEIGHTS[step.options["weight"]](arrays["w"])
    match step.name:
        case "conv":
            return _convolution(x, arrays["w"], arrays.get("b"), **options)
        case "dense":
            z = _dense(x, arrays["w"], options["spelling"])
            return z + arrays["b"] if "b" in arrays else z
        case "shift":
            return c - x if options["reverse"] else x + c
        case "scale":
            return x / c if options["divides"] else x * c
        case "elementwise":
            return ELEMENTWISE[options["function"]](x)
        case "mask":
            return jnp.where(arrays["mask"] != 0, x, 0.0) if options["selects"] else x * arrays["mask"]
        case "cast":
            return lax.reduce_precision(x, jnp.finfo(x.dtype).nexp, jnp.finfo(x.dtype).nmant)
        case "max_pool":
            return nnx.max_pool(x, options["size"], options["stride"], options["padding"])
        case "mean_pool":
            return nnx.avg_pool(
                x, options["size"], options["stride"], options["padding"], count_include_pad=options["counts_padding"]
            )
        case "mean":
            return x.mean(tuple(range(1, x.ndim - 1)))
        case "sum":
            return x.sum(tuple(range(1, x.ndim - 1)))
        case "reshape":
            return x.reshape(len(x), *options["shape"])
        case "transpose":
            return jnp.swapaxes(x, 1, 2)
        case "flip":
            return jnp.flip(x, options["axis"] + 1)
        case "crop":
            return x[:, 1:]
        case "pad":
            return lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), (*options["width"], 0), *[(0, 0, 0)] * (x.ndim - 2)])
        case "add":
            return x + operands[1]
        case "subtract":
            return x - operands[1]
        case "maximum":
            return jnp.maximum(x, operands[1])
        case "concatenate":
            return jnp.concatenate(operands, -1)
        case "multiply":
            return x * operands[1]
        case "center":
            return x - x.mean(-1, keepdims=True)
        case "divide by norm":
            return NORMS[options["spelling"]](x, (x**2).mean(-1, keepdims=True) + 1e-5)
        case "softmax":
            return jax.nn.softmax(x)
        case "scores":
            return jnp.einsum("bid,bjd->bij", *operands)
        case "mix":
            return operands[0] @ operands[1]
    raise AssertionError(step.name)


WEIGHTS = {
    "plain": lambda w: w,
    "computed": lambda w: (2 * w) * 0.5,
    "transposed twice": lambda w: jnp.moveaxis(jnp.moveaxis(w, 0, -1), -1, 0),
}
NORMS = {
    "rsqrt": lambda x, square: x * lax.rsqrt(square),
    "division": lambda x, square: x / jnp.sqrt(square),
    "power": lambda x, square: x * square**-0.5,
    "reciprocal": lambda x, square: (1 / jnp.sqrt(square)) * x,
    "exponential": lambda x, square: x * jnp.exp(-0.5 * jnp.log(square)),
}


def _convolution(x, w, b, stride, padding, groups, dilation, spread, layout):
    dimensions = "DHW"[3 - (x.ndim - 2) :]
    channels_first = layout == "NCHW"
    if channels_first:
        x, w = jnp.moveaxis(x, -1, 1), jnp.moveaxis(w, (-1, -2), (0, 1))
    last = (f"N{dimensions}C", f"{dimensions}IO", f"N{dimensions}C")
    first = (f"NC{dimensions}", f"OI{dimensions}", f"NC{dimensions}")
    z = lax.conv_general_dilated(
        x,
        w,
        (stride,) * len(dimensions),
        padding,
        lhs_dilation=(spread,) * len(dimensions),
        rhs_dilation=(dilation,) * len(dimensions),
        dimension_numbers=first if channels_first else last,
        feature_group_count=groups,
    )
    if b is not None:
        z = z + (b.reshape(-1, *[1] * len(dimensions)) if channels_first else b)
    return jnp.moveaxis(z, 1, -1) if channels_first else z


def _dense(x, w, spelling):
    match spelling:
        case "x @ w":
            return x @ w
        case "w @ x":
            return jnp.moveaxis(w.T @ jnp.moveaxis(x, 0, -1), -1, 0)
        case "einsum":
            return jnp.einsum("fg,...f->...g", w, x)
        case "first axis":  # the features stand in front, as where channels come first
            return jnp.moveaxis(jnp.einsum("nf...,fg->ng...", jnp.moveaxis(x, -1, 1), w), 1, -1)
    raise AssertionError(spelling)


# Drawing


def _pick(draw, *options):
    return draw(st.sampled_from(options))


@dataclass
class _Builder:
    """Appends drawn steps."""

    draw: Any
    generator: np.random.Generator
    style: str
    dtype: Any
    steps: list[Step] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def append(self, name, operands, options=None, arrays=None, rule=None):
        arrays = {key: np.asarray(array, self.dtype) for key, array in (arrays or {}).items()}
        # A piece of a program that is a layer is wrapped as a whole, with its bias.
        wraps = ["jit", "vmap", "checkpoint"] + ["scan"] * (name in ("center", "divide by norm", "softmax"))
        wrap = _pick(self.draw, *wraps) if self.draw(st.integers(0, 7)) == 0 else None
        step = Step(name, tuple(operands), {**(options or {}), "wrap": wrap}, arrays, rule)
        inputs = [jax.ShapeDtypeStruct((BATCH, *self.shapes[i]), self.dtype) for i in operands]
        self.steps.append(step)
        self.shapes.append(jax.eval_shape(lambda *xs: run(step, *xs), *inputs).shape[1:])
        return len(self.steps) - 1

    def numbers(self, *shape, around=0.0, scale=1.0):
        """Parameters: normally distributed, or small multiples of 1/4 with many zeros."""
        if self.style == "small":
            return around + self.generator.integers(-4, 5, shape) / 4 * self.generator.integers(0, 2, shape)
        return around + scale * self.generator.normal(size=shape)

    def layer(self, name, i, w, features, options):
        size = _pick(self.draw, 1.0, 1.0, 1.0, 1.0, 1e-3, 1e3)
        arrays = {"w": size * w}
        if self.draw(st.booleans()):
            arrays["b"] = size * self.numbers(features, scale=0.5)
        # Bounds of z-box broadcast to the input as the product reads it, whose last dimension are the channels here.
        channels_last = options.get("layout", "NHWC") == "NHWC" and options.get("spelling") in ("x @ w", "einsum", None)
        options = options | {"weight": _pick(self.draw, "plain", "plain", *WEIGHTS)}
        rule = _rule(self.draw, self.shapes[i][-1] if channels_last else 0)
        number = self.append(name, [i], options, arrays, rule)
        if isinstance(rule, Pass) and self.shapes[number] != self.shapes[i]:
            self.steps[number] = replace(self.steps[number], rule=Epsilon())
        return number

    def dense(self, i, features=None):
        features = features or _pick(self.draw, 2, 3, 4)
        w = self.numbers(self.shapes[i][-1], features)
        spellings = ("x @ w", "einsum", "first axis" if len(self.shapes[i]) > 1 else "w @ x")
        return self.layer("dense", i, w, features, {"spelling": _pick(self.draw, *spellings)})

    def conv(self, i, features=None, keeps_shape=False):
        draw, (*sizes, channels) = self.draw, self.shapes[i]
        dimensions = len(sizes)
        size = _pick(draw, 1, 2, 3) if dimensions < 3 else _pick(draw, 1, 2)
        dilation = 1 if keeps_shape or size == 1 else _pick(draw, 1, 1, 1, 2)
        spread = 1 if keeps_shape or dimensions > 2 or max(sizes) > 5 else _pick(draw, 1, 1, 1, 2)
        stride = 1 if keeps_shape or spread > 1 else _pick(draw, 1, 1, 2)
        low = (size - 1) // 2
        padding = ((low, size - 1 - low),) * dimensions
        reach = dilation * (size - 1) + 1
        spread_sizes = [(n - 1) * spread + 1 for n in sizes]
        if not keeps_shape:
            options = [padding, ((1, 1),) * dimensions, ((0, 2), (1, 0), (1, 1))[:dimensions]]
            if min(spread_sizes) >= reach:
                options.append(((0, 0),) * dimensions)
            padding = draw(st.sampled_from(options))
            if min(n + sum(pad) for n, pad in zip(spread_sizes, padding, strict=True)) < reach:
                padding = ((2, 2),) * dimensions
        groups = _pick(draw, 1, 1, channels, 2 if channels % 2 == 0 else 1)
        features = features or groups * _pick(draw, 1, 2)
        if features % groups:
            groups = 1
        w = self.numbers(*[size] * dimensions, channels // groups, features)
        options = {"stride": stride, "padding": padding, "groups": groups, "dilation": dilation, "spread": spread}
        return self.layer("conv", i, w, features, options | {"layout": _pick(draw, "NHWC", "NHWC", "NCHW")})

    def norm(self, i):
        """A batch normalisation, in one of the ways in which it is written."""
        channels = self.shapes[i][-1:]
        mean, variance = self.numbers(*channels, scale=0.3), 0.5 + self.numbers(*channels) ** 2
        # As trained: scales of either sign, shifts of the size of the values.
        gain, offset = self.numbers(*channels, around=0.5), self.numbers(*channels)
        deviation = np.sqrt(variance + 1e-5)
        if self.draw(st.booleans()):
            i = self.append("scale", [i], {"divides": False}, {"c": gain / deviation})
            return self.append("shift", [i], {"reverse": False}, {"c": offset - mean * gain / deviation})
        i = self.append("shift", [i], {"reverse": False}, {"c": -mean})
        i = self.append("scale", [i], {"divides": True}, {"c": deviation})
        i = self.append("scale", [i], {"divides": False}, {"c": gain})
        return self.append("shift", [i], {"reverse": False}, {"c": offset})

    def shift(self, i):
        shape = _pick(self.draw, (), self.shapes[i][-1:], self.shapes[i])
        return self.append("shift", [i], {"reverse": self.draw(st.booleans())}, {"c": self.numbers(*shape)})

    def scale(self, i):
        shape = _pick(self.draw, (), self.shapes[i][-1:])
        divides = self.draw(st.booleans())
        c = self.numbers(*shape, around=_pick(self.draw, 1.0, -1.0), scale=0.4)
        return self.append("scale", [i], {"divides": divides}, {"c": np.where(c == 0, 0.5, c) if divides else c})

    def elementwise(self, i):
        function = _pick(self.draw, "relu", "relu", "relu", "relu", *ELEMENTWISE)
        return self.append("elementwise", [i], {"function": function})

    def gated(self, i):
        """A value times a gate, or a gate times a value, behind a move or not."""
        gate = self.append("elementwise", [self.partner(i)], {"function": _pick(self.draw, *GATES)})
        if self.draw(st.integers(0, 2)) == 0:
            gate = self.append("cast", [gate])
        return self.append("multiply", self.draw(st.permutations([i, gate])))

    def pool(self, i):
        options = {"size": _pick(self.draw, (2, 2), (2, 2), (3, 3), (2, 1))}
        options["padding"] = _pick(self.draw, "VALID", "SAME")
        if self.shapes[i][0] < options["size"][0] or self.shapes[i][1] < options["size"][1]:
            options["padding"] = "SAME"
        options["stride"] = _pick(self.draw, (2, 2), (1, 1), (2, 1))
        if self.draw(st.booleans()):
            return self.append("max_pool", [i], options)
        return self.append("mean_pool", [i], options | {"counts_padding": self.draw(st.booleans())})

    def structure(self, i):
        shape = self.shapes[i]
        name = _pick(self.draw, *"flip pad crop flatten transpose cast mask".split())
        if name == "crop" and shape[0] == 1:
            name = "flip"
        if name == "transpose" and len(shape) == 1:
            name = "cast"
        if name == "flip":
            return self.append("flip", [i], {"axis": self.draw(st.integers(0, len(shape) - 1))})
        if name == "pad":
            return self.append("pad", [i], {"width": _pick(self.draw, (1, 0), (0, 1), (-1, 1))})
        if name == "mask":
            mask = self.generator.integers(0, 2, shape[-1:])
            return self.append("mask", [i], {"selects": self.draw(st.booleans())}, {"mask": mask})
        return self.flatten(i) if name == "flatten" else self.append(name, [i])

    def flatten(self, i):
        return self.append("reshape", [i], {"shape": (int(np.prod(self.shapes[i])),)})

    def partner(self, i):
        """A value of the same shape: an earlier one, or a new layer."""
        same = [j for j, shape in enumerate(self.shapes) if shape == self.shapes[i]]
        if self.draw(st.booleans()):
            return self.draw(st.sampled_from(same))
        if len(self.shapes[i]) > 2:
            return self.conv(i, self.shapes[i][-1], keeps_shape=True)
        return self.dense(i, self.shapes[i][-1])

    def pair(self, i):
        j = self.partner(i)
        names = ["add", "add", "add", "subtract", "maximum", "multiply", "multiply"]
        if self.shapes[i][-1] <= 4:
            names.append("concatenate")
        name = self.draw(st.sampled_from(names))
        operands = self.draw(st.permutations([i, j]))
        return self.append("add" if name == "subtract" and i == j else name, operands)

    def normalisation(self, i):
        if self.draw(st.booleans()):
            i = self.append("center", [i])
        i = self.append("divide by norm", [i], {"spelling": _pick(self.draw, *NORMS)})
        if self.draw(st.integers(0, 3)):
            i = self.append("scale", [i], {"divides": False}, {"c": self.numbers(*self.shapes[i][-1:], around=0.5)})
            i = self.append("shift", [i], {"reverse": False}, {"c": self.numbers(*self.shapes[i][-1:])})
        return i

    def attention(self, i):
        width = _pick(self.draw, 2, 3)
        query, key, value = (self.dense(i, width) for _ in range(3))
        scores = self.append("scores", [query, key])
        scores = self.append("scale", [scores], {"divides": self.draw(st.booleans())}, {"c": np.sqrt(width)})
        mixed = self.append("mix", [self.append("softmax", [scores]), value])
        return self.dense(mixed, self.shapes[i][-1]) if self.draw(st.booleans()) else mixed

    def block(self, i):
        """One more piece of a network."""
        blocks = [self.linear, self.linear, self.linear, self.elementwise, self.norm, self.shift, self.scale]
        blocks += [self.pair, self.pair, self.gated, self.structure, self.normalisation]
        rank = len(self.shapes[i])
        if rank == 3:
            blocks += [self.pool, self.pool, self.tokens]
        if rank == 2:
            blocks += [self.attention, self.attention]
        if rank < 3 and self.draw(st.integers(0, 9)) == 0:
            return self.append("softmax", [i])
        return self.draw(st.sampled_from(blocks))(i)

    def linear(self, i):
        rank = len(self.shapes[i])
        i = self.conv(i) if rank > 2 or (rank == 2 and self.draw(st.integers(0, 2)) == 0) else self.dense(i)
        if self.draw(st.integers(0, 3)) == 0:
            i = self.norm(i)
        return self.elementwise(i) if self.draw(st.integers(0, 2)) else i

    def tokens(self, i):
        height, width, channels = self.shapes[i]
        return self.append("reshape", [i], {"shape": (height * width, channels)})

    def head(self, i):
        if len(self.shapes[i]) > 1:
            name = _pick(self.draw, "mean", "sum", "flatten")
            i = self.flatten(i) if name == "flatten" else self.append(name, [i])
        return self.dense(i, 3)


def _rule(draw, channels):
    bias = _pick(draw, "absorb", "absorb", "ignore", "distribute")
    stabilizer = _pick(draw, None, None, 1e-6, 1e-3, 0.0)
    given = {"bias": bias} if stabilizer is None else {"bias": bias, "stabilizer": stabilizer}
    match _pick(draw, *"zero zero epsilon gamma alpha-beta z+ w^2 flat z-box norm pass gradient".split()):
        case "zero":
            return Zero(bias=bias)
        case "epsilon":
            if stabilizer is None:
                return Epsilon(bias=bias)
            return Epsilon(_pick(draw, 1e-9, 1e-6, 0.1, 2.0), relative=draw(st.booleans()), bias=bias)
        case "gamma":
            return Gamma(_pick(draw, 0.0, 0.25, 1.0, 10.0), **given)
        case "alpha-beta":
            alpha = _pick(draw, 1.0, 1.5, 2.0, 3.0)
            return AlphaBeta(alpha, alpha - 1, **given)
        case "z+":
            return ZPlus(**given)
        case "w^2":
            return WSquare(**given)
        case "flat":
            return Flat(**given)
        case "z-box":
            low, high = _pick(draw, (-1.0, 1.0), (0.0, 2.0), (-3.0, 0.0))
            if channels and draw(st.booleans()):
                low, high = tuple(low - 0.5 * i for i in range(channels)), tuple(high + i for i in range(channels))
            return ZBox(low, high, **given)
        case "norm":
            return Norm(**given)
        case "pass":
            return Pass(bias=bias)
    return Gradient(bias=bias)


def _input(draw, generator, shape):
    shape = (BATCH, *shape)
    small = generator.integers(-4, 5, shape) / 4
    match _pick(draw, *"normal normal small small patches zeros huge tiny mixed positive".split()):
        case "normal":
            return generator.normal(size=shape)
        case "small":
            return small
        case "patches":
            return np.where(generator.random(shape) < 0.2, small, small.flat[0])
        case "zeros":
            return np.zeros(shape)
        case "huge":
            return 1e6 * generator.normal(size=shape)
        case "tiny":
            return 1e-6 * generator.normal(size=shape)
        case "mixed":
            return generator.normal(size=shape) * 10.0 ** generator.integers(-8, 9, shape)
    return np.abs(generator.normal(size=shape))


@st.composite
def programs(draw, dtype=np.float64, depth=6):
    """Draws a network of up to `depth` blocks with rules, an input, and a seed."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    builder = _Builder(draw, generator, _pick(draw, "normal", "small"), dtype)
    shape = _pick(draw, (4, 4, 2), (4, 4, 2), (5, 4, 3), (6,), (3, 4), (6, 2), (3, 2, 2, 2))
    builder.steps.append(Step("input", ()))
    builder.shapes.append(shape)
    last = 0
    for _ in range(draw(st.integers(1, depth))):
        last = builder.block(last)
    if draw(st.booleans()):
        last = builder.head(last)
    steps = without_unused(builder.steps, last)
    seed = generator.normal(size=(BATCH, *builder.shapes[last]))
    seed *= generator.integers(0, 2, seed.shape)
    x = _input(draw, generator, shape)
    pooling, holds = _pick(draw, "winner", "winner", *POOLINGS), draw(st.booleans())
    has_pooling = any(step.name == "max_pool" for step in steps)
    return Program(steps, x.astype(dtype), seed.astype(dtype), pooling if has_pooling else "winner", holds)


def without_unused(steps, last):
    """The steps that the last one needs, numbered anew."""
    needed = {last}
    for number in range(last, -1, -1):
        if number in needed:
            needed.update(steps[number].operands)
    kept = sorted(needed | {0})
    renumbered = {old: new for new, old in enumerate(kept)}
    return tuple(
        replace(step, operands=tuple(renumbered[i] for i in step.operands))
        for step in (steps[number] for number in kept)
    )
