"""Side tensors: small tensors that belong to a weight.

`X.scale` multiplies what the matrix `X.weight` gives, so the weight that a model computes with is the dequantized one
times the scale: a single number, or one for each matrix of a stack of experts. Files of NVFP4 and BitNet have it.
`X.input_scale` is of the activations that go in; it says nothing about the weight.

Source: the pass over optional scales in llama.cpp's `src/llama-model.cpp`, `build_lora_mm` in `src/llama-graph.cpp`.
A tensor of another shape under such a name is one of the model's own (Gemma 4 has `ffn_gate_inp.scale`, a vector).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import FormatError
from ggufmerge.formats.stored import StoredTensor
from ggufmerge.quants import dequantize

SCALE, INPUT_SCALE = ".scale", ".input_scale"
_WEIGHT = ".weight"


def side_names(weight: str) -> tuple[str, str]:
    """What the scale and the input scale of a weight are called."""
    stem = weight.removesuffix(_WEIGHT)
    return stem + SCALE, stem + INPUT_SCALE


def side_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, list[str]]:
    """The weights that have side tensors, with the names of these."""
    found = {}
    for name, weight in tensors.items():
        if name.endswith(_WEIGHT):
            beside = [n for n in side_names(name) if n in tensors and _belongs(tensors[n], weight)]
            if beside:
                found[name] = beside
    return found


def is_orphan(name: str, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether a tensor is a scale of a weight that goes by another name."""
    stem = name.removesuffix(INPUT_SCALE).removesuffix(SCALE)
    return stem != name and stem + _WEIGHT not in tensors


def read_scales(scale: StoredTensor, weight: StoredTensor) -> NDArray[np.float32]:
    """float32 [matrices of the weight]; FormatError for values by which nothing can be divided."""
    values = dequantize(scale.raw_rows(0, scale.rows), scale.type, scale.n).reshape(-1)
    if not (np.isfinite(values).all() and values.all()):
        raise FormatError(f"{scale.path}: {scale.name} holds zero, NaN or infinity; download or convert the file again")
    return np.ascontiguousarray(np.broadcast_to(values, (_matrices(weight),)))


def _belongs(beside: StoredTensor, weight: StoredTensor) -> bool:
    return beside.type.is_float and math.prod(beside.shape) in (1, _matrices(weight))


def _matrices(tensor: StoredTensor) -> int:
    return math.prod(tensor.shape[:-2])
