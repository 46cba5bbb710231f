"""What the layers of the result change in the metadata: their number, the values that hold for single layers, and what
llama.cpp decides by a layer's place (`architectures/layer_rules.py`), which must stay as it was in the layer's model.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ggufmerge import keys
from ggufmerge.architectures.layer_rules import layer_rules
from ggufmerge.architectures.layers import (
    NOT_PER_LAYER,
    PER_LAYER,
    PER_LAYER_ANYWHERE,
    SIZED_PER_LAYER,
    SIZES,
    Changed,
    Layers,
)
from ggufmerge.architectures.rules import Rule
from ggufmerge.architectures.stacks import kind_of, layer_of
from ggufmerge.architectures.tensors import is_known
from ggufmerge.errors import PlanError
from ggufmerge.files import ValueKind
from ggufmerge.formats.layers import decoder_layer_count, layer_count
from ggufmerge.planning.effective import MISSING, Effective
from ggufmerge.planning.layout import Slice, layers_of_result
from ggufmerge.planning.plan import PlannedTensor
from ggufmerge.recipe import Recipe
from ggufmerge.sources import Source
from ggufmerge.text import first_few, series

_Origins = list[tuple[Source, int]]
_REACH = 8  # how far from the range of a recipe those are looked for that would fit


def layer_metadata(
    recipe: Recipe, sources: Sequence[Source], layout: Sequence[Slice]
) -> tuple[dict[str, Any], list[str]]:
    """block_count, the values that hold for single layers, and what else must change for the layers of the result, as
    changes to the metadata of the first source; and warnings.

    PlanError when a layer would be of another kind than it was, or when a list of a source has too few values. What the
    recipe itself sets is not undone, only told.
    """
    donor = sources[0]
    arch, count = donor.file.architecture, layer_count(donor.file)
    if recipe.slices is not None:
        _check_sizes(recipe, sources, layout)
    origins = _origins(sources, layout)
    if origins == [(donor, i) for i in range(count)]:
        return {}, _set_otherwise(donor, count, recipe.metadata)
    warnings: list[str] = []
    changes: dict[str, Any] = {keys.block_count(arch): len(origins)} | _lists(origins, donor)
    if decoder_layer_count(donor.file) == count:  # then a slice is one of both
        changes[keys.of(arch, "decoder_block_count")] = len(origins)
    ruled, misfits = _ruled(donor, origins, changes, recipe.metadata)
    for misfit in misfits:
        if misfit.rule.is_minor or any(misfit.layers.key(what) in recipe.metadata for what in misfit.rule.reads):
            warnings.append(misfit.said(origins))
        else:
            number = _slice_of(layout, misfit.places[0])
            where = ("models",) if recipe.slices is None else ("slices", number)
            fitting = _fitting(sources, layout, number, recipe.metadata)
            todo = f"; ranges that fit: {' or '.join(f'[{a}, {b}]' for a, b in fitting)}" if fitting else ""
            raise PlanError(recipe.complaint(where, misfit.said(origins) + todo))
    written = {key: value for key, value in ruled.items() if key not in recipe.metadata}
    if written:
        listed = series([f"{key} becomes {_short(value)}" for key, value in written.items()])
        old = "; programs older than llama.cpp v0.5.0 may not read that" if any(map(_is_list, written.values())) else ""
        why = f"the result has other layers than {donor.label}, and each of them stays what it was"
        warnings.append(f"{listed}: {why}{old}")
    return changes | ruled, warnings + _unknown_lists(donor, count)


def _check_sizes(recipe: Recipe, sources: Sequence[Source], layout: Sequence[Slice]) -> None:
    """PlanError for a slice of a model whose layers are of another size than those of the first: every layer has the
    sizes that the metadata give once, in llama.cpp and for what passes from layer to layer.
    """
    arch = sources[0].file.architecture
    if not is_known(arch):
        return
    shapes = [_shapes(source) for source in sources]
    for number, piece in enumerate(layout):
        for part in piece.parts:
            for kind, own in shapes[part.source].items():
                first = shapes[0].get(kind)
                may = arch in SIZED_PER_LAYER and "_norm" not in kind
                if first and not first & own and not may:
                    one, other = sources[part.source].label, sources[0].label
                    sizes = f"{kind} is {list(min(own))} in {one} and {list(min(first))} in {other}"
                    todo = "so their layers do not work in one model; take slices of models of one size"
                    raise PlanError(recipe.complaint(("slices", number), f"{sizes}, {todo}"))


def _shapes(source: Source) -> dict[str, set[tuple[int, ...]]]:
    """The shapes that each kind of tensor has in the layers of a model."""
    found: dict[str, set[tuple[int, ...]]] = {}
    for name, tensor in source.tensors.items():
        if layer_of(name) is not None:
            found.setdefault(kind_of(name), set()).add(tensor.shape)
    return found


def _origins(sources: Sequence[Source], layout: Sequence[Slice]) -> _Origins:
    """Where each layer of the result comes from: the base of its slice, or else the first model."""
    layers = [(piece.parts[piece.base or 0], i) for piece, i in layers_of_result(layout)]
    return [(sources[part.source], part.start + i) for part, i in layers]


def _lists(origins: _Origins, donor: Source) -> dict[str, Any]:
    """The values that hold for single layers, in lists that go with the layers of the result."""
    arch = donor.file.architecture
    used = list(dict.fromkeys(source for source, _ in origins))
    sizes = [keys.of(arch, what) for what in SIZES if arch in SIZED_PER_LAYER]
    changes: dict[str, Any] = {}
    for key in [*(keys.of(arch, what) for what in PER_LAYER), *PER_LAYER_ANYWHERE]:
        stated = [source.metadata[key] for source in dict.fromkeys([donor, *used]) if key in source.metadata]
        if not any(map(_is_list, stated)) and not (key in sizes and len(set(stated)) > 1):
            continue
        general = _value(donor, key)
        values = {source: general if source.is_checkpoint else _value(source, key) for source in used}
        values = {source: general if value is MISSING else value for source, value in values.items()}
        if not any(value is MISSING for value in values.values()):
            picked = [_of_layer(key, values[source], source, layer) for source, layer in origins]
            changes[key] = [v for v in picked if v is not None]
            if len({type(v) for v in changes[key]}) > 1:
                listed = ", ".join(f"{source.label}: {source.metadata.found(key)}" for source in used)
                raise PlanError(f"{key} is not of one type in the layers of the result ({listed}); take another file")
    return changes


def _value(source: Source, key: str) -> Any:
    """What stands under a key, or what llama.cpp takes without it; MISSING when that is not known."""
    if key in source.metadata:
        return source.metadata[key]
    return Effective(source.label, source.metadata, source, layers=layer_count(source.file)).default(key)


def _of_layer(key: str, value: Any, source: Source, layer: int) -> Any:
    """The value that holds for a layer. None for those at the end that predict further tokens, where lists may stop."""
    if not _is_list(value):
        return value
    if layer < len(value):
        return value[layer].item() if isinstance(value[layer], np.generic) else value[layer]
    if len(value) + _layers(source, source).further == layer_count(source.file):
        return None
    short = f"{key} has {len(value)} values, too few for layer {layer}"
    raise PlanError(f"{source.file.path}: {short}; the file is damaged, take another")


def _unknown_lists(donor: Source, count: int) -> list[str]:
    """Warnings for lists that may belong to layers."""
    prefix = donor.file.architecture + "."
    return [
        f"{key} has as many values as {donor.label} has layers, but nobody knows whether they belong to layers: it is "
        "taken as it is; set it under metadata: or check the result"
        for key in donor.metadata
        if key.startswith(prefix)
        and key.removeprefix(prefix) not in PER_LAYER
        and not key.removeprefix(prefix).startswith(NOT_PER_LAYER)
        and donor.metadata.kind(key) == ValueKind.ARRAY
        and donor.metadata.count(key) == count
    ]


@dataclass(frozen=True)
class _Misfit:
    """Layers of the result that a rule would treat otherwise than where they come from.

    wanted, got: the rule's value for each layer of the result, as it was and as it would be.
    """

    rule: Rule
    layers: Layers
    wanted: list[Hashable]
    got: list[Hashable]

    @property
    def places(self) -> list[int]:
        return [i for i, (a, b) in enumerate(zip(self.wanted, self.got, strict=True)) if a != b]

    def said(self, origins: _Origins) -> str:
        place = self.places[0]
        source, layer = origins[place]
        more = f" (and {len(self.places) - 1} more)" if len(self.places) > 1 else ""
        was, would = self.rule.said(self.wanted[place]), self.rule.said(self.got[place])
        return (
            f"layer {place} of the result{more} is layer {layer} of {source.label}, with {was}, but would get {would} "
            f"there: {self.rule.why(self.layers)}"
        )


def _layers(source: Source, donor: Source) -> Layers:
    """The layers of a source. A checkpoint says little of them, and is taken to be as the donor for the rest."""
    metadata = Changed(donor.metadata, source.metadata) if source.is_checkpoint else source.metadata
    return Layers(source.file.architecture, layer_count(source.file), metadata)


def _ruled(
    donor: Source, origins: _Origins, changes: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[_Misfit]]:
    """The metadata with which the layers stay what they are, and the rules that no metadata can keep.

    overrides: what the recipe sets, which wins.
    """
    written: dict[str, Any] = {}
    misfits = []
    known: dict[tuple[Source, Rule], list[Hashable]] = {}
    for rule in layer_rules(donor.file.architecture):
        for source, _ in origins:
            if (source, rule) not in known:
                known[source, rule] = rule.of(_layers(source, donor))
        wanted = [known[source, rule][layer] for source, layer in origins]
        changed = Changed(Changed(Changed(donor.metadata, changes), written), overrides)
        result = Layers(donor.file.architecture, len(origins), changed)
        got = rule.of(result)
        if got == wanted:
            continue
        kept = rule.kept(result, wanted)
        if kept is None or kept.keys() & overrides.keys():
            misfits.append(_Misfit(rule, result, wanted, got))
        else:
            written |= kept
    return written, misfits


def _set_otherwise(donor: Source, count: int, overrides: Mapping[str, Any]) -> list[str]:
    """Warnings for layers that stay in their places and that the recipe's own metadata make another kind of."""
    origins, found = [(donor, i) for i in range(count)], []
    result = Layers(donor.file.architecture, count, Changed(donor.metadata, overrides))
    for rule in layer_rules(donor.file.architecture):
        if set_there := [key for key in map(result.key, rule.reads) if key in overrides]:
            misfit = _Misfit(rule, result, rule.of(_layers(donor, donor)), rule.of(result))
            found += [f"metadata: sets {series(set_there)}: {misfit.said(origins)}"] if misfit.places else []
    return found


