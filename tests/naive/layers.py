"""Layers as matrices, and the rules of the library on them, as `oracle.py` has them."""

import itertools

import numpy as np
from naive import oracle

from lrp_jax.rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, WSquare, ZBox, Zero, ZPlus


def layer_matrix(step, shape):
    """The matrix of a layer, which inputs its neurons are connected with, its bias, and the features of each output."""
    w = np.asarray(step.arrays["w"], np.float64)
    if step.name == "dense":
        rows = int(np.prod(shape[:-1]))
        matrices = [np.kron(np.eye(rows), kernel.T) for kernel in (w, np.ones_like(w))]
        groups = np.repeat(np.arange(rows), w.shape[-1])
    else:
        matrices = [convolution_matrix(kernel, shape, step.options) for kernel in (w, np.ones_like(w))]
        groups = np.zeros(len(matrices[0]), int)
    matrix, connected = matrices
    bias = np.asarray(step.arrays.get("b", np.zeros(w.shape[-1])), np.float64)
    return matrix, connected, np.tile(bias, len(matrix) // len(bias)), groups


def convolution_matrix(kernel, shape, options):
    """A convolution over any number of dimensions; `spread` zeros stand between the inputs of a transposed one."""
    *sizes, channels = shape
    *reach, _, features = kernel.shape
    stride, dilation, groups, spread = (options[name] for name in ("stride", "dilation", "groups", "spread"))
    padding = options["padding"]
    outs = [
        ((n - 1) * spread + 1 + sum(pad) - dilation * (k - 1) - 1) // stride + 1
        for n, k, pad in zip(sizes, reach, padding, strict=True)
    ]
    matrix = np.zeros((*outs, features, *sizes, channels))
    per_group_in, per_group_out = channels // groups, features // groups
    for out in itertools.product(*map(range, outs)):
        for tap in itertools.product(*map(range, reach)):
            places = [o * stride + t * dilation - pad[0] for o, t, pad in zip(out, tap, padding, strict=True)]
            if any(place % spread for place in places):
                continue
            place = tuple(p // spread for p in places)
            if all(0 <= p < n for p, n in zip(place, sizes, strict=True)):
                for g in range(groups):
                    of_group = slice(g * per_group_out, (g + 1) * per_group_out)
                    from_group = slice(g * per_group_in, (g + 1) * per_group_in)
                    matrix[(*out, of_group, *place, from_group)] = kernel[tap][:, of_group].T
    return matrix.reshape(int(np.prod(outs)) * features, -1)


def stabilizer_of(rule):
    return rule.epsilon if isinstance(rule, Epsilon) else getattr(rule, "stabilizer", 0.0)


def shares_of(rule, matrix, connected, b, x, groups):
    """The shares of a rule in z = matrix x + b.

    No stabilizer is 1e-6 times the root mean square of the denominator over the features: the outputs of a group.
    """
    bias, given = rule.bias, stabilizer_of(rule)

    def relative(factor):
        def distance(denominator):
            squares = np.array([np.mean(denominator[groups == g] ** 2) for g in range(groups.max(initial=0) + 1)])
            return factor * np.sqrt(squares)[groups]

        return distance

    stabilizer = relative(1e-6) if given is None else given
    match rule:
        case Zero():
            return oracle.zero(matrix, b, x, None, bias)
        case Epsilon(relative=True):
            return oracle.epsilon(matrix, b, x, None, relative(1e-6 if given is None else given), bias)
        case Epsilon() | Norm():
            return oracle.epsilon(matrix, b, x, None, stabilizer, bias)
        case Gamma(gamma=gamma):
            return oracle.gamma(matrix, b, x, None, gamma, stabilizer, bias)
        case AlphaBeta(alpha=alpha, beta=beta):
            return oracle.alpha_beta(matrix, b, x, None, alpha, beta, stabilizer, bias)
        case ZPlus():
            return oracle.zplus(matrix, b, x, None, stabilizer, bias)
        case WSquare():
            return oracle.wsquare(matrix, b, x, None, stabilizer, bias)
        case Flat():
            shares = oracle.flat(connected, b, x, None, stabilizer, bias)
            return oracle.Shares(shares.terms, bias, matrix != 0)
        case ZBox(low=low, high=high):
            low, high = (np.resize(np.asarray(bound, np.float64), x.shape) for bound in (low, high))
            return oracle.zbox(matrix, b, x, None, low, high, stabilizer, bias)
    raise AssertionError(f"no naive form of {rule}")
