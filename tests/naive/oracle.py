"""The rules once more, naively: on the dense matrix of a layer, in numpy and float64, without the library's code.

A layer is z = J x + b with J of shape (outputs, inputs). Each function returns the relevance of the inputs. `bias` is
"absorb", "ignore" or "distribute", as in the library; a stabilizer is a number, or a function of the denominator.
Without the relevance of the outputs (None) it
returns the shares.
"""

from dataclasses import dataclass

import numpy as np


def _stabilize(z, epsilon):
    """A denominator away from zero, by a number or by what a function of the denominator says."""
    distance = epsilon(z) if callable(epsilon) else epsilon
    return z + np.where(z >= 0, distance, -distance)


@dataclass(frozen=True)
class Shares:
    """What a rule gives to each input of each output: terms of a numerator over a denominator each.

    A term is (contributions (outputs, inputs), contribution of the bias, weight, denominator, mask of outputs).
    """

    terms: list
    bias: str
    contributed: np.ndarray

    @property
    def matrix(self):
        """The part of each output's relevance that each input gets, of shape (inputs, outputs)."""
        matrix = np.zeros(self.contributed.shape[::-1])
        for contributions, bias_contribution, weight, denominator, mask in self.terms:
            parts = contributions
            if self.bias == "distribute":
                number = self.contributed.sum(1, keepdims=True)
                spread = np.divide(self.contributed, number, out=np.zeros(parts.shape), where=number > 0)
                parts = parts + spread * bias_contribution[:, None]
            counts = mask.astype(bool) & (denominator != 0)
            fraction = np.divide(weight, denominator, out=np.zeros(len(denominator)), where=counts)
            matrix += (parts * fraction[:, None]).T
        return matrix


def _share_out(terms, relevance, bias, contributed):
    shares = Shares(terms, bias, contributed)
    return shares if relevance is None else shares.matrix @ relevance


def zero(jacobian, b, x, relevance, bias="absorb"):
    return epsilon(jacobian, b, x, relevance, epsilon=0.0, bias=bias)


def epsilon(jacobian, b, x, relevance, epsilon, bias="absorb"):
    b = b * (bias != "ignore")
    contributions = jacobian * x
    z = contributions.sum(1) + b
    terms = [(contributions, b, 1.0, _stabilize(z, epsilon), np.ones_like(z))]
    return _share_out(terms, relevance, bias, contributions != 0)


def gamma(jacobian, b, x, relevance, gamma, stabilizer, bias="absorb"):
    b = b * (bias != "ignore")
    contributions = jacobian * x
    z = contributions.sum(1) + b
    favour = {sign: 1 + gamma * (np.sign(contributions) == sign) for sign in (1, -1)}
    favour_bias = {sign: 1 + gamma * (np.sign(b) == sign) for sign in (1, -1)}
    terms = []
    for sign in (1, -1):
        c, d = contributions * favour[sign], b * favour_bias[sign]
        terms.append((c, d, 1.0, _stabilize(c.sum(1) + d, stabilizer), sign * z > 0))
    return _share_out(terms, relevance, bias, contributions != 0)


def alpha_beta(jacobian, b, x, relevance, alpha, beta, stabilizer, bias="absorb"):
    b = b * (bias != "ignore")
    contributions = jacobian * x
    terms = []
    for clip, weight in ((lambda a: np.maximum(a, 0), alpha), (lambda a: np.minimum(a, 0), -beta)):
        c, d = clip(contributions), clip(b)
        # The stabiliser takes the sign of the sum; a sum of nothing counts as positive.
        terms.append((c, d, weight, _stabilize(c.sum(1) + d, stabilizer), np.ones_like(b)))
    return _share_out(terms, relevance, bias, contributions != 0)


def zplus(jacobian, b, x, relevance, stabilizer, bias="absorb"):
    return alpha_beta(jacobian, b, x, relevance, 1.0, 0.0, stabilizer, bias)


def wsquare(jacobian, b, x, relevance, stabilizer, bias="ignore"):
    c, d = jacobian**2, b**2 * (bias != "ignore")
    terms = [(c, d, 1.0, _stabilize(c.sum(1) + d, stabilizer), np.ones_like(b))]
    return _share_out(terms, relevance, bias, jacobian != 0)


def flat(jacobian, b, x, relevance, stabilizer, bias="ignore"):
    c, d = (jacobian != 0).astype(float), (b != 0) * float(bias != "ignore")
    terms = [(c, d, 1.0, _stabilize(c.sum(1) + d, stabilizer), np.ones_like(b))]
    return _share_out(terms, relevance, bias, jacobian != 0)


def zbox(jacobian, b, x, relevance, low, high, stabilizer, bias="ignore"):
    b = b * (bias != "ignore")
    c = jacobian * x - np.maximum(jacobian, 0) * low - np.minimum(jacobian, 0) * high
    terms = [(c, b, 1.0, _stabilize(c.sum(1) + b, stabilizer), np.ones_like(b))]
    return _share_out(terms, relevance, bias, jacobian != 0)