def doubts(
    sources: Sequence[Source],
    layout: Sequence[Slice],
    *,
    taken: Mapping[str, int],
    tensors: Sequence[PlannedTensor],
    grafted: Collection[str],
    imatrix: Collection[str],
) -> list[str]:
    """Warnings for layers that are brought together with what was trained or measured in layers of another kind.

    taken: key -> number of the source that gives what the first one lacks.  grafted: the names of tensors that grafts
    gave.  imatrix: the names of the weights in the importance matrix.
    """
    return [
        *_mixed_kinds(sources, layout, taken),
        *_grafted_kinds(sources, layout, tensors, grafted),
        *_measured_elsewhere(imatrix, sources, layout),
    ]


def _mixed_kinds(sources: Sequence[Source], layout: Sequence[Slice], taken: Mapping[str, int]) -> list[str]:
    """Warnings for layers of different kinds that are merged into one, and for layers that become another kind by a
    setting of another model.
    """
    added = {key: sources[number].metadata[key] for key, number in taken.items()}
    found: dict[tuple[Rule, int], str] = {}
    for number, piece in enumerate(layout):
        first = piece.parts[piece.base or 0]
        one = sources[first.source]
        layers = _layers(one, sources[0])
        for rule in layer_rules(one.file.architecture):
            own = rule.of(layers)
            got = own
            if first.source == 0 and any(layers.key(what) in added for what in rule.reads):
                got = rule.of(replace(layers, metadata=Changed(layers.metadata, added)))
            for part in piece.parts:
                other = sources[part.source]
                if (part is first and got is own) or other.is_checkpoint:
                    continue
                others = rule.of(_layers(other, sources[0]))
                for i in range(piece.layers):
                    a, b = got[first.start + i], others[part.start + i]
                    if a != b and (rule, number) not in found:
                        what = f"layer {part.start + i} of {other.label}, with {rule.said(b)},"
                        into = f"is merged into layer {first.start + i} of {one.label}, with {rule.said(a)},"
                        found[rule, number] = (
                            f"{what} {into} and will be used as the latter"
                            if part is not first
                            else f"{what} gets {rule.said(a)} by what is taken from other models"
                        )
    return list(found.values())


