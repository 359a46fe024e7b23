"""Random networks as data, and the many ways in which one and the same network is written down.

`network` draws one: a list of blocks with parameters. `written` turns it into a function of (parameters, x), written in
one way: with other spellings of its functions, helpers that are jitted, printed from or named, numbers for arrays. What
it computes is always the same.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.lax import stop_gradient as held

TOKENS, WIDTH, CLASSES = 4, 3, 2
EPS = 1e-3


# Equivalent spellings; the first is the plain one

RELU = [
    jax.nn.relu,
    lambda x: jnp.maximum(x, 0),
    lambda x: jnp.maximum(0.0, x),
    lambda x: jnp.where(x > 0, x, 0),
    lambda x: jnp.where(x <= 0, 0.0, x),
    lambda x: jnp.clip(x, 0),
    lambda x: x * (x > 0),
    lambda x: (x > 0).astype(x.dtype) * x,
    lambda x: (x + jnp.abs(x)) / 2,
    lambda x: jnp.maximum(x, jnp.zeros_like(x)),
    lambda x: -jnp.minimum(-x, 0.0),
    lambda x: lax.select(x > 0, x, jnp.zeros_like(x)),
]
SIGMOID = [
    jax.nn.sigmoid,
    lambda x: 1 / (1 + jnp.exp(-x)),
    lambda x: (1 + jnp.tanh(x / 2)) / 2,
    lambda x: jnp.tanh(0.5 * x) * 0.5 + 0.5,
    lambda x: jnp.exp(jax.nn.log_sigmoid(x)),
    lambda x: 1 - jax.nn.sigmoid(-x),
    lambda x: jnp.reciprocal(jnp.exp(-x) + 1.0),
    jax.scipy.special.expit,
]
SILU = [
    jax.nn.silu,
    lambda x: x * jax.nn.sigmoid(x),
    lambda x: jax.nn.sigmoid(x) * x,
    lambda x: x / (1 + jnp.exp(-x)),
    lambda x: x * (1 / (1 + jnp.exp(-x))),
    lambda x: x * (0.5 * jnp.tanh(0.5 * x) + 0.5),
]
GELU = [
    functools.partial(jax.nn.gelu, approximate=False),
    lambda x: 0.5 * x * (1 + lax.erf(x / np.sqrt(2))),
    lambda x: x * (0.5 * (1 + lax.erf(x * 0.7071067811865476))),
    lambda x: x * jax.scipy.stats.norm.cdf(x),
    lambda x: x * lax.erfc(-x / np.sqrt(2)) / 2,
    lambda x: (1 + lax.erf(x / np.sqrt(2))) * x * 0.5,
]
HARD_SWISH = [
    jax.nn.hard_swish,
    lambda x: x * jax.nn.relu6(x + 3) / 6,
    lambda x: x * (jax.nn.relu6(x + 3.0) * (1 / 6)),
    lambda x: x * jnp.clip(x / 6 + 0.5, 0, 1),
    lambda x: jnp.minimum(jnp.maximum(x + 3, 0), 6) / 6 * x,
    lambda x: x * jax.nn.hard_sigmoid(x),
]
HARD_SIGMOID = [
    jax.nn.hard_sigmoid,
    lambda x: jax.nn.relu6(x + 3) / 6,
    lambda x: jnp.clip(x / 6 + 0.5, 0, 1),
    lambda x: jnp.clip(x + 3.0, 0.0, 6.0) * (1 / 6),
]
SOFTPLUS = [
    jax.nn.softplus,
    lambda x: jnp.log(1 + jnp.exp(x)),
    lambda x: jnp.log1p(jnp.exp(x)),
    lambda x: -jax.nn.log_sigmoid(-x),
    lambda x: jnp.logaddexp(x, 0.0),
    lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))),
]
TANH = [jnp.tanh, lambda x: 2 * jax.nn.sigmoid(2 * x) - 1, lambda x: (jnp.exp(2 * x) - 1) / (jnp.exp(2 * x) + 1)]
LEAKY_RELU = [
    functools.partial(jax.nn.leaky_relu, negative_slope=0.25),
    lambda x: jnp.where(x > 0, x, 0.25 * x),
    lambda x: jnp.maximum(x, 0.25 * x),
    lambda x: jax.nn.relu(x) - 0.25 * jax.nn.relu(-x),
]
ABSOLUTE = [jnp.abs, lambda x: jnp.where(x > 0, x, -x), lambda x: jnp.maximum(x, -x)]
SOFTMAX = [
    jax.nn.softmax,
    lambda s: jnp.exp(s) / jnp.exp(s).sum(-1, keepdims=True),
    lambda s: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp(s - held(s.max(-1, keepdims=True)))),
    lambda s: jnp.exp(s) * (1 / jnp.exp(s).sum(-1, keepdims=True)),
    lambda s: jnp.exp(jax.nn.log_softmax(s)),
    lambda s: jnp.exp(s - jax.nn.logsumexp(s, -1, keepdims=True)),
    lambda s: jax.nn.softmax(s, where=jnp.ones(s.shape, bool)),
    lambda s: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp2(s * np.log2(np.e))),
]


def _centred(x):
    return x - x.mean(-1, keepdims=True)


def _variance(x):
    return x.var(-1, keepdims=True)


LAYER_NORM = [
    lambda x: _centred(x) * lax.rsqrt(_variance(x) + EPS),
    lambda x: _centred(x) / jnp.sqrt(_variance(x) + EPS),
    lambda x: _centred(x) * (_variance(x) + EPS) ** -0.5,
    lambda x: _centred(x) * (1 / jnp.sqrt(_variance(x) + EPS)),
    lambda x: _centred(x) * jnp.exp(-jnp.log(_variance(x) + EPS) / 2),
    lambda x: _centred(x) / jnp.sqrt((x * x).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2 + EPS),
    lambda x: (lambda c: c / jnp.sqrt((c * c).mean(-1, keepdims=True) + EPS))(_centred(x)),
    lambda x: lax.rsqrt(_variance(x) + EPS) * _centred(x),
    lambda x: jax.nn.standardize(x, -1, epsilon=EPS),
    jax.vmap(jax.vmap(lambda r: (r - r.mean()) / jnp.sqrt(r.var() + EPS))),
]
RMS_NORM = [
    lambda x: x * lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS),
    lambda x: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + EPS),
    lambda x: x * (jnp.square(x).mean(-1, keepdims=True) + EPS) ** -0.5,
    lambda x: (1 / jnp.sqrt((x * x).sum(-1, keepdims=True) / WIDTH + EPS)) * x,
    lambda x: x * jnp.exp(-0.5 * jnp.log((x**2).mean(-1, keepdims=True) + EPS)),
]
# Two factors, one of them the gate.
GATED = [
    lambda signal, gate: signal * gate,
    lambda signal, gate: gate * signal,
    lambda signal, gate: (signal.reshape(*signal.shape, 1) * gate.reshape(*gate.shape, 1))[..., 0],
    lambda signal, gate: (gate.swapaxes(1, 2) * signal.swapaxes(1, 2)).swapaxes(1, 2),
    lambda signal, gate: 2.0 * (signal * (0.5 * gate)),
]
ACTIVATIONS = {
    "relu": RELU,
    "leaky relu": LEAKY_RELU,
    "absolute": ABSOLUTE,
    "silu": SILU,
    "gelu": GELU,
    "hard swish": HARD_SWISH,
    "tanh": TANH,
}
SHIFTED_ACTIVATIONS = {"sigmoid": SIGMOID, "softplus": SOFTPLUS}
PIECEWISE_LINEAR = ("relu", "leaky relu", "absolute")


# Ways of writing


@dataclass(frozen=True)
class Writing:
    """How a network is written down.

    Attributes:
        wrap: What every piece stands in, by its name in `WRAPS`.
        spelling: A number that chooses among equivalent spellings; 0 for the plain ones.
        number: How a constant that is one number is given: as a "number", or as an array of "zero" dimensions, of
            "one" element or of one for each "feature".
    """

    wrap: str = "plain"
    spelling: int = 0
    number: str = "number"

    def choose(self, spellings, place):
        """One of the spellings, another one in each place."""
        return spellings[(self.spelling * (place + 1)) % len(spellings)] if self.spelling else spellings[0]

    def constant(self, value):
        match self.number:
            case "zero":
                return jnp.asarray(value)
            case "one":
                return jnp.full((1,), value)
            case "feature":
                return jnp.full((WIDTH,), value)
        return float(value)


def _renamed(piece):
    def softplus(*xs):
        return piece(*xs)

    return jax.jit(softplus)


def _printed(piece):
    def printing(*xs):
        y = piece(*xs)
        jax.debug.callback(lambda *_: None, y.sum())
        jax.debug.callback(lambda *_: None, y, xs[0])
        return y

    return printing


def _read(piece):
    def read(*xs):
        y = piece(*xs)
        jnp.tanh(y).sum()
        READ.append(y)
        return y

    return read


READ: list[Any] = []  # what a network written with further readers returns besides its output


def _sharded(piece):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return lambda *xs: lax.with_sharding_constraint(piece(*xs), device)


def _cast(piece):
    return lambda *xs: lax.reduce_precision(piece(*xs).astype(xs[0].dtype), 11, 52)


def _by_sample(piece):
    one = lambda *xs: piece(*(x[None] for x in xs))[0]
    return jax.vmap(one)


WRAPS: dict[str, Callable] = {
    "plain": lambda piece: piece,
    "jit": jax.jit,
    "jit twice": lambda piece: jax.jit(lambda *xs: jax.jit(piece)(*xs)),
    "renamed": _renamed,
    "printed": _printed,
    "read": _read,
    "named": lambda piece: lambda *xs: checkpoint_name(piece(*xs), "here"),
    "sharded": _sharded,
    "barrier": lambda piece: lambda *xs: lax.optimization_barrier(piece(*xs)),
    "cast": _cast,
    "checkpoint": jax.checkpoint,
    "vmap": _by_sample,
}


# Networks


@dataclass(frozen=True)
class Block:
    """One piece of a network: its kind, its parameters, numbers of its own, and the blocks inside of it."""

    kind: str
    parameters: tuple = ()
    number: float = 0.0
    inner: tuple = ()


def network(seed, *, piecewise_linear=False, blocks=2):
    """Draws a network of (samples, tokens, features): its blocks, the last of which returns (samples, classes)."""
    rng = np.random.default_rng(seed)
    drawn = [_block(rng, piecewise_linear) for _ in range(rng.integers(1, blocks + 1))]
    out = Block("head", (rng.normal(size=(WIDTH, CLASSES)), rng.normal(size=CLASSES)))
    return (*drawn, dataclasses.replace(out, kind=str(rng.choice(["head", "largest head"]))))


def _square(rng):
    return rng.normal(size=(WIDTH, WIDTH)), rng.normal(size=WIDTH)


def _block(rng, piecewise_linear, depth=0):
    activations = PIECEWISE_LINEAR if piecewise_linear else tuple(ACTIVATIONS)
    kinds = ["dense", "dense", "convolution", "batch norm", "positions", "activation", "shifted activation", "residual"]
    kinds += ["shifted dense", "token", "largest of two", "joined"]
    if not piecewise_linear:
        kinds += ["layer norm", "layer norm", "rms norm", "attention", "attention", "gate", "hard gate", "sigmoid"]
        kinds += ["softplus", "excite", "swish gate"]
    kind = str(rng.choice(kinds))
    number = float(rng.normal())
    match kind:
        case "dense" | "shifted dense":
            weight, bias = _square(rng)
            chosen = str(rng.choice(activations))
            return Block(kind, (weight, bias), number, (Block(chosen),))
        case "convolution":
            return Block(kind, (rng.normal(size=(2, WIDTH, WIDTH)), rng.normal(size=WIDTH)))
        case "batch norm":
            # As trained: running statistics far from 0 and 1, scales of either sign.
            mean, gain, shift = rng.normal(size=(3, WIDTH))
            return Block(kind, (mean, rng.uniform(0.2, 3, WIDTH), gain, shift))
        case "positions":
            return Block(kind, (rng.normal(size=(TOKENS, WIDTH)),))
        case "activation" | "shifted activation":
            return Block(kind, (), number, (Block(str(rng.choice(activations))),))
        case "layer norm" | "rms norm":
            return Block(kind, tuple(rng.normal(size=(2, WIDTH))))
        case "attention":
            return Block(kind, sum((_square(rng) for _ in range(4)), ()))
        case "gate" | "hard gate" | "excite" | "swish gate":
            return Block(kind, _square(rng) + _square(rng))
        case "sigmoid" | "softplus":
            return Block(kind, _square(rng))
        case "token":
            return Block(kind, (rng.normal(size=(1, WIDTH)),))
        case "largest of two" | "joined":
            return Block(kind, (*_square(rng), rng.normal(size=(2 * WIDTH, WIDTH))))
    inner = (_block(rng, piecewise_linear, depth + 1),) if depth < 2 else ()
    return Block("residual", (), 0.0, inner)


def is_only_relu(blocks):
    """Whether guided backpropagation is defined: no function of one value but relu, no product of live values."""
    allowed = {"dense", "shifted dense", "activation", "shifted activation", "positions", "convolution", "batch norm"}
    return all(block.kind in allowed | {"head"} for block in blocks) and all(
        inner.kind == "relu" for block in blocks for inner in block.inner
    )


def parameters_of(blocks):
    return [[block.parameters, parameters_of(block.inner)] for block in blocks]


def written(blocks, writing=Writing()):
    """The network as a function of (parameters, x), written in one way."""

    def run(parameters, x):
        for place, (block, (own, inner)) in enumerate(zip(blocks, parameters, strict=True)):
            x = _run(block, own, inner, x, writing, place)
        return x

    return run


def _run(block, own, inner, x, writing, place):
    wrap = WRAPS[writing.wrap]
    own = [jnp.asarray(array) for array in own]
    product = lambda x, w: wrap(lambda x: x @ w)(x)
    choose = functools.partial(writing.choose, place=place)
    match block.kind:
        case "dense":
            activate = wrap(choose(ACTIVATIONS[block.inner[0].kind]))
            return activate(product(x, own[0]) + own[1])
        case "shifted dense":
            activate = wrap(choose(ACTIVATIONS[block.inner[0].kind]))
            return activate(product(x, own[0]) + writing.constant(block.number))
        case "convolution":
            numbers = ("NHC", "HIO", "NHC")
            weight = own[0].astype(x.dtype)
            convolved = lambda x: lax.conv_general_dilated(x, weight, (1,), "SAME", dimension_numbers=numbers)
            return wrap(convolved)(x) + own[1]
        case "batch norm":
            mean, variance, gain, shift = own
            norms = [
                lambda x: (x - mean) / jnp.sqrt(variance + EPS) * gain + shift,
                lambda x: (x - mean) * (gain * lax.rsqrt(variance + EPS)) + shift,
                lambda x: x * (gain / jnp.sqrt(variance + EPS)) + (shift - mean * gain / jnp.sqrt(variance + EPS)),
            ]
            return wrap(choose(norms))(x)
        case "positions":
            return wrap(lambda x: x + own[0])(x)
        case "activation":
            return wrap(choose(ACTIVATIONS[block.inner[0].kind]))(x)
        case "shifted activation":
            return wrap(choose(ACTIVATIONS[block.inner[0].kind]))(x + writing.constant(block.number))
        case "layer norm":
            return wrap(choose(LAYER_NORM))(x) * own[0] + own[1]
        case "rms norm":
            return wrap(choose(RMS_NORM))(x) * own[0] + own[1]
        case "attention":
            query, key, value = (product(x, own[2 * i]) + own[2 * i + 1] for i in range(3))
            scores = jnp.einsum("nid,njd->nij", query, key) / np.sqrt(WIDTH)
            return product(wrap(choose(SOFTMAX))(scores) @ value, own[6]) + own[7]
        case "gate" | "hard gate":
            spellings = SIGMOID if block.kind == "gate" else HARD_SIGMOID
            gate = wrap(choose(spellings))(product(x, own[0]) + own[1])
            return wrap(choose(GATED))(product(x, own[2]) + own[3], gate)
        case "excite":
            gate = wrap(choose(SIGMOID))(product(x.mean(1), own[0]) + own[1])
            return choose([lambda: x * gate[:, None], lambda: gate[:, None] * x])()
        case "swish gate":
            signal = wrap(choose(SILU))(product(x, own[0]) + own[1])
            return signal * (product(x, own[2]) + own[3])
        case "sigmoid" | "softplus":
            return wrap(choose(SHIFTED_ACTIVATIONS[block.kind]))(product(x, own[0]) + own[1])
        case "token":
            token = jnp.broadcast_to(own[0], (len(x), 1, WIDTH)).astype(x.dtype)
            return jnp.concatenate([token, x[:, 1:]], 1)
        case "largest of two":
            return wrap(jnp.maximum)(product(x, own[0]) + own[1], x)
        case "joined":
            return product(jnp.concatenate([product(x, own[0]) + own[1], x], -1), own[2])
        case "residual":
            return x + written(block.inner, writing)(inner, x)
        case "head":
            return product(x.mean(1), own[0]) + own[1]
        case "largest head":
            return product(wrap(lambda x: x.max(1))(x), own[0]) + own[1]
    raise AssertionError(block.kind)
