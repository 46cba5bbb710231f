"""Which tensors the result has, and the tensors of the sources that each is made from.

Layers of the result are counted through the recipe's output slices. Tensors outside the blocks come from the first
slice (embeddings and the like) or the last one (final norm and output head), as in mergekit. So these two may have no
layers at all: then their models give nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from ggufmerge.architectures.stacks import STACKS, layer_of, stack_of, with_layer
from ggufmerge.errors import PlanError, RecipeError
from ggufmerge.formats.layers import decoder_layer_count, has_further_layers, layer_count, main_layer_count
from ggufmerge.keys import EMBEDDING, HEAD, OTHER_SENSES
from ggufmerge.methods.spec import Base, Method
from ggufmerge.planning.tables import TABLES, table_owners
from ggufmerge.recipe import Recipe
from ggufmerge.recipe.document import Location
from ggufmerge.recipe.reference import ModelReference
from ggufmerge.recipe.schema import Model, Parameters, SliceSource
from ggufmerge.recipe.settings import matches_any
from ggufmerge.sources import Source
from ggufmerge.text import counted, first_few, series

# The relative positions of T5. Its layer 0 has them for all layers of its stack, as in llama.cpp (src/models/t5.cpp).
_POSITIONS = "attn_rel_b."
_Names = dict[tuple[str, int] | None, list[str]]


@dataclass(frozen=True)
class Part:
    """One source's share of an output slice: its layers [start, stop) and the parameters given for it alone.

    listed: False for the base that takes part though the recipe's `models` do not name it.
    where: the parameters' location in the recipe.
    """

    source: int
    start: int
    stop: int
    parameters: Parameters
    listed: bool
    where: Location


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of the result. `base` is the position of the base in `parts`, None without one.

    taken: why they are taken from their only part as they are; "" when they are merged as the recipe says.
    """

    parts: tuple[Part, ...]
    base: int | None
    parameters: Parameters
    where: Location
    taken: str = ""

    @property
    def layers(self) -> int:
        return self.parts[0].stop - self.parts[0].start

    def uses_base(self, method: Method) -> bool:
        """Whether a method takes differences from the base, which then stands first in its inputs."""
        return self.base is not None and method.base is not Base.MODEL

    def is_base_alone(self, method: Method) -> bool:
        """Whether a method that adds changes to its base has none to add: mergekit gives the base then."""
        adds_changes = method.base is Base.REQUIRED and not method.pair and method.min_models == 1
        return adds_changes and self.base is not None and len(self.parts) == 1

    def order(self, method: Method, recipe: Recipe) -> list[int]:
        """The parts that a method merges, in its order: its base first, then as the recipe names them.

        A method without a base takes `base_model` as one more model, as mergekit does; but in a recipe of several
        methods, where base_model is there for another one, only if `models` names it.
        """
        order = list(range(len(self.parts)))
        if self.uses_base(method):
            return [self.base or 0, *(i for i in order if i != self.base)]
        return [i for i in order if self.parts[i].listed or len(recipe.methods) == 1]


@dataclass(frozen=True)
class Slot:
    """One tensor of the result before its parameters are resolved.

    names: the tensor's name in each part of the slice; None where that model does not have it.
    position: where it stands in gradients, 0 to 1.
    constant: taken as it is from the slice's single part, whatever the method.
    """

    name: str
    slice: Slice
    names: tuple[str | None, ...]
    position: float
    decisions: tuple[str, ...] = ()
    constant: bool = False


def lay(
    recipe: Recipe, methods: Sequence[Method], references: Sequence[ModelReference], sources: Sequence[Source]
) -> tuple[list[Slice], list[Slot]]:
    """The recipe's output slices over opened sources, and every tensor of the result.

    RecipeError, PlanError and FormatError say which layers and tensors do not fit together, and which slices have too
    few or too many models for a method.
    """
    layout = _slices(recipe, methods, references, sources)
    slots = list(_slots(layout, sources, whole=recipe.slices is None))
    for number, piece in enumerate(layout):
        for method in methods:
            if not piece.taken and not piece.is_base_alone(method):
                _check_model_count(method, piece, recipe, number)
    return layout, slots


