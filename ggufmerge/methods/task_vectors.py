"""Task vectors: add the models' differences from the base back to it, after pruning and with or without a vote.

With dᵢ = Wᵢ - base, one scheme gives eight methods, a pruning rule times a consensus:

    prune      dᵢ loses elements (by magnitude: `ties.py`, `breadcrumbs.py`; at random: `dare.py`, `della.py`)
    rescale    dᵢ grows, so that pruning does not make the change smaller
    vote       per element, the sign with the larger Σ wᵢ dᵢ wins and the models against it drop out (TIES)
    add        base + λ Σ wᵢ dᵢ, over Σ wᵢ of the models that took part when `normalize` is set

This module owns the scheme and the plain member, task arithmetic: no pruning, no vote.

Source: Ilharco et al., "Editing models with task arithmetic" (arXiv:2212.04089); the vote: Yadav et al., "TIES-merging"
(arXiv:2306.01708).
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.combination import weighted_sum
from ggufmerge.methods.parameters import Parameter, Value
from ggufmerge.methods.selection import row_groups
from ggufmerge.methods.spec import Base, Chunk, Method, Pass, Passes, Problem, Stack
from ggufmerge.methods.sums import LANES, add_rows, exact_sum, lane_total

NO_DIVISOR = 1e-8  # a sum of all weights this small does not divide
CANCELLED = 1e-12  # nor does a sum of elected weights this small beside the weights: what rounding leaves of zero
NO_SUM = 1e-7  # an L1 norm this small does not rescale

WEIGHT = Parameter("weight", "model", float, "factor on this model's difference from the base; may be negative")
DENSITY = Parameter("density", "model", float, "share of the difference's elements to keep", 1.0, low=0, high=1)


def raised(density: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Densities, float64 [models], whose odds (1 - p) / p of an element that is dropped are times `shares`.

    >>> raised(np.array([0.1, 0.5, 0.0]), np.array([1 / 9, 0.0, 0.5])).tolist()
    [0.5, 1.0, 0.0]
    """
    odds = np.divide(1.0 - density, density, out=np.zeros_like(density), where=density > 0)
    return np.where((density > 0) & (shares < 1), 1.0 / (1.0 + shares * odds), density)


State = TypeVar("State")  # what a pruner knows of a tensor


class Pruner(Generic[State]):
    """A rule for which elements of the models' differences survive. This one keeps them all."""

    parameters: tuple[Parameter, ...] = ()

    def check(self, p: Problem) -> None:
        """As Method.check."""

    def keeps_all(self, p: Problem) -> NDArray[np.bool_]:
        """Which models keep every element, bool [models]."""
        return np.ones(p.others, bool)

    def keeps_none(self, p: Problem) -> NDArray[np.bool_]:
        """Which models keep no element, bool [models]."""
        return np.zeros(p.others, bool)

    def density_factors(self, p: Problem) -> NDArray[np.float64]:
        """What makes up for pruning on average, float64 [models]: 1 / density."""
        return np.divide(1.0, p.models["density"], out=np.ones(p.others), where=p.models["density"] > 0)

    def heeded(self, p: Problem) -> str:
        """As Method.heeded."""
        return ""

    def with_signal(self, p: Problem, shares: NDArray[np.float64]) -> Problem:
        """As Method.with_signal."""
        return p

    def passes(self, p: Problem) -> Passes[State]:
        """As Method.passes; what it returns is `state` below."""
        yield from ()
        nothing: Any = None  # of a rule without a state
        return nothing

    def prune(
        self, x: Stack, first: int, end: int, p: Problem, state: State, chunk: Chunk, kept: NDArray[np.float32]
    ) -> None:
        """Write the surviving differences of rows [first, end) of a chunk to `kept`, float32 [models, rows, n], with
        zeros in place of the others."""
        subtract_base(x, first, kept)


class TaskStatistics(NamedTuple):
    """state: what the pruner gathered. factors: weight times rescaling factor of each model, float64 [models]."""

    state: Any
    factors: NDArray[np.float64]


