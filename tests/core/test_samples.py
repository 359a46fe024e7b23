"""Where the dimension of the samples goes, told by what changes in an output if one sample does."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from tracing import equation_of

from lrp_jax.core.primitives import named
from lrp_jax.core.samples import Carried

RNG = np.random.default_rng(0)
X, PAIRS, WIDE, IMAGE, SQUARE = (
    RNG.normal(size=shape).astype(np.float32) for shape in ((3, 4), (3, 2, 4), (2, 3, 4), (3, 5, 5, 2), (3, 3))
)
Y, BATCHES, STACK, TABLE, PIXELS, KERNEL, POINTS = (
    RNG.normal(size=shape).astype(np.float32)
    for shape in ((4, 2), (3, 4, 5), (2, 4, 5), (7, 2), (1, 3, 3, 2), (2, 2, 2, 6), (1, 1, 2, 6))
)
IDS = np.array([2, 0, 4])


def product(x, y, summed, batch=((), ())):
    return lax.dot_general(x, y, (summed, batch))


def convolution(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def pooled(x, window):
    return lax.reduce_window(x, -np.inf, lax.max, window, (1,) * x.ndim, "VALID")


# Operation, its operands, where the samples are in each, and where they are in the output.
FOLLOWED = {
    "abs": (jnp.abs, [X], [0], 0),
    "add": (lax.add, [X, X], [0, 0], 0),
    "add to a constant": (lax.add, [X, X], [None, 0], 0),
    "concatenate": (lambda x, y: lax.concatenate([x, y], 1), [X, X], [0, 0], 0),
    "concatenate samples": (lambda x, y: lax.concatenate([x, y], 0), [X, X], [0, 0], None),
    "concatenate different ones": (lambda x, y: lax.concatenate([x, y], 1), [SQUARE] * 2, [0, 1], None),
    "transpose": (lambda x: lax.transpose(x, (1, 2, 0)), [PAIRS], [0], 2),
    "transpose from the middle": (lambda x: lax.transpose(x, (1, 2, 0)), [WIDE], [1], 0),
    "broadcast": (lambda x: lax.broadcast_in_dim(x, (2, 3, 5, 4), (1, 3)), [X], [0], 1),
    "squeeze in front": (lambda x: lax.squeeze(x, (0, 3)), [X.T.reshape(1, 4, 3, 1)], [2], 1),
    "squeeze behind": (lambda x: lax.squeeze(x, (1,)), [X[:, :1]], [0], 0),
    "part features": (lambda x: lax.reshape(x, (3, 2, 2)), [X], [0], 0),
    "part features behind": (lambda x: lax.reshape(x, (2, 3, 2, 2)), [WIDE], [1], 1),
    "drop a one in front": (lambda x: lax.reshape(x, (3, 4)), [X[None]], [1], 0),
    "merge with features": (lambda x: lax.reshape(x, (12,)), [X], [0], 0),
    "merge with what is in front": (lambda x: lax.reshape(x, (6, 4)), [WIDE], [1], None),
    "part samples": (lambda x: lax.reshape(x, (3, 2, 4)), [PAIRS.reshape(6, 4)], [0], 0),
    "shuffle": (lambda x: lax.reshape(x, (4, 3)), [X], [0], None),
    "reduce features": (lambda x: lax.reduce_max(x, [1]), [PAIRS], [0], 0),
    "multiply features": (lambda x: lax.reduce_prod(x, [1]), [PAIRS], [0], 0),
    "multiply what is in front": (lambda x: lax.reduce_prod(x, [0]), [WIDE], [1], 0),
    "reduce what is in front": (lambda x: lax.reduce_max(x, [0]), [WIDE], [1], 0),
    "argmax of features": (lambda x: lax.argmax(x, 1, np.int32), [X * 1e-3], [0], 0),
    "product": (lambda x: product(x, Y, ([1], [0])), [X], [0], 0),
    "product from the right": (lambda y, x: product(y, x, ([1], [1])), [STACK[..., 0], X], [None, 0], 1),
    "product of several dimensions": (lambda x: product(x, Y, ([2], [0])), [PAIRS], [0], 0),
    "product behind what is in front": (lambda x: product(x, Y, ([2], [0])), [WIDE], [1], 1),
    "product in batches": (lambda x, y: product(x, y, ([2], [1]), ([0], [0])), [PAIRS, BATCHES], [0, 0], 0),
    "product with a constant in batches": (
        lambda x, y: product(x, y, ([2], [1]), ([0], [0])),
        [PAIRS, BATCHES],
        [0, None],
        0,
    ),
    "product behind a batch": (lambda x, y: product(x, y, ([2], [1]), ([0], [0])), [WIDE, STACK], [1, None], 1),
    "product from the right behind a batch": (
        lambda y, x: product(y, x, ([1], [2]), ([0], [0])),
        [STACK, WIDE],
        [None, 1],
        2,
    ),
    "products of all pairs": (lambda x, y: product(x, y, ([1], [1])), [X, X], [0, 0], None),
    "convolution": (convolution, [IMAGE, KERNEL], [0, None], 0),
    "pooling": (lambda x: pooled(x, (1, 2)), [X], [0], 0),
    "cumulative": (lambda x: lax.cummax(x, 1), [X], [0], 0),
    "some features": (lambda x: x[:, np.array([3, 1])], [X], [0], 0),
    "some of what is in front": (lambda x: x[np.array([1, 0])], [WIDE], [1], 1),
    "a feature for each": (lambda x: jnp.take_along_axis(x, IDS[:, None] // 2, 1), [X], [0], 0),
    "a feature for each, by pairs": (lambda x: x[np.arange(3), IDS // 2], [X], [0], 0),
    "slice": (lambda x: lax.slice(x, (0, 1), (3, 3)), [X], [0], 0),
    "write": (lambda x: lax.dynamic_update_slice(x, X[:, 1:2], (0, 0)), [X], [0], 0),
}
# Operation, its operands, where the samples are in each, and whether one statistic is made of them.
COMBINED = {
    "largest": (lambda x: lax.reduce_max(x, [0]), [X], [0], True),
    "largest of all": (lambda x: lax.reduce_max(x, [0, 1, 2]), [WIDE], [1], True),
    "largest so far": (lambda x: lax.cummax(x, 0), [X], [0], False),
    "product": (lambda x: lax.reduce_prod(x, [0]), [X], [0], True),
    "product so far": (lambda x: lax.cumprod(x, 0), [X], [0], False),
    "pooling": (lambda x: pooled(x, (2, 1)), [X], [0], False),
    "with a vector": (lambda y, x: product(y, x, ([0], [0])), [SQUARE[0], X], [None, 0], True),
    "with a matrix": (lambda y, x: product(y, x, ([1], [0])), [SQUARE, X], [None, 0], False),
    "with a matrix from the right": (lambda x, y: product(x, y, ([0], [0])), [X, BATCHES[..., 0]], [0, None], False),
    "covariance": (lambda x, y: product(x, y, ([0], [0])), [X, X], [0, 0], True),
    "as channels": (convolution, [PIXELS.transpose(0, 3, 2, 1)[..., :2], KERNEL], [3, None], False),
    "as pixels": (convolution, [PIXELS, KERNEL], [1, None], False),
}


def changes(operation, operands, axes):
    """For each sample, which elements of the output change if that sample does."""
    number = max(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    before, found = np.asarray(operation(*operands)), []
    for sample in range(number):
        one = (np.arange(number) == sample).astype(np.float32) * 10
        moved = [
            x if axis is None else x * (1 + one).reshape([number if i == axis else 1 for i in range(x.ndim)])
            for x, axis in zip(operands, axes, strict=True)
        ]
        found.append(np.asarray(operation(*moved)) != before)
    return np.stack(found)


def dimensions_of_samples(changed):
    """The dimensions of an output along which every sample has places of its own, or shares one with neighbours."""
    number, *shape = changed.shape
    found = []
    for axis, size in enumerate(shape):
        touched = np.moveaxis(changed, axis + 1, 1).reshape(number, size, -1).any(2)
        shared, own = max(number // size, 1), max(size // number, 1)
        in_place = all(sample // shared == place // own for sample, place in zip(*np.nonzero(touched), strict=True))
        if number * own == size * shared and in_place:
            found.append(axis)
    return found


def rule_and_carried(operation, operands, axes):
    """The rule for the last operation that reads the operands, and what it is told."""
    equation = equation_of(operation, *operands)
    shapes = [variable.aval.shape for variable in equation.invars]
    places = [*axes, *[None] * len(shapes)][: len(shapes)]
    carried = Carried(equation.params, shapes, equation.outvars[0].aval.shape, places)
    return named(equation.primitive.name).samples, carried


@pytest.mark.parametrize("name", FOLLOWED)
def test_dimension_of_the_samples_is_followed(name):
    operation, operands, axes, expected = FOLLOWED[name]
    changed = changes(operation, operands, axes)
    found = dimensions_of_samples(changed)
    assert expected in found if expected is not None else not found
    rule, carried = rule_and_carried(operation, operands, axes)
    assert rule.axis_after(carried) == expected
    assert not rule.reduced(carried)
    assert not rule.mixes(carried)


@pytest.mark.parametrize("name", COMBINED)
def test_it_is_known_whether_samples_are_combined(name):
    operation, operands, axes, is_statistic = COMBINED[name]
    assert (changes(operation, operands, axes).sum(0) > 1).any()
    rule, carried = rule_and_carried(operation, operands, axes)
    assert rule.reduced(carried) is is_statistic
    assert rule.mixes(carried) is not is_statistic


def test_samples_of_looked_up_integers():
    # In what is looked up with them, and in the table itself, where several rows are picked.
    rule, carried = rule_and_carried(lambda table: table[IDS], [TABLE], [None])
    for axes, expected, is_mixed in (([None, 0], 0, False), ([1, None], 1, False), ([0, None], None, True)):
        carried = Carried(carried.params, carried.shapes, carried.shape, axes)
        assert rule.axis_after(carried) == expected
        assert rule.mixes(carried) is is_mixed


def test_an_order_of_the_samples_is_no_place_of_theirs():
    rule, carried = rule_and_carried(lambda x: x[np.array([2, 0, 1])], [X], [0])
    assert rule.axis_after(carried) is None
    assert rule.mixes(carried)


def test_samples_of_what_is_written():
    rows = lambda x, y: x.at[IDS].add(y)
    rule, carried = rule_and_carried(rows, [TABLE, X[:, :2]], [None, None])
    for axes, is_mixed in (([1, None, None], False), ([None, None, 0], True), ([None, None, 1], False)):
        assert rule.mixes(Carried(carried.params, carried.shapes, carried.shape, axes)) is is_mixed
    paired = lambda x, y: x.at[np.arange(3), IDS % 2].add(y)
    rule, carried = rule_and_carried(paired, [X, X[:, 0]], [None, None])
    assert not rule.mixes(Carried(carried.params, carried.shapes, carried.shape, [None, None, 0]))


@pytest.mark.parametrize(("axis", "expected"), [(0, 1), (1, 0), (2, 0)])
def test_samples_of_a_stack(axis, expected):
    # A primitive that not every version of JAX has.
    carried = Carried({"axis": axis}, [(3, 2)] * 5, (), [0] * 5)
    assert named("stack").samples.axis_after(carried) == expected


def test_batch_of_a_convolution():
    rule, carried = rule_and_carried(convolution, [IMAGE, KERNEL], [0, None])
    for axes, is_batch in (([0, None], True), ([1, None], False), ([None, 0], False)):
        assert rule.is_batch(Carried(carried.params, carried.shapes, carried.shape, axes)) is is_batch
    in_groups = {**carried.params, "batch_group_count": 3}
    assert not rule.is_batch(Carried(in_groups, carried.shapes, carried.shape, [0, None]))
    assert rule.axis_after(Carried(carried.params, carried.shapes, carried.shape, [0, 0])) is None  # a weight for each
