"""Brings models of one merge to one layout, where they have the same weights in tensors of other names.

Attention that was stored before April 2025 gets the layout of the first model, or the other way round
(`sources.latent`).

Ollama's own names of an architecture become those of llama.cpp (`architectures.spellings`).

What some models have in one tensor and others in parts (`architectures.fused`) is taken apart: the rows of a part are a
stretch of the rows of the whole, so nothing but their place changes. Parts cannot be joined: their types may differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ggufmerge.architectures.fused import fused_parts
from ggufmerge.architectures.spellings import Spelling, of_ollama, renamed, to_names_of, to_names_of_llama_cpp
from ggufmerge.files import MetadataEditor
from ggufmerge.formats.layers import MAX_LAYERS
from ggufmerge.formats.rearranged import Span, Stretch, rearranged
from ggufmerge.formats.stored import DescribedTensor, StoredTensor
from ggufmerge.keys import ARCHITECTURE
from ggufmerge.sources.latent import shapes_of_attention, to_attention_of
from ggufmerge.sources.model import Source

_PLACE = re.compile(r"(blk\.\d+\.)(\w+)\.(weight|bias)", re.ASCII)
_Shape = tuple[int, ...]


def to_one_layout(sources: Sequence[Source]) -> None:
    """Give models the names that the first one has, where Ollama calls its architecture otherwise, and take apart what
    a model has in one tensor and another one of the same architecture in parts.
    """
    for source in sources:
        _to_names_of(source, sources[0])
        to_attention_of(source, sources[0])
    for source in sources:
        _take_apart_like(source, sources)


def to_layout_of(source: Source, first: Source) -> None:
    """The same for one model, with the other as the first, which stays as it is."""
    _to_names_of(source, first)
    to_attention_of(source, first)
    _take_apart_like(source, [first])


def _to_names_of(source: Source, first: Source) -> None:
    """Show a model under the names that the first one has, where those of Ollama and of llama.cpp differ."""
    spelling = of_ollama(source.file.architecture)
    if spelling and spelling.same and spelling.architecture == first.file.architecture:
        _respell(source, spelling)
    elif source.file.architecture == first.file.architecture:
        names = to_names_of(source.file.architecture, source.tensors, first.tensors)
        source.take_apart(_renamed(source, names))


def _respell(source: Source, spelling: Spelling) -> None:
    """Show a model of Ollama's under the names of llama.cpp."""
    own = source.file.architecture
    metadata = MetadataEditor(source.file.metadata, str(source.file.path))
    for key in [key for key in metadata if key.startswith(f"{own}.")]:
        metadata.set_raw(spelling.architecture + key.removeprefix(own), metadata.raw(key))
        metadata.remove(key)
    metadata.set(ARCHITECTURE, spelling.architecture)
    source.take_apart(_renamed(source, spelling.renamed), metadata)


def _renamed(source: Source, names: Mapping[str, str]) -> dict[str, dict[str, StoredTensor]]:
    """What `Source.take_apart` wants for tensors that are to have other names."""
    return {
        name: {new: rearranged(new, tensor.shape, [Span(tensor, 0, tensor.rows)])}
        for name, tensor in source.file.tensors.items()
        if (new := renamed(name, names)) != name
    }


def _take_apart_like(source: Source, others: Sequence[Source]) -> None:
    """Take apart what a model has in one tensor and one of the others, of the same architecture, in parts."""
    alike = [other for other in others if other.file.architecture == source.file.architecture]
    fused = fused_parts(source.file.architecture)
    parts = {whole: made for whole in source.tensors if (made := _parts(source, whole, fused, alike))}
    if parts:
        source.take_apart(parts)