class TaskVectors(Method[TaskStatistics]):
    """A pruning rule times a consensus, with the defaults that mergekit gives the pair."""

    base = Base.REQUIRED

    def __init__(
        self,
        name: str,
        summary: str,
        reference: str,
        pruner: Pruner[Any] | None = None,
        vote: bool = False,
        normalize: bool = False,
        rescale: bool | None = None,
        *,
        advice: str,
        example: tuple[tuple[str, Value], ...],
    ) -> None:
        self.name, self.summary, self.reference = name, summary, reference
        self.advice, self.example = advice, example
        self.pruner: Pruner[Any] = pruner or Pruner()
        self.vote = vote
        parameters = [
            WEIGHT,
            *self.pruner.parameters,
            Parameter("lambda", "shared", float, "factor on the merged difference", 1.0),
            Parameter("normalize", "shared", bool, "divide by the sum of the weights that took part", normalize),
        ]
        if rescale is not None:
            parameters += [
                Parameter("rescale", "shared", bool, "make up for what pruning took away", rescale),
                Parameter(
                    "rescale_by",
                    "shared",
                    str,
                    "l1: restore the sum of magnitudes (mergekit); density: divide by the density (the papers)",
                    "l1",
                    choices=("l1", "density"),
                ),
            ]
        if vote:
            parameters.append(
                Parameter(
                    "consensus",
                    "shared",
                    str,
                    "how signs are elected: by the sum of the weighted differences, or by the count of their signs",
                    "sum",
                    choices=("sum", "count"),
                )
            )
        self.parameters = tuple(parameters)

    def check(self, p: Problem) -> None:
        self.pruner.check(p)

    def untouched(self, p: Problem) -> int | None:
        weight, scale = p.models["weight"], p.number("lambda")
        used = np.flatnonzero((weight != 0) & ~self.pruner.keeps_none(p))
        if scale == 0 or len(used) == 0:
            return 0
        i = used[0]
        if len(used) == 1 and self.pruner.keeps_all(p)[i]:
            divisor = weight[i] if self.vote and p.shared["normalize"] else _common_divisor(p)
            if scale * weight[i] / divisor == 1:
                return int(i) + 1
        return None

    def heeded(self, p: Problem) -> str:
        return self.pruner.heeded(p)

    def with_signal(self, p: Problem, shares: NDArray[np.float64]) -> Problem:
        return self.pruner.with_signal(p, shares)

    def passes(self, p: Problem) -> Passes[TaskStatistics]:
        weight = p.models["weight"]
        if self._is_plain_sum(p):
            return TaskStatistics(None, weight)
        state = yield from self.pruner.passes(p)
        rescaling = yield from self._rescaling(p, state)
        return TaskStatistics(state, np.where(weight == 0, 0.0, weight * rescaling))

    def combine(self, x: Stack, p: Problem, statistics: TaskStatistics, chunk: Chunk, out: NDArray[np.float32]) -> None:
        state, factors = statistics
        scale = p.number("lambda")
        if self._is_plain_sum(p):
            shares = scale * factors / _common_divisor(p)
            weighted_sum(x, np.concatenate([[1.0 - exact_sum(shares)], shares])[None, :], out)
            return
        if self.vote:
            weights = p.models["weight"]
            no_divisor = CANCELLED * np.abs(weights).sum() if p.shared["normalize"] else np.inf
            by_count = p.shared["consensus"] == "count"
            for first, _, kept in self._pruned(x, p, state, chunk):
                add_elected(x, first, kept, factors, weights, scale, no_divisor, by_count, out)
        else:
            for first, _, kept in self._pruned(x, p, state, chunk):
                add_all(x, first, kept, scale / _common_divisor(p) * factors, out)

    def _is_plain_sum(self, p: Problem) -> bool:
        """Whether the result is a linear combination of whole inputs."""
        return not self.vote and bool(self.pruner.keeps_all(p).all())

    def _pruned(self, x: Stack, p: Problem, state: Any, chunk: Chunk):
        """Surviving differences of a chunk, by groups of rows: (first row, end row, float32 [models, rows, n])."""
        for first, end in row_groups(x):
            kept = np.empty((p.others, end - first, x.shape[2]), np.float32)
            self.pruner.prune(x, first, end, p, state, chunk, kept)
            yield first, end, kept

    def _rescaling(self, p: Problem, state: Any) -> Passes[NDArray[np.float64]]:
        """Factor on each model's surviving differences, float64 [models]."""
        ones = np.ones(p.others)
        if not p.shared.get("rescale") or self.pruner.keeps_all(p).all():
            return ones
        if p.shared["rescale_by"] == "density":
            return self.pruner.density_factors(p)

        def norms(x: Stack, chunk: Chunk) -> NDArray[np.float64]:
            sums = np.empty((x.shape[1], 2, p.others))
            for first, end, kept in self._pruned(x, p, state, chunk):
                l1_norms(x, first, kept, sums[first:end])
            return sums

        before, after = yield from Pass(norms, add_rows, np.zeros((2, p.others))).read()
        return np.divide(before, after, out=ones, where=(before >= NO_SUM) & (after >= NO_SUM) & np.isfinite(before))


