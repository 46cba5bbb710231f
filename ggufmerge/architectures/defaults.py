"""What llama.cpp takes for a setting that the metadata of a model do not state.

Source: `llama_model_base::load_hparams` of `src/llama-model.cpp`, `src/llama-hparams.h` and `llama_vocab::impl::load`
of `src/llama-vocab.cpp` in llama.cpp v0.5.0. Defaults that depend on the architecture are left out.
"""

from __future__ import annotations

from typing import Any

# by what stands behind the name of the architecture
NUMBERS: dict[str, Any] = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_group_count": 0,
    "expert_group_used_count": 0,
    "expert_used_count": 0,
    "nextn_predict_layers": 0,
    "rope.freq_base": 10000.0,
    "rope.scaling.alpha": 0.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.type": "linear",
}
# where a missing rope.scaling.finetuned means something else than false
FINETUNED = ("granite", "minicpm")
_SPM = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
_BERT = {
    "bos_token_id": 101,
    "unknown_token_id": 100,
    "seperator_token_id": 102,
    "padding_token_id": 0,
    "mask_token_id": 103,
}
_FLAGS = {"remove_extra_whitespaces": False}
_PLAIN = {"pre": "default", **_FLAGS}  # only BPE has pre-tokenizers
# by `tokenizer.ggml.model`, what stands behind `tokenizer.ggml.`
TOKENIZERS: dict[str, dict[str, Any]] = {
    "llama": {
        **_PLAIN,
        **_SPM,
        "add_space_prefix": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_sep_token": False,
    },
    "gpt2": {**_FLAGS, "add_space_prefix": False, "add_eos_token": False},
    "bert": {
        **_PLAIN,
        **_BERT,
        "add_space_prefix": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_sep_token": True,
    },
    "t5": {
        **_PLAIN,
        "eos_token_id": 1,
        "unknown_token_id": 2,
        "padding_token_id": 0,
        "add_bos_token": False,
        "add_eos_token": True,
        "add_sep_token": False,
    },
    "rwkv": {
        **_PLAIN,
        "add_space_prefix": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "add_sep_token": False,
    },
}
# pre-tokenizers of BPE that put the first token, or a separator, before a text unless they are told not to
STARTING = frozenset(
    {
        "llama3",
        "llama-v3",
        "llama-bpe",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "jina-v5-nano",
        "tekken",
        "chameleon",
    }
)
SEPARATING = frozenset({"jina-v1-en", "jina-v2-code", "roberta-bpe"})
