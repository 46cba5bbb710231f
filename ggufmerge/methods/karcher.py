"""Karcher mean: the point of the sphere with the least sum of squared angles to the models.

From the normalized mean of the unit vectors, repeat: average the directions to them (log map), go there (exp map);
until the step is shorter than `tol`, or `max_iter` times. The result gets the mean of the models' norms. A model with a
norm of `tol` or less has no direction, but its norm counts. A model opposite to the mean pulls in no certain direction
and is passed over, like one that coincides with it.

All iterates are combinations of the inputs, so one Gram matrix is all that is read.

Source: Wang, Ye, Yin, "Functionality-oriented LLM merging on the Fisher-Rao manifold" (2026, arXiv:2603.04972).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ggufmerge.methods.combination import Coefficients, Combination, gram, inner_product
from ggufmerge.methods.linear import check_divisible
from ggufmerge.methods.parameters import Parameter
from ggufmerge.methods.spec import Base, Passes, Problem
from ggufmerge.methods.sums import exact_sum


class Karcher(Combination[Coefficients]):
    name = "karcher"
    summary = "Riemannian mean of the models on the sphere"
    reference = "Functionality-oriented LLM merging on the Fisher-Rao manifold, arXiv:2603.04972"
    advice = "Three or more models to blend without a base, when they are far apart and linear weakens them."
    base = Base.MODEL
    parameters = (
        Parameter("max_iter", "shared", int, "iterations at most", 10, low=1),
        Parameter("tol", "shared", float, "angle in radians below which the mean has converged", 1e-5, low=0),
        Parameter("weight", "model", float, "share of this model", 1.0, low=0),
    )

    def check(self, p: Problem) -> None:
        check_divisible(p.models["weight"], None)

    def untouched(self, p: Problem) -> int | None:
        used = np.flatnonzero(p.models["weight"])
        return int(used[0]) if len(used) == 1 else None

    def passes(self, p: Problem) -> Passes[Coefficients]:
        products = yield from gram(p)
        weight = p.models["weight"] / exact_sum(p.models["weight"])
        return _mean(products, weight, int(p.number("max_iter")), p.number("tol"))


def _mean(products: NDArray[np.float64], weight: NDArray[np.float64], max_iter: int, tol: float) -> NDArray[np.float64]:
    """Coefficients of the vectors with this Gram matrix."""
    norms = np.sqrt(np.diagonal(products))
    valid = np.flatnonzero((norms > tol) & (weight > 0))
    if len(valid) == 0:
        return np.zeros(len(norms))
    units = np.zeros_like(products)
    units[valid, valid] = 1.0 / norms[valid]  # row i: the coefficients of the unit vector of model i
    shares = weight[valid] / exact_sum(weight[valid])

    mean = np.zeros(len(norms))
    for share, i in zip(shares, valid, strict=True):
        mean += share * units[i]
    length = math.sqrt(max(inner_product(mean, mean, products), 0.0))
    mean = units[valid[0]] if length < tol or length == 0 else mean / length
    for _ in range(max_iter):
        tangent = np.zeros(len(norms))
        for share, i in zip(shares, valid, strict=True):
            cosine = min(1.0, max(-1.0, inner_product(mean, units[i], products)))
            theta = math.acos(cosine)
            if tol <= theta <= math.pi - tol and math.sin(theta) > 0:
                tangent += share * theta / math.sin(theta) * (units[i] - cosine * mean)
        step = math.sqrt(max(inner_product(tangent, tangent, products), 0.0))
        if step < tol or step == 0:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean = mean / math.sqrt(inner_product(mean, mean, products))
    return exact_sum(weight * norms) * mean


METHODS = {"karcher": Karcher()}
