"""Multi-SLERP: an average on the sphere of any number of models, or of their differences from a base.

With unit vectors uᵢ, their normalized weighted mean m, and T = Σ wᵢ (uᵢ - <uᵢ, m> m) the mean of the tangents there:

    (cos |T| m + sin |T| T / |T|) · Σ wᵢ |xᵢ|        xᵢ the model, or its difference from the base

Where the unit vectors cancel out, there is no direction to start from: then the weighted sum is taken, and the report
says so (mergekit does this for two models, and fails for more).

Source: https://goddard.blog/posts/multislerp-wow-what-a-cool-idea (C. Goddard, 2025).
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


class MultiSlerp(Combination[tuple[Coefficients, bool]]):
    name = "multislerp"
    summary = "average of models on the sphere, by one step from their straight average"
    reference = "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea"
    advice = "Three or more models to blend on the sphere without a base; linear is the simpler first try."
    example = (("weight", 0.5),)
    base = Base.OPTIONAL
    parameters = (
        Parameter("weight", "model", float, "share of this model", 1.0, together=True),
        Parameter("normalize_weights", "shared", bool, "divide the weights by their sum", True),
        Parameter("eps", "shared", float, "norms below it are nothing", 1e-8, low=0),
    )

    def check(self, p: Problem) -> None:
        if p.shared["normalize_weights"] and p.others > 1:
            check_divisible(p.models["weight"], "normalize_weights")

    def untouched(self, p: Problem) -> int | None:
        if p.others == 1:
            return int(p.has_base)
        weight = _weights(p)
        used = np.flatnonzero(weight)
        return int(p.has_base + used[0]) if len(used) == 1 and weight[used[0]] == 1 else None

    def passes(self, p: Problem) -> Passes[tuple[Coefficients, bool]]:
        """Statistics: coefficients of the inputs, and whether the unit vectors cancelled out."""
        products = yield from gram(p, p.has_base)
        shares, cancelled = _mean_on_sphere(products, _weights(p), p.number("eps"))
        return (np.concatenate([[1.0 - exact_sum(shares)], shares]) if p.has_base else shares), cancelled

    def coefficients(self, statistics: tuple[Coefficients, bool]) -> Coefficients:
        return statistics[0]

    def notes(self, p: Problem, statistics: tuple[Coefficients, bool]) -> list[str]:
        return ["weighted sum instead of multislerp: the models' directions cancel out"] if statistics[1] else []


def _weights(p: Problem) -> NDArray[np.float64]:
    weight = p.models["weight"]
    return weight / exact_sum(weight) if p.shared["normalize_weights"] and p.others > 1 else weight


def _mean_on_sphere(
    products: NDArray[np.float64], weight: NDArray[np.float64], eps: float
) -> tuple[NDArray[np.float64], bool]:
    """Coefficients of the vectors with this Gram matrix, and whether their directions cancel out."""
    norms = np.sqrt(np.diagonal(products))
    units = np.divide(1.0, norms + eps, out=np.zeros_like(norms), where=norms + eps > 0)  # u_i = units[i] x_i
    mean = weight * units
    length = math.sqrt(max(inner_product(mean, mean, products), 0.0))
    if length < eps or length == 0:
        return weight, True
    mean = mean / length
    along = exact_sum(w * inner_product(u, mean, products) for w, u in zip(weight, np.diag(units), strict=True))
    tangent = weight * units - along * mean
    angle = math.sqrt(max(inner_product(tangent, tangent, products), 0.0)) + eps
    step = math.sin(angle) / angle if angle else 1.0
    radius = exact_sum(weight * norms)
    return radius * (math.cos(angle) * mean + step * tangent), False


METHODS = {"multislerp": MultiSlerp()}
