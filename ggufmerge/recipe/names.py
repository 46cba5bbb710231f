"""Tensor names in both vocabularies: GGUF's (`blk.3.ffn_down.weight`) and Hugging Face's
(`model.layers.3.mlp.down_proj.weight`).

Recipes written for mergekit filter by Hugging Face names; users of llama.cpp think in GGUF names. A filter may use
either. The table lists, for each GGUF name, the names that llama.cpp's converter reads it from in the families that
people merge (Llama, Mistral, Qwen, Gemma, Phi and the mixture-of-experts variants).
"""

from __future__ import annotations

import re
from functools import lru_cache

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")

_OUTSIDE = {
    "token_embd": ("model.embed_tokens",),
    "output": ("lm_head",),
    "output_norm": ("model.norm",),
}
_INSIDE = {
    "attn_norm": ("input_layernorm",),
    "attn_q": ("self_attn.q_proj",),
    "attn_k": ("self_attn.k_proj",),
    "attn_v": ("self_attn.v_proj",),
    "attn_qkv": ("self_attn.qkv_proj",),
    "attn_output": ("self_attn.o_proj",),
    "attn_q_norm": ("self_attn.q_norm",),
    "attn_k_norm": ("self_attn.k_norm",),
    "post_attention_norm": ("post_attention_layernorm",),
    "ffn_norm": ("post_attention_layernorm", "pre_feedforward_layernorm"),
    "post_ffw_norm": ("post_feedforward_layernorm",),
    "ffn_gate": ("mlp.gate_proj",),
    "ffn_up": ("mlp.up_proj", "mlp.gate_up_proj"),
    "ffn_down": ("mlp.down_proj",),
    "ffn_gate_inp": ("mlp.gate", "block_sparse_moe.gate"),
    "ffn_gate_exps": ("mlp.experts.gate_proj", "block_sparse_moe.experts.w1"),
    "ffn_up_exps": ("mlp.experts.up_proj", "block_sparse_moe.experts.w3"),
    "ffn_down_exps": ("mlp.experts.down_proj", "block_sparse_moe.experts.w2"),
    "ffn_gate_shexp": ("mlp.shared_expert.gate_proj", "mlp.shared_experts.gate_proj"),
    "ffn_up_shexp": ("mlp.shared_expert.up_proj", "mlp.shared_experts.up_proj"),
    "ffn_down_shexp": ("mlp.shared_expert.down_proj", "mlp.shared_experts.down_proj"),
}


@lru_cache(maxsize=65536)
def spellings(name: str) -> tuple[str, ...]:
    """All names a filter may mean a GGUF tensor by: its own first, then the Hugging Face ones."""
    stem, _, suffix = name.rpartition(".")
    if match := _BLOCK.fullmatch(stem):
        layer, part = match.groups()
        aliases = [f"model.layers.{layer}.{a}" for a in _INSIDE.get(part, ())]
    else:
        aliases = list(_OUTSIDE.get(stem, ()))
    return (name, *(f"{a}.{suffix}" for a in aliases))


def layer_of(name: str) -> int | None:
    """The layer number of a GGUF tensor name, None outside the blocks."""
    match = _BLOCK.fullmatch(name)
    return int(match[1]) if match else None


def with_layer(name: str, layer: int) -> str:
    """The same tensor in another layer."""
    return _BLOCK.sub(lambda m: f"blk.{layer}.{m[2]}", name)


def known_words() -> set[str]:
    """Names that exist in some model, without layer numbers: a filter made of one may rightly match nothing."""
    inside = {"layers.0." + n for names in _INSIDE.values() for n in names} | {"blk.0." + n for n in _INSIDE}
    outside = {n for names in _OUTSIDE.values() for n in names} | set(_OUTSIDE)
    return {w + s for w in inside | outside for s in (".weight", ".bias")}
