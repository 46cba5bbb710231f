"""Multi-head latent attention, whose up-projection of keys and values files have in one of two layouts.

Until April 2025 it was one tensor, `attn_kv_b`, a head's keys above its values. Since then it is `attn_k_b`, the keys
with each head's matrix transposed, and `attn_v_b`, the values, with `attention.key_length_mla` and `value_length_mla`
in the metadata and one head of keys and values (`attention.head_count_kv`). A block holds values of one row, and rows
of `attn_k_b` are columns of `attn_kv_b`, so its blocks cannot be moved to the other layout, only its values.

Source: llama.cpp v0.5.0, `src/models/deepseek2.cpp` (which reads both: "only old legacy GGUF files will have the
unsplit wkv_b tensor in"), `kimi-linear.cpp` and `kimi-k3.cpp` beside it, and `conversion/deepseek.py`. Of `minicpm3`
and `plm` there are only files with `attn_kv_b`, of `deepseek32`, `glm-dsa` and later ones only files with the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

READ_WITH_BOTH = frozenset({"deepseek2", "kimi-k3", "kimi-linear", "mistral4"})
# what the metadata say otherwise, behind the name of the architecture
METADATA = (
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.key_length_mla",
    "attention.value_length_mla",
)
_JOINED = re.compile(r"blk\.\d+\.attn_kv_b\.weight", re.ASCII)
_SPLIT = re.compile(r"blk\.\d+\.attn_[kv]_b\.weight", re.ASCII)


def is_joined(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names has the layout of before April 2025."""
    return any(_JOINED.fullmatch(name) for name in names)


def is_split(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names has the layout of today."""
    return any(_SPLIT.fullmatch(name) for name in names)
