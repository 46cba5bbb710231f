"""Architectures that Ollama calls otherwise than llama.cpp, and what its files of them have other names for.

Ollama converted some models itself before it loaded everything through llama.cpp. Its published files keep their names;
Ollama translates them as it loads them, and llama.cpp itself reads none of them.

Source: Ollama's `llama/compat/README.md` and the handlers `handle_*` in `llama/compat/llama-ollama-compat.cpp` (2026),
which rename tensors and metadata and say where the data of tensors are others.
"""

from __future__ import annotations

import re
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
_LAYER = re.compile(r"(blk\.\d+\.)(.+)", re.ASCII)


def of_ollama(architecture: str) -> Spelling | None:
    """What llama.cpp has for an architecture of Ollama's; None for one that both call the same."""
    return _OLLAMA.get(architecture)


def renamed(name: str, spelling: Spelling) -> str:
    """What llama.cpp calls a tensor of a file in a spelling of Ollama's."""
    match = _LAYER.fullmatch(name)
    return match[1] + spelling.renamed.get(match[2], match[2]) if match else name
