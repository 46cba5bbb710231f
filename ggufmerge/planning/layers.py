"""What the layers of the result change in the metadata: their number, and the values that hold for single layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ggufmerge import keys
from ggufmerge.errors import PlanError
from ggufmerge.files import ValueKind
from ggufmerge.formats.layers import decoder_layer_count, layer_count
from ggufmerge.planning.layout import Slice, layers_of_result
from ggufmerge.sources import Source

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


def layer_metadata(sources: Sequence[Source], layout: Sequence[Slice]) -> tuple[dict[str, Any], list[str]]:
    """block_count and the values that hold for single layers, for the layers that the result has, as changes to the
    metadata of the first source; and warnings.

    PlanError when a list of a source has too few values for its layers.
    """
    donor = sources[0]
    arch, count = donor.file.architecture, layer_count(donor.file)
    layers = [(piece.parts[piece.base or 0], i) for piece, i in layers_of_result(layout)]
    origins = [(sources[part.source], part.start + i) for part, i in layers]
    if origins == [(donor, i) for i in range(count)]:
        return {}, []
    changes: dict[str, Any] = {keys.block_count(donor.file.architecture): len(layers)}
    if decoder_layer_count(donor.file) == count:  # then a slice is one of both
        changes[keys.of(arch, "decoder_block_count")] = len(layers)
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