def _grafted_kinds(
    sources: Sequence[Source], layout: Sequence[Slice], tensors: Sequence[PlannedTensor], grafted: Collection[str]
) -> list[str]:
    """Warnings for grafts into a layer of another kind than their own: of the result, layers that slices have moved."""
    origins, found = _origins(sources, layout), dict[tuple[int, int, Rule], str]()
    for tensor in tensors:
        place, giver = layer_of(tensor.name), tensor.inputs[0].source
        if tensor.name not in grafted or place is None or sources[giver].is_checkpoint or place >= len(origins):
            continue
        origin, layer = origins[place]
        for rule in layer_rules(origin.file.architecture) if (origin, layer) != (sources[giver], place) else ():
            own, theirs = (rule.of(_layers(source, sources[0])) for source in (origin, sources[giver]))
            if own[layer] != theirs[place] and (giver, place, rule) not in found:
                what = f"layer {place} of {sources[giver].label}, with {rule.said(theirs[place])}"
                where = f"layer {layer} of {origin.label}, with {rule.said(own[layer])}"
                found[giver, place, rule] = (
                    f"graft takes tensors of {what}, into layer {place} of the result, which is {where}"
                )
    return list(found.values())


def _measured_elsewhere(imatrix: Collection[str], sources: Sequence[Source], layout: Sequence[Slice]) -> list[str]:
    """A warning for an importance matrix of a model with another number of layers than the result, which has other
    layers under their numbers. Layers that predict further tokens (MTP) are measured by nothing.
    """
    measured = 1 + max((layer for name in imatrix if (layer := layer_of(name)) is not None), default=-1)
    origins = _origins(sources, layout)
    moved = [(i, *origin) for i, origin in enumerate(origins) if origin[1] != i]
    main = sum(layer < _layers(source, sources[0]).main for source, layer in origins)
    if not moved or measured in (0, main, len(origins)):
        return []
    place, source, layer = moved[0]
    return [
        f"the importance matrix is of a model of {measured} layers, and is used by the numbers that layers have in the "
        f"result: layer {place} is layer {layer} of {source.label}; measure one with the result, written as F16 or Q8_0"
    ]


