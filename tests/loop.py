"""Relevance of a random program by a plain backward loop in numpy and float64, without the library's code.

Every step is one sample's dense matrix of shares: what each element of an operand gets of the relevance of each element
of the value. The loop multiplies by these matrices from the output to the input. The rules on a matrix are those of
`oracle.py`. Two things about a step are not in its formula but in its surroundings:

- Constant affine steps behind a layer belong to the layer (`folded`).
- Where relevance comes from a rule or a shift that gives some to values that are zero, a proportional split divides
  with a stabilizer.

The loop carries a bound for the error that rounding alone makes, so that a test can tell a wrong result from a
program whose denominators cancel.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import oracle

from lrp_jax.rules import AlphaBeta, Epsilon, Flat, Gamma, Gradient, Norm, Pass, WSquare, ZBox, Zero, ZPlus

STABILIZER = 1e-6
_AFFINE = ("scale", "shift")
_ZERO_AT_ZERO = ("relu", "leaky_relu", "relu6", "elu", "tanh", "gelu", "silu", "abs")


@dataclass(frozen=True)
class Part:
    """What one operand of a step gets: relevance = matrix @ relevance of the value.

    `rounding` bounds the error of the matrix in units of the machine's precision, `reaches_zeros` says whether elements
    that are zero may have relevance, and `is_defined` whether the matrix is more than a matter of convention or chance.
    """

    operand: int
    matrix: np.ndarray
    rounding: np.ndarray
    reaches_zeros: bool
    is_defined: bool = True


def part(operand, matrix, reaches_zeros, condition=1.0, undefined=False):
    with np.errstate(invalid="ignore"):
        rounding = np.where(matrix == 0, 0, np.abs(matrix) * (1 + condition))
    return Part(operand, matrix, rounding, reaches_zeros, not np.any(undefined))


def relevance_of_input(program, values, seed, precision=2.0**-52):
    """Runs the loop for one sample.

    Args:
        program: The program.
        values: The values of all its steps for this sample.
        seed: What the output is multiplied with.
        precision: The relative precision with which the result to be judged was computed.

    Returns:
        The relevance of the input, and the bound for the error of rounding.
    """
    values = [np.asarray(value, np.float64) for value in values]
    steps = program.steps
    tails = {number: folded(steps, number) for number in program.layers}
    inside = {i for number, tail in tails.items() for i in (number, *tail)}
    relevance, error, reaches_zeros = {}, {}, {}

    def hand(number, amount, bound, zeros):
        relevance[number] = relevance.get(number, 0) + amount
        error[number] = error.get(number, 0) + bound
        reaches_zeros[number] = reaches_zeros.get(number, False) or zeros

    output = (np.asarray(seed, np.float64) * values[-1]).ravel()
    hand(len(steps) - 1, output, precision * np.abs(output), False)
    for number in range(len(steps) - 1, 0, -1):
        if number not in relevance:
            continue
        layer = next((i for i, tail in tails.items() if (i, *tail)[-1] == number), None)
        if layer is not None:
            parts = [_share_of_layer(steps, layer, tails[layer], values, reaches_zeros[number], precision)]
        elif number in inside:
            raise AssertionError("the middle of a layer has no relevance of its own")
        else:
            parts = _shares(program, number, values, reaches_zeros[number])
        if not all(p.is_defined for p in parts):
            return np.zeros(values[0].shape), np.full(values[0].shape, np.inf)
        for p in parts:
            with np.errstate(invalid="ignore"):  # 0 times infinity
                rounding = np.nan_to_num(p.rounding * np.abs(relevance[number]), nan=0.0, posinf=np.inf).sum(1)
                bound = np.abs(p.matrix) @ error[number] + 64 * precision * rounding
            hand(p.operand, p.matrix @ relevance[number], bound, p.reaches_zeros)
    size = values[0].size
    shape = values[0].shape
    return relevance.get(0, np.zeros(size)).reshape(shape), np.broadcast_to(error.get(0, 0.0), size).reshape(shape)


# Layers


def folded(steps, number):
    """The constant affine steps that belong to a layer: nothing else reads what they read, and they fold into it."""
    tail, length, reshaped = [], 0, False
    while True:
        value = (number, *tail)[-1]
        readers = [i for i, step in enumerate(steps) if value in step.operands]
        if len(readers) != 1:
            break
        step = steps[readers[0]]
        if step.name == "reshape":
            reshaped = True
        elif step.name not in _AFFINE or (step.name == "scale" and reshaped and step.arrays["c"].size > 1):
            break
        tail.append(readers[0])
        if step.name in _AFFINE:
            length = len(tail)
    return tail[:length]


def layer_matrix(step, shape):
    """The matrix of a layer, which inputs its neurons are connected with, and its bias."""
    w = np.asarray(step.arrays["w"], np.float64)
    if step.name == "dense":
        matrices = [np.kron(np.eye(int(np.prod(shape[:-1]))), kernel.T) for kernel in (w, np.ones_like(w))]
    else:
        matrices = [convolution_matrix(kernel, shape, step.options) for kernel in (w, np.ones_like(w))]
    matrix, connected = matrices
    bias = np.asarray(step.arrays.get("b", np.zeros(w.shape[-1])), np.float64)
    return matrix, connected, np.tile(bias, len(matrix) // len(bias))


def convolution_matrix(kernel, shape, options):
    (height, width, channels), (rows, columns, _, features) = shape, kernel.shape
    stride, dilation, groups = options["stride"], options["dilation"], options["groups"]
    (top, bottom), (left, right) = options["padding"]
    out_height = (height + top + bottom - dilation * (rows - 1) - 1) // stride + 1
    out_width = (width + left + right - dilation * (columns - 1) - 1) // stride + 1
    matrix = np.zeros((out_height, out_width, features, height, width, channels))
    per_group_in, per_group_out = channels // groups, features // groups
    for i, j, a, b in itertools.product(range(out_height), range(out_width), range(rows), range(columns)):
        row, column = i * stride + a * dilation - top, j * stride + b * dilation - left
        if 0 <= row < height and 0 <= column < width:
            for g in range(groups):
                outs = slice(g * per_group_out, (g + 1) * per_group_out)
                ins = slice(g * per_group_in, (g + 1) * per_group_in)
                matrix[i, j, outs, row, column, ins] = kernel[a, b][:, outs].T
    return matrix.reshape(-1, height * width * channels)


def _share_of_layer(steps, number, tail, values, reaches_zeros, precision):
    step = steps[number]
    (operand,) = step.operands
    x, rule = values[operand], step.rule
    matrix, connected, b = layer_matrix(step, x.shape)
    for i in tail:
        if steps[i].name in _AFFINE:
            scale, shift = (np.broadcast_to(a, values[i].shape).ravel() for a in scale_and_shift(steps[i]))
            matrix, b = scale[:, None] * matrix, scale * b + shift
    z, x = values[(number, *tail)[-1]].ravel(), x.ravel()
    contributions = matrix * x
    total, size = contributions.sum(1) + b, np.abs(contributions).sum(1) + np.abs(b)
    # Rounding decides about signs, and about what is zero.
    undecided = (np.sign(total) != np.sign(z)) & (size > 0)
    if isinstance(rule, Pass):
        return part(operand, np.eye(len(x)), True)
    if isinstance(rule, Gradient):
        shares = in_proportion(contributions, z, reaches_zeros)
        undefined = undecided | _cancels(z, size, reaches_zeros)
        return part(operand, shares.T, False, 1 + np.abs(shares).sum(1), undefined)
    shares = _shares_of(rule, matrix, connected, b, x, values[(number, *tail)[-1]].shape, step.name)
    condition = np.zeros(len(z))
    for numerator, of_bias, weight, denominator, mask in shares.terms:
        raw, absolute = numerator.sum(1) + of_bias, np.abs(numerator).sum(1) + np.abs(of_bias)
        relative = np.divide(absolute, np.abs(denominator), out=np.zeros(len(raw)), where=denominator != 0)
        relative[(raw != 0) & (np.abs(raw) < 1e3 * precision * absolute)] = np.inf
        condition = np.maximum(condition, np.where(mask.astype(bool) & (weight != 0), relative, 0))
    condition = np.where(undecided, np.inf, condition)
    return part(operand, shares.matrix, isinstance(rule, WSquare | Flat | ZBox), condition)


def _shares_of(rule, matrix, connected, b, x, shape, kind):
    bias = rule.bias
    match rule:
        case Zero():
            return oracle.zero(matrix, b, x, None, bias)
        case Epsilon(epsilon=epsilon, relative=True):
            z = (matrix @ x + b * (bias != "ignore")).reshape(shape if kind == "dense" else (1, -1))
            mean_square = (z**2).mean(-1, keepdims=True) if z.ndim > 1 else (z**2).mean()
            units = np.broadcast_to(np.sqrt(mean_square), z.shape).ravel()
            return oracle.epsilon(matrix, b, x, None, epsilon * units, bias)
        case Epsilon(epsilon=epsilon) | Norm(stabilizer=epsilon):
            return oracle.epsilon(matrix, b, x, None, epsilon, bias)
        case Gamma(gamma=gamma, stabilizer=stabilizer):
            return oracle.gamma(matrix, b, x, None, gamma, stabilizer, bias)
        case AlphaBeta(alpha=alpha, beta=beta, stabilizer=stabilizer):
            return oracle.alpha_beta(matrix, b, x, None, alpha, beta, stabilizer, bias)
        case ZPlus(stabilizer=stabilizer):
            return oracle.zplus(matrix, b, x, None, stabilizer, bias)
        case WSquare(stabilizer=stabilizer):
            return oracle.wsquare(matrix, b, x, None, stabilizer, bias)
        case Flat(stabilizer=stabilizer):
            shares = oracle.flat(connected, b, x, None, stabilizer, bias)
            return oracle.Shares(shares.terms, bias, matrix != 0)
        case ZBox(low=low, high=high, stabilizer=stabilizer):
            low, high = (np.resize(np.asarray(bound, np.float64), x.shape) for bound in (low, high))
            return oracle.zbox(matrix, b, x, None, low, high, stabilizer, bias)
    raise AssertionError(f"no naive form of {rule}")


# Everything that is not a layer


def stabilized(z):
    return z + np.where(z < 0, -STABILIZER, STABILIZER)


def in_proportion(contributions, total, reaches_zeros):
    """Contributions (outputs, inputs) over their totals; where the total is zero, none."""
    denominator = (stabilized(total) if reaches_zeros else total)[:, None] + np.zeros(contributions.shape)
    return np.divide(contributions, denominator, out=np.zeros(contributions.shape), where=denominator != 0)


def _cancels(total, size, reaches_zeros):
    """Where the parts of a total cancel, so that there is no proportion."""
    near = np.abs(total) <= 1e-12 * size
    return near & (size > 0) & ~((total == 0) & reaches_zeros)


def _linear(operand, contributions, total, reaches_zeros):
    size = np.abs(contributions).sum(1)
    shares = in_proportion(contributions, total, reaches_zeros)
    return part(operand, shares.T, False, 1 + np.abs(shares).sum(1), _cancels(total, size, reaches_zeros))


def scale_and_shift(step):
    c = np.asarray(step.arrays["c"], np.float64)
    if step.name == "scale":
        return (1 / c if step.options["divides"] else c), np.zeros_like(c)
    return (-1.0 if step.options["reverse"] else 1.0) * np.ones_like(c), c


def moved(x, step):
    """Applies a step that moves values to an array of one sample."""
    match step.name:
        case "reshape":
            return x.reshape(step.options["shape"])
        case "flip":
            return np.flip(x, step.options["axis"])
        case "crop":
            return x[1:]
        case "pad":
            before, after = step.options["width"]
            x = x[-before:] if before < 0 else x
            return np.pad(x, [(max(before, 0), after), *[(0, 0)] * (x.ndim - 1)], constant_values=-1)
    raise AssertionError(step.name)


def _shares(program, number, values, reaches_zeros):
    """The parts of the operands of a step that is no layer."""
    step, y = program.steps[number], values[number]
    xs = [values[i] for i in step.operands]
    one_to_one = np.eye(y.size)
    first = step.operands[0]
    match step.name:
        case "shift":
            c = step.arrays["c"]
            return [part(first, one_to_one, reaches_zeros or not (c.size == 1 and not c.any()))]
        case "scale" | "divide by norm" | "gate":
            return [part(first, one_to_one, reaches_zeros)]
        case "elementwise":
            return [part(first, one_to_one, reaches_zeros or step.options["function"] not in _ZERO_AT_ZERO)]
        case "reshape" | "flip" | "crop" | "pad":
            sources = moved(np.arange(xs[0].size).reshape(xs[0].shape), step).ravel()
            return [part(first, (np.arange(xs[0].size)[:, None] == sources).astype(float), reaches_zeros)]
        case "concatenate":
            widths = np.cumsum([0] + [x.shape[-1] for x in xs])
            places = np.arange(y.size).reshape(y.shape)
            return [
                part(i, np.eye(y.size)[places[..., start:stop].ravel()], reaches_zeros)
                for i, start, stop in zip(step.operands, widths, widths[1:], strict=False)
            ]
        case "maximum":
            a, b = (x.ravel() for x in xs)
            shares = [np.where(p == q, 0.5, p > q) for p, q in ((a, b), (b, a))]
            return [part(i, np.diag(s), reaches_zeros) for i, s in zip(step.operands, shares, strict=True)]
        case "max_pool":
            return [_max_pool(program, step, xs[0], reaches_zeros)]
        case "mean_pool":
            sums = np.zeros((y.size, xs[0].size))
            for j, inputs in enumerate(_windows(xs[0].shape, y.shape, step.options)):
                sums[j, inputs] = 1
            return [_linear(first, sums * xs[0].ravel(), sums @ xs[0].ravel(), reaches_zeros)]
        case "mean" | "sum":
            sums = np.tile(np.eye(y.size), xs[0].size // y.size)
            return [_linear(first, sums * xs[0].ravel(), sums @ xs[0].ravel(), reaches_zeros)]
        case "add" | "subtract":
            signs = (1, 1 if step.name == "add" else -1)
            return _sum(step.operands, [sign * x.ravel() for sign, x in zip(signs, xs, strict=True)], reaches_zeros)
        case "multiply":
            shares = 0.5 * in_proportion(np.diag(y.ravel()), y.ravel(), reaches_zeros)
            return [part(i, shares, False) for i in step.operands]
        case "center":
            width = y.shape[-1]
            centring = np.kron(np.eye(y.size // width), np.eye(width) - 1 / width)
            return [_linear(first, centring * xs[0].ravel(), y.ravel(), reaches_zeros)]
        case "softmax":
            return [_softmax(first, xs[0], y, reaches_zeros)]
        case "scores":
            query, key = xs
            a = np.einsum("id,jd,ik->ijkd", query, key, np.eye(len(query)))
            b = np.einsum("id,jd,jk->ijkd", query, key, np.eye(len(key)))
            return _halves(step.operands, a, b, y, reaches_zeros)
        case "mix":
            weights, value = xs
            a = np.einsum("ij,jd,ik->idkj", weights, value, np.eye(len(weights)))
            b = np.einsum("ij,jd,de->idje", weights, value, np.eye(value.shape[1]))
            if program.holds_attention:
                return [_linear(step.operands[1], b.reshape(y.size, -1), y.ravel(), reaches_zeros)]
            return _halves(step.operands, a, b, y, reaches_zeros)
    raise AssertionError(step.name)


def _sum(operands, parts, reaches_zeros):
    total, size = sum(parts), sum(map(np.abs, parts))
    undefined = _cancels(total, size, reaches_zeros)
    shares = [in_proportion(np.diag(p), total, reaches_zeros) for p in parts]
    condition = 1 + sum(np.abs(s).sum(1) for s in shares)
    return [part(i, s, False, condition, undefined) for i, s in zip(operands, shares, strict=True)]


def _halves(operands, a, b, y, reaches_zeros):
    parts = (0.5 * contributions.reshape(y.size, -1) for contributions in (a, b))
    total = y.ravel()
    linear = [_linear(i, 2 * p, total, reaches_zeros) for i, p in zip(operands, parts, strict=True)]
    return [Part(p.operand, p.matrix / 2, p.rounding, False, p.is_defined) for p in linear]


def _softmax(operand, x, y, reaches_zeros):
    size, width = y.size, y.shape[-1]
    same = np.kron(np.eye(size // width), np.ones((width, width)))  # whether two elements are of one softmax
    s = y.ravel()
    part_of_own = in_proportion(np.diag(s), s, reaches_zeros).diagonal()
    jacobian = same * (np.eye(size) - s[:, None])  # (i, j): d y_j / d x_i over s_j
    bound = same * (np.eye(size) + s[:, None])
    by_input = x.ravel()[:, None] * part_of_own
    return Part(operand, by_input * jacobian, np.abs(by_input) * bound, False)


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


def _max_pool(program, step, x, reaches_zeros):
    (operand,) = step.operands
    x_flat = x.ravel()
    out_shape = _pooled_shape(x.shape, step.options)
    windows = list(_windows(x.shape, out_shape, step.options))
    matrix, sums = np.zeros((x.size, len(windows))), np.zeros((len(windows), x.size))
    for j, inputs in enumerate(windows):
        sums[j, inputs] = 1
        if program.pooling == "winner":
            matrix[inputs[x_flat[inputs].argmax()], j] = 1
        else:
            matrix[inputs, j] = 1 / len(inputs)
    if program.pooling == "in proportion":
        return _linear(operand, sums * x_flat, sums @ x_flat, True)
    return part(operand, matrix, reaches_zeros or program.pooling == "evenly")


def _pooled_shape(shape, options):
    sizes = []
    for axis in (0, 1):
        n, size, stride = shape[axis], options["size"][axis], options["stride"][axis]
        sizes.append(-(-n // stride) if options["padding"] == "SAME" else (n - size) // stride + 1)
    return (*sizes, shape[2])