def in_one_layout(architecture: str, tensors: Mapping[str, DescribedTensor]) -> tuple[str, dict[str, _Shape]]:
    """The architecture and the shapes of a model's tensors, the same for each layout that `to_one_layout` knows."""
    spelling = of_ollama(architecture)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if spelling is not None and spelling.same:
        architecture = spelling.architecture
        shapes = {renamed(name, spelling.renamed): shape for name, shape in shapes.items()}
    names = to_names_of_llama_cpp(architecture, shapes)
    shapes = {renamed(name, names): shape for name, shape in shapes.items()}
    for whole, parts in fused_parts(architecture).items():
        for name in [name for name in shapes if f".{parts[0]}." in name]:
            apart = [name.replace(f".{parts[0]}.", f".{part}.") for part in parts]
            axis = -1 if name.endswith(".bias") else -2
            found = [shapes[part] for part in apart if part in shapes]
            if len(found) == len(apart) and all(len(shape) >= -axis for shape in found):
                together = list(found[0])
                together[axis] = sum(shape[axis] for shape in found)
                if _adds_up(tuple(together), found, axis):
                    shapes |= {name.replace(f".{parts[0]}.", f".{whole}."): tuple(together)}
                    shapes = {name: shape for name, shape in shapes.items() if name not in apart}
    return architecture, shapes_of_attention(architecture, shapes)


def _parts(
    source: Source, name: str, fused: Mapping[str, Sequence[str]], others: Sequence[Source]
) -> dict[str, StoredTensor]:
    """The parts of a tensor that some other model has instead of it; none when none has."""
    match = _PLACE.fullmatch(name)
    inside = fused.get(match[2]) if match else None
    if match is None or inside is None or name in source.side_tensors:
        return {}
    names = [f"{match[1]}{part}.{match[3]}" for part in inside]
    if any(part in source.tensors for part in names):
        return {}
    whole = source.file.tensors[name]
    for shapes in _shapes(source, names, others):
        if match[3] == "weight" and (rows := _rows(whole, shapes)):
            return _cut(whole, names, shapes, rows)
        if match[3] == "bias" and whole.type.is_float and _adds_up(whole.shape, shapes, -1):
            starts = [sum(shape[-1] for shape in shapes[:i]) for i in range(len(shapes))]
            made = zip(names, shapes, starts, strict=True)
            return {part: Stretch(part, shape, whole.type, whole, start) for part, shape, start in made}
    return {}


def _shapes(source: Source, names: Sequence[str], others: Sequence[Source]) -> Iterator[tuple[_Shape, ...]]:
    """The shapes that the parts have in the other models: in the same layer, else in any, since layers may be put
    beside others; but not if some layers of the model itself have such parts, which then are of another kind.
    """
    for other in others:
        if all(name in other.tensors for name in names):
            yield tuple(other.tensors[name].shape for name in names)
    if not any(_of_layers(source, name) for name in names):
        for other in others:
            yield from dict.fromkeys(zip(*(_of_layers(other, name) for name in names), strict=False))


def _of_layers(source: Source, name: str) -> list[_Shape]:
    """The shapes of a tensor in all layers that have it."""
    part = name.split(".", 2)[2]
    found = (source.tensors.get(f"blk.{layer}.{part}") for layer in range(MAX_LAYERS))
    return [tensor.shape for tensor in found if tensor is not None]


def _rows(whole: DescribedTensor, shapes: Sequence[_Shape]) -> list[int]:
    """How many rows each of the parts has in each matrix of the whole; none when they do not make it up."""
    return [shape[-2] for shape in shapes] if len(whole.shape) > 1 and _adds_up(whole.shape, shapes, -2) else []


def _adds_up(whole: _Shape, shapes: Sequence[_Shape], axis: int) -> bool:
    """Whether parts of these shapes, one behind the other along an axis, have the shape of the whole."""
    if any(len(shape) != len(whole) for shape in shapes):
        return False
    together = [list(shape) for shape in shapes]
    length = sum(shape[axis] for shape in shapes)
    for shape in together:
        shape[axis] = length
    return all(shape == list(whole) for shape in together)


def _cut(
    whole: StoredTensor, names: Sequence[str], shapes: Sequence[_Shape], rows: Sequence[int]
) -> dict[str, StoredTensor]:
    """The parts of a matrix, or of each matrix of a stack."""
    total = sum(rows)
    made: dict[str, StoredTensor] = {}
    for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        first = sum(rows[:i])
        starts = range(first, whole.rows, total)
        made[name] = rearranged(name, shape, [Span(whole, start, start + rows[i]) for start in starts])
    return made
