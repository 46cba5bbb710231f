"""Which parameters hold for each tensor: the recipe's rules applied to the tensors of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ggufmerge.errors import RecipeError
from ggufmerge.methods import method as find_method
from ggufmerge.methods import package_of
from ggufmerge.methods.parameters import LEFT_OUT, BindError, Complaint, Parameter, Value
from ggufmerge.methods.spec import Method, Problem
from ggufmerge.planning.layout import Slot
from ggufmerge.planning.models import LaidOut
from ggufmerge.planning.plan import Input, PlannedTensor
from ggufmerge.planning.stored_form import stored_offset
from ggufmerge.recipe import Recipe
from ggufmerge.recipe.document import Location
from ggufmerge.recipe.settings import Rule, at, matches_any
from ggufmerge.sources import Source
from ggufmerge.sources.rounding import is_exact


def resolved(recipe: Recipe, laid_out: LaidOut) -> list[PlannedTensor]:
    """The tensors of the result with their parameters, in the types of the model that the result takes after.

    RecipeError names all parameters that are missing or that do not go together.
    """
    resolver = Resolver(recipe, laid_out.sources)
    tensors = [resolver.resolve(slot) for slot in laid_out.slots]
    if resolver.problems:
        raise RecipeError(*resolver.problems)
    return tensors


@dataclass(frozen=True)
class Found:
    """A parameter's value, the rule it comes from and that rule's place in the recipe."""

    value: Value
    rule: Rule
    where: Location


class Resolver:
    """Finds the parameters that hold for each tensor; collects all problems instead of stopping at the first."""

    def __init__(self, recipe: Recipe, sources: Sequence[Source]) -> None:
        self.recipe, self.sources = recipe, sources
        self.architecture = sources[0].file.architecture
        self._problems: dict[tuple[str, str], list[str]] = {}  # (place, what) -> tensors, none when all have it
        self._resolved = 0

    @property
    def problems(self) -> list[str]:
        """Each problem once, with its place in the recipe and, unless all tensors have it, one of those that do."""
        lines = []
        for (where, what), names in self._problems.items():
            tensors = ""
            if names and len(names) < self._resolved:
                tensors = f"{names[0]} and {len(names) - 1} more: " if len(names) > 1 else f"{names[0]}: "
            lines.append(f"{where}: {tensors}{what}" if where else tensors + what)
        return lines

    def resolve(self, slot: Slot) -> PlannedTensor:
        """The planned tensor with its final inputs; its type is that of the model the result takes after."""
        method = find_method(self.recipe.method_for(slot.name, self.architecture))
        self._resolved += 1
        order = [0] if slot.constant else slot.slice.order(method, self.recipe)
        inputs = tuple(Input(slot.slice.parts[i].source, slot.names[i] or slot.name) for i in order)
        # the result keeps the type of its donor if that takes part, else of the first
        stored = next((i for i in inputs if i.source == 0), inputs[0])
        tensor = self.sources[stored.source].tensors[stored.tensor]
        notes = (n for i in dict.fromkeys(inputs) for n in self.sources[i.source].notes(i.tensor, slot.name))
        planned = PlannedTensor(
            slot.name, tensor.shape, tensor.type, "copy", inputs, decisions=(*slot.decisions, *notes)
        )
        if slot.constant:
            return planned
        if not tensor.rows * tensor.n:
            return replace(planned, inputs=(stored,), decisions=(*planned.decisions, "has no values to merge"))
        if self.recipe.exclude and matches_any(self.recipe.exclude, slot.name, self.architecture):
            return replace(planned, inputs=(stored,), decisions=(*planned.decisions, "excluded from merging"))
        if tensor.type.is_quantized or tensor.type.is_float:
            return self._merged(slot, method, order, planned)
        return self._unmergeable(planned, stored)

    def _merged(self, slot: Slot, method: Method, order: Sequence[int], planned: PlannedTensor) -> PlannedTensor:
        has_base = slot.slice.uses_base(method)
        if slot.slice.is_base_alone(method):
            return planned
        others = order[1:] if has_base else order
        found = {q: [self.find(q, slot, i) for i in others] for q in method.parameters if q.scope == "model"}
        given: dict[str, Value | list[Value]] = {}
        for q in method.parameters:
            if q.scope == "model":
                given[q.name] = [LEFT_OUT if own is None else own.value for own in found[q]]
                if q.together and not any(found[q]):
                    decision = f"no {q.name} is given, so all models have {q.name} {q.default:g}"
                    planned = replace(planned, decisions=(*planned.decisions, decision))
            elif (shared := self.find(q, slot)) is not None:
                given[q.name] = shared.value
        if package := package_of(method.name):  # another version of it is another merge, which cannot be gone on with
            planned = replace(planned, decisions=(*planned.decisions, f"{method.name} is of the package {package}"))
        experts = planned.shape[0] if len(planned.shape) == 3 and "_exps." in planned.name else 1
        merged = replace(
            planned,
            action="merge",
            method=method.name,
            has_base=has_base,
            experts=experts,
            offset=stored_offset(self.architecture, planned.name),
        )
        try:
            problem = method.bind(_matrix_shape(merged), len(merged.inputs), has_base, given)
        except BindError as error:
            for complaint in error.complaints:
                self._note_complaint(method, slot, others, complaint)
            return merged
        single = method.untouched(problem)
        if single is not None:
            return replace(planned, inputs=(merged.inputs[single],))
        models = {name: tuple(None if np.isnan(v) else v for v in own.tolist()) for name, own in problem.models.items()}
        merged = replace(merged, shared=dict(problem.shared), models=models)
        heeded = method.heeded(problem) if self.recipe.noise_aware == "auto" else ""
        if not heeded or not self._holds_noise(merged):
            return merged
        decision = f"{heeded} (noise_aware: off does without)"
        return replace(merged, noise_aware=True, decisions=(*merged.decisions, decision))

    def _holds_noise(self, tensor: PlannedTensor) -> bool:
        """Whether the difference of a model from the base has rounding errors in it."""
        sources = [self.sources[given.source] for given in tensor.inputs]
        if not tensor.has_base or any(s.moves(i.tensor) for s, i in zip(sources, tensor.inputs, strict=True)):
            return False
        base, *models = [s.file.tensors[i.tensor] for s, i in zip(sources, tensor.inputs, strict=True)]
        return not all(is_exact(base, model) for model in models)

    def _note_complaint(self, method: Method, slot: Slot, others: Sequence[int], complaint: Complaint) -> None:
        """Note what is wrong with the parameters of a tensor, with the place in the recipe to blame."""
        parameter = method.parameter(complaint.about)
        if not complaint.missing or parameter is None:
            self._note_problem(self._place_of(method, slot, others, complaint), complaint.what, slot.name)
            return
        todo = f'add "parameters: {{{parameter.name}: {parameter.example}}}"'
        if complaint.model is None:
            self._note_problem(("merge_method",), f"{complaint.what}: {todo}")
            return
        part = slot.slice.parts[others[complaint.model]]
        what = f"{self.sources[part.source].label} {complaint.what}: {todo}"
        place = "below it" if part.listed else "for it under models:"
        self._note_problem(part.where[:-1] if part.listed else part.where, f"{what} {place}")

    def _place_of(self, method: Method, slot: Slot, others: Sequence[int], complaint: Complaint) -> Location:
        """Where the recipe says what a complaint is about: a parameter, or the models for ""."""
        parameter = method.parameter(complaint.about)
        if parameter is not None:
            owners = others if complaint.model is None else [others[complaint.model]]
            for i in [None] if parameter.scope == "shared" else owners:
                if found := self.find(parameter, slot, i):
                    return found.where
        return ("models",) if self.recipe.slices is None else slot.slice.where[:-1]

    def _note_problem(self, place: Location, what: str, tensor: str = "") -> None:
        names = self._problems.setdefault((self.recipe.where(place), what), [])
        if tensor:
            names.append(tensor)

    def find(self, parameter: Parameter, slot: Slot, i: int | None = None) -> Found | None:
        """What the recipe says of a parameter for a tensor, of part `i` of its slice if it is per model.

        The closest level that has a value decides: the model's own, the slice's, the recipe's. Shared parameters are
        filtered by the name in the result, per-model ones by the tensor's name in that model.
        """
        levels = [(slot.slice.where, slot.slice.parameters), (("parameters",), self.recipe.parameters)]
        name = slot.name
        if i is not None:
            part = slot.slice.parts[i]
            levels.insert(0, (part.where, part.parameters))
            own = slot.names[i] or slot.name
            # an embedding that stands in for a tied output head is filtered as the head
            name = own if own.split(".")[0] == slot.name.split(".")[0] else slot.name
        for where, level in levels:
            setting = level.get(parameter.name)
            rule = setting.rule_for(name, self.architecture) if setting else None
            if rule is not None:
                return Found(at(rule.value, slot.position), rule, (*where, parameter.name))
        return None

    def _unmergeable(self, planned: PlannedTensor, stored: Input) -> PlannedTensor:
        """A tensor of integers: copied when it is the same everywhere."""
        readers = [self.sources[i.source].open_tensor(i.tensor) for i in planned.inputs]
        values = [bytes(reader.raw_rows(0, reader.rows)) for reader in readers]
        if len(set(values)) > 1:
            what = f"{planned.name}: holds {planned.type} numbers that differ; they cannot be merged"
            self._note_problem(("models",) if self.recipe.slices is None else ("slices",), what)
        return replace(planned, inputs=(stored,), decisions=(*planned.decisions, "the same integers in all models"))


def problem_of(tensor: PlannedTensor, keys: Sequence[int] = ()) -> Problem:
    """The method's view of a planned tensor (of one expert, when it is a stack)."""
    inputs = len(tensor.inputs)
    return Problem.of(_matrix_shape(tensor), inputs, tensor.has_base, tensor.shared, tensor.models, keys)


def _matrix_shape(tensor: PlannedTensor) -> tuple[int, int]:
    """(rows, n) of what is merged at a time: a tensor, or one expert of a stack."""
    return tensor.rows // (tensor.experts or 1), tensor.n
