"""File types for people: what each is for, and what becomes of a usual model in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from ggufmerge import keys
from ggufmerge.quants.mixture import decide_types, needs_imatrix
from ggufmerge.types import FileType, TensorType

PURPOSE = {
    FileType.F32: "full precision, for measurements",
    FileType.F16: "half precision: to go on working with",
    FileType.BF16: "as F16, in the form of most checkpoints",
    FileType.Q8_0: "as good as F16, for merges that lose nothing",
    FileType.Q6_K: "nearly as good as Q8_0; good for merges",
    FileType.Q5_K_M: "a little better than Q4_K_M",
    FileType.Q5_K_S: "as Q5_K_M, a little smaller",
    FileType.Q5_0: "older; Q5_K_S is better where it fits the rows",
    FileType.Q5_1: "older; Q5_K_M is better where it fits the rows",
    FileType.Q4_K_M: "the usual choice: small and good",
    FileType.Q4_K_S: "as Q4_K_M, a little smaller and a little worse",
    FileType.Q4_0: "older, simple; fast, as llama.cpp repacks it",
    FileType.Q4_1: "older; Q4_K_M is better where it fits the rows",
    FileType.IQ4_XS: "as Q4_K_S, smaller; slower on a CPU",
    FileType.IQ4_NL: "as IQ4_XS, for rows of a multiple of 32",
    FileType.Q3_K_L: "the best of 3 bits; the loss begins to show",
    FileType.Q3_K_M: "when Q4_K_S does not fit into memory",
    FileType.Q3_K_S: "smaller and worse; IQ3_S is better",
    FileType.IQ3_M: "better than Q3_K_M at its size",
    FileType.IQ3_S: "better than Q3_K_S at its size",
    FileType.IQ3_XS: "3 bits for large models",
    FileType.IQ3_XXS: "3 bits for large models, smaller",
    FileType.Q2_K: "large models only; IQ2_M is better",
    FileType.Q2_K_S: "large models only; IQ2_S is better",
    FileType.IQ2_M: "2 bits for large models (30B and more)",
    FileType.IQ2_S: "2 bits for large models, smaller",
    FileType.IQ2_XS: "2 bits for large models, smaller still",
    FileType.IQ2_XXS: "2 bits for very large models",
    FileType.IQ1_M: "the least that speaks; very large models only",
    FileType.IQ1_S: "as IQ1_M, smaller and worse",
    FileType.TQ1_0: "models trained with weights of -1, 0 and 1 only",
    FileType.TQ2_0: "as TQ1_0, larger and faster",
    FileType.MXFP4_MOE: "experts in 4-bit floats (gpt-oss), the rest Q8_0",
    FileType.NVFP4: "NVIDIA's 4-bit floats; read, not written",
    FileType.Q1_0: "models trained with weights of one bit only",
    FileType.Q2_0: "models trained with weights of two bits only",
}


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    type: TensorType = TensorType.F16


@dataclass(frozen=True)
class _Model:
    metadata: dict[str, Any]
    tensors: dict[str, _Tensor]


def mixture(kind: FileType) -> tuple[dict[TensorType, float], float, int]:
    """What a model in the shapes of Llama 3 8B becomes: share of the weights in each type, the largest first; bits per
    weight; bytes of all weights.
    """
    model = _llama_3_8b()
    if kind is FileType.NVFP4:  # no rules write it
        chosen = {n: TensorType.NVFP4 if len(t.shape) > 1 else TensorType.F32 for n, t in model.tensors.items()}
    else:
        # with a matrix where one is needed, so that the rules are those that will hold
        matrix = list(model.tensors) if needs_matrix(kind) else None
        chosen = {name: d.type for name, d in decide_types(model, kind, matrix).items()}
    values: Counter[TensorType] = Counter()
    for name, tensor in model.tensors.items():
        values[TensorType.F32 if len(tensor.shape) == 1 else chosen[name]] += _size(tensor)
    total = values.total()
    nbytes = sum(n * t.block_bytes // t.block_size for t, n in values.items())
    return {t: n / total for t, n in values.most_common() if n / total > 1e-3}, 8 * nbytes / total, nbytes


def needs_matrix(kind: FileType) -> bool:
    """Whether llama-quantize refuses to write it without an importance matrix."""
    return needs_imatrix("blk.0.ffn_up.weight", kind.default, kind)


def uses_matrix(kind: FileType) -> bool:
    """Whether an importance matrix changes anything; Q8_0, MXFP4, ternary types and floats ignore it."""
    return kind.default.is_quantized and kind.default not in _WITHOUT_MATRIX


_WITHOUT_MATRIX = frozenset(TensorType[n] for n in ("Q8_0", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0"))


def _size(tensor: _Tensor) -> int:
    size = 1
    for n in tensor.shape:
        size *= n
    return size


@cache
def _llama_3_8b() -> _Model:
    embed, ff, vocab, layers, kv = 4096, 14336, 128256, 32, 1024
    tensors = {keys.EMBEDDING: (vocab, embed), "output_norm.weight": (embed,), keys.HEAD: (vocab, embed)}
    for i in range(layers):
        layer = {
            "attn_norm": (embed,),
            "attn_q": (embed, embed),
            "attn_k": (kv, embed),
            "attn_v": (kv, embed),
            "attn_output": (embed, embed),
            "ffn_norm": (embed,),
            "ffn_gate": (ff, embed),
            "ffn_up": (ff, embed),
            "ffn_down": (embed, ff),
        }
        tensors |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    metadata = {
        keys.ARCHITECTURE: "llama",
        keys.block_count("llama"): layers,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
    }
    return _Model(metadata, {name: _Tensor(shape) for name, shape in tensors.items()})