def _slices(
    recipe: Recipe, methods: Sequence[Method], references: Sequence[ModelReference], sources: Sequence[Source]
) -> list[Slice]:
    """The recipe's output slices over opened sources, each with its base among the parts if it has one."""
    uses_base = any(method.base is not Base.MODEL for method in methods)
    out = []
    for number, (entries, base, parameters) in enumerate(recipe.output_slices()):
        place: Location = () if recipe.slices is None else ("slices", number)
        parts = [_part(entry, place, i, references, sources) for i, entry in enumerate(entries)]
        at = None
        if base is not None:
            index = references.index(base)
            at = next((i for i, part in enumerate(parts) if part.source == index), None)
            if at is None and recipe.slices is None:
                parts.append(Part(index, 0, layer_count(sources[index].file), {}, False, ("base_model",)))
                at = len(parts) - 1
            elif at is None and uses_base:
                what = f"base_model {base} is not among the sources; add it with its layer_range"
                raise PlanError(recipe.complaint(place, f"slice {number + 1}: {what}"))
        further = _apart(parts, at or 0, sources) if recipe.slices is None else []
        with recipe.blamed(place or ("models",)):
            _check_lengths(parts, sources, "" if recipe.slices is None else f"slice {number + 1}: ")
            if recipe.slices is not None:
                _check_stacks(parts, sources, number)
            _check_filled(parts, number, len(recipe.slices or ()))
        out.append(Slice(tuple(parts), at, parameters, (*place, "parameters")))
        out += further
    if recipe.slices is not None and not any(piece.layers for piece in out):
        raise PlanError(recipe.complaint(("slices",), "all slices are empty, so the result would have no layers"))
    return out


def _apart(parts: list[Part], base: int, sources: Sequence[Source]) -> list[Slice]:
    """Cut off, in `parts`, layers that predict further tokens (MTP) and that not all models have; a slice of them.

    They come from the base if it has them, or else from the first model that has.
    """
    files = [sources[part.source].file for part in parts]
    having = [has_further_layers(file) for file in files]
    counts = {layer_count(file) for file in files}
    if len({main_layer_count(file) for file in files}) > 1 or (len(counts) == 1 and (all(having) or not any(having))):
        return []
    main = main_layer_count(files[0])
    parts[:] = [replace(part, stop=main) for part in parts]
    if not any(having):
        return []
    owner = base if having[base] else having.index(True)
    source, part = sources[parts[owner].source], parts[owner]
    only = replace(part, start=main, stop=layer_count(source.file))
    note = f"predicts further tokens (MTP), which not all models do: taken from {source.label}"
    return [Slice((only,), None, {}, part.where, taken=note)]


def _part(
    entry: Model | SliceSource,
    place: Location,
    number: int,
    references: Sequence[ModelReference],
    sources: Sequence[Source],
) -> Part:
    index = references.index(entry.model)
    if isinstance(entry, SliceSource):
        where = (*place, "sources", number, "parameters")
        return Part(index, *entry.layer_range, entry.parameters, True, where)
    return Part(index, 0, layer_count(sources[index].file), entry.parameters, True, ("models", number, "parameters"))


def _check_stacks(parts: Sequence[Part], sources: Sequence[Source], number: int) -> None:
    """PlanError for layers of a model whose encoder and decoder have not as many: no range can mean both."""
    for part in parts:
        source = sources[part.source]
        encoder, decoder = layer_count(source.file), decoder_layer_count(source.file)
        if decoder not in (0, encoder):
            raise PlanError(
                f"slice {number + 1}: the encoder of {source.label} has {encoder} layers and its decoder {decoder}, so "
                "no layer_range can mean both; merge whole models, under models:"
            )


def _check_lengths(parts: Sequence[Part], sources: Sequence[Source], where: str) -> None:
    for part in parts:
        source, available = sources[part.source], layer_count(sources[part.source].file)
        if part.stop < part.start:
            raise PlanError(f"{where}layer_range [{part.start}, {part.stop}] of {source.label} is empty")
        if part.stop > available:
            asked = f"layer_range [{part.start}, {part.stop}] of {source.label}"
            raise PlanError(f"{where}{asked} reaches past its {available} layers")
    if len({part.stop - part.start for part in parts}) > 1:
        listed = ", ".join(f"{sources[p.source].label} {p.stop - p.start}" for p in parts)
        raise PlanError(f"{where}the sources have different numbers of layers ({listed}); they must be the same")


