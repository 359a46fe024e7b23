"""The rules once more, naively: on the dense matrix of a layer, in numpy and float64, without the library's code.

A layer is z = J x + b with J of shape (outputs, inputs). Each function returns the relevance of the inputs.
"""

import numpy as np


def _stabilize(z, epsilon):
    return z + np.where(z >= 0, epsilon, -epsilon)


def zero(jacobian, bias, x, relevance):
    z = jacobian @ x + bias
    out = np.zeros_like(x)
    for j in range(len(z)):
        for i in range(len(x)):
            if z[j] != 0:
                out[i] += x[i] * jacobian[j, i] / z[j] * relevance[j]
    return out


def epsilon(jacobian, bias, x, relevance, epsilon):
    z = jacobian @ x + bias
    contributions = jacobian * x[None, :]
    return (contributions * (relevance / _stabilize(z, epsilon))[:, None]).sum(0)


def zplus(jacobian, bias, x, relevance, stabilizer):
    contributions = np.maximum(jacobian * x[None, :], 0)
    z = contributions.sum(1) + np.maximum(bias, 0)
    return (contributions * (relevance / _stabilize(z, stabilizer))[:, None]).sum(0)


def flat(jacobian, bias, x, relevance, stabilizer):
    connected = (jacobian != 0).astype(float)
    return (connected * (relevance / _stabilize(connected.sum(1), stabilizer))[:, None]).sum(0)
