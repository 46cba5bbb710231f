"""Tensor names in both vocabularies: GGUF's (`blk.3.ffn_down.weight`) and Hugging Face's
(`model.layers.3.mlp.down_proj.weight`).

Recipes written for mergekit filter by Hugging Face names; users of llama.cpp think in GGUF names. A filter may use
either. The table lists, for each GGUF name, the names that llama.cpp's converter reads it from in the families that
people merge (Llama, Mistral, Qwen, Gemma, Phi, DeepSeek and the mixture-of-experts variants). It does not know which
family a tensor belongs to: where two call different tensors by one name (Gemma's post_attention_layernorm comes after
attention, Llama's before the feed-forward part), a filter made of that name means both.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)", re.ASCII)

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
    "attn_qkv": ("self_attn.qkv_proj", "linear_attn.in_proj_qkv"),
    "attn_output": ("self_attn.o_proj",),
    "attn_q_norm": ("self_attn.q_norm",),
    "attn_k_norm": ("self_attn.k_norm",),
    "attn_sinks": ("self_attn.sinks",),
    "attn_gate": ("linear_attn.in_proj_z",),
    "attn_q_a": ("self_attn.q_a_proj",),
    "attn_q_a_norm": ("self_attn.q_a_layernorm",),
    "attn_q_b": ("self_attn.q_b_proj",),
    "attn_kv_a_mqa": ("self_attn.kv_a_proj_with_mqa",),
    "attn_kv_a_norm": ("self_attn.kv_a_layernorm",),
    "attn_kv_b": ("self_attn.kv_b_proj",),
    "attn_k_b": ("self_attn.k_b_proj",),
    "attn_v_b": ("self_attn.v_b_proj",),
    "post_attention_norm": ("post_attention_layernorm",),
    "ffn_norm": ("post_attention_layernorm", "pre_feedforward_layernorm"),
    "post_ffw_norm": ("post_feedforward_layernorm",),
    "ffn_gate": ("mlp.gate_proj",),
    "ffn_up": ("mlp.up_proj", "mlp.gate_up_proj"),
    "ffn_down": ("mlp.down_proj",),
    "ffn_gate_inp": ("mlp.gate", "mlp.router", "block_sparse_moe.gate"),
    "ffn_gate_inp_shexp": ("mlp.shared_expert_gate",),
    "exp_probs_b": ("mlp.gate.e_score_correction",),
    "ffn_gate_exps": ("mlp.experts.gate_proj", "block_sparse_moe.experts.w1"),
    "ffn_up_exps": ("mlp.experts.up_proj", "block_sparse_moe.experts.w3"),
    "ffn_gate_up_exps": ("mlp.experts.gate_up_proj",),
    "ffn_down_exps": ("mlp.experts.down_proj", "block_sparse_moe.experts.w2"),
    "ffn_gate_shexp": ("mlp.shared_expert.gate_proj", "mlp.shared_experts.gate_proj"),
    "ffn_up_shexp": ("mlp.shared_expert.up_proj", "mlp.shared_experts.up_proj"),
    "ffn_down_shexp": ("mlp.shared_expert.down_proj", "mlp.shared_experts.down_proj"),
    "ssm_conv1d": ("linear_attn.conv1d",),
    "ssm_norm": ("linear_attn.norm",),
    "ssm_alpha": ("linear_attn.in_proj_a",),
    "ssm_beta": ("linear_attn.in_proj_b",),
    "ssm_out": ("linear_attn.out_proj",),
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
    """The same tensor in another layer; a name outside the blocks stays what it is."""
    match = _BLOCK.fullmatch(name)
    return f"blk.{layer}.{match[2]}" if match else name


@cache
def known_words() -> frozenset[str]:
    """Names of layer 0 and of what lies outside the layers that exist in some model, in both vocabularies.

    A filter that matches no tensor of the models at hand, but one of these, may rightly stand in a recipe that was
    written for several models (`shared_expert`, or `lm_head` where the head is tied).
    """
    stems = [*_OUTSIDE, *(f"blk.0.{part}" for part in _INSIDE)]
    return frozenset(name for stem in stems for suffix in ("weight", "bias") for name in spellings(f"{stem}.{suffix}"))
