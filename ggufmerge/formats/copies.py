"""What stands in adapters beside changes, and can be left out without a loss; and what cannot.

PEFT saves the frozen embedding beside its low-rank halves; converters have let computed tables through; an adapter of
a multi-modal model has halves for its vision tower, which a GGUF file of the language model does not have.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import PlanError
from ggufmerge.formats.stored import StoredTensor
from ggufmerge.quants import codec
from ggufmerge.types import TensorType

NORMS = "tensors for norms, which llama.cpp ignores, too"
COMPUTED = "tables of rotary embeddings, which are computed, not trained"
FROZEN = "copies of weights that were not trained"
SAMPLERS = "samplers of MonteCLoRA, which work in training only"
VISION = "tensors of the part of a multi-modal model that sees or hears, which the base does not have"

_VISION = ("v.", "a.", "mm.", "resampler.")  # in GGUF, where they are in a file of their own
_TOWERS = {  # modules of Hugging Face's models
    "vision_tower",
    "vision_model",
    "vision_encoder",
    "vision_embed_tokens",
    "visual",
    "vit",
    "vpm",
    "resampler",
    "connector",
    "aligner",
    "img_processor",
    "multi_modal_projector",
    "mm_projector",
    "modality_projection",
    "audio_tower",
    "audio_encoder",
    "audio_model",
    "embed_vision",
    "embed_audio",
}
_SAMPLE = 64  # rows
_SLACK = 4.0  # times the error of quantizing; other quantizers, and those with an importance matrix, differ from ours


def may_be_left_out(name: str) -> bool:
    """Whether a tensor of GGUF is of the part of a model that sees or hears, which is in a file of its own."""
    return name.startswith(_VISION)


def is_of_tower(module: str) -> bool:
    """Whether a module of Hugging Face is of the part of a model that sees or hears."""
    return not _TOWERS.isdisjoint(module.split("."))


def is_copy(tensor: StoredTensor, base: StoredTensor) -> bool:
    """Whether a tensor is that of the base, as far as the base's type tells: they are as far from each other as
    quantizing puts them, on a sample of rows.
    """
    if tensor.shape != base.shape or not tensor.rows * tensor.n or not (base.type.is_quantized or base.type.is_float):
        return False
    far = rounding = 0.0
    ours, theirs = np.empty((2, 1, base.n), np.float32)
    for row in np.unique(np.linspace(0, base.rows - 1, _SAMPLE).astype(int)).tolist():
        codec(tensor.type).dequantize(tensor.raw_rows(row, row + 1), ours)
        codec(base.type).dequantize(base.raw_rows(row, row + 1), theirs)
        far += float(np.square(ours - theirs, dtype=np.float64).sum())
        rounding += _rounding(base.type, ours) + _rounding(tensor.type, theirs)
    return far <= _SLACK * rounding


def _rounding(kind: TensorType, row: NDArray[np.float32]) -> float:
    """The sum of squares of what is lost of a row [1, n] in a type; 0 where we cannot tell."""
    if not codec(kind).writable or codec(kind).needs_imatrix:
        return 0.0
    raw = np.empty((1, kind.row_bytes(row.shape[1])), np.uint8)
    codec(kind).encode(row, raw, None)
    back = np.empty_like(row)
    codec(kind).dequantize(raw, back)
    return float(np.square(row - back, dtype=np.float64).sum())


def grown(path: Path, name: str, rows: int, base: Path, tokens: int) -> PlanError:
    """What to say of an adapter that was trained with more tokens than the base has."""
    return PlanError(
        f'{path}: "{name}" is for {rows} tokens, but {base} has {tokens}: tokens were added before training, and the '
        "base's vocabulary lacks them; merge the adapter with PEFT into the model with the added tokens "
        "(resize_token_embeddings, merge_and_unload), convert the result with convert_hf_to_gguf.py, and use that"
    )
