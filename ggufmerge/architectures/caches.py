"""What llama.cpp remembers of a text, layer by layer: keys and values of attention, and the state of recurrent layers.

A `Cache` is a row of values for each cell (a token of the context, or of the window that a layer looks back on), a
`State` is there once for a text, however long it is. Both follow from metadata alone.

Source: llama.cpp v0.5.0, `create_memory` of `src/llama-model.cpp`, `src/llama-kv-cache*.cpp`, `src/llama-memory-*.cpp`,
`src/llama-hparams.cpp`, and what `load_arch_hparams` in `src/models/*.cpp` reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggufmerge.architectures.layer_rules import layer_rules
from ggufmerge.architectures.layers import Layers
from ggufmerge.architectures.rules import Recurrent, Window

MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
MOST = 1 << 31  # what no number of a model reaches
PADDING = 256  # of cells

NO_CACHE = frozenset(  # these read a whole text at once and keep nothing of it
    {
        *("bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert"),
        *("modern-bert", "gemma-embedding", "gemma-embedding2", "wavtokenizer-dec"),
        *("dream", "llada", "llada-moe", "rnd1", "clef"),
    }
)
DRAFTS = frozenset({"dflash", "eagle3", "gemma4-assistant"})  # work in the context of another model only
_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
_WITHOUT_KV_IS_RECURRENT = frozenset(
    {
        *("jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "kimi-linear"),
        *("bailingmoe3", "kimi-k3", "glm5-next"),
    }
)
_FURTHER_TOO = frozenset({"bailingmoe3", "hy_v4", "deepseek4"})  # layers that predict further tokens have a cache, too
_LATENT = frozenset(  # keys from which the values are computed (MLA), in files that say how wide both are
    {
        *("deepseek2", "deepseek32", "glm-dsa", "hy_v4", "kimi-linear", "kimi-k3", "bailingmoe3", "glm5-next"),
        *("dots3note", "mistral4"),
    }
)
_STATED_WINDOWS = frozenset(
    {*("dots3note", "gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35", "deepseek4", "lfm2")}
)
_WINDOW_SIZES = {"exaone4": 4096, "gemma2": 4096, "exaone-moe": 128}  # unless a file says another
_FIXED_WINDOW_SIZES = {"llama4": 8192, "smallthinker": 4096}  # whatever it says
_WITHOUT_GROUPS = frozenset({"mamba", "jamba"})  # `ssm.group_count` is not read
_INDEXERS = frozenset({"deepseek32", "glm-dsa", "hy_v4", "dots3note", "glm5-next", "minimax-m3", "qwen4exp"})
_INDEXER_FOR_ALL_BELOW = 1048576  # GLM 5 and 5.1: every layer has an indexer; their context is shorter
_CSA, _HCA = 4, 128  # how many tokens a cell of DeepSeek 4 stands for


@dataclass(frozen=True)
class Cache:
    """Rows of keys and values of one layer, each for one cell.

    keys, values: values in a row of each; 0 for none.  cells: of which kind, see `cells_of`.
    """

    keys: int
    values: int
    window: bool = False
    ratio: int = 1

    def cells(self, context: int, window: int, batch: int) -> int:
        """How many cells there are for a context, which is a multiple of PADDING."""
        if self.ratio > 1:
            return padded(-(-context // self.ratio))
        return padded(min(context, window + batch)) if self.window else context


def padded(cells: int) -> int:
    """The next multiple of PADDING."""
    return -(-cells // PADDING) * PADDING


@dataclass(frozen=True)
class Memory:
    """What is remembered of a text.

    caches: one or two for each layer of attention.  state: float32 values that recurrent layers keep.
    window: tokens that layers with sliding attention look back on; None where no layer has it.
    """

    caches: tuple[Cache, ...]
    state: int
    window: int | None


def memory_of(layers: Layers) -> Memory:
    """What llama.cpp v0.5.0 remembers for a model that has these layers."""
    arch = layers.architecture
    if arch in NO_CACHE:
        return Memory((), 0, window_size(layers) if any(sliding(layers)) else None)
    window = window_size(layers) if any(sliding(layers)) else None
    return Memory(tuple(_caches(layers)), _state(layers), window)


def sliding(layers: Layers) -> list[bool]:
    """Which layers look back on a window only."""
    arch, none = layers.architecture, [False] * layers.count
    if arch == "deepseek4":
        return [True] * layers.count
    if arch == "lfm2":
        return [not layer for layer in recurrent(layers)] if layers.integer("attention.sliding_window") else none
    rule = next((rule for rule in layer_rules(arch) if isinstance(rule, Window)), None)
    if rule is not None:
        return [bool(value) for value in rule.of(layers)]
    given = layers.values(Window.pattern) if arch in _STATED_WINDOWS else None
    return [i < len(given) and bool(given[i]) for i in range(layers.count)] if given is not None else none


def window_size(layers: Layers) -> int:
    """How many tokens a layer with sliding attention looks back on."""
    arch = layers.architecture
    return _FIXED_WINDOW_SIZES.get(arch, _number(layers, "attention.sliding_window", _WINDOW_SIZES.get(arch, 0)))


def recurrent(layers: Layers) -> list[bool]:
    """Which layers keep a state in the place of keys and values; in Falcon-H1 all keep both."""
    arch = layers.architecture
    if arch in _RECURRENT or arch == "falcon-h1":
        return [i < layers.main for i in range(layers.count)]
    if arch in _WITHOUT_KV_IS_RECURRENT:
        heads, wide = key_heads(layers), per_layer(layers, "feed_forward_length")
        has_part = arch.startswith("nemotron_h")
        return [i < layers.main and not heads[i] and not (has_part and wide[i]) for i in range(layers.count)]
    rule = next((rule for rule in layer_rules(arch) if isinstance(rule, Recurrent)), None)
    return [bool(value) for value in rule.of(layers)] if rule is not None else [False] * layers.count


def per_layer(layers: Layers, what: str, default: int | None = None) -> list[int]:
    """A number of each layer, whether the file has one for all or a list."""
    values = layers.values(what)
    if values is None:
        return [_number(layers, what, default or 0)] * layers.count
    read = [value if isinstance(value, int) and 0 <= value < MOST else 0 for value in values[: layers.count]]
    return read + [0] * (layers.count - len(read))


def heads(layers: Layers) -> list[int]:
    """Heads of queries of each layer."""
    return per_layer(layers, "attention.head_count")


def key_heads(layers: Layers) -> list[int]:
    """Heads of keys and values of each layer."""
    if layers.key("attention.head_count_kv") in layers.metadata:
        return per_layer(layers, "attention.head_count_kv")
    return heads(layers)


def head_widths(layers: Layers, is_sliding: bool) -> tuple[int, int]:
    """Values in a head of keys and in one of values."""
    first = heads(layers)[0] if layers.count else 0
    usual = _number(layers, "embedding_length", 0) // first if first else 0
    keys = _number(layers, "attention.key_length", usual) if first else 0
    values = _number(layers, "attention.value_length", usual) if first else 0
    if layers.architecture == "plamo2":
        keys = _number(layers, "attention.key_length", usual)
        values = _number(layers, "attention.value_length", usual)
    if layers.architecture in ("glm5-next", "kimi-k3"):
        values = _number(layers, "attention.kv_lora_rank", 0)
    if is_sliding:
        return _number(layers, "attention.key_length_swa", keys), _number(layers, "attention.value_length_swa", values)
    return keys, values


def is_latent(layers: Layers) -> bool:
    """Whether values are computed from the keys, so that only these are kept (MLA)."""
    return layers.architecture in _LATENT and bool(
        layers.integer("attention.key_length_mla") and layers.integer("attention.value_length_mla")
    )


def _caches(layers: Layers) -> Iterator[Cache]:
    arch = layers.architecture
    if arch == "deepseek4":
        yield from _compressed(layers)
        return
    windows, states, groups = sliding(layers), recurrent(layers), key_heads(layers)
    wide = per_layer(layers, "feed_forward_length")
    indexers = _indexers(layers)
    for layer in range(_cached(layers)):
        if states[layer] and arch != "falcon-h1":
            continue
        if arch.startswith("nemotron_h") and wide[layer]:
            continue
        keys, values = head_widths(layers, windows[layer])
        kept = 0 if is_latent(layers) else values * groups[layer]
        yield from [Cache(keys * groups[layer], kept, windows[layer])] * (_loops(layers))
        if indexers[layer] is not None:
            yield indexers[layer]  # type: ignore[misc]
    if arch == "graniteswitch":  # a layer of one head that chooses among adapters
        yield Cache(*head_widths(layers, False))


def _cached(layers: Layers) -> int:
    """How many layers may have a cache: those at the end may use that of another, or not be run."""
    arch = layers.architecture
    count = layers.count if arch in _FURTHER_TOO or layers.main == 0 else layers.main
    if arch == "gemma3n":
        return min(count, 20)
    if arch == "gemma4":
        return max(0, layers.count - _number(layers, "attention.shared_kv_layers", 0))
    return count


def _loops(layers: Layers) -> int:
    return min(_number(layers, "num_loops", 1), MOST_LAYERS) if layers.architecture == "nanbeige" else 1


def _indexers(layers: Layers) -> list[Cache | None]:
    """The keys by which sparse attention looks up what to attend to."""
    arch = layers.architecture
    none: list[Cache | None] = [None] * layers.count
    size = _number(layers, "attention.indexer.key_length", 0)
    if arch not in _INDEXERS or not size:
        return none
    if arch == "hy_v4" and not layers.integer("attention.indexer.top_k"):
        return none
    row = Cache(size, 0)
    if arch == "minimax-m3":
        row = Cache(size, head_widths(layers, False)[1])
        lead = _number(layers, "leading_dense_block_count", 0)
        return [row if i >= lead else None for i in range(layers.count)]
    if arch == "glm5-next":
        row = Cache(3 * size, 0)
    if arch == "qwen4exp":
        row = Cache((2 if any(per_layer(layers, "attention.compress_ratios")) else 1) * size, 0)
        return [row] * layers.count
    full = _own_indexers(layers)
    windows = sliding(layers)
    return [row if full[i] and not windows[i] else None for i in range(layers.count)]


def _own_indexers(layers: Layers) -> list[bool]:
    """Which layers have an indexer of their own and do not use that of a layer before them."""
    if layers.architecture == "deepseek32":
        return [True] * layers.count
    if layers.key("attention.indexer.types") in layers.metadata:
        return [bool(value) for value in per_layer(layers, "attention.indexer.types")]
    long = (layers.integer("context_length") or 0) >= _INDEXER_FOR_ALL_BELOW
    if layers.architecture == "glm-dsa" and long:
        return [i < 2 or (i - 2) % 4 == 0 for i in range(layers.count)]
    return [True] * layers.count


def _compressed(layers: Layers) -> Iterator[Cache]:
    keys, groups = head_widths(layers, True)[0], key_heads(layers)
    size = _number(layers, "attention.indexer.key_length", 0)
    ratios = per_layer(layers, "attention.compress_ratios")
    for layer in range(layers.count):
        yield Cache(keys * groups[layer], 0, window=True)
        if ratios[layer] in (_CSA, _HCA):
            yield Cache(keys * groups[layer], 0, ratio=ratios[layer])
        if ratios[layer] == _CSA:
            yield Cache(size, 0, ratio=_CSA)


def _state(layers: Layers) -> int:
    arch = layers.architecture
    if arch == "deepseek4":
        keys, size = head_widths(layers, True)[0], _number(layers, "attention.indexer.key_length", 0)
        ratios = per_layer(layers, "attention.compress_ratios")
        each = {_CSA: 2 * 2 * _CSA * (2 * keys + 2 * size), _HCA: 2 * _HCA * keys}
        return sum(each.get(ratio, 0) for ratio in ratios)
    return sum(map(bool, recurrent(layers))) * _layer_state(layers) + _history(layers)


def _layer_state(layers: Layers) -> int:
    width = _number(layers, "embedding_length", 0)
    head_count = heads(layers)[0] if layers.count else 0
    kernel = _number(layers, "ssm.conv_kernel", 0)
    if wkv := _number(layers, "wkv.head_size", 0):
        return (_number(layers, "token_shift_count", 2) + wkv) * width
    if shortconv := _number(layers, "shortconv.l_cache", 0):
        return width * (shortconv - 1)
    if kda := _number(layers, "kda.head_dim", 0):
        return 3 * (kernel - 1 if kernel else 3) * head_count * kda + kda * kda * head_count
    if layers.architecture == "minimax-01":
        size = head_widths(layers, False)[0]
        return size * size * head_count
    inner, state = _number(layers, "ssm.inner_size", 0), _number(layers, "ssm.state_size", 0)
    groups = 0 if layers.architecture in _WITHOUT_GROUPS else _number(layers, "ssm.group_count", 0)
    return max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner


def _history(layers: Layers) -> int:
    """What layers with a table of n-grams keep of the last tokens."""
    if layers.architecture not in ("qwen4exp", "glm5-next"):
        return 0
    kernel, size = _number(layers, "ple.conv_kernel", 0), _number(layers, "ple.ngram_size", 0)
    width = _number(layers, "hyper_connection.count", 0) * _number(layers, "embedding_length", 0)
    states = recurrent(layers)
    listed = {i for i in layers.values("ple.layers") or () if isinstance(i, int) and 0 <= i < layers.main}
    count = sum(states[i] for i in listed)
    return count * max(kernel - 1, 0) * size * width


def _number(layers: Layers, what: str, default: int) -> int:
    value = layers.integer(what)
    if value is None:  # a list of one number for each layer: that of the first
        values = layers.values(what)
        value = values[0] if values and isinstance(values[0], int) else None
    return default if value is None or not 0 <= value < MOST else value
