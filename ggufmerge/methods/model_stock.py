"""Model stock: move from the base towards the average of fine-tunes, the less the more they disagree.

With c the mean cosine between the N fine-tunes' differences from the base:

    t = N c / (1 + (N - 1) c)        result = t · average + (1 - t) · base

For differences that point against each other (c < 0) the formula would step away from the average, without bound as c
nears -1 / (N - 1); there the base is kept, and the report says so. mergekit leaves t unbounded below.

Source: Jang et al., "Model stock: all we need is just a few fine-tuned models" (2024, arXiv:2403.19522).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.combination import Coefficients, Combination, gram, row_grams, weighted_sum
from ggufmerge.methods.parameters import Parameter
from ggufmerge.methods.spec import Chunk, Passes, Problem, Stack

NO_NORM = 1e-6  # products of norms below it count as this


@dataclass(frozen=True)
class Agreement:
    """differ: whether any of the models is unlike the base."""

    coefficients: Coefficients
    differ: bool


class ModelStock(Combination[Agreement | None]):
    name = "model_stock"
    summary = "as far from the base towards the models' average as their agreement allows"
    reference = "Model stock, arXiv:2403.19522"
    advice = (
        "Several fine-tunes of one base on the same task: their average, drawn back to the base where they disagree."
    )
    min_models = 2
    parameters = (Parameter("filter_wise", "shared", bool, "a t for each row instead of one for the tensor", False),)

    def passes(self, p: Problem) -> Passes[Agreement | None]:
        """Statistics: the coefficients of the inputs; None for row-wise ones, which need no pass."""
        if p.shared["filter_wise"] and p.shape[0] > 1:
            return None
        products = yield from gram(p, deltas=True)
        return Agreement(interpolation(products[None])[0], bool(products.diagonal().any()))

    def coefficients(self, statistics: Agreement | None) -> Coefficients:
        assert statistics is not None
        return statistics.coefficients

    def combine(
        self, x: Stack, p: Problem, statistics: Agreement | None, chunk: Chunk, out: NDArray[np.float32]
    ) -> None:
        if statistics is None:
            products = np.empty((x.shape[1], p.others, p.others))
            row_grams(x, True, products)
            weighted_sum(x, interpolation(products), out)
        else:
            super().combine(x, p, statistics, chunk, out)

    def notes(self, p: Problem, statistics: Agreement | None) -> list[str]:
        kept = statistics is not None and statistics.differ and bool(statistics.coefficients[0] == 1)
        return ["the base is kept: the models' differences do not agree (t = 0)"] if kept else []


@kernel
def interpolation(products):
    """Coefficients of the base and the models, float64 [vectors, 1 + N], from Gram matrices of the differences, float64
    [vectors, N, N]."""
    count = products.shape[1]
    out = np.empty((products.shape[0], 1 + count))
    for v in range(products.shape[0]):
        total = 0.0
        for i in range(count):
            for k in range(i):
                norms = math.sqrt(products[v, i, i]) * math.sqrt(products[v, k, k])
                total += min(1.0, max(-1.0, products[v, i, k] / max(norms, NO_NORM)))
        cosine = max(total / (count * (count - 1) // 2), 0.0)
        t = count * cosine / (1.0 + (count - 1) * cosine)
        out[v, 0] = 1.0 - t
        out[v, 1:] = t / count
    return out


METHODS = {"model_stock": ModelStock()}
