"""Architectures that Ollama calls otherwise than llama.cpp, and what its files of them have other names for.

Ollama converted some models itself before it loaded everything through llama.cpp. Its published files keep their names;
Ollama translates them as it loads them, and llama.cpp itself reads none of them.

Source: Ollama's `llama/compat/README.md` and the handlers `handle_*` in `llama/compat/llama-ollama-compat.cpp` (2026),
which rename tensors and metadata and say where the data of tensors are others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spelling:
    """What llama.cpp calls an architecture of Ollama's.

    same: whether the tensors hold the same, so that they only need other names.
    renamed: the names of tensors of a layer that are others, behind `blk.N.`, with those of llama.cpp.
    """

    architecture: str
    same: bool = True
    renamed: dict[str, str] = field(default_factory=dict)


_OLLAMA = {
    "deepseekocr": Spelling("deepseek2-ocr"),
    "glm4moelite": Spelling("deepseek2"),
    "glmocr": Spelling("glm4", same=False),  # gate and up of the feed-forward part are two tensors, in llama.cpp one
    "gptoss": Spelling(
        "gpt-oss",
        renamed={
            "attn_out.weight": "attn_output.weight",
            "attn_out.bias": "attn_output.bias",
            "attn_sinks": "attn_sinks.weight",
            "ffn_norm.weight": "post_attention_norm.weight",
        },
    ),
    "nemotron_h_omni": Spelling("nemotron_h_moe", same=False),  # or nemotron_h, without experts
    "olmo3": Spelling("olmo2"),
    "qwen25vl": Spelling("qwen2vl"),
}
# Tensors that Ollama's files of an architecture which both call the same have under other names
_OTHER_NAMES = {
    "laguna": {"attn_g.weight": "attn_gate.weight"},
    "lfm2": {"output_norm.weight": "token_embd_norm.weight"},
    "nemotron_h_moe": {
        "ffn_latent_in.weight": "ffn_latent_down.weight",
        "ffn_latent_out.weight": "ffn_latent_up.weight",
    },
    "qwen3next": {"ssm_dt": "ssm_dt.bias"},
    "qwen35": {"ssm_dt": "ssm_dt.bias"},
    "qwen35moe": {"ssm_dt": "ssm_dt.bias"},
}
_LAYER = re.compile(r"(blk\.\d+\.)(.+)", re.ASCII)


def of_ollama(architecture: str) -> Spelling | None:
    """What llama.cpp has for an architecture of Ollama's; None for one that both call the same."""
    return _OLLAMA.get(architecture)


def renamed(name: str, names: Mapping[str, str]) -> str:
    """A tensor under another name, if these have one for what it is called in its layer, or outside of layers."""
    match = _LAYER.fullmatch(name)
    return match[1] + names.get(match[2], match[2]) if match else names.get(name, name)


def to_names_of(architecture: str, own: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """The tensors of a model that another one of its architecture has under other names, by names in layers.

    own, wanted: the names of the tensors of the two.
    """
    table = _OTHER_NAMES.get(architecture, {})
    mine, theirs = ({_in_layer(name) for name in names} for names in (own, wanted))
    both = {**table, **{new: old for old, new in table.items()}}
    return {a: b for a, b in both.items() if a in mine - theirs and b in theirs - mine}


def to_names_of_llama_cpp(architecture: str, own: Iterable[str]) -> dict[str, str]:
    """The tensors of a model that llama.cpp has under other names than Ollama, by names in layers."""
    mine = {_in_layer(name) for name in own}
    return {a: b for a, b in _OTHER_NAMES.get(architecture, {}).items() if a in mine and b not in mine}


def _in_layer(name: str) -> str:
    match = _LAYER.fullmatch(name)
    return match[2] if match else name
