"""The metadata of a result: taken from one source, freed of what no longer holds, with the merge's own provenance.

Follows GGUF's conventions for merged models (`general.base_model.*`) and the list of stale keys of llama-quantize.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufmerge import keys
from ggufmerge.architectures.value_kinds import kind_of_value
from ggufmerge.errors import RecipeError
from ggufmerge.files import MetadataEditor, facts
from ggufmerge.planning import provenance
from ggufmerge.planning.models import LaidOut
from ggufmerge.planning.tensor_types import Typed
from ggufmerge.quants.encoders import CALIBRATED
from ggufmerge.quants.importance import Imatrix
from ggufmerge.recipe import Recipe
from ggufmerge.sources import Source

_STALE_PREFIXES = (keys.IMATRIX, keys.SPLIT, keys.BASE_MODEL, keys.GENERAL + "source.", keys.GENERAL + "dataset.")
_STALE = frozenset({keys.ALIGNMENT, keys.QUANTIZED_BY, *keys.ORIGIN})
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


@dataclass(frozen=True)
class Header:
    """The metadata of a result: changes to those of the first source, a value to set or None to remove the key."""

    changes: dict[str, Any]
    warnings: tuple[str, ...]


def result_metadata(
    recipe: Recipe,
    laid_out: LaidOut,
    typed: Typed,
    structure: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    imatrix: Imatrix | None,
) -> Header:
    """What a recipe makes of the metadata of its models.

    structure, tokenizer: changes that the layers of the result (`layers`) and its tokenizer (`vocabulary`) bring about.
    RecipeError names the keys that a recipe cannot set.
    """
    overrides = _overrides(recipe, laid_out, typed)
    sources, donor = laid_out.sources, laid_out.sources[0]
    changes: dict[str, Any] = {k: None for k in donor.metadata if k in _STALE or k.startswith(_STALE_PREFIXES)}
    name = recipe.title or f"{donor.name} merge"
    changes |= {keys.NAME: name, keys.FINETUNE: "merge", keys.FILE_TYPE: typed.file_type.id}
    if any(t.type.is_quantized for t in typed.tensors):
        changes[keys.QUANTIZATION_VERSION] = QUANTIZATION_VERSION
    changes |= tokenizer
    changes |= imatrix.metadata() if imatrix else {}
    changes |= _parents(sources)
    tags = donor.metadata.texts(keys.TAGS) or []
    changes[keys.TAGS] = [*tags, *(t for t in ("merge", "ggufmerge") if t not in tags)]
    licence, warnings = _licence(sources, recipe.metadata)
    changes |= licence
    changes |= structure
    rounds = any(t.rounding != "nearest" for t in typed.tensors)
    settings = provenance.settings(
        file_type=str(typed.file_type),
        rounding=(recipe.rounding or provenance.AUTO) if rounds else "nearest",
        seed=recipe.seed,
        imatrix=[Path(path).name for path in recipe.statistics],
        encoder=CALIBRATED if recipe.is_calibrated else None,
    )
    changes |= provenance.record(sources, settings, recipe=recipe.text, digests=True)
    return Header(changes | overrides, tuple(warnings))


def _overrides(recipe: Recipe, laid_out: LaidOut, typed: Typed) -> dict[str, Any]:
    """What a recipe's `metadata:` sets, numbers as llama.cpp expects them: 1 as 1.0 under a key for such.

    RecipeError for what cannot be, a line each: keys that are not the recipe's to set, values of another kind than
    llama.cpp reads there, and numbers and lists that do not go with the tensors of the result.
    """
    overrides: dict[str, Any] = {}
    architecture = laid_out.sources[0].file.architecture
    shapes = {t.name: t.shape for t in typed.tensors}
    layers = sum(piece.layers for piece in laid_out.slices)
    problems = []
    for key, value in recipe.metadata.items():
        if key in _OWN or key.startswith(_OWN_PREFIXES):
            problems.append(f"{key} is written by ggufmerge and cannot be set; leave it out")
            continue
        counted = _counted(key, architecture, shapes, layers)
        if counted is None:
            try:
                overrides[key] = _as_read(key, value, laid_out.sources)
                _check_token(key, overrides[key], shapes.get(keys.EMBEDDING, ()))
            except ValueError as error:
                problems.append(str(error))
            continue
        overrides[key] = value
        wanted, what = counted
        if key.startswith(keys.TOKENIZER):
            given = len(value) if isinstance(value, list) else None
            shown = f"a list of {given} texts" if given is not None else repr(value)
        else:
            given, shown = value if type(value) is int else None, repr(value)
        if given != wanted:
            problems.append(f"{key} is {shown:.60}, but the result has {wanted} {what}; leave it out")
    if problems:
        raise RecipeError(*(recipe.complaint(("metadata",), problem) for problem in problems))
    return overrides


_KINDS = {float: "a number", bool: "true or false", str: "a text, in quotes", int: "a whole number, 0 or more"}


def _as_read(key: str, value: Any, sources: Sequence[Source]) -> Any:
    """A value under a key in the kind that llama.cpp reads there. ValueError when it is of another."""
    architecture = sources[0].file.architecture
    kind = kind_of_value(architecture, key)
    if kind is None and keys.is_token_id(key):
        kind = int
    if kind is None and key.startswith((architecture + ".", keys.TOKENIZER)):
        given = next((source.metadata[key] for source in sources if key in source.metadata), None)
        kind = int if type(given) is int else None
    if kind is float and type(value) is int:
        return float(value)
    if kind is bool and type(value) is int and value in (0, 1):
        return bool(value)
    if kind is int and type(value) is float and value.is_integer():
        value = int(value)
    if kind is not None and (type(value) is not kind or (type(value) is int and value < 0)):
        raise ValueError(f"{key} is {value!r:.60}, but llama.cpp reads {_KINDS[kind]} there")
    return value


def _check_token(key: str, value: Any, embedding: Sequence[int]) -> None:
    """ValueError for the id of a token that the result does not have."""
    if keys.is_token_id(key) and embedding and value >= embedding[0]:
        raise ValueError(f"{key} is {value}, but the result has {embedding[0]} tokens, counted from 0")


# set by the plan or the writer, whatever a recipe says
_OWN = frozenset({keys.ARCHITECTURE, keys.ALIGNMENT, keys.FILE_TYPE, keys.QUANTIZATION_VERSION})
_OWN_PREFIXES = (keys.OWN, keys.SPLIT)
# what the number under a key of the architecture is: (words, tensor, dimension)
_SIZES = {
    "vocab_size": ("tokens", keys.EMBEDDING, 0),
    "embedding_length": ("values in a row of the embedding", keys.EMBEDDING, -1),
    "expert_count": ("experts", "ffn_down_exps.weight", 0),
}


def _counted(
    key: str, architecture: str, tensors: Mapping[str, tuple[int, ...]], layers: int
) -> tuple[int, str] | None:
    """(number, of what) that the tensors show for a key; None when they show none."""
    if key == keys.block_count(architecture):
        return layers, "layers"
    if key == keys.TOKENS:
        what, name, axis = _SIZES["vocab_size"]
    elif key.removeprefix(architecture + ".") in _SIZES and key.startswith(architecture + "."):
        what, name, axis = _SIZES[key.removeprefix(architecture + ".")]
    else:
        return None
    shape = next((shape for own, shape in tensors.items() if own == name or own.endswith("." + name)), ())
    return (shape[axis], what) if len(shape) >= 2 else None


def apply(changes: Mapping[str, Any], editor: MetadataEditor) -> MetadataEditor:
    """The donor's metadata with the changes made."""
    for key, value in changes.items():
        if value is not None:
            editor.set(key, value)
        elif key in editor:
            editor.remove(key)
    return editor


