"""Which parameters hold for each tensor: the recipe's rules applied to the tensors of the result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from ggufmerge.engine import checks, vocabulary
from ggufmerge.engine.layout import Slice, Slot, slices, slots
from ggufmerge.engine.plan import Input, PlannedTensor
from ggufmerge.engine.stored_form import stored_offset
from ggufmerge.errors import PlanError, RecipeError
from ggufmerge.methods import method as find_method
from ggufmerge.methods.spec import REQUIRED, Base, Method, Parameter, Problem, Value
from ggufmerge.recipe import ModelReference, Recipe
from ggufmerge.recipe.document import Location
from ggufmerge.recipe.names import known_words, spellings
from ggufmerge.recipe.settings import Rule, Setting, at, matches
from ggufmerge.sources import Source, open_source
from ggufmerge.sources.side_tensors import is_orphan
from ggufmerge.tokenizers import Alignment


@dataclass(frozen=True)
class LaidOut:
    """A recipe over its opened models: the tensors of the result, their parameters not yet looked up.

    alignment: how their vocabularies become one, None when they are the same.
    warnings: what has no effect, one line each.
    """

    references: list[ModelReference]
    sources: list[Source]
    slices: list[Slice]
    slots: list[Slot]
    warnings: list[str]
    alignment: Alignment | None = None


def lay_out(recipe: Recipe) -> LaidOut:
    """Open the models of a recipe and find out which tensors the result has.

    RecipeError, PlanError and FormatError say which models do not fit together or do not fit the recipe.
    """
    opened: list[tuple[ModelReference, Source]] = []
    with ExitStack() as on_failure:
        for reference in recipe.references():
            source = open_source(recipe.locate(reference), recipe.folder)
            on_failure.callback(source.close)
            opened.append((reference, source))
        laid_out = _laid_out(recipe, opened)
        on_failure.pop_all()
    return laid_out


def _laid_out(recipe: Recipe, opened: list[tuple[ModelReference, Source]]) -> LaidOut:
    """A recipe over its models, which are open; see `lay_out`."""
    methods = [find_method(name) for name in recipe.methods]
    for reference, source in opened:
        source.label = str(reference)  # a stage is called by its name, not by the file it was built into
    # the first source gives metadata and tokenizer, which checkpoints do not bring; the order has no other meaning
    opened.sort(key=lambda pair: pair[1].is_checkpoint)
    references, sources = [reference for reference, _ in opened], [source for _, source in opened]
    checks.check_donor(sources[0])
    checks.check_architectures(sources)
    alignment = vocabulary.alignment_of(recipe, references, sources)
    layout = slices(recipe, methods, references, sources)
    for number, piece in enumerate(layout):
        for method in methods:
            _check_model_count(method, piece, recipe, number)
    filled = list(slots(layout, sources))
    _check_presence(filled, sources, alignment)
    return LaidOut(references, sources, layout, filled, _check_filters(recipe, filled), alignment)


@dataclass(frozen=True)
class Found:
    """A parameter's value, the rule it comes from and that rule's place in the recipe."""

    value: Value
    rule: Rule
    where: Location


class Resolver:
    """Finds the parameters that hold for each tensor; collects all problems instead of stopping at the first."""

    def __init__(self, recipe: Recipe, sources: Sequence[Source], alignment: Alignment | None = None) -> None:
        self.recipe, self.sources, self.alignment = recipe, sources, alignment
        self.problems: list[str] = []
        self._missing: set[tuple[str, str]] = set()

    def resolve(self, slot: Slot) -> PlannedTensor:
        """The planned tensor with its final inputs; its type is that of the model the result takes after."""
        method = find_method(self.recipe.method_for(slot.name))
        order = [0] if slot.constant else stack_order(method, slot.slice, self.recipe)
        inputs = tuple(Input(slot.slice.parts[i].source, slot.names[i] or slot.name) for i in order)
        stored = self._type_donor(slot, inputs)
        tensor = self.sources[stored.source].tensors[stored.tensor]
        shape = vocabulary.result_shape(self.alignment, slot.name, tensor.shape)
        decisions = (*slot.decisions, *vocabulary.decisions(self.alignment, self.sources, slot.name, inputs))
        planned = PlannedTensor(slot.name, shape, tensor.type, "copy", inputs, decisions=decisions)
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
        others = order[1:] if has_base else order
        shared: dict[str, Value] = {}
        models: dict[str, tuple[float | None, ...]] = {}
        for q in method.parameters:
            if q.scope == "shared":
                shared[q.name] = self._shared(slot, method, q)
            else:
                models[q.name] = tuple(self._of_model(slot, i, method, q) for i in others)
        experts = planned.shape[0] if len(planned.shape) == 3 and "_exps." in planned.name else 1
        merged = replace(
            planned,
            action="merge",
            method=method.name,
            has_base=has_base,
            shared=shared,
            models=models,
            experts=experts,
            offset=stored_offset(self.sources[0].file.architecture, planned.name),
        )
        if self._missing:
            return merged
        problem = problem_of(merged)
        try:
            method.check(problem)
        except ValueError as error:
            if len(self.problems) < 10:
                self.problems.append(f"{self.recipe.origin}: {slot.name}: {error}")
            return merged
        single = method.untouched(problem)
        return merged if single is None else replace(planned, inputs=(merged.inputs[single],))

    def _shared(self, slot: Slot, method: Method, parameter: Parameter) -> Value:
        found = self.find(parameter, slot)
        if found is not None:
            return found.value
        return self._default(method, parameter, f'add "{parameter.name}" under parameters:')

    def _of_model(self, slot: Slot, i: int, method: Method, parameter: Parameter) -> float | None:
        found = self.find(parameter, slot, i)
        if found is not None:
            return None if found.value is None else float(found.value)
        label = self.sources[slot.slice.parts[i].source].label
        value = self._default(method, parameter, f"add it to the parameters of {label}", label)
        return None if value is None else float(value)

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

    def _default(self, method: Method, parameter: Parameter, remedy: str, label: str = "") -> Value:
        if parameter.default is not REQUIRED:
            return parameter.default
        if (parameter.name, label) not in self._missing:
            self._missing.add((parameter.name, label))
            subject = f"{label} has no {parameter.name}" if label else f"no {parameter.name} is given"
            self.problems.append(f"{self.recipe.origin}: {subject}, which {method.name} needs: {remedy}")
        return None

    def _type_donor(self, slot: Slot, inputs: Sequence[Input]) -> Input:
        """The input whose type the tensor keeps: the result's donor if it takes part, else the first."""
        return next((i for i in inputs if i.source == 0), inputs[0])

    def _unmergeable(self, planned: PlannedTensor, stored: Input) -> PlannedTensor:
        """A tensor of integers: copied when it is the same everywhere."""
        values = [bytes(self.sources[i.source].tensors[i.tensor].raw) for i in planned.inputs]
        if len(set(values)) > 1:
            self.problems.append(f"{planned.name}: holds {planned.type} numbers that differ; they cannot be merged")
        return replace(planned, inputs=(stored,), decisions=(*planned.decisions, "the same integers in all models"))