def _common_divisor(p: Problem) -> float:
    """What `normalize` divides the sum by when every model takes part everywhere."""
    total = exact_sum(p.models["weight"])
    return total if p.shared["normalize"] and abs(total) >= NO_DIVISOR else 1.0


@kernel
def subtract_base(x, first, kept):
    """kept[i, r] = x[i + 1, first + r] - x[0, first + r]."""
    for i in range(kept.shape[0]):
        for r in range(kept.shape[1]):
            model, base, target = x[i + 1, first + r], x[0, first + r], kept[i, r]
            for j in range(target.size):
                target[j] = model[j] - base[j]


_BLOCK = 512


@kernel
def l1_norms(x, first, kept, out):
    """Row by row, Σ |x[i + 1] - x[0]| and Σ |kept[i]| of each model, to `out`, float64 [rows, 2, models]."""
    before, after = np.empty(LANES), np.empty(LANES)
    for i in range(kept.shape[0]):
        for r in range(kept.shape[1]):
            before[:] = 0.0
            after[:] = 0.0
            for start in range(0, x.shape[2], LANES):
                survivor = kept[i, r, start : start + LANES]
                model = x[i + 1, first + r, start : start + LANES]
                base = x[0, first + r, start : start + LANES]
                for l in range(survivor.size):
                    before[l] += np.float64(abs(model[l] - base[l]))
                    after[l] += np.float64(abs(survivor[l]))
            out[r, 0, i] = lane_total(before)
            out[r, 1, i] = lane_total(after)


@kernel
def add_all(x, first, kept, factors, out):
    """out[first + r] = x[0, first + r] + Σ factors[i] kept[i, r], in float64 and rounded once; factor 0 is not read."""
    used = np.flatnonzero(factors)
    sums = np.empty(_BLOCK, np.float64)
    for r in range(kept.shape[1]):
        for start in range(0, kept.shape[2], _BLOCK):
            target = out[first + r, start : start + _BLOCK]
            base = x[0, first + r, start : start + _BLOCK]
            total = sums[: target.size]
            for j in range(target.size):
                total[j] = np.float64(base[j])
            for i in used:
                survivor, factor = kept[i, r, start : start + _BLOCK], factors[i]
                for j in range(target.size):
                    total[j] += factor * np.float64(survivor[j])
            for j in range(target.size):
                target[j] = np.float32(total[j])


@kernel
def add_elected(x, first, kept, factors, weights, scale, no_divisor, by_count, out):
    """As add_all with `scale` as common factor, but per element only of the models whose factors[i] kept[i] has the
    elected sign, over the sum of their weights unless that is `no_divisor` or less.

    A sum of zero elects "+"; a zero never votes. A model with factor 0 is not read.
    """
    used = np.flatnonzero(factors)
    votes, sums, divisors = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    for r in range(kept.shape[1]):
        for start in range(0, kept.shape[2], _BLOCK):
            target = out[first + r, start : start + _BLOCK]
            base = x[0, first + r, start : start + _BLOCK]
            vote, total, divisor = votes[: target.size], sums[: target.size], divisors[: target.size]
            vote[:] = 0.0
            total[:] = 0.0
            divisor[:] = 0.0
            for i in used:
                survivor, factor = kept[i, r, start : start + _BLOCK], factors[i]
                if by_count:
                    for j in range(target.size):
                        vote[j] += np.sign(factor * np.float64(survivor[j]))
                else:
                    for j in range(target.size):
                        vote[j] += factor * np.float64(survivor[j])
            for i in used:
                survivor, factor, weight = kept[i, r, start : start + _BLOCK], factors[i], weights[i]
                for j in range(target.size):
                    change = factor * np.float64(survivor[j])
                    agrees = (change > 0.0) & (vote[j] >= 0.0) | (change < 0.0) & (vote[j] < 0.0)
                    total[j] += change if agrees else 0.0
                    divisor[j] += weight if agrees else 0.0
            if no_divisor < np.inf:
                for j in range(target.size):
                    total[j] /= divisor[j] if abs(divisor[j]) > no_divisor else 1.0
            for j in range(target.size):
                target[j] = np.float32(np.float64(base[j]) + scale * total[j])


METHODS = {
    "task_arithmetic": TaskVectors(
        "task_arithmetic",
        "add the weighted differences from the base",
        "Editing models with task arithmetic, arXiv:2212.04089",
        advice="Two or more fine-tunes of one base, and the base: the first method to try. lambda near 0.5 "
        "keeps the sum in bounds.",
        example=(("weight", 1.0), ("lambda", 0.5)),
    )
}