def _slice_of(layout: Sequence[Slice], place: int) -> int:
    """The number of the slice that a layer of the result is in."""
    ends = itertools.accumulate(piece.layers for piece in layout)
    return next(number for number, end in enumerate(ends) if place < end)


def _fitting(
    sources: Sequence[Source], layout: Sequence[Slice], number: int, overrides: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """Ranges of one slice, near to its own, with which all layers would stay what they are."""
    piece = layout[number]
    donor = sources[0]
    found: list[tuple[int, int, int]] = []
    for before in range(-_REACH, _REACH + 1):
        for after in range(-_REACH, _REACH + 1):
            moved = [replace(part, start=part.start + before, stop=part.stop + after) for part in piece.parts]
            if moved[0].start >= moved[0].stop or any(
                part.start < 0 or part.stop > layer_count(sources[part.source].file) for part in moved
            ):
                continue
            other = [*layout[:number], replace(piece, parts=tuple(moved)), *layout[number + 1 :]]
            origins = _origins(sources, other)
            counted = {keys.block_count(donor.file.architecture): len(origins)} | _lists(origins, donor)
            _, misfits = _ruled(donor, origins, counted, overrides)
            if all(misfit.rule.is_minor for misfit in misfits):
                found.append((abs(before) + abs(after), moved[0].start, moved[0].stop))
    return [(start, stop) for _, start, stop in sorted(found)[:3]]


def _short(value: Any) -> str:
    if not isinstance(value, list):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f"({first_few([str(v).lower() for v in value], 6)})"


def _is_list(value: Any) -> bool:
    return isinstance(value, list | np.ndarray)
