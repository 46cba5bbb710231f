"""RAM: add what a single model changed in full, and average what several changed.

An element is changed in model i where |Wᵢ - base| > epsilon. With c models that changed it, each of their differences
counts 1 / c. `ramplus_tl` strengthens what model i alone changed, by the share of its changes it has in common:

    1 + r · min(shared changes / unique changes, alpha)        counted in this tensor

Rounding of quantized sources exceeds the default epsilon everywhere: set it above the step of the type.

Source: Yuan et al., "Behavior knowledge merge in reinforced agentic models" (2026, arXiv:2601.13572).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.parameters import Parameter
from ggufmerge.methods.spec import Chunk, Method, Pass, Passes, Problem, Stack
from ggufmerge.methods.sums import add_counts

Factors = NDArray[np.float64]  # on what each model alone changed, [models]
_EPSILON = Parameter("epsilon", "shared", float, "changes up to this size do not count", 1e-5, low=0)


class Ram(Method[Factors]):
    name = "ram"
    summary = "keep what one model changed, average what several changed"
    reference = "Behavior knowledge merge in reinforced agentic models, arXiv:2601.13572"
    advice = (
        "Fine-tunes that changed few weights, such as those of reinforcement learning, from F16 or F32 files; between "
        "quantized files set epsilon above the step of the type."
    )
    parameters: tuple[Parameter, ...] = (_EPSILON,)

    def statistics(self, p: Problem) -> Factors:
        """Factor on what each model alone changed, float64 [models]."""
        return np.ones(p.others)

    def combine(self, x: Stack, p: Problem, statistics: Factors, chunk: Chunk, out: NDArray[np.float32]) -> None:
        add_changes(x, np.float32(p.number("epsilon")), statistics, out)


class RamPlus(Ram):
    name = "ramplus_tl"
    summary = "as ram, with what one model alone changed strengthened by what it shares"
    advice = "As ram, when it leaves too little of what single models learned."
    parameters = (
        _EPSILON,
        Parameter("r", "shared", float, "strength of the reinforcement", 0.1),
        Parameter("alpha", "shared", float, "the ratio of shared to unique changes counts up to this", 0.2, low=0),
    )

    def passes(self, p: Problem) -> Passes[Factors]:
        epsilon = np.float32(p.number("epsilon"))

        def count(x: Stack, chunk: Chunk) -> NDArray[np.int64]:
            return count_changes(x, epsilon)

        shared, unique = yield from Pass(count, add_counts, np.zeros((2, p.others), np.int64)).read()
        ratio = shared / np.maximum(unique, max(float(epsilon), np.finfo(np.float64).tiny))
        return 1.0 + p.number("r") * np.clip(ratio, 0.0, p.number("alpha"))


@kernel
def count_changes(x, epsilon):
    """How many elements each model changed together with others, and how many alone, int64 [2, models]."""
    models, n = x.shape[0] - 1, x.shape[2]
    counts = np.zeros((2, models), np.int64)
    changed = np.empty(n, np.int32)
    for r in range(x.shape[1]):
        base = x[0, r]
        _count_models(x, r, epsilon, changed)
        for i in range(models):
            model = x[i + 1, r]
            together, alone = 0, 0
            for j in range(n):
                differs = abs(model[j] - base[j]) > epsilon
                together += differs & (changed[j] > 1)
                alone += differs & (changed[j] == 1)
            counts[0, i] += together
            counts[1, i] += alone
    return counts


@kernel
def add_changes(x, epsilon, factors, out):
    """out = base + Σ changes, times factors[i] where model i alone made one, else over the number that did."""
    models, n = x.shape[0] - 1, x.shape[2]
    changed = np.empty(n, np.int32)
    sums = np.empty(n)
    for r in range(x.shape[1]):
        base, target = x[0, r], out[r]
        _count_models(x, r, epsilon, changed)
        for j in range(n):
            sums[j] = 0.0
        for i in range(models):
            model, factor = x[i + 1, r], factors[i]
            for j in range(n):
                d = model[j] - base[j]
                share = factor if changed[j] == 1 else 1.0 / max(changed[j], 1)
                sums[j] += share * np.float64(d) if abs(d) > epsilon else 0.0
        for j in range(n):
            target[j] = np.float32(np.float64(base[j]) + sums[j])


@kernel
def _count_models(x, r, epsilon, changed):
    """How many models changed each element of row r, to `changed`, int32 [n]."""
    base = x[0, r]
    changed[:] = 0
    for i in range(1, x.shape[0]):
        model = x[i, r]
        for j in range(changed.size):
            changed[j] += abs(model[j] - base[j]) > epsilon


METHODS = {"ram": Ram(), "ramplus_tl": RamPlus()}
