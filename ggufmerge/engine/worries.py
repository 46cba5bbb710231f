"""What in a plan is allowed but probably not meant: a line each, with what to do about it.

Each rule reads what the plan says of its tensors, so it is about what will be done, wherever the recipe says it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ggufmerge.engine.trial import Trial
from ggufmerge.planning.opened import Opened
from ggufmerge.planning.plan import Plan, PlannedTensor
from ggufmerge.planning.survival import advice
from ggufmerge.sources.model import content_fingerprint
from ggufmerge.text import series, size
from ggufmerge.types import TensorType

_COARSE = 5.6  # bits for a weight; types with fewer have steps of the size of an ordinary change
_FEW = 0.3  # density, below which the rescaled rest is mostly rounding error
_STRONG, _WEAK = 2.0, 0.15  # factors of all changes together
_OFF = 0.05  # what the weights of an average may be away from 1
_RESCALED = ("dare_linear", "dare_ties", "della", "della_linear")


class _Case(NamedTuple):
    """A plan with what the rules ask of it."""

    plan: Plan
    opened: Opened
    merged: list[PlannedTensor]

    def label(self, source: int) -> str:
        return self.plan.sources[source].label

    def others(self, tensor: PlannedTensor) -> list[int]:
        """The sources of the inputs that are not the base."""
        return [i.source for i in tensor.inputs[tensor.has_base :]]

    def stored(self, tensor: PlannedTensor, place: int) -> TensorType:
        given = tensor.inputs[place]
        return self.opened.sources[given.source].tensors[given.tensor].type

    def largest(self, tensors: Iterable[PlannedTensor]) -> list[PlannedTensor]:
        """The matrices among them; norms and biases, which are small and never coarse, decide nothing."""
        found = list(tensors)
        return [t for t in found if len(t.shape) > 1] or found


def worries_of(plan: Plan, opened: Opened, trial: Trial | None = None) -> list[str]:
    """The worries of a plan over open sources, in words; most plans have none.

    trial: what would be left of its changes, where that was tried out; else there is an estimate.
    """
    case = _Case(plan, opened, [t for t in plan.tensors if t.action == "merge"])
    rules = _RULES if trial is None else [rule for rule in _RULES if rule is not _coarse_kept]
    found = [line for rule in rules for line in rule(case)]
    return list(dict.fromkeys([*found, *(advice(trial.kept) if trial is not None else ())]))


def _twice(case: _Case) -> Iterator[str]:
    """A model that takes part twice, or two names of the same weights."""
    again = {s for t in case.merged for s, n in Counter(i.source for i in t.inputs).items() if n > 1 and not t.has_base}
    again |= {s for t in case.merged for s, n in Counter(case.others(t)).items() if n > 1}
    for number in sorted(again):
        yield f"{case.label(number)} takes part twice, so its weight counts twice: name another model, or leave one out"
    base_too = {t.inputs[0].source for t in case.merged if t.has_base and t.inputs[0].source in case.others(t)}
    for number in sorted(base_too - again):
        yield f"{case.label(number)} is the base and one of the models, so it changes nothing there: leave it out there"
    seen: dict[tuple[object, ...], int] = {}
    used = {i.source for t in case.merged for i in t.inputs}
    for number in sorted(used):
        source = case.opened.sources[number]
        adapters = tuple((content_fingerprint(a.file), a.settings()) for a in source.adapters)
        first = seen.setdefault((content_fingerprint(source.file), adapters), number)
        if first != number:
            yield (
                f"{case.label(first)} and {case.label(number)} are the same weights under two names: "
                "merging them changes nothing; was another file meant?"
            )


def _unchanged(case: _Case) -> Iterator[str]:
    """A merge of several models whose result is one of them, as SCE of a single model is its base."""
    used = {i.source for t in case.plan.tensors for i in t.inputs}
    if not case.merged and len(case.plan.sources) > 1 and len(used) == 1:
        yield (
            f"nothing is merged: all tensors of the result are those of {case.label(*used)}; look at the parameters "
            "and filters of the recipe if that is not meant"
        )


def _random_drop(case: _Case) -> Iterator[str]:
    """DARE and DELLA multiply what they keep, and of coarse files that is the rounding error, too."""
    rescaled = (t for t in case.merged if t.method in _RESCALED and t.shared.get("rescale", True))
    for t in case.largest(t for t in rescaled if not t.noise_aware):
        kinds = {case.stored(t, place) for place in range(len(t.inputs))}
        coarse = sorted(str(kind) for kind in kinds if kind.is_quantized and kind.bits_per_weight < _COARSE)
        low = [d for d in t.models.get("density", ()) if d is not None and 0 < d < _FEW]
        if coarse and low:
            yield (
                f"{t.method} with density {min(low):.3g} multiplies what it keeps by {1 / min(low):.3g}, and of "
                f"{series(coarse)} files most of that is rounding error: take density 0.5 or more, "
                "noise_aware: auto, or files of Q8_0"
            )


def _strength(case: _Case) -> Iterator[str]:
    """Weights and lambda that make changes much stronger or weaker than they were."""
    for t in case.largest(case.merged):
        weights = [w for w in t.models.get("weight", ()) if w is not None]
        if not weights or not all(-1e300 < w < 1e300 for w in weights):
            continue
        if t.method == "linear":
            if not t.shared.get("normalize", True) and abs(sum(weights) - 1) > _OFF:
                yield (
                    f"the weights sum to {sum(weights):.3g} with normalize: false, so all values of the model are "
                    "multiplied by that: let them sum to 1, or leave normalize out"
                )
            continue
        factor = t.shared.get("lambda")
        if not t.has_base or not isinstance(factor, int | float):
            continue
        together = 1.0 if t.shared.get("normalize") else sum(map(abs, weights))
        sums = f"the weights sum to {together:.3g}" if together != 1 else ""
        how = " and ".join(part for part in (sums, f"lambda is {factor:.3g}" if factor != 1 else "") if part)
        total = together * abs(factor)
        if total > _STRONG and how:
            yield (
                f"{t.method}: {how}, so the changes together are {total:.3g} times as strong as one model's: a model "
                "talks nonsense from about 2 on; weights that sum to 1, and lambda 1, are usual"
            )
        elif 0 < total < _WEAK and how:
            yield f"{t.method}: {how}, so the result is nearly the base: weights that sum to 1 are usual"


def _first_type(case: _Case) -> Iterator[str]:
    """Types that come from a model only because it stands first."""
    kept = [t for t in case.largest(case.merged) if t.keeps_type and not t.has_base and t.type.is_quantized]
    better: Counter[tuple[str, str]] = Counter()
    for t in kept:
        kinds = [case.stored(t, place) for place in range(len(t.inputs))]
        widest = max(kinds, key=lambda kind: kind.bits_per_weight)
        if kinds[0] == t.type and widest.bits_per_weight > t.type.bits_per_weight + 0.5:
            better[str(t.type), str(widest)] += 1
    for (kind, wide), _ in better.most_common(1):
        source = case.plan.sources[kept[0].inputs[0].source]
        yield (
            f"the result is {kind} because {source.label} is listed first, though another model is {wide}: "
            f"name the type that you want (out_type: {_file_type(wide)}, or {kind} to say that you mean it)"
        )


def _coarse_kept(case: _Case) -> Iterator[str]:
    """Small changes written onto coarse grids."""
    kept = [
        t
        for t in case.largest(case.merged)
        if t.has_base and t.keeps_type and t.type.is_quantized and t.type.bits_per_weight < _COARSE
    ]
    if not kept or any("rounded" in line for line in case.plan.expectations):
        return  # the expectations have figures
    kind, _ = Counter(str(t.type) for t in kept).most_common(1)[0]
    values = sum(t.rows * t.n for t in case.plan.tensors if len(t.shape) > 1)
    larger = values * TensorType.parse("Q6_K").bits_per_weight / 8
    yield (
        f"the type of the base, {kind}, is kept, whose steps are larger than an ordinary change of a weight: much of "
        f"the change may be lost in noise; out_type: Q6_K keeps nearly all of it (about {size(round(larger))})"
    )


def _blown_up(case: _Case) -> Iterator[str]:
    """Full precision made of quantized models."""
    floats = {str(t.type) for t in case.largest(t for t in case.plan.tensors if t.action != "copy") if t.type.is_float}
    made = [t for t in case.largest(case.plan.tensors) if t.action != "copy"]
    if not floats or not made or not all(t.type.is_float for t in made):
        return
    kinds = {case.stored(t, place) for t in made for place in range(len(t.inputs))}
    if all(kind.is_quantized for kind in kinds):
        finest = max(kinds, key=lambda kind: kind.bits_per_weight)
        sources = sum(s.nbytes for s in case.plan.sources) / len(case.plan.sources)
        yield (
            f"a {series(sorted(floats))} file is made of {series(sorted(map(str, kinds)))} models: "
            f"{size(case.plan.nbytes)} instead of {size(round(sources))}, and no more precise than "
            f"{'Q8_0' if finest.bits_per_weight <= 8.5 else finest}: write out_type: Q8_0 unless you go on from it"
        )


_RULES: tuple[Callable[[_Case], Iterator[str]], ...] = (
    _twice,
    _unchanged,
    _strength,
    _random_drop,
    _first_type,
    _coarse_kept,
    _blown_up,
)


def _file_type(kind: str) -> str:
    """A file type whose matrices have this type."""
    return {"Q2_K": "Q2_K", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}.get(kind, kind)
