"""Weights that files of one model have in several layouts: apart, or on top of each other in one tensor.

Whether a file has `attn_q`, `attn_k` and `attn_v` or `attn_qkv`, `ffn_gate_exps` and `ffn_up_exps` or
`ffn_gate_up_exps` was up to who converted the model (`--fuse-qkv` and `--fuse-gate-up-exps` of convert_hf_to_gguf.py).
The rows are the same in the order of the names.

Source: llama.cpp v0.5.0, `create_tensor_qkv` and `create_tensor_gate_up_exps` in `src/llama-model.cpp`, and which of
`src/models/*.cpp` call them; the order of rows is that of `build_qkv` and `build_moe_ffn` in `src/llama-graph.cpp`. In
architectures that are not here llama.cpp reads one of the layouts only, or means something else by the names.
"""

from __future__ import annotations

import re

_SINGLE = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))\.(\d{1,5})\.weight", re.ASCII)
_STACKED = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))_exps\.weight", re.ASCII)

QKV = "attn_qkv", ("attn_q", "attn_k", "attn_v")
GATE_UP = "ffn_gate_up_exps", ("ffn_gate_exps", "ffn_up_exps")

READ_WITH_QKV = frozenset(
    [
        "afmoe",
        "apertus",
        "arcee",
        "arctic",
        "baichuan",
        "bailingmoe",
        "bailingmoe3",
        "bert",
        "chameleon",
        "chatglm",
        "codeshell",
        "cohere2",
        "cohere2moe",
        "command-r",
        "deci",
        "deepseek",
        "deepseek2-ocr",
        "dots1",
        "dream",
        "ernie4_5",
        "ernie4_5-moe",
        "eurobert",
        "exaone",
        "exaone-moe",
        "exaone4",
        "falcon-h1",
        "gemma",
        "gemma-embedding",
        "gemma2",
        "gemma3",
        "gemma3n",
        "glm4",
        "glm4moe",
        "glm5-next",
        "gpt-oss",
        "granite",
        "granite_swa",
        "granitehybrid",
        "granitemoe",
        "grok",
        "grovemoe",
        "hrm_text",
        "hunyuan-dense",
        "hunyuan-moe",
        "hunyuan_vl",
        "hy_v3",
        "internlm2",
        "jais2",
        "jamba",
        "jina-bert-v2",
        "jina-bert-v3",
        "kimi-k3",
        "kimi-linear",
        "laguna",
        "lfm2",
        "lfm2moe",
        "llada",
        "llada-moe",
        "llama",
        "llama-embed",
        "llama4",
        "maincoder",
        "maple",
        "mellum",
        "mimo2",
        "minicpm",
        "minimax-01",
        "minimax-m2",
        "minimax-m3",
        "mistral3",
        "muse-glimmer",
        "nanbeige",
        "nemotron",
        "nemotron_h",
        "nemotron_h_moe",
        "nomic-bert",
        "nomic-bert-moe",
        "olmo",
        "olmo2",
        "olmoe",
        "orion",
        "paddleocr",
        "pangu-embedded",
        "phi2",
        "phi3",
        "phimoe",
        "plamo",
        "pockettts",
        "qwen2",
        "qwen2moe",
        "qwen2vl",
        "qwen3",
        "qwen35",
        "qwen35moe",
        "qwen3moe",
        "qwen3next",
        "qwen3tts",
        "qwen3vl",
        "qwen3vlmoe",
        "qwen4exp",
        "refact",
        "rnd1",
        "seed_oss",
        "smallthinker",
        "smollm3",
        "spark2_5",
        "stablelm",
        "starcoder2",
        "step35",
        "talkie",
        "xverse",
    ]
)
READ_WITH_GATE_UP = frozenset(
    [
        "cohere2moe",
        "deepseek2",
        "deepseek2-ocr",
        "granite_swa",
        "hy_v3",
        "mistral4",
        "qwen35moe",
        "qwen3next",
        "qwen4exp",
    ]
)


def fused_parts(architecture: str) -> dict[str, tuple[str, ...]]:
    """The tensors of a layer that llama.cpp reads in one piece as well as in parts, with the names of the parts."""
    return dict([QKV] * (architecture in READ_WITH_QKV) + [GATE_UP] * (architecture in READ_WITH_GATE_UP))


def of_expert(name: str) -> tuple[str, int] | None:
    """What the stack is called that a tensor of a single expert belongs to, and its place there; None for others.

    Until April 2024 each expert had tensors of its own, `blk.N.ffn_gate.E.weight` (`formats/experts.py`).
    """
    match = _SINGLE.fullmatch(name)
    return (f"{match[1]}_exps.weight", int(match[2])) if match else None


def expert_name(stack: str, expert: int) -> str | None:
    """What the tensor of one expert of a stack was called; None for what is no such stack."""
    match = _STACKED.fullmatch(stack)
    return f"{match[1]}.{expert}.weight" if match else None
