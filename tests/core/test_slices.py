"""Values that are put side by side and taken apart again are what they were before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import assert_close
from jax import lax, nn

from lrp_jax import lrp, rules

pytestmark = pytest.mark.usefixtures("float64")

RNG = np.random.default_rng(0)
X, W, V = RNG.normal(size=(3, 4)), *RNG.normal(size=(2, 4, 4))
SEED = RNG.normal(size=12)


def stacked(axis):
    return lambda a, b: jnp.stack([a, b], axis)


def beside(a, b):
    return jnp.concatenate([a, b], 1)


TAKEN_APART = {
    "by index": (stacked(0), lambda s: (s[0], s[1])),
    "by index along the middle": (stacked(1), lambda s: (s[:, 0], s[:, -1])),
    "by index along the end": (stacked(2), lambda s: (s[..., 0], s[..., 1])),
    "by unpacking": (stacked(0), lambda s: tuple(s)),
    "by unstack": (stacked(1), lambda s: jnp.unstack(s, axis=1)),
    "by take": (stacked(0), lambda s: (jnp.take(s, 0, 0), jnp.take(s, 1, axis=0))),
    "by dynamic_index_in_dim": (
        stacked(0),
        lambda s: [lax.dynamic_index_in_dim(s, i, 0, keepdims=False) for i in (0, 1)],
    ),
    "by an array of one index": (stacked(0), lambda s: (s[np.array([0])][0], s[jnp.array([-1])][0])),
    "by a list of one index": (stacked(1), lambda s: (s[:, [0]], s[:, [1]])),
    "by a mask": (stacked(0), lambda s: (s[np.array([True, False])], s[np.array([False, True])])),
    "by split": (beside, lambda s: jnp.split(s, 2, 1)),
    "by slices": (beside, lambda s: (s[:, :-4], s[:, -4:])),
    "by slices of slices": (beside, lambda s: (s[1:, :5][:, :4], s[:, 3:][1:, 1:])),
    "in another shape": (beside, lambda s: jnp.unstack(s.reshape(3, 2, 2, 2), axis=1)),
    "in a flat shape": (stacked(1), lambda s: (s.reshape(3, 8)[:, :4], s.reshape(3, 8)[:, 4:])),
    "interleaved": (stacked(2), lambda s: (s.reshape(3, 8)[:, ::2], s.reshape(3, 8)[:, 1::2])),
    "every second": (beside, lambda s: (s[:, :4][:, ::2], s[:, 4::2])),
    "in another order": (beside, lambda s: (s.T[:4].T, s.T[4:].T)),
    "with a further axis": (beside, lambda s: (s[:, None, :4], s[:, None, 4:])),
    "with padding around": (beside, lambda s: jnp.split(jnp.pad(s, ((1, 0), (2, 1)))[1:, 2:-1], 2, 1)),
    "rolled and rolled back": (beside, lambda s: jnp.split(jnp.roll(jnp.roll(s, 3, 1), -3, 1), 2, 1)),
    "after elementwise operations": (
        beside,
        lambda s: jnp.split(-(2 * s) * np.arange(1.0, 9), 2, 1),
    ),
    "with a further part": (
        lambda a, b: jnp.concatenate([a, b[:, :1], b[:, 1:]], 1),
        lambda s: (s[:, :4], s[:, 4:]),
    ),
    "for each sample": (
        lambda a, b: jax.vmap(lambda a, b: jnp.stack([a, b]))(a, b),
        lambda s: jax.vmap(lambda s: (s[0], s[1]))(s),
    ),
}


@pytest.mark.parametrize("name", TAKEN_APART)
def test_a_gate_that_was_beside_its_signal_is_held(name):
    put_together, take_apart = TAKEN_APART[name]

    def network(x, hold):
        gate, signal = take_apart(put_together(hold(nn.sigmoid(x @ W)), x @ V))
        return (gate * signal).ravel() @ SEED[: gate.size]

    found = jax.grad(lrp(lambda x: network(x, lambda gate: gate), rules.Zero()))(X)
    assert_close(found, X * jax.grad(lambda x: network(x, lax.stop_gradient))(X))


def test_padding_that_is_cut_off_leaves_the_value_alone():
    bias, causal = RNG.normal(size=4), lambda z: jnp.pad(z, ((0, 0), (2, 1)))[:, 2:-1]
    explain = lambda pad: jax.grad(lrp(lambda x: nn.relu(pad(x @ W) + bias).ravel() @ SEED, rules.ZPlus()))(X)
    assert_close(explain(causal), explain(lambda z: z))


def test_parts_without_elements():
    for take_apart in (
        lambda z: jnp.split(z, [0, 3], 1),
        lambda z: [z[:, 4:], z[:, :3], lax.dynamic_slice(z, (0, 3), (3, 1))],
    ):
        fun = lambda x, take_apart=take_apart: jnp.concatenate(take_apart(nn.relu(x @ W)), 1).ravel() @ SEED
        assert_close(jax.grad(lrp(fun, rules.Zero()))(X), X * jax.grad(fun)(X))


def random_moves(rng, value):
    """A value after random moves and slices."""
    for _ in range(4):
        shape = value.shape
        match rng.integers(4):
            case 0:
                value = value.transpose(rng.permutation(value.ndim))
            case 1:
                sizes = [
                    n for size in shape for n in ((2, size // 2) if size % 2 == 0 and rng.integers(2) else (size,))
                ]
                value = value.reshape(sizes)
            case 2:
                value = value.reshape(*shape[:-2], -1) if value.ndim > 2 else value[None]
            case 3:
                axis = rng.integers(value.ndim)
                start, step = rng.integers(0, max(shape[axis] // 2, 1)), rng.integers(1, 3)
                value = value[(slice(None),) * axis + (slice(int(start), None, int(step)),)]
    return value


@pytest.mark.parametrize("seed", range(12))
def test_random_moves_keep_value_and_relevance(seed):
    x = RNG.normal(size=(2, 4, 6))

    def network(x):
        rng = np.random.default_rng(seed)
        axis = int(rng.integers(3))
        join = jnp.stack if rng.integers(2) else jnp.concatenate
        moved = random_moves(rng, join([jnp.abs(x), nn.relu(x), -x], axis))
        return moved.ravel() @ np.random.default_rng(seed).normal(size=moved.size)

    value, found = jax.value_and_grad(lrp(network, rules.Zero()))(x)
    assert_close(value, network(x))
    assert_close(found, x * jax.grad(network)(x))