def _check_filled(parts: Sequence[Part], number: int, slices: int) -> None:
    """PlanError for a slice without layers that gives nothing to the result, or that gives all of it."""
    if slices and parts[0].stop == parts[0].start and (slices == 1 or 0 < number < slices - 1):
        todo = "only the first and the last of several may be, to give the embeddings or the head of their models"
        raise PlanError(f"slice {number + 1}: layer_range [{parts[0].start}, {parts[0].stop}] is empty; {todo}")


def without_effect(
    recipe: Recipe, methods: Sequence[Method], layout: Sequence[Slice], slots: Sequence[Slot], sources: Sequence[Source]
) -> list[str]:
    """Warnings for slices in which nothing is merged, for layers that not all models have, and for vision and sound
    that models have beside the language model and that the result has not.
    """
    found = []
    for piece in (piece for piece in layout if piece.taken):
        if not all(_is_grafted(recipe, slot, sources[0]) for slot in slots if slot.slice is piece):
            lacking = [s.label for s in (sources[p.source] for p in layout[0].parts) if not has_further_layers(s.file)]
            what = "no layers that predict further tokens (MTP); the result has those of"
            found.append(f"{series(lacking)}: {what} {sources[piece.parts[0].source].label} as they are")
    for number, piece in enumerate(layout):
        if not piece.taken and any(map(piece.is_base_alone, methods)):
            place: Location = ("models",) if recipe.slices is None else ("slices", number)
            what = "only the base takes part, so nothing is merged: add the models that are to change it"
            found.append(recipe.complaint(place, what))
    names = {slot.name for slot in slots}
    taken = {(part.source, name) for slot in slots for part, name in zip(slot.slice.parts, slot.names, strict=True)}
    for number, source in enumerate(sources):
        gone = [
            name
            for name in (possible_names(recipe, source) if recipe.exclude else ())
            if name not in names
            and (number, name) not in taken
            and matches_any(recipe.exclude, name, source.file.architecture)
        ]
        if gone:
            what = f"{source.label}: {len(gone)} excluded tensors ({first_few(gone, 2)}) are not in the result"
            found.append(f"{what}, since excluded tensors stay as they are in {sources[0].label}, which has none")
        missing = [n for n in source.tensors if n.startswith(OTHER_SENSES) and n not in names and n not in gone]
        if missing:
            what = f"{counted(len(missing), 'tensor')} of vision or sound ({first_few(missing, 1)}) left out"
            why = f"since {sources[0].label}, which the result takes after, does not have them"
            todo = "to keep them make it the base, or without a base the first model"
            found.append(f"{source.label}: {what}, {why}; {todo}")
    return found


def _is_grafted(recipe: Recipe, slot: Slot, first: Source) -> bool:
    patterns = [pattern for graft in recipe.graft for pattern in graft.tensors]
    return matches_any(patterns, slot.name, first.file.architecture)


def possible_names(recipe: Recipe, source: Source) -> list[str]:
    """The tensors of a source that the result might have: all, but of slices only those outside of layers."""
    return [name for name in source.tensors if recipe.slices is None or layer_of(name) is None]


def _check_model_count(method: Method, piece: Slice, recipe: Recipe, number: int) -> None:
    count = len(piece.order(method, recipe)) - piece.uses_base(method)
    is_one = method.base is Base.MODEL and recipe.base_model is not None
    try:
        method.check_models(count, f", of which base_model {recipe.base_model} is one" if is_one else None)
    except ValueError as error:
        models = ", ".join(str(source.model) for source in recipe.output_slices()[number][0])
        todo = f": list only one of {models}" if method.pair and count > 1 else ""
        place: Location = ("models",) if recipe.slices is None else ("slices", number)
        raise RecipeError(recipe.complaint(place, f"{error}{todo}")) from None


def layers_of_result(layout: Sequence[Slice]) -> list[tuple[Slice, int]]:
    """(slice, layer within the slice) for each layer of the result."""
    return [(s, i) for s in layout for i in range(s.layers)]


