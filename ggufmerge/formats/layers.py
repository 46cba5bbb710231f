"""How many layers a model has: what its metadata say, held against the layers that its tensors name.

`block_count` is a stranger's number, and much is done once for each layer. llama.cpp refuses files in which it is not
what the tensors show, and so do we, before anything is counted.
"""

from __future__ import annotations

import re

from ggufmerge import keys
from ggufmerge.errors import PlanError
from ggufmerge.formats.stored import StoredFile

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp v0.5.0
# In these a layer may have no tensors at all (LLM_ARCH_DECI in llama.cpp), so the last ones may be unseen.
_EMPTY_LAYERS = frozenset({"deci"})
# In these, block_count counts each time that a layer is run (llama.cpp: src/models/hrm-text.cpp).
_RUN_AGAIN = frozenset({"hrm_text"})
_OWN = re.compile(r"blk\.(\d+)\.", re.ASCII)
_ENCODER, _DECODER = (re.compile(rf"{stack}\.blk\.(\d+)\.", re.ASCII) for stack in ("enc", "dec"))
_ANY = re.compile(r"(?:^|\.)blk\.(\d+)\.", re.ASCII)


def layer_count(file: StoredFile) -> int:
    """Number of layers of a model, of its encoder when it has one beside a decoder; 0 for one of another kind than
    llama.cpp's, such as a model of images, that counts none. FormatError or PlanError when it does not say, or its
    tensors say otherwise.
    """
    key = keys.block_count(file.architecture)
    if is_without_layers(file):
        return 0
    count = file.metadata.need_integer(key)
    named = _highest(file, _OWN) or _highest(file, _ENCODER)
    low, high = named, named + _prediction_layers(file)
    if not named:  # of a kind whose layers have names of their own
        high = max(_highest(file, _ANY), file.metadata.integer(keys.of(file.architecture, "decoder_block_count")) or 0)
    if file.architecture in _EMPTY_LAYERS or not high:
        high = MAX_LAYERS
    if file.architecture in _RUN_AGAIN and named:
        return named
    if not low <= count <= min(high, MAX_LAYERS):
        shown = f"its tensors are of {named or high} layers" if named or high < MAX_LAYERS else "that many cannot be"
        raise PlanError(f"{file.path}: {key} is {count}, but {shown}; this file is damaged or incomplete, take another")
    return count


def main_layer_count(file: StoredFile) -> int:
    """Number of layers before those that predict further tokens (MTP); errors as for `layer_count`."""
    return max(layer_count(file) - _prediction_layers(file), 0)


def has_further_layers(file: StoredFile) -> bool:
    """Whether a model has tensors in layers that predict further tokens: many fine-tunes are saved without them."""
    return _highest(file, _OWN) > main_layer_count(file)


def decoder_layer_count(file: StoredFile) -> int:
    """Number of layers of the decoder that a model has beside an encoder (T5), 0 for all other models. Where the
    metadata do not say, both have as many (llama.cpp v0.5.0, src/models/t5.cpp).

    FormatError or PlanError when the metadata say otherwise than the tensors.
    """
    named = _highest(file, _DECODER)
    if not named:
        return 0
    key = keys.of(file.architecture, "decoder_block_count")
    stated = file.metadata.integer(key) if key in file.metadata else layer_count(file)
    if stated != named:
        shown = f"{key} is {file.metadata.found(key)}" if key in file.metadata else f"without {key} it has {stated}"
        raise PlanError(
            f"{file.path}: {shown}, but its tensors are of {named} layers of a decoder; this file is damaged or "
            "incomplete, take another"
        )
    return named


def is_without_layers(file: StoredFile) -> bool:
    """Whether a file is no language model, but weights of another kind that other programs keep in GGUF files (Flux,
    Stable Diffusion, Wan): it has neither tokens nor the width that each model of llama.cpp has, and counts no layers.
    """
    arch = file.architecture
    own = (keys.TOKENS, keys.block_count(arch), keys.of(arch, "embedding_length"))
    return bool(file.tensors) and not _highest(file, _ANY) and not any(key in file.metadata for key in own)


def _prediction_layers(file: StoredFile) -> int:
    """Layers at the end that predict further tokens: they count, but a fine-tune may have been saved without them."""
    return min(file.metadata.integer(keys.prediction_layers(file.architecture)) or 0, MAX_LAYERS)


def _highest(file: StoredFile, pattern: re.Pattern[str]) -> int:
    """One more than the highest number of a layer that a tensor's name has; 0 when there is none."""
    found = (pattern.search(name) if pattern is _ANY else pattern.match(name) for name in file.tensors)
    return max((int(match[1]) + 1 for match in found if match), default=0)
