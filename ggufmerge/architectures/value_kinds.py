"""Which kind of value llama.cpp expects under a key: it refuses a file that has another one there.

Source: `gguf_writer.py` of gguf-py in llama.cpp v0.5.0 (`add_float32`, `add_bool`, `add_string`), which all converters
use, and `gguf_get_val_*` as llama.cpp calls it. What is not listed is a whole number, a list, or not known.
"""

from __future__ import annotations

# by what stands behind the name of the architecture
_FLOATS = frozenset(
    {
        *("activation.situ_beta", "activation.situ_linear_beta", "adapters.router_gain", "attention.clamp_kqv"),
        *("attention.compress_rope_freq_base", "attention.group_norm_epsilon", "attention.layer_norm_epsilon"),
        *("attention.layer_norm_rms_epsilon", "attention.max_alibi_bias", "attention.output_scale", "attention.scale"),
        *("attention.temperature_scale", "attention.value_scale", "attn_logit_softcapping", "embedding_scale"),
        *("expert_group_scale", "expert_weights_scale", "final_logit_softcapping", "hyper_connection.epsilon"),
        *("hyper_connection.magnitude", "kda.gate_lower_bound", "logit_scale", "residual_scale", "rope.freq_base"),
        *("rope.freq_base_swa", "rope.scaling.alpha", "rope.scaling.attn_factor", "rope.scaling.factor"),
        *("rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
        *("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_log_multiplier", "router_logit_softcapping"),
        "rope.scale_linear",
    }
)
_SWITCHES = frozenset(
    {
        *("attention.causal", "attention.indexer.kpool_select_tail", "expert_weights_norm", "has_confidence_head"),
        *("hrm.prefix_lm", "kda.safe_gate", "norm_before_fc", "norm_before_residual", "rope.scaling.finetuned"),
        *("sample_from_anchor", "skip_loop_final_norm", "ssm.dt_b_c_rms", "swin_norm", "use_parallel_residual"),
    }
)
_TEXTS = frozenset({"hidden_activation", "rope.scaling.type", "tensor_data_layout"})
# behind `tokenizer.ggml.`
_OF_TOKENIZER: dict[str, type] = {
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix"), bool),
    **dict.fromkeys(("normalizer.lowercase", "normalizer.strip_accents", "remove_extra_whitespaces"), bool),
    **dict.fromkeys(("model", "pre"), str),
}


def kind_of_value(architecture: str, key: str) -> type | None:
    """`float`, `bool` or `str`, whichever the value under a key must be; None when it is something else."""
    if key in ("general.name", "tokenizer.chat_template"):
        return str
    if key.startswith("tokenizer.ggml."):
        return _OF_TOKENIZER.get(key.removeprefix("tokenizer.ggml."))
    what = key.removeprefix(architecture + ".")
    if what == key:
        return None
    kinds: tuple[tuple[frozenset[str], type], ...] = ((_FLOATS, float), (_SWITCHES, bool), (_TEXTS, str))
    return next((kind for names, kind in kinds if what in names), None)
