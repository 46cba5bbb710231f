"""The metadata of a result: taken from one source, freed of what no longer holds, with the merge's own provenance.

Follows GGUF's conventions for merged models (`general.base_model.*`) and the list of stale keys of llama-quantize.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ggufmerge import keys
from ggufmerge.errors import PlanError
from ggufmerge.files import MetadataEditor, ValueKind, facts
from ggufmerge.formats.layers import layer_count
from ggufmerge.planning import provenance
from ggufmerge.planning.layout import Slice, layers_of_result
from ggufmerge.sources import Source
from ggufmerge.types import FileType

_STALE_PREFIXES = (keys.IMATRIX, keys.SPLIT, keys.BASE_MODEL, keys.GENERAL + "source.", keys.GENERAL + "dataset.")
_STALE = frozenset({keys.ALIGNMENT, keys.QUANTIZED_BY, *keys.ORIGIN})
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


def result_metadata(
    *,
    name: str,
    recipe: str,
    options: str,
    settings: Mapping[str, Any],
    file_type: FileType,
    quantized: bool,
    sources: Sequence[Source],
    structure: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    imatrix: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """(changes to the first source's metadata, warnings). A change is a value to set, or None to remove the key.

    options: what the command line changed.  settings: keys and values of those in effect (`provenance.settings`).
    structure: what the layers of the result change (`layer_metadata`).
    """
    donor = sources[0]
    changes: dict[str, Any] = {k: None for k in donor.metadata if k in _STALE or k.startswith(_STALE_PREFIXES)}
    changes |= {keys.NAME: name, keys.FINETUNE: "merge", keys.FILE_TYPE: file_type.id}
    if quantized:
        changes[keys.QUANTIZATION_VERSION] = QUANTIZATION_VERSION
    changes |= tokenizer
    changes |= imatrix
    changes |= _parents(sources)
    tags = donor.metadata.texts(keys.TAGS) or []
    changes[keys.TAGS] = [*tags, *(t for t in ("merge", "ggufmerge") if t not in tags)]
    licence, warnings = _licence(sources, overrides)
    changes |= licence
    changes |= structure
    changes |= provenance.record(sources, settings, recipe=recipe, options=options, digests=True)
    return changes | dict(overrides), warnings


def check_overrides(
    overrides: Mapping[str, Any], architecture: str, tensors: Mapping[str, tuple[int, ...]], layers: int
) -> list[str]:
    """What of a recipe's `metadata:` cannot be, a line each: keys that are not the recipe's to set, and numbers and
    lists that do not go with the tensors of the result.

    tensors: their shapes by name.  layers: of the result.
    """
    problems = []
    for key, value in overrides.items():
        if key in _OWN or key.startswith(_OWN_PREFIXES):
            problems.append(f"{key} is written by ggufmerge and cannot be set; leave it out")
            continue
        counted = _counted(key, architecture, tensors, layers)
        if counted is None:
            continue
        wanted, what = counted
        if key.startswith(keys.TOKENIZER):
            given = len(value) if isinstance(value, list) else None
            shown = f"a list of {given} texts" if given is not None else repr(value)
        else:
            given, shown = value if type(value) is int else None, repr(value)
        if given != wanted:
            problems.append(f"{key} is {shown:.60}, but the result has {wanted} {what}; leave it out")
    return problems


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


# Keys of an architecture that may have one value per layer, and those outside of it: what llama.cpp v0.5.0 reads with
# `get_key_or_arr(..., n_layer)` or `get_arr` and indexes by layer (`src/models`, `llama-model.cpp`).
_PER_LAYER = (
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_count",
    "expert_used_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.sliding_window_pattern",
    "attention.rope_pattern",
    "attention.recurrent_layers",
    "attention.compress_ratios",
    "attention.indexer.types",
    "activation_sparsity_scale",
    "swiglu_clamp_exp",
    "swiglu_clamp_shexp",
    "deepstack_mapping",
)
_PER_LAYER_ANYWHERE = ("xielu.alpha_n", "xielu.alpha_p", "xielu.beta", "xielu.eps")
# lists of the architecture of which each is about something else than layers, however long it is
_NOT_PER_LAYER = ("rope.dimension_sections", "classifier.output_labels", "target_layers", "adapters.", "ple.")


def layer_metadata(
    donor: Source, sources: Sequence[Source], layout: Sequence[Slice]
) -> tuple[dict[str, Any], list[str]]:
    """block_count and the values that hold for single layers, for the layers that the result has; and warnings.

    PlanError when a list of a source has too few values for its layers.
    """
    arch, count = donor.file.architecture, layer_count(donor.file)
    layers = [(piece.parts[piece.base or 0], i) for piece, i in layers_of_result(layout)]
    origins = [(sources[part.source], part.start + i) for part, i in layers]
    if origins == [(donor, i) for i in range(count)]:
        return {}, []
    changes: dict[str, Any] = {keys.block_count(donor.file.architecture): len(layers)}
    known = [f"{arch}.{key}" for key in _PER_LAYER] + list(_PER_LAYER_ANYWHERE)
    for key in known:
        used = list(dict.fromkeys(source for source, _ in origins))
        values = {source: source.metadata[key] for source in used if key in source.metadata}
        if donor not in values and key in donor.metadata:
            values[donor] = donor.metadata[key]
        if donor in values and any(map(_is_list, values.values())):
            picked = [_of_layer(key, values.get(source, values[donor]), source, layer) for source, layer in origins]
            changes[key] = [v for v in picked if v is not None]
            if len({type(v) for v in changes[key]}) > 1:
                listed = ", ".join(f"{source.label}: {source.metadata.found(key)}" for source in used)
                raise PlanError(f"{key} is not of one type in the layers of the result ({listed}); take another file")
    others = [
        key
        for key in donor.metadata
        if key.startswith(arch + ".")
        and key not in known
        and not key.removeprefix(arch + ".").startswith(_NOT_PER_LAYER)
        and donor.metadata.kind(key) == ValueKind.ARRAY
        and donor.metadata.count(key) == count
    ]
    return changes, [
        f"{key} has as many values as {donor.label} has layers, but nobody knows whether they belong to layers: it is "
        "taken as it is; set it under metadata: or check the result"
        for key in others
    ]


def _of_layer(key: str, value: Any, source: Source, layer: int) -> Any:
    """The value that holds for a layer. None for those at the end that predict further tokens, where lists may stop."""
    if not _is_list(value):
        return value
    if layer < len(value):
        return value[layer].item() if isinstance(value[layer], np.generic) else value[layer]
    further = source.metadata.integer(keys.prediction_layers(source.file.architecture)) or 0
    if len(value) + further == layer_count(source.file):
        return None
    short = f"{key} has {len(value)} values, too few for layer {layer}"
    raise PlanError(f"{source.file.path}: {short}; the file is damaged, take another")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | np.ndarray)


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