def _parents(sources: Sequence[Source]) -> dict[str, Any]:
    """`general.base_model.*`: each model and each adapter once."""
    parents = {file.path: file for source in sources for file in (source.file, *(a.file for a in source.adapters))}
    changes: dict[str, Any] = {keys.BASE_MODEL_COUNT: len(parents)}
    for i, file in enumerate(parents.values()):
        changes[keys.base_model(i, "name")] = facts.name(file)
        for key in keys.ORIGIN:
            if value := file.metadata.text(key):
                changes[keys.base_model(i, key.removeprefix(keys.GENERAL))] = value
    return changes


def _licence(sources: Sequence[Source], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The licence when all sources agree on it; otherwise it is dropped, with a warning."""
    licences = {s.label: facts.licence(s.file) for s in sources}
    if keys.LICENSE in overrides:
        return {}, []
    if len(set(licences.values())) == 1:
        return ({keys.LICENSE: None} if facts.licence(sources[0].file) is None else {}), []
    listed = ", ".join(f"{label}: {licence or 'not stated'}" for label, licence in licences.items())
    return dict.fromkeys((keys.LICENSE, keys.LICENSE_NAME, keys.LICENSE_LINK)), [
        f"the licences differ ({listed}): none is written; set {keys.LICENSE} under metadata:"
    ]
