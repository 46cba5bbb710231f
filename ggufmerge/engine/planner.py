"""Recipe and headers to Plan: everything that can fail for a knowable reason fails here, in seconds."""

from __future__ import annotations

import os
import re
from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ggufmerge.engine import checks, header
from ggufmerge.engine.layout import Slice, Slot, slices, slots
from ggufmerge.engine.plan import Input, Plan, PlannedSource, PlannedTensor
from ggufmerge.errors import PlanError, RecipeError
from ggufmerge.files import open_gguf
from ggufmerge.methods import method as find_method
from ggufmerge.methods.spec import REQUIRED, Base, Method, Parameter, Problem, Value
from ggufmerge.quants import codec
from ggufmerge.quants.imatrix import Imatrix
from ggufmerge.quants.mixture import (
    Decision,
    decide_types,
    guess_file_type,
    needs_imatrix,
    parse_tensor_type,
    types_like,
)
from ggufmerge.recipe import ModelReference, Recipe
from ggufmerge.recipe.document import Location
from ggufmerge.recipe.names import known_words, spellings
from ggufmerge.recipe.settings import Rule, Setting, at, matches
from ggufmerge.sources import Source, open_source
from ggufmerge.sources.imatrix import load_imatrix
from ggufmerge.types import FileType, TensorType

_FLOAT_FILES = {"float32": FileType.F32, "float16": FileType.F16, "bfloat16": FileType.BF16}


@dataclass(frozen=True)
class Opened:
    """What a plan reads from: its sources in order, and its importance matrix if it has one."""

    sources: list[Source]
    imatrix: Imatrix | None = None


def make_plan(
    recipe: Recipe, *, out_type: str | None = None, imatrix: Sequence[str | os.PathLike[str]] = ()
) -> tuple[Plan, Opened]:
    """The plan of a recipe, and what it reads from, opened.

    out_type: a file type that wins over the recipe's out_type, out_dtype and dtype.
    imatrix: files that win over the recipe's; several are combined.
    RecipeError, PlanError and FormatError say what does not fit.
    """
    methods = [find_method(name) for name in recipe.methods]
    references = _references(recipe)
    sources = [open_source(reference, recipe.folder) for reference in references]
    checks.check_architectures(sources)
    checks.check_vocabularies(sources)
    layout = slices(recipe, methods, references, sources)
    for number, piece in enumerate(layout):
        for method in methods:
            _check_model_count(method, piece, recipe, number)
    filled = list(slots(layout, sources))
    _check_presence(filled, sources)
    warnings = [*recipe.warnings, *_check_filters(recipe, filled)]
    resolver = Resolver(recipe, sources)
    tensors = [resolver.resolve(slot) for slot in filled]
    if resolver.problems:
        raise RecipeError("\n".join(resolver.problems))
    tensors = _with_grafts(recipe, tensors, references, sources)

    donor = sources[0]
    matrix_files = [str(p) for p in imatrix] or [str(Path(recipe.folder) / p) for p in recipe.imatrix]
    matrix = combined_imatrix(matrix_files)
    structure = header.layer_metadata(donor, sources, layout)
    tensors, file_type = _with_types(recipe, out_type, tensors, donor, structure, matrix)
    tensors = [with_action(t, sources) for t in tensors]
    warnings += check_writable(tensors, file_type, matrix)
    options = " ".join([f"--type {out_type}"] * bool(out_type) + [f"--imatrix {Path(p).name}" for p in imatrix])
    metadata, more = header.result_metadata(
        name=_result_name(recipe, donor),
        version=version("ggufmerge"),
        recipe=recipe.text,
        options=options,
        file_type=file_type,
        quantized=any(t.type.is_quantized for t in tensors),
        sources=sources,
        layout=layout,
        imatrix=matrix.metadata() if matrix else {},
        overrides=recipe.metadata,
    )
    warnings += [*checks.differing_hyperparameters(sources, donor), *more]
    plan = Plan(
        method=" + ".join(recipe.methods),
        architecture=donor.file.architecture,
        file_type=file_type,
        seed=recipe.seed,
        folder=recipe.folder,
        recipe=recipe.text,
        options=options,
        sources=tuple(map(planned_source, references, sources)),
        tensors=tuple(tensors),
        imatrix=tuple(matrix_files),
        metadata=metadata,
        warnings=tuple(warnings),
    )
    return plan, Opened(sources, matrix)


