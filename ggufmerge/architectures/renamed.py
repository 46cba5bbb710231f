"""What llama.cpp's converters rename, split or join before they look names up, so that gguf's table does not know it.

Source: `modify_tensors` (and `filter_tensors`) of the class whose `model_arch` is the architecture, in conversion/ of
llama.cpp v0.5.0: baichuan.py, bailingmoe.py, bailingmoe3.py, bert.py, chatglm.py, deepseek.py, dots3.py, ernie.py,
glm.py, gpt_oss.py, granite.py, internlm.py, kimi_k3.py, kimi_linear.py, llama.py, mamba.py, mistral.py, nemotron.py,
openelm.py, qwen.py, t5.py.
"""

from __future__ import annotations

_Table = dict[str, tuple[str, ...]]

# Hugging Face names of which a tensor of an architecture is made besides those in gguf's table. {bid} is the layer's
# number. One name may be split into several tensors, which a filter then all reaches.
_SPLIT_KV_B: _Table = {
    "blk.{bid}.attn_k_b": ("model.layers.{bid}.self_attn.kv_b_proj",),
    "blk.{bid}.attn_v_b": ("model.layers.{bid}.self_attn.kv_b_proj",),
}
_SPLIT_QKVZ: _Table = {
    "blk.{bid}.attn_qkv": ("model.layers.{bid}.linear_attn.in_proj_qkvz",),
    "blk.{bid}.attn_gate": ("model.layers.{bid}.linear_attn.in_proj_qkvz",),
}
_SPLIT_EXPERTS: _Table = {
    "blk.{bid}.ffn_gate_exps": ("model.layers.{bid}.mlp.experts.gate_up_proj",),
    "blk.{bid}.ffn_up_exps": ("model.layers.{bid}.mlp.experts.gate_up_proj",),
}
_GRANITE_EXPERTS: _Table = {
    "blk.{bid}.ffn_gate_exps": ("model.layers.{bid}.block_sparse_moe.input_linear",),
    "blk.{bid}.ffn_up_exps": ("model.layers.{bid}.block_sparse_moe.input_linear",),
    "blk.{bid}.ffn_gate_shexp": ("model.layers.{bid}.shared_mlp.input_linear",),
    "blk.{bid}.ffn_up_shexp": ("model.layers.{bid}.shared_mlp.input_linear",),
    "blk.{bid}.ffn_gate": ("model.layers.{bid}.shared_mlp.input_linear",),
    "blk.{bid}.ffn_up": ("model.layers.{bid}.shared_mlp.input_linear",),
    "blk.{bid}.ffn_down": ("model.layers.{bid}.shared_mlp.output_linear",),
}


def _of_qkv(name: str) -> _Table:
    """Q, K and V that a converter takes apart."""
    return {f"blk.{{bid}}.attn_{part}": (name,) for part in "qkv"}


RENAMED: dict[str, _Table] = {
    "baichuan": _of_qkv("model.layers.{bid}.self_attn.W_pack"),
    "bailingmoe": _of_qkv("model.layers.{bid}.attention.query_key_value"),
    "bailingmoe3": {
        "blk.{bid}.attn_k_b": ("model.layers.{bid}.attention.kv_b_proj",),
        "blk.{bid}.attn_v_b": ("model.layers.{bid}.attention.kv_b_proj",),
    },
    "deepseek2": _SPLIT_KV_B,
    "deepseek2-ocr": _SPLIT_KV_B,
    "deepseek32": _SPLIT_KV_B,
    "dots3note": _SPLIT_KV_B,
    "ernie4_5": _of_qkv("model.layers.{bid}.self_attn.qkv_proj")
    | {
        "blk.{bid}.ffn_gate": ("model.layers.{bid}.mlp.up_gate_proj",),
        "blk.{bid}.ffn_up": ("model.layers.{bid}.mlp.up_gate_proj",),
    },
    "glm-dsa": _SPLIT_KV_B,
    "glm5-next": _SPLIT_KV_B,
    "gpt-oss": _SPLIT_EXPERTS,
    "granite_swa": _GRANITE_EXPERTS,
    "granitehybrid": _GRANITE_EXPERTS,
    "granitemoe": _GRANITE_EXPERTS,
    "internlm2": _of_qkv("model.layers.{bid}.attention.wqkv"),
    "kimi-k3": _SPLIT_KV_B,
    "kimi-linear": _SPLIT_KV_B,
    "llama4": {
        "blk.{bid}.ffn_gate_exps": ("model.layers.{bid}.feed_forward.experts.gate_up_proj",),
        "blk.{bid}.ffn_up_exps": ("model.layers.{bid}.feed_forward.experts.gate_up_proj",),
    },
    "mistral4": _SPLIT_KV_B,
    "nemotron_h_moe": {
        "blk.{bid}.ffn_up_exps": ("backbone.layers.{bid}.mixer.experts.up_proj",),
        "blk.{bid}.ffn_down_exps": ("backbone.layers.{bid}.mixer.experts.down_proj",),
    },
    "openelm": {
        "blk.{bid}.ffn_gate": ("transformer.layers.{bid}.ffn.proj_1",),
        "blk.{bid}.ffn_up": ("transformer.layers.{bid}.ffn.proj_1",),
    },
    "qwen2moe": _SPLIT_EXPERTS,
    "qwen3moe": _SPLIT_EXPERTS,
    "qwen3next": _SPLIT_QKVZ | _SPLIT_EXPERTS,
    "qwen3vlmoe": _SPLIT_EXPERTS,
    "qwen35": _SPLIT_QKVZ,
    "qwen35moe": _SPLIT_QKVZ | _SPLIT_EXPERTS,
    "t5": {"token_embd": ("encoder.embed_tokens", "decoder.embed_tokens")},
    "t5encoder": {"token_embd": ("encoder.embed_tokens",)},
}

# What some checkpoints of an architecture have before the names that gguf's table lists, and converters take away.
PREFIXES: dict[str, tuple[str, ...]] = {
    "bert": ("bert.", "roberta.", "distilbert."),
    "bloom": ("transformer.",),
    "chatglm": ("transformer.",),
    "eurobert": ("model.",),
    "jina-bert-v3": ("roberta.",),
    "mamba2": ("model.",),
    "modern-bert": ("model.",),
    "neo-bert": ("model.",),
    "nomic-bert": ("bert.",),
}

# The ends of names that converters write otherwise, for a bias: (in gguf's table, in the checkpoint).
BIASES = ((".dt_proj", ".dt_bias"), (".dt", ".dt_bias"), (".e_score_correction", ".e_score_correction_bias"))

# Where a model that also sees or hears keeps its language model: what stands there for the first part of the names.
MULTIMODAL = {
    "model.": ("model.language_model.", "language_model.model.", "model.text_model."),
    "lm_head": ("language_model.lm_head", "model.language_model.lm_head"),
}
