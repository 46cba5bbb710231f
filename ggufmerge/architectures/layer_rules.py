"""Which rules (`rules.py`) hold for the layers of which architecture.

Source: llama.cpp v0.5.0, `load_arch_hparams`, `load_arch_tensors` and the graphs in `src/models/*.cpp`,
`src/llama-model.cpp` and `src/llama-hparams.cpp`. Decisions that llama.cpp takes by the tensors a layer has, or by a
value per layer (`layers.PER_LAYER`), move with the layer and need no rule.
"""

from __future__ import annotations

from functools import cache

from ggufmerge.architectures.rules import (
    ExpertStep,
    First,
    Fixed,
    FixedResidualScale,
    FromCount,
    Further,
    HeadSize,
    Lead,
    Listed,
    Needed,
    NoPositions,
    OwnIndexer,
    Part,
    Period,
    Pictures,
    Recurrent,
    ResidualScale,
    Rule,
    SharedCache,
    Slope,
    Stated,
    Window,
    WithoutCache,
)

_DENSE_LEAD = Lead("leading_dense_block_count", "no experts", "experts")
_NO_ROPE = ("no positions (RoPE)", "positions (RoPE)")
_PER_LAYER_EMBEDDING = "tensors such as per_layer_token_embd have a part for each layer"

_WINDOWS = {
    "afmoe": Window(4, needs="size"),
    "cohere2": Window(4),
    "cohere2moe": Window(4, full_first=True),
    "exaone-moe": Window(4),
    "exaone4": Window(4, main=64),
    "gemma-embedding": Window(6),
    "gemma2": Window(2),
    "gemma3": Window(6, needs="size"),
    "gemma3n": Window(5),
    "gpt-oss": Window(2),
    "laguna": Window(4, full_first=True, needs="size"),
    "llama4": Window(4, needs="not 0"),
    "mellum": Window(4, needs="size"),
    "modern-bert": Window(3, full_first=True, needs="size"),
    "muse-glimmer": Window(4),
    "olmo2": Window(4, needs="size"),
    "plamo3": Window(8, needs="size"),
    "smallthinker": Window(4, full_first=True, needs="size"),
}
_DENSE_LEADS = (
    *("afmoe", "bailingmoe", "bailingmoe2", "bailingmoe3", "cohere2moe", "deepseek", "deepseek2", "deepseek2-ocr"),
    *("deepseek32", "dots1", "dots3note", "exaone-moe", "glm-dsa", "glm4moe", "glm5-next", "hy_v4", "kimi-k3"),
    *("kimi-linear", "laguna", "lfm2moe", "minimax-m3", "mistral4", "ernie4_5-moe"),
)
_DEEPSEEK2 = (
    FromCount(((26, "one matrix of queries"), (27, "one matrix of queries")), "queries in two matrices"),
    FromCount(((47, "sigmoid gates"), (48, "sigmoid gates")), "softmax gates", unless="expert_gating_func"),
)
_OTHERS: dict[str, tuple[Rule, ...]] = {
    "afmoe": (Period(*_NO_ROPE, offset=1, period=4),),
    "arwkv7": (First("no value residual"),),
    "baichuan": (FromCount(((32, "RoPE"), (40, "ALiBi")), "neither RoPE nor ALiBi"),),
    "deepseek2": _DEEPSEEK2,
    "deepseek4": (Lead("hash_layer_count", "experts chosen by the token", "experts chosen by a gate"),),
    "ernie4_5-moe": (ExpertStep("interleave_moe_layer_step", 1, lead="leading_dense_block_count"),),
    "gemma2": (FromCount(((46, "the attention scale of Gemma 2 27B"),), "the usual attention scale"),),
    "gemma3": (FromCount(((62, "the attention scale of Gemma 3 27B"),), "the usual attention scale"),),
    "gemma3n": (Fixed(_PER_LAYER_EMBEDDING),),
    "gemma4": (Fixed(_PER_LAYER_EMBEDDING, unless="embedding_length_per_layer_input"), SharedCache()),
    "glm-dsa": (OwnIndexer(),),
    "glm5-next": (Listed("ple.layers", "table of n-grams"), OwnIndexer()),
    "hy_v4": (OwnIndexer(),),
    "hrm_text": (Fixed("its layers are run in cycles, which hrm.layers_per_stack counts"),),
    "kimi-k3": (Period("a residual over several layers", "a plain residual", offset=0, number="attn_res.block_size"),),
    "llama4": (
        ExpertStep("interleave_moe_layer_step", 1),
        Period(*_NO_ROPE, offset=1, period=4),
    ),
    "minicpm": (ResidualScale(),),
    "minicpm3": (FixedResidualScale(),),
    "minimax-01": (Slope(),),
    "mistral4": _DEEPSEEK2,
    "modern-bert": (First("no attn_norm"),),
    "nomic-bert-moe": (ExpertStep("moe_every_n_layers", 0, rest=1),),
    "qwen3vl": (Pictures(),),
    "qwen3vlmoe": (Pictures(),),
    "qwen4exp": (Listed("ple.layers", "table of n-grams"),),
    "rwkv6": (Part("rescale_every_n_layers"),),
    "rwkv7": (First("no value residual"),),
    "smallthinker": (NoPositions(*_NO_ROPE, offset=0, period=4),),
    "wavtokenizer-dec": (Fixed("they are of three kinds, each with a number of its own"),),
    "smollm3": (Period(*_NO_ROPE, offset=1, period=4),),
}
_RECURRENT = {
    "minimax-01": Recurrent(8),
    "qwen35": Recurrent(4),
    "qwen35moe": Recurrent(4),
    "qwen3next": Recurrent(4),
    "qwen4exp": Recurrent(4),
}
_STATED = ("dots3note", "granite_swa", "maple", "mimo2", "spark2_5", "step35")
_WITHOUT_CACHE = (
    *("bailingmoe3", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe"),
    *("nemotron_h", "nemotron_h_moe", "plamo2"),
)
_BOTH_WINDOWS = ("dots3note", "gemma-embedding", "llama4", "modern-bert")


@cache
def layer_rules(architecture: str) -> tuple[Rule, ...]:
    """The rules that hold for an architecture, in an order in which each finds the numbers that those before it set."""
    found: list[Rule] = [Further(), HeadSize()]
    if architecture in _DENSE_LEADS:
        found.append(_DENSE_LEAD)
    found += [table[architecture] for table in (_WINDOWS, _RECURRENT) if architecture in table]
    return (*found, *_OTHERS.get(architecture, ()), *_needed(architecture))


def _needed(architecture: str) -> list[Rule]:
    """Kinds of layers that a model of the architecture cannot be without."""
    found: list[Rule] = []
    stated: Rule = Stated(Window.pattern, "sliding attention", "full attention")
    windows: dict[str, Rule] = {**dict.fromkeys(_STATED, stated), **_WINDOWS}
    if architecture in windows:
        found.append(Needed(windows[architecture], both=architecture in _BOTH_WINDOWS))
    if architecture in _RECURRENT:
        found.append(Needed(_RECURRENT[architecture], both=True))
    if architecture in _WITHOUT_CACHE:
        no_cache = ("attention.head_count_kv", "recurrent attention", "full attention")
        found.append(Needed(WithoutCache(*no_cache, feed_forward=architecture.startswith("nemotron_h")), both=True))
    return found
