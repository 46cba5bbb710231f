"""Types for a budget of bytes instead of a file type: every tensor gets the one that its share of the budget buys.

What rules and users leave alone stays: norms and other tensors that llama-quantize never quantizes, and types that were
asked for by name. The rest is predicted (`planning.harm`) and allotted (`planning.budget`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ggufmerge.architectures.stacks import layer_of, with_layer
from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.planning.budget import Option, allot, smallest, total
from ggufmerge.planning.harm import Prediction, predict
from ggufmerge.planning.plan import PlannedTensor
from ggufmerge.quants.importance import Imatrix
from ggufmerge.quants.mixture import Decision, ModelHeader, Rule, decide_types, require_imatrix
from ggufmerge.recipe.budget import ByteBudget
from ggufmerge.sources import Source
from ggufmerge.text import size
from ggufmerge.types import FileType, TensorType

F = FileType

# The mixtures that people know, coarse ones first: what a choice is compared with
MIXTURES = (
    F.IQ2_XXS, F.IQ2_XS, F.IQ2_S, F.IQ2_M, F.Q2_K, F.IQ3_XXS, F.IQ3_XS, F.Q3_K_S, F.IQ3_S, F.IQ3_M, F.Q3_K_M, F.Q3_K_L,
    F.IQ4_XS, F.IQ4_NL, F.Q4_0, F.Q4_K_S, F.Q4_K_M, F.Q4_1, F.Q5_0, F.Q5_K_S, F.Q5_K_M, F.Q5_1, F.Q6_K, F.Q8_0,
)  # fmt: skip


@dataclass(frozen=True)
class Mixture:
    """A fixed mixture as this model would have it: bytes of tensor data and predicted harm."""

    file_type: FileType
    types: Mapping[str, TensorType]
    nbytes: int
    harm: float


@dataclass(frozen=True)
class Market:
    """What can be had for this model: the options of the tensors that have a choice, and what the others take.

    tensors: all of the model, with the types that those without a choice have.
    fixed: bytes of the tensors without a choice.
    mixtures: the fixed mixtures that this model can have, by size.
    """

    tensors: tuple[PlannedTensor, ...]
    prediction: Prediction
    fixed: int
    mixtures: tuple[Mixture, ...]

    @property
    def parameters(self) -> int:
        return sum(prod(t.shape) for t in self.tensors)

    @property
    def least(self) -> int:
        """Bytes of the smallest file of these types."""
        return self.fixed + smallest(self.prediction.options)

    def fit(self, budget: ByteBudget) -> Fitting:
        """The best types for a budget. PlanError when it is too small, with the smallest size that can be reached."""
        limit = budget.bytes_for(self.parameters)
        if self.least > limit:
            raise PlanError(
                f"a budget of {budget} is too small: this model takes {size(self.least)} ({self.least} bytes, "
                f"{8 * self.least / max(self.parameters, 1):.3f} bits per weight) at least"
                f"{'' if self.prediction.statistics != 'none' else ', less with an importance matrix (--imatrix)'}"
            )
        return Fitting(self, str(budget), limit, allot(self.prediction.options, limit - self.fixed))

    def unchanged(self) -> Fitting:
        """Every tensor in the largest of its types: that which it is stored in, where it can be written."""
        largest = {name: max(several, key=lambda o: o.nbytes) for name, several in self.prediction.options.items()}
        return Fitting(self, "no budget", self.fixed + total(largest)[0], largest)


@dataclass(frozen=True)
class Fitting:
    """The types that a budget buys. budget: in words.  limit: in bytes of tensor data."""

    market: Market
    budget: str
    limit: int
    allotted: Mapping[str, Option]

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return self.market.fixed + total(self.allotted)[0]

    @property
    def harm(self) -> float:
        return total(self.allotted)[1]

    @property
    def types(self) -> dict[str, TensorType]:
        return {t.name: self.allotted[t.name].type if t.name in self.allotted else t.type for t in self.market.tensors}

    @property
    def file_type(self) -> FileType:
        return FileType.of(self.types)

    @property
    def rival(self) -> Mixture | None:
        """The best fixed mixture within the budget; where none is, the smallest."""
        within = [m for m in self.market.mixtures if m.nbytes <= self.limit] or self.market.mixtures[:1]
        return min(within, key=lambda m: (m.harm, m.nbytes), default=None)

    def tensors(self) -> list[PlannedTensor]:
        """All tensors of the model, with their types."""
        return [
            replace(t, type=self.allotted[t.name].type, why_type=f"least harm within {self.budget}")
            if t.name in self.allotted
            else t
            for t in self.market.tensors
        ]

    def rules(self) -> list[tuple[str, TensorType]]:
        """The choice as pairs of a regular expression and a type, as llama-quantize takes them, too."""
        return type_rules({name: option.type for name, option in self.allotted.items()})


def market(
    header: ModelHeader,
    tensors: Sequence[PlannedTensor],
    sources: Sequence[Source],
    imatrix: Imatrix | None,
    *,
    tensor_types: Sequence[tuple[str, TensorType | str]] = (),
    output_tensor_type: TensorType | str | None = None,
    token_embedding_type: TensorType | str | None = None,
    leave_output_tensor: bool = False,
    keep_split: bool = False,
    fixed: Iterable[str] = (),
    threads: int | None = None,
) -> Market:
    """What can be had for a model; samples of its weights are read and encoded.

    header: shapes, types and metadata of the result.  tensors: of the result, each with the inputs that it is made of.
    fixed: names of tensors that keep the types they have.  The others: see `quants.mixture.plan_types`.
    """
    demanded: dict[str, Any] = {
        "tensor_types": tensor_types,
        "output_tensor_type": output_tensor_type,
        "token_embedding_type": token_embedding_type,
        "leave_output_tensor": leave_output_tensor,
        "keep_split": keep_split,
    }
    decided = decide_types(header, F.Q8_0, imatrix, **demanded)
    kept = set(fixed)
    settled = [_settled(t, decided[t.name], kept) for t in tensors]
    choosing = [t for t, now in zip(tensors, settled, strict=True) if now is None]
    prediction = predict(choosing, sources, imatrix, threads=threads)
    done = tuple(now or t for t, now in zip(tensors, settled, strict=True))
    bytes_fixed = sum(t.nbytes for t in done if t.name not in prediction.options)
    found = Market(done, prediction, bytes_fixed, ())
    return replace(found, mixtures=tuple(_mixtures(header, found, imatrix, demanded)))


def _settled(tensor: PlannedTensor, decision: Decision, kept: set[str]) -> PlannedTensor | None:
    """A tensor whose type is settled by a rule or the user; None for one that has a choice."""
    if tensor.name in kept or decision.rule is Rule.KEPT:
        return replace(tensor, why_type=tensor.why_type if tensor.name in kept else decision.reason)
    if decision.rule is Rule.OVERRIDE or decision.reason.startswith('tensor type "'):
        return replace(tensor, type=decision.type, why_type=decision.reason)
    return None


def _mixtures(
    header: ModelHeader, found: Market, imatrix: Imatrix | None, demanded: Mapping[str, Any]
) -> Iterable[Mixture]:
    options = {n: {o.type: o for o in several} for n, several in found.prediction.options.items()}
    mixtures = []
    for kind in MIXTURES:
        try:
            decided = decide_types(header, kind, imatrix, **demanded)
            require_imatrix(decided, imatrix, list(options))
        except GgufmergeError:
            continue
        types = {name: decided[name].type for name in options}
        if all(types[name] in options[name] for name in options):
            nbytes, harm = total({name: options[name][types[name]] for name in options})
            whole = {t.name: types.get(t.name, t.type) for t in found.tensors}
            mixtures.append(Mixture(kind, whole, found.fixed + nbytes, harm))
    return sorted(mixtures, key=lambda m: m.nbytes)


def type_rules(types: Mapping[str, TensorType]) -> list[tuple[str, TensorType]]:
    """Types by name as pairs of a regular expression and a type: one for each kind of tensor and type, which lists the
    layers. Each matches the names that it stands for and no others.
    """
    grouped: dict[tuple[str, TensorType], list[int | None]] = {}
    for name, kind in types.items():
        layer = layer_of(name)
        anywhere = name if layer is None else with_layer(name, 0)
        grouped.setdefault((anywhere, kind), []).append(layer)
    rules = []
    for (anywhere, kind), layers in grouped.items():
        if layers == [None]:
            rules.append((f"^{_escaped(anywhere)}$", kind))
            continue
        before, after = anywhere.split("blk.0.", 1)
        numbers = [str(n) for n in sorted(n for n in layers if n is not None)]
        any_of = f"({'|'.join(numbers)})" if len(numbers) > 1 else numbers[0]
        rules.append((rf"^{_escaped(before)}blk\.{any_of}\.{_escaped(after)}$", kind))
    return rules


def _escaped(name: str) -> str:
    return re.sub(r"([^A-Za-z0-9_/-])", r"\\\1", name)