def _slots(layout: Sequence[Slice], sources: Sequence[Source], *, whole: bool) -> Iterator[Slot]:
    """Every tensor of the result in the order of a llama.cpp file: before the blocks, the blocks, after them.

    whole: whether the only slice is of whole models, whose decoder may have more or fewer layers than their encoder.
    """
    shared = _of_all_layers(sources)
    names = [_by_layer(source, shared) for source in sources]
    yield from _outside(layout[0], sources, names, after=False)
    for stack in STACKS:
        layers = [(piece, i, piece.layers) for piece, i in layers_of_result(layout)]
        if whole and stack == "dec.":
            count = max(decoder_layer_count(sources[part.source].file) for part in layout[0].parts)
            layers = [(layout[0], i, count) for i in range(count)]
        for layer, (piece, i, count) in enumerate(layers):
            position = i / (count - 1) if count > 1 else 1.0
            yield from _inside(piece, sources, names, stack, layer, i, position)
    yield from _outside([piece for piece in layout if not piece.taken][-1], sources, names, after=True)


def _of_all_layers(sources: Sequence[Source]) -> set[str]:
    """The tensors of layer 0 of a stack that hold for all its layers: the relative positions, if no layer besides has
    its own. They stay in layer 0, whichever layers the result has.
    """
    layers: dict[str, set[int]] = {}
    for name in (name for source in sources for name in source.tensors if _POSITIONS in name):
        layers.setdefault(with_layer(name, 0), set()).add(layer_of(name) or 0)
    return {name for name, numbers in layers.items() if numbers == {0}}


def _by_layer(source: Source, shared: Collection[str]) -> _Names:
    """The names of a source's tensors, in the order of its file, by their stack and layer; those outside of layers, and
    those that all layers of a stack share, under None.
    """
    found: _Names = {None: []}
    for name in source.tensors:
        layer = None if name in shared else layer_of(name)
        found.setdefault(None if layer is None else (stack_of(name), layer), []).append(name)
    return found


def _inside(
    piece: Slice, sources: Sequence[Source], names: Sequence[_Names], stack: str, layer: int, i: int, position: float
) -> Iterator[Slot]:
    origins = [(part.source, part.start + i) for part in piece.parts]
    found = (with_layer(name, layer) for source, number in origins for name in names[source].get((stack, number), ()))
    for name in dict.fromkeys(found):
        own = tuple(
            n if (n := with_layer(name, number)) in sources[source].tensors else None for source, number in origins
        )
        yield Slot(name, piece, own, position, (piece.taken,) if piece.taken else (), constant=bool(piece.taken))


def _outside(piece: Slice, sources: Sequence[Source], names: Sequence[_Names], *, after: bool) -> Iterator[Slot]:
    parts = [sources[part.source] for part in piece.parts]
    first = piece.base if piece.base is not None else 0
    # checkpoints have no constants; the first source is a GGUF file
    owner = 0 if parts[first].is_checkpoint else piece.parts[first].source
    order = (piece.parts[first], *piece.parts)
    tables = {} if after else table_owners(sources, owner)
    found = [name for part in order for name in names[part.source][None] if _is_after(name) == after]
    found += tables
    for name in dict.fromkeys(found):
        own = tuple(name if name in s.tensors else None for s in parts)
        if name in TABLES:
            if name in tables:
                note = f"computed, not trained: taken from {sources[tables[name]].label}"
                yield _constant(name, piece, first, tables[name], note)
        elif name.startswith(OTHER_SENSES) and None in own and name in sources[owner].tensors:
            note = f"vision or sound, which not all models have: taken from {sources[owner].label}"
            yield _constant(name, piece, first, owner, note)
        elif name == HEAD and None in own:
            tied = [s.label for s, n in zip(parts, own, strict=True) if n is None]
            note = f"{', '.join(tied)}: tied to the embedding, which is used in its place"
            yield Slot(name, piece, tuple(n or EMBEDDING for n in own), 0.0, (note,))
        else:
            moved = _POSITIONS in name and any(part.start for part in piece.parts)
            note = "holds for all layers, so it stays, though layer 0 does not"
            yield Slot(name, piece, own, 0.0, (note,) if moved else ())


def _constant(name: str, piece: Slice, part: int, source: int, note: str) -> Slot:
    """A tensor that is taken from one source as it is, in the place of a part of the slice."""
    only = replace(piece, parts=(replace(piece.parts[part], source=source),), base=None)
    return Slot(name, only, (name,), 0.0, (note,), constant=True)


def _is_after(name: str) -> bool:
    return name.startswith(("output.", "output_norm.", "dec.output_norm.", "enc.output_norm.", "cls."))