def problem_of(tensor: PlannedTensor, keys: Sequence[int] = ()) -> Problem:
    """The method's view of a planned tensor (of one expert, when it is a stack). A value of None becomes NaN."""
    return Problem(
        shape=(tensor.rows // (tensor.experts or 1), tensor.n),
        inputs=len(tensor.inputs),
        has_base=tensor.has_base,
        shared=tensor.shared,
        models={name: np.asarray(values, np.float64) for name, values in tensor.models.items()},
        keys=np.asarray(keys, np.uint64),
    )


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


def _check_model_count(method: Method, piece: Slice, recipe: Recipe, number: int) -> None:
    count = len(stack_order(method, piece, recipe)) - uses_base(method, piece)
    where = recipe.origin if recipe.slices is None else f"{recipe.where(('slices', number))}: slice {number + 1}"
    besides = " besides the base"
    if method.base is Base.MODEL:
        besides = f", of which base_model {recipe.base_model} is one" if recipe.base_model else ""
    if count < method.min_models:
        raise RecipeError(f"{where}: {method.name} needs at least {_models(method.min_models)}{besides}, not {count}")
    if method.max_models is not None and count > method.max_models:
        raise RecipeError(f"{where}: {method.name} takes at most {_models(method.max_models)}{besides}, not {count}")


def _models(count: int) -> str:
    return "1 model" if count == 1 else f"{count} models"


def _check_presence(filled: Sequence[Slot], sources: Sequence[Source], alignment: Alignment | None) -> None:
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
            (sources[p.source].label, vocabulary.result_shape(alignment, n, sources[p.source].tensors[n].shape))
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
    names = {name for slot in filled for name in (slot.name, *slot.names) if name is not None}
    levels = [recipe.parameters] + [s.parameters for s in recipe.slices or ()]
    levels += [m.parameters for m in recipe.models or ()]
    levels += [source.parameters for s in recipe.slices or () for source in s.sources]
    levels += [{"merge_method": recipe.merge_method, "exclude": Setting(tuple(Rule(p, None) for p in recipe.exclude))}]
    unused = {
        rule.filter: key
        for parameters in levels
        for key, setting in parameters.items()
        for rule in setting.rules
        if rule.filter is not None and not any(map(rule.matches, names))
    }
    words = known_words()
    warnings, problems = [], []
    for pattern, key in unused.items():
        where = f'{recipe.origin}: the filter "{pattern}" of {key} matches no tensor'
        if any(pattern in word or fnmatchcase(word, pattern) for word in words):
            warnings.append(f"{where} of these models")
        else:
            example = next((s for n in names for s in spellings(n)[1:]), "")
            problems.append(f"{where}; filters are parts of names such as blk.0.ffn_down.weight or {example}")
    if problems:
        raise RecipeError(*problems)
    return warnings
