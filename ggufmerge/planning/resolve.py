"""Which parameters hold for each tensor: the recipe's rules applied to the tensors of the result."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from ggufmerge.errors import PlanError, RecipeError, collected
from ggufmerge.methods import method as find_method
from ggufmerge.methods import package_of
from ggufmerge.methods.parameters import LEFT_OUT, BindError, Complaint, Parameter, Value
from ggufmerge.methods.spec import Base, Method, Problem
from ggufmerge.places.opening import open_source
from ggufmerge.places.references import check_found
from ggufmerge.planning import checks, vocabulary
from ggufmerge.planning.layout import Slice, Slot, lay, left_out
from ggufmerge.planning.plan import Input, PlannedTensor
from ggufmerge.planning.stored_form import stored_offset
from ggufmerge.recipe import ModelReference, Recipe
from ggufmerge.recipe.document import Location
from ggufmerge.recipe.names import known_words, spellings
from ggufmerge.recipe.settings import Rule, Setting, at, matches
from ggufmerge.sources import Source
from ggufmerge.sources.aligned import aligned
from ggufmerge.sources.side_tensors import is_orphan
from ggufmerge.tokenizers import Alignment


@dataclass(frozen=True)
class LaidOut:
    """A recipe over its opened models: the tensors of the result, their parameters not yet looked up.

    sources: as the result has them, in one vocabulary.
    alignment: how their vocabularies became one, None when they were the same.
    warnings: what has no effect, one line each.
    """

    references: list[ModelReference]
    sources: list[Source]
    slices: list[Slice]
    slots: list[Slot]
    warnings: list[str]
    alignment: Alignment | None = None


def lay_out(recipe: Recipe, imatrix: Sequence[str | os.PathLike[str]] = ()) -> LaidOut:
    """Open the models of a recipe and find out which tensors the result has.

    RecipeError, PlanError and FormatError say which models do not fit together or do not fit the recipe, and which
    files do not exist; imatrix: those that are given beside the recipe, instead of its own.
    """
    check_files(recipe, imatrix)
    opened: list[tuple[ModelReference, Source]] = []
    with ExitStack() as on_failure:
        for reference in recipe.references():
            with recipe.blamed(recipe.place_of(reference)):
                source = open_source(recipe.locate(reference), recipe.folder)
            on_failure.callback(source.close)
            opened.append((reference, source))
        laid_out = _laid_out(recipe, opened)
        on_failure.pop_all()
    return laid_out


def check_files(recipe: Recipe, imatrix: Sequence[str | os.PathLike[str]] = ()) -> None:
    """PlanError that names every file that a recipe or one of its stages names and that does not exist.

    imatrix: given beside the recipe, instead of its own.
    """
    stages = {stage.name for stage in recipe.stages}
    problems: list[str] = []
    for document in (*recipe.stages, recipe):
        places: list[tuple[Location, str]] = [
            (document.place_of(reference), path)
            for reference in document.references()
            for path in document.locate(reference).paths
            if path not in stages
        ]
        places += [(("like",), document.like)] if document.like else []
        if document is not recipe or not imatrix:
            places += [(("imatrix",), path) for path in document.imatrix]
        with collected(problems):
            check_found(((document.where(place), path) for place, path in places), document.folder)
    with collected(problems):
        check_found(("--imatrix", os.fspath(path)) for path in imatrix)
    if problems:
        raise PlanError(*problems)


def _laid_out(recipe: Recipe, opened: list[tuple[ModelReference, Source]]) -> LaidOut:
    """A recipe over its models, which are open; see `lay_out`."""
    methods = [find_method(name) for name in recipe.methods]
    for reference, source in opened:
        source.reference = str(reference)  # a stage is called by its name, not by the file it was built into
    # the first source gives metadata and tokenizer, which checkpoints do not bring; the order has no other meaning
    opened.sort(key=lambda pair: pair[1].is_checkpoint)
    references, sources = [reference for reference, _ in opened], [source for _, source in opened]
    models: Location = ("models",) if recipe.slices is None else ("slices",)
    for reference, source in zip(references, sources, strict=True):
        with recipe.blamed(recipe.place_of(reference)):
            checks.check_member(source, sources[0])
    asked = next((key for key in ("tokenizer", "tokenizer_source") if getattr(recipe, key)), None)
    with recipe.blamed((asked,) if asked else models):
        alignment = vocabulary.alignment_of(recipe, references, sources)
    if alignment is not None:
        sources = aligned(sources, alignment)
    layout, filled = lay(recipe, methods, references, sources)
    warnings: list[str] = []
    for number, piece in enumerate(layout):
        for method in methods:
            if _is_base_alone(method, piece):
                what = "only the base takes part, so nothing is merged: add the models that are to change it"
                warnings.append(recipe.complaint(models if recipe.slices is None else ("slices", number), what))
            else:
                _check_model_count(method, piece, recipe, number)
    with recipe.blamed(models):
        _check_presence(filled, sources)
    warnings += left_out(filled, sources) + _check_filters(recipe, filled)
    return LaidOut(references, sources, layout, filled, warnings, alignment)


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
        method = find_method(self.recipe.method_for(slot.name))
        self._resolved += 1
        order = [0] if slot.constant else stack_order(method, slot.slice, self.recipe)
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
        if any(matches(pattern, slot.name) for pattern in self.recipe.exclude):
            return replace(planned, inputs=(stored,), decisions=(*planned.decisions, "excluded from merging"))
        if tensor.type.is_quantized or tensor.type.is_float:
            return self._merged(slot, method, order, planned)
        return self._unmergeable(planned, stored)

    def _merged(self, slot: Slot, method: Method, order: Sequence[int], planned: PlannedTensor) -> PlannedTensor:
        has_base = uses_base(method, slot.slice)
        if has_base and _is_base_alone(method, slot.slice):
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
            offset=stored_offset(self.sources[0].file.architecture, planned.name),
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
        return replace(merged, shared=dict(problem.shared), models=models)

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
            rule = setting.rule_for(name) if setting else None
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


def uses_base(method: Method, piece: Slice) -> bool:
    """Whether the method takes differences from the slice's base, which then stands first in its inputs."""
    return piece.base is not None and method.base is not Base.MODEL


