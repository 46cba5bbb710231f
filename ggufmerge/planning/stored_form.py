"""What llama.cpp's converter adds to weights, so that recipes mean the weights that mergekit would see.

Some families compute norms as (1 + w) x; their files hold 1 + w. Differences of models are the same in both forms, but
SLERP, scaling and averages whose weights do not sum to 1 are not, so methods get w, and 1 is added to what they give.
Source: `modify_tensors` of llama.cpp's conversion scripts.
"""

from __future__ import annotations

_ADDS_ONE_TO_NORMS = {"gemma", "gemma2", "gemma3", "gemma-embedding", "nemotron", "qwen3next", "qwen35", "qwen35moe"}
_PLAIN_NORMS = ("ssm_norm.weight",)  # the norm inside linear attention, which Qwen keeps as it is


def stored_offset(architecture: str, tensor: str) -> float:
    """What the stored values of a tensor (a GGUF name) are larger by than the model's own: 1 or 0."""
    is_norm = tensor.endswith("_norm.weight") and not tensor.endswith(_PLAIN_NORMS)
    return 1.0 if architecture in _ADDS_ONE_TO_NORMS and is_norm else 0.0