def combined_imatrix(paths: Sequence[str]) -> Imatrix | None:
    """The importance matrix of several files together; None of none."""
    matrices = [load_imatrix(path) for path in paths]
    return matrices[0].combine(matrices[1:]) if len(matrices) > 1 else matrices[0] if matrices else None


def _references(recipe: Recipe) -> list[ModelReference]:
    """Every model of the recipe once: the base first, then in the order of mention."""
    found: dict[ModelReference, None] = {}
    if recipe.base_model is not None:
        found[recipe.base_model] = None
    for entries, base, _ in recipe.output_slices():
        found.update((entry.model, None) for entry in entries)
        if base is not None:
            found.setdefault(base, None)
    found.update((graft.model, None) for graft in recipe.graft)
    return list(found)


def _result_name(recipe: Recipe, donor: Source) -> str:
    if recipe.name:
        return recipe.name
    return f"{header.display_name(donor)} merge" if recipe.origin == "recipe" else Path(recipe.origin).stem


def planned_source(reference: ModelReference, source: Source) -> PlannedSource:
    declared = source.metadata.get("general.file_type")
    file_type = FileType.from_id(int(declared)) if isinstance(declared, int) else None
    return PlannedSource(
        label=source.label,
        path=reference.path,
        adapters=tuple((a.path, a.strength) for a in reference.adapters),
        name=header.display_name(source),
        architecture=source.file.architecture,
        file_type=str(file_type or guess_file_type({n: t.type for n, t in source.tensors.items()})),
        nbytes=sum(path.stat().st_size for path in source.files()),
    )


def _check_model_count(method: Method, piece: Slice, recipe: Recipe, number: int) -> None:
    count = len(_stack(method, piece, recipe)) - uses_base(method, piece)
    where = recipe.origin if recipe.slices is None else f"{recipe.origin}: slice {number + 1}"
    besides = " besides the base"
    if method.base is Base.MODEL:
        besides = f", of which base_model {recipe.base_model} is one" if recipe.base_model else ""
    if count < method.min_models:
        raise RecipeError(f"{where}: {method.name} needs at least {_models(method.min_models)}{besides}, not {count}")
    if method.max_models is not None and count > method.max_models:
        raise RecipeError(f"{where}: {method.name} takes at most {_models(method.max_models)}{besides}, not {count}")


def uses_base(method: Method, piece: Slice) -> bool:
    """Whether the method takes differences from the slice's base, which then stands first in its inputs."""
    return piece.base is not None and method.base is not Base.MODEL


def _stack(method: Method, piece: Slice, recipe: Recipe) -> list[int]:
    """The parts of a slice that a method merges, in its order: its base first, then as the recipe names them.

    A method without a base takes `base_model` as one more model, as mergekit does; but in a recipe of several methods,
    where base_model is there for another one, only if `models` names it.
    """
    order = list(range(len(piece.parts)))
    if uses_base(method, piece):
        return [piece.base or 0, *(i for i in order if i != piece.base)]
    return [i for i in order if piece.parts[i].listed or len(recipe.methods) == 1]


