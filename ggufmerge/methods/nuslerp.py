"""NuSLERP: spherical interpolation of two models by their weights, of their differences from a base if there is one.

t = w₂ / (w₁ + w₂), or one half when the weights sum to nothing. The formula is that of `slerp.py`, but only vectors
that are collinear to rounding are interpolated linearly, so fine-tunes of one model keep their arc. By default a tensor
is one vector. `nuslerp_flatten: false` takes each row as a vector of its own, together with `nuslerp_row_wise: true`
each column (the names are mergekit's, and read the other way round). A tensor of a single row is always one vector.

Source: mergekit (C. Goddard, 2024).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.combination import (
    Combination,
    add_column_grams,
    gram,
    row_grams,
    weighted_columns,
    weighted_sum,
)
from ggufmerge.methods.parameters import ClashError, Parameter
from ggufmerge.methods.spec import Base, Chunk, Pass, Passes, Problem, Stack

NO_WEIGHT = 1e-6  # a sum of weights this small gives t = 1/2
NO_NORM = 1e-7  # norms below it count as this
COLLINEAR = 1e-16  # sin² θ up to it: lerp


class NuSlerp(Combination[NDArray[np.float64] | None]):
    name = "nuslerp"
    summary = "spherical interpolation of two models, or of their differences from a base"
    reference = "mergekit"
    advice = (
        "As slerp, for two models that are nearly equal, or with their base for blending what each of them learned."
    )
    example = (("weight", 0.5),)
    base = Base.OPTIONAL
    min_models = 2
    max_models = 2
    parameters = (
        Parameter(
            "weight", "model", float, "how close the result is to this model; only the ratio counts", 1.0, together=True
        ),
        Parameter("nuslerp_flatten", "shared", bool, "take the whole tensor as one vector", True),
        Parameter("nuslerp_row_wise", "shared", bool, "with nuslerp_flatten false: columns, not rows", False),
    )

    def check(self, p: Problem) -> None:
        if p.shared["nuslerp_flatten"] and p.shared["nuslerp_row_wise"]:
            raise ClashError("`nuslerp_row_wise` is read only with `nuslerp_flatten: false`", "nuslerp_row_wise")

    def untouched(self, p: Problem) -> int | None:
        t = _fraction(p)
        return int(p.has_base + t) if t in (0, 1) else None

    def passes(self, p: Problem) -> Passes[NDArray[np.float64] | None]:
        """Statistics: coefficients [inputs], or [inputs, n] for columns, or None for rows, which need no pass."""
        if p.shared["nuslerp_flatten"] or p.shape[0] == 1:
            products = yield from gram(p, p.has_base)
            whole: NDArray[np.float64] = _inputs_coefficients(arcs(products[None], _fraction(p)), p.has_base)[0]
            return whole
        if not p.shared["nuslerp_row_wise"]:
            return None

        def copy(x: Stack, chunk: Chunk) -> Stack:
            return x.copy()

        def add(so_far: NDArray[np.float64], x: Stack) -> NDArray[np.float64]:
            total = so_far.copy()
            add_column_grams(x, p.has_base, total)
            return total

        columns = yield from Pass(copy, add, np.zeros((2, 2, p.shape[1]))).read()
        products = np.ascontiguousarray(columns.transpose(2, 0, 1))
        return np.ascontiguousarray(_inputs_coefficients(arcs(products, _fraction(p)), p.has_base).T)

    def combine(
        self, x: Stack, p: Problem, statistics: NDArray[np.float64] | None, chunk: Chunk, out: NDArray[np.float32]
    ) -> None:
        if statistics is None:
            products = np.empty((x.shape[1], 2, 2))
            row_grams(x, p.has_base, products)
            weighted_sum(x, _inputs_coefficients(arcs(products, _fraction(p)), p.has_base), out)
        elif statistics.ndim == 2:
            weighted_columns(x, statistics, out)
        else:
            super().combine(x, p, statistics, chunk, out)


def _fraction(p: Problem) -> float:
    """t, the part of the way from the first model to the second."""
    first, second = (float(w) for w in p.models["weight"])
    return 0.5 if abs(first + second) < NO_WEIGHT else second / (first + second)


def _inputs_coefficients(pairs: NDArray[np.float64], has_base: bool) -> NDArray[np.float64]:
    """Coefficients of the inputs, float64 [vectors, inputs], from those of the two interpolated vectors."""
    return np.column_stack([1.0 - pairs.sum(axis=1), pairs]) if has_base else pairs


@kernel
def arcs(products, t):
    """Slerp coefficients, float64 [vectors, 2], from Gram matrices of pairs of vectors, float64 [vectors, 2, 2]."""
    out = np.empty((products.shape[0], 2))
    for v in range(products.shape[0]):
        norms = max(math.sqrt(products[v, 0, 0]), NO_NORM) * max(math.sqrt(products[v, 1, 1]), NO_NORM)
        cosine = min(1.0, max(-1.0, products[v, 1, 0] / norms))
        if 1.0 - cosine * cosine <= COLLINEAR:
            out[v, 0], out[v, 1] = 1.0 - t, t
        else:
            theta = math.acos(cosine)
            out[v, 0] = math.sin((1.0 - t) * theta) / math.sin(theta)
            out[v, 1] = math.sin(t * theta) / math.sin(theta)
    return out


METHODS = {"nuslerp": NuSlerp()}