def stack_order(method: Method, piece: Slice, recipe: Recipe) -> list[int]:
    """The parts of a slice that a method merges, in its order: its base first, then as the recipe names them.

    A method without a base takes `base_model` as one more model, as mergekit does; but in a recipe of several methods,
    where base_model is there for another one, only if `models` names it.
    """
    order = list(range(len(piece.parts)))
    if uses_base(method, piece):
        return [piece.base or 0, *(i for i in order if i != piece.base)]
    return [i for i in order if piece.parts[i].listed or len(recipe.methods) == 1]


def _is_base_alone(method: Method, piece: Slice) -> bool:
    """Whether a slice of a method that adds changes to its base has none to add: mergekit gives the base then."""
    adds_changes = method.base is Base.REQUIRED and not method.pair and method.min_models == 1
    return adds_changes and len(piece.parts) == 1


def _check_model_count(method: Method, piece: Slice, recipe: Recipe, number: int) -> None:
    count = len(stack_order(method, piece, recipe)) - uses_base(method, piece)
    is_one = method.base is Base.MODEL and recipe.base_model is not None
    try:
        method.check_models(count, f", of which base_model {recipe.base_model} is one" if is_one else None)
    except ValueError as error:
        models = ", ".join(str(source.model) for source in recipe.output_slices()[number][0])
        todo = f": list only one of {models}" if method.pair and count > 1 else ""
        place: Location = ("models",) if recipe.slices is None else ("slices", number)
        raise RecipeError(recipe.complaint(place, f"{error}{todo}")) from None


def _check_presence(filled: Sequence[Slot], sources: Sequence[Source]) -> None:
    """PlanError naming the tensors that some of a slice's models have and others lack, or have in another shape."""
    missing: dict[str, list[str]] = {}
    for slot in filled:
        for part, name in zip(slot.slice.parts, slot.names, strict=True):
            if name is None:
                missing.setdefault(sources[part.source].label, []).append(slot.name)
    for label, names in missing.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise PlanError(f"{label} lacks tensors that the other models have ({shown}); merge fine-tunes of one base")
    for slot in filled:
        shapes = [
            (sources[p.source].label, sources[p.source].tensors[n].shape)
            for p, n in zip(slot.slice.parts, slot.names, strict=True)
            if n is not None
        ]
        if len({shape for _, shape in shapes}) > 1:
            listed = ", ".join(f"{label} {list(shape)}" for label, shape in shapes)
            raise PlanError(f"{slot.name}: the shapes differ ({listed}); merge fine-tunes of one base")
        origins = [(n, sources[p.source]) for p, n in zip(slot.slice.parts, slot.names, strict=True)]
        if len(origins) > 1 and any(n is not None and is_orphan(n, source.tensors) for n, source in origins):
            raise PlanError(
                f"{slot.name}: a scale whose weight goes by another name, so it cannot be merged; "
                "use another file of the model"
            )


def _check_filters(recipe: Recipe, filled: Sequence[Slot]) -> list[str]:
    """RecipeError for filters that match no tensor; a warning when the word would match in other models."""
    names = dict.fromkeys(name for slot in filled for name in (slot.name, *slot.names) if name is not None)
    levels: list[tuple[Location, Mapping[str, Setting]]] = [(("parameters",), recipe.parameters)]
    for i, model in enumerate(recipe.models or ()):
        levels.append((("models", i, "parameters"), model.parameters))
    for i, piece in enumerate(recipe.slices or ()):
        levels.append((("slices", i, "parameters"), piece.parameters))
        for j, source in enumerate(piece.sources):
            levels.append((("slices", i, "sources", j, "parameters"), source.parameters))
    excluded = Setting(tuple(Rule(pattern, None) for pattern in recipe.exclude))
    levels.append(((), {"merge_method": recipe.merge_method, "exclude": excluded}))
    unused: dict[str, tuple[Location, str]] = {}
    beside: dict[str, tuple[Location, str]] = {}
    for where, parameters in levels:
        for key, setting in parameters.items():
            used = [any(map(rule.matches, names)) for rule in setting.rules]
            for number, rule in enumerate(setting.rules):
                if rule.filter is not None and not used[number]:
                    spared = where and any(used)  # what mergekit knows, and what the setting says besides holds
                    (beside if spared else unused).setdefault(rule.filter, ((*where, key, number, "filter"), key))
    words = known_words()
    warnings, problems = [], []
    for pattern, (place, key) in unused.items():
        what = f'the filter "{pattern}" of {key} matches no tensor'
        if any(pattern in word or fnmatchcase(word, pattern) for word in words):
            warnings.append(recipe.complaint(place, f"{what} of these models"))
        else:
            example = next((s for n in names if n.startswith("blk.") for s in spellings(n)[1:]), "")
            what += f"; filters are parts of names such as blk.0.ffn_down.weight{example and f' or {example}'}"
            problems.append(recipe.complaint(place, what))
    for pattern, (place, key) in beside.items():
        if pattern not in unused:
            what = f'the filter "{pattern}" of {key} matches no tensor and has no effect: remove it'
            warnings.append(recipe.complaint(place, what))
    if problems:
        raise RecipeError(*problems)
    return warnings