def _models(count: int) -> str:
    return "1 model" if count == 1 else f"{count} models"


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
        if slot.name.endswith((".scale", ".input_scale")):
            raise PlanError(
                f"{slot.name}: tensors with separate scales (NVFP4, BitNet) cannot be merged; "
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
        if any(pattern in word for word in words):
            warnings.append(f"{where} of these models")
        else:
            example = next((s for n in names for s in spellings(n)[1:]), "")
            problems.append(f"{where}; filters are parts of names such as blk.0.ffn_down.weight or {example}")
    if problems:
        raise RecipeError("\n".join(problems))
    return warnings


class Resolver:
    """Finds the parameters that hold for each tensor; collects all problems instead of stopping at the first."""

    def __init__(self, recipe: Recipe, sources: Sequence[Source]) -> None:
        self.recipe, self.sources = recipe, sources
        self.problems: list[str] = []
        self._missing: set[tuple[str, str]] = set()

    def resolve(self, slot: Slot) -> PlannedTensor:
        """The planned tensor with its final inputs; its type is that of the model the result takes after."""
        method = find_method(self.recipe.method_for(slot.name))
        order = [0] if slot.constant else _stack(method, slot.slice, self.recipe)
        inputs = tuple(Input(slot.slice.parts[i].source, slot.names[i] or slot.name) for i in order)
        stored = self._type_donor(slot, inputs)
        tensor = self.sources[stored.source].tensors[stored.tensor]
        planned = PlannedTensor(slot.name, tensor.shape, tensor.type, "copy", inputs, decisions=slot.decisions)
        if slot.constant:
            return planned
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


@dataclass(frozen=True)
class Found:
    """A parameter's value, the rule it comes from and that rule's place in the recipe."""

    value: Value
    rule: Rule
    where: Location


def _with_grafts(
    recipe: Recipe, tensors: list[PlannedTensor], references: Sequence[ModelReference], sources: Sequence[Source]
) -> list[PlannedTensor]:
    """The tensors, those that a graft names replaced by the same tensors of its model, in the type they have there."""
    for number, graft in enumerate(recipe.graft):
        index = references.index(graft.model)
        source = sources[index]
        where = recipe.where(("graft", number))
        for pattern in graft.tensors:
            hits = [i for i, t in enumerate(tensors) if matches(pattern, t.name)]
            if not hits:
                raise RecipeError(f'{where}: the filter "{pattern}" of graft matches no tensor of the result')
            for i in hits:
                stored = source.tensors.get(tensors[i].name)
                if stored is None:
                    raise PlanError(f"{where}: {source.label} has no {tensors[i].name} to graft")
                if stored.shape != tensors[i].shape:
                    shapes = f"{list(stored.shape)} in {source.label}, {list(tensors[i].shape)} in the result"
                    raise PlanError(f"{where}: {stored.name} has another shape: {shapes}")
                note = f"grafted from {source.label}"
                only = (Input(index, stored.name),)
                tensors[i] = PlannedTensor(stored.name, stored.shape, stored.type, "copy", only, decisions=(note,))
    return tensors


def problem_of(tensor: PlannedTensor, keys: Sequence[int] = ()) -> Problem:
    """The method's view of a planned tensor (of one expert, when it is a stack). A value of None becomes NaN."""
    return Problem(
        shape=(tensor.rows // tensor.experts, tensor.n),
        inputs=len(tensor.inputs),
        has_base=tensor.has_base,
        shared=tensor.shared,
        models={name: np.asarray(values, np.float64) for name, values in tensor.models.items()},
        keys=np.asarray(keys, np.uint64),
    )


@dataclass(frozen=True)
class PlannedHeader:
    """A model that does not exist yet, as the mixture rules want to see it."""

    metadata: Mapping[str, Any]
    tensors: dict[str, PlannedTensor]


def _with_types(
    recipe: Recipe,
    out_type: str | None,
    tensors: list[PlannedTensor],
    donor: Source,
    structure: dict[str, Any],
    imatrix: Imatrix | None,
) -> tuple[list[PlannedTensor], FileType]:
    """The tensors with the types they are written in, and the file type that describes them."""
    float_file = _FLOAT_FILES.get(recipe.out_dtype or recipe.dtype or "")
    wanted = out_type or recipe.out_type or (None if recipe.like else float_file)
    grafted = {t.name for t in tensors if any(matches(p, t.name) for graft in recipe.graft for p in graft.tensors)}
    if wanted is None and recipe.like is None:
        return _with_kept_types(recipe, tensors, donor, grafted)
    planned = PlannedHeader(ChainMap(structure, donor.metadata), {t.name: t for t in tensors})  # type: ignore[arg-type]
    overrides = [(pattern, TensorType.parse(name)) for pattern, name in recipe.tensor_types.items()]
    if wanted is None:
        with open_gguf(Path(recipe.folder) / str(recipe.like)) as other:
            decided = types_like(planned, other)
    else:
        decided = decide_types(planned, FileType.parse(wanted), imatrix, tensor_types=overrides)
    typed = with_decided_types(tensors, decided)
    typed = [was if was.name in grafted else now for was, now in zip(tensors, typed, strict=True)]
    return typed, FileType.parse(wanted) if wanted else guess_file_type({t.name: t.type for t in typed})


def with_decided_types(tensors: Sequence[PlannedTensor], decided: Mapping[str, Decision]) -> list[PlannedTensor]:
    """The tensors with the types that the mixture rules gave them, and why."""
    typed = []
    for t in tensors:
        d = decided[t.name]
        note = (f"{d.type} instead of {d.wanted}: {d.reason}",) if d.type != d.wanted else ()
        typed.append(replace(t, type=d.type, why_type=d.reason, decisions=(*t.decisions, *note)))
    return typed


def _with_kept_types(
    recipe: Recipe, tensors: list[PlannedTensor], donor: Source, grafted: Collection[str]
) -> tuple[list[PlannedTensor], FileType]:
    """Every tensor in the type it has in the model the result takes after, but for the recipe's tensor_types."""
    rules = [parse_tensor_type(f"{pattern}={name}") for pattern, name in recipe.tensor_types.items()]
    for pattern, _ in rules:
        if not any(re.search(pattern, t.name, re.IGNORECASE) for t in tensors):
            raise RecipeError(f'{recipe.origin}: the pattern "{pattern}" of tensor_types matches no tensor')
    typed = []
    for t in tensors:
        found = None
        if t.name not in grafted:
            found = next(((p, kind) for p, kind in rules if re.search(p, t.name, re.IGNORECASE)), None)
        kind, why = (found[1], f"asked for by {found[0]}") if found else (t.type, "as in the first model")
        if t.n % kind.block_size:
            raise PlanError(f"{t.name}: rows of {t.n} values do not fit {kind}'s blocks of {kind.block_size}")
        typed.append(replace(t, type=kind, why_type=why))
    return typed, guess_file_type({t.name: t.type for t in typed}, donor)


def with_action(tensor: PlannedTensor, sources: Sequence[Source]) -> PlannedTensor:
    """A tensor with a single input is copied if its bytes stay what they are, else converted."""
    if tensor.action == "merge":
        return tensor
    source, name = sources[tensor.inputs[0].source], tensor.inputs[0].tensor
    same = source.tensors[name].type == tensor.type and not source.changed_by_adapter(name)
    # a single input is what is left of a merge; the others play no part any more
    return replace(tensor, inputs=tensor.inputs[:1], action="copy" if same else "convert")


def check_writable(tensors: Sequence[PlannedTensor], file_type: FileType, imatrix: Imatrix | None) -> list[str]:
    """PlanError for tensors that cannot be quantized as planned; warnings for those that go without their imatrix."""
    uncovered = []
    for t in tensors:
        if t.action == "copy":
            continue
        if not codec(t.type).writable:
            raise PlanError(f"{t.name}: {t.type} can be read but not written; choose another type with --type")
        weights = imatrix.get(t.name, t.n, t.matrices) if imatrix else None
        if weights is None and (codec(t.type).needs_imatrix or needs_imatrix(t.name, t.type, file_type)):
            remedy = "one made for this model" if imatrix else "one with --imatrix FILE"
            raise PlanError(
                f"{t.name}: {t.type} cannot be written without an importance matrix: give {remedy}, "
                "or choose a wider type with --type"
            )
        if imatrix and weights is None and t.name.startswith("blk.") and codec(t.type).quantize_weighted is not None:
            uncovered.append(t.name)
    if not uncovered:
        return []
    more = f" and {len(uncovered) - 1} more" if len(uncovered) > 1 else ""
    return [f"the importance matrix has no entry for {uncovered[0]}{more}: quantized without"]
