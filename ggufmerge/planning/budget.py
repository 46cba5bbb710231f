"""Types under a budget: of the types that each tensor may have, those that do least harm together and fit.

Every tensor has a few options, each with a size and the harm that it is expected to do (`planning.harm`); harms of
tensors add up. That is a knapsack with one choice for each tensor. It is solved exactly: a price on bytes
(Lagrange's multiplier) gives a lower bound and an allotment that fits, which shows of nearly all options that they
cannot be in the best one; what is left goes through dynamic programming over whole multiples of the sizes' common unit.
Where even that is too much, the allotment that fits is improved by exchanges, and is within one option of the bound.

The same options and budget give the same allotment on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import PlanError
from ggufmerge.text import size
from ggufmerge.types import TensorType

_MOST_STEPS = 60_000_000  # cells times options of the dynamic programming


@dataclass(frozen=True)
class Option:
    """A type that a tensor may have: what it takes, bytes, and the harm it does, 0 or more."""

    type: TensorType
    nbytes: int
    harm: float


def smallest(options: Mapping[str, Sequence[Option]]) -> int:
    """Bytes of the tensors when each takes its smallest option."""
    return sum(min(o.nbytes for o in several) for several in options.values())


def total(allotted: Mapping[str, Option]) -> tuple[int, float]:
    """Bytes and harm of an allotment."""
    return sum(o.nbytes for o in allotted.values()), math.fsum(o.harm for o in allotted.values())


def allot(options: Mapping[str, Sequence[Option]], nbytes: int) -> dict[str, Option]:
    """An option for each tensor: the allotment of at most `nbytes` bytes that does the least harm.

    PlanError, with the smallest size that can be reached, when nothing fits.
    """
    if (least := smallest(options)) > nbytes:
        raise PlanError(
            f"the tensors take {size(least)} ({least} bytes) at least, more than the {size(nbytes)} that are allowed: "
            "allow more, give an importance matrix (--imatrix), which makes smaller types possible, or take a smaller "
            "model"
        )
    names = list(options)
    useful = [_useful(options[name]) for name in names]
    incumbent, price = _priced(useful, nbytes)
    _improve(useful, incumbent, nbytes)
    best = _exact(useful, incumbent, price, nbytes)
    return {name: several[i] for name, several, i in zip(names, useful, best, strict=True)}


def _useful(several: Sequence[Option]) -> list[Option]:
    """The options that no other is both smaller and better than, from the smallest on."""
    kept: list[Option] = []
    for option in sorted(several, key=lambda o: (o.nbytes, o.harm)):
        if not kept or option.harm < kept[-1].harm:
            kept.append(option)
    return kept


def _hull(several: Sequence[Option]) -> list[int]:
    """Which useful options are on the lower convex hull of harm over bytes."""
    hull: list[int] = []
    for i, option in enumerate(several):
        while len(hull) > 1 and _slope(several[hull[-2]], several[hull[-1]]) <= _slope(several[hull[-1]], option):
            hull.pop()
        hull.append(i)
    return hull


def _slope(less: Option, more: Option) -> float:
    """Harm that a byte saves from one option to a larger one."""
    return (less.harm - more.harm) / (more.nbytes - less.nbytes)


def _priced(useful: Sequence[Sequence[Option]], nbytes: int) -> tuple[list[int], float]:
    """The numbers of an allotment that fits, and the price of a byte, harm per byte, at which the next would not."""
    steps = []
    for tensor, several in enumerate(useful):
        hull = _hull(several)
        steps += [(-_slope(several[a], several[b]), tensor, b) for a, b in pairwise(hull)]
    chosen, left, price = [0] * len(useful), nbytes - sum(several[0].nbytes for several in useful), 0.0
    stopped = set[int]()
    for negative, tensor, to in sorted(steps):
        more = useful[tensor][to].nbytes - useful[tensor][chosen[tensor]].nbytes
        if tensor in stopped or more > left:
            price = price or -negative
            stopped.add(tensor)
            continue
        chosen[tensor], left = to, left - more
    return chosen, price


def _improve(useful: Sequence[Sequence[Option]], chosen: list[int], nbytes: int) -> None:
    """Spend what is left on single larger options, the most useful for its bytes first."""
    left = nbytes - sum(several[i].nbytes for several, i in zip(useful, chosen, strict=True))
    while True:
        best = None
        for tensor, several in enumerate(useful):
            now = several[chosen[tensor]]
            for i in range(chosen[tensor] + 1, len(several)):
                if several[i].nbytes - now.nbytes <= left:
                    found = (now.harm - several[i].harm, -tensor, i)
                    best = max(best or found, found)
        if best is None:
            return
        _, tensor, i = best
        left -= useful[-tensor][i].nbytes - useful[-tensor][chosen[-tensor]].nbytes
        chosen[-tensor] = i


def _exact(useful: Sequence[Sequence[Option]], incumbent: list[int], price: float, nbytes: int) -> list[int]:
    """The numbers of the best allotment; the incumbent where too many options are in question to find it."""
    worth = math.fsum(several[i].harm for several, i in zip(useful, incumbent, strict=True))
    costs = [[o.harm + price * o.nbytes for o in several] for several in useful]
    least = [min(cost) for cost in costs]
    gap = (worth - (math.fsum(least) - price * nbytes)) * (1 + 1e-9) + 1e-15 * worth
    open_ = [
        [i for i, c in enumerate(cost) if c - low <= gap or i == now]
        for cost, low, now in zip(costs, least, incumbent, strict=True)
    ]
    chosen = [numbers[0] for numbers in open_]  # the smallest that is in question
    rest = [tensor for tensor, numbers in enumerate(open_) if len(numbers) > 1]
    left = nbytes - sum(several[i].nbytes for several, i in zip(useful, chosen, strict=True))
    if not rest or left < 0:
        return incumbent
    more = {t: [useful[t][i].nbytes - useful[t][open_[t][0]].nbytes for i in open_[t]] for t in rest}
    unit = math.gcd(*(m for several in more.values() for m in several if m))
    cells = min(left, sum(max(several) for several in more.values())) // unit + 1
    if cells * sum(map(len, more.values())) > _MOST_STEPS:
        return incumbent
    harms = np.full(cells, np.inf)
    harms[0] = 0
    taken = np.zeros((len(rest), cells), np.uint8)
    for row, tensor in enumerate(rest):
        after = np.full(cells, np.inf)
        for number, (i, m) in enumerate(zip(open_[tensor], more[tensor], strict=True)):
            _take(harms, after, taken[row], m // unit, useful[tensor][i].harm, number)
        harms = after
    cell = int(np.argmin(harms))
    for row in range(len(rest) - 1, -1, -1):
        tensor, number = rest[row], int(taken[row, cell])
        chosen[tensor] = open_[tensor][number]
        cell -= more[tensor][number] // unit
    found = math.fsum(several[i].harm for several, i in zip(useful, chosen, strict=True))
    return chosen if found < worth else incumbent


def _take(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    taken: NDArray[np.uint8],
    step: int,
    harm: float,
    number: int,
) -> None:
    """Harms by cell once one tensor has taken its option `number`, `step` cells larger than its smallest."""
    if step >= len(before):
        return
    tried = before[: len(before) - step] + harm
    better = tried < after[step:]
    after[step:][better] = tried[better]
    taken[step:][better] = number
