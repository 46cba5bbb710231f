"""How much memory llama.cpp needs for a model: weights, what it remembers of the text, and room to compute.

Keys, values and states are exact. The room to compute is an upper bound: the largest moment of the graph that
llama.cpp reserves for a batch of 512 tokens, told from the shapes of the tensors. `docs/memory.md` has the figures.

Source: llama.cpp v0.5.0, `llama_context::sched_reserve` and `output_reserve` of `src/llama-context.cpp`,
`src/llama-graph.cpp`, and for repacked weights `ggml_repack_get_optimal_repack_type` of `ggml/src/ggml-cpu/repack.cpp`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ggufmerge import keys
from ggufmerge.architectures.caches import (
    DRAFTS,
    MOST_LAYERS,
    NO_CACHE,
    Memory,
    head_widths,
    heads,
    is_latent,
    memory_of,
    padded,
    per_layer,
)
from ggufmerge.architectures.layers import Layers
from ggufmerge.architectures.tensors import is_known
from ggufmerge.types import TensorType

BATCH = 512  # tokens that llama.cpp computes at once unless it is told otherwise
CONTEXT = 4096  # tokens, of which most programs remember no more unless they are told otherwise
CACHE_TYPES = (  # in which llama.cpp keeps keys and values on a CPU
    TensorType.F16,
    TensorType.F32,
    TensorType.BF16,
    TensorType.Q8_0,
    TensorType.Q5_1,
    TensorType.Q5_0,
    TensorType.Q4_1,
    TensorType.Q4_0,
    TensorType.IQ4_NL,
)

_REPACKED = (TensorType.Q4_0, TensorType.Q4_K, TensorType.IQ4_NL)  # with AVX2
_NEVER_REPACKED = (keys.EMBEDDING, keys.PER_LAYER_EMBEDDING)
_LANES = 8  # rows that are repacked together
_ALIGNMENT = 32  # of tensors in a buffer
_FLOAT = 4
_HALF = 2
_WITHOUT_LOGITS = NO_CACHE - {"dream", "llada", "llada-moe", "rnd1"} | {"t5encoder"}
_WHOLE_TEXT = NO_CACHE | {"t5encoder", "llama-embed"}
_PLAIN_ATTENTION = {"grok": 1, "t5": 4, "t5encoder": 4}  # without flash attention: times scores are stored
# Sparse attention: bytes for each token and cell while what to attend to is looked up, as measured with tiny models
_SPARSE = {"deepseek32": 56, "glm-dsa": 56, "hy_v4": 56, "dots3note": 34, "glm5-next": 18, "qwen4exp": 30} | {
    "deepseek4": 3
}
# How often the width of the stream is alive besides what the matrices show, where it is more than elsewhere
_STREAMS = dict.fromkeys(("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"), 22) | {"cohere2moe": 9, "kimi-k3": 14}
_INPUTS = 16  # places, ids and the like


class Described(Protocol):
    """A tensor of which the type and the shape are known."""

    @property
    def type(self) -> TensorType: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class MemoryNeed:
    """What llama.cpp needs to run a model on a CPU, in bytes.

    weights: all tensors, whether they are mapped or repacked.  repacked: how much of it llama.cpp copies in another
        order (with AVX2); the pages of the file from which it did stay in the system's cache until it needs the space.
    cache: keys and values.  state: what recurrent layers keep.  compute: at most, for a batch of 512 tokens.
    output: the logits.  context: tokens, a multiple of 256.  cache_type: of keys and values.
    is_known: False when the architecture is not known, so that `cache` counts on the most that a layer can have.
    """

    weights: int
    repacked: int
    cache: int
    state: int
    compute: int
    output: int
    context: int
    cache_type: TensorType
    is_known: bool = True

    @property
    def beside_weights(self) -> int:
        """All but the weights."""
        return self.cache + self.state + self.compute + self.output

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.beside_weights


def memory_need(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Described],
    context: int | None = None,
    cache_type: TensorType = TensorType.F16,
) -> MemoryNeed | None:
    """What a model needs with a context of so many tokens; None when it is no language model that llama.cpp runs alone.

    metadata: of the file.  tensors: name -> shape and type, in the order of the file or any other.
    context: tokens; 4096 when it is None, or what the model was trained on if that is less.
    """
    layers = _layers(metadata)
    embedding = tensors.get(keys.EMBEDDING, tensors.get(keys.HEAD))
    if layers is None or embedding is None or len(embedding.shape) != 2 or 0 in embedding.shape:
        return None
    context = padded(max(1, _usual_context(layers) if context is None else context))
    remembered = memory_of(layers)
    window = remembered.window or 0
    cache = sum(
        _row(one.keys, cache_type, one.cells(context, window, BATCH))
        + _row(one.values, cache_type, one.cells(context, window, BATCH))
        for one in remembered.caches
    )
    return MemoryNeed(
        weights=sum(_bytes(tensor) for tensor in tensors.values()),
        repacked=sum(_bytes(tensor) for name, tensor in tensors.items() if _is_repacked(name, tensor)),
        cache=cache,
        state=_FLOAT * remembered.state,
        compute=_compute(layers, tensors, remembered, context),
        output=_FLOAT * embedding.shape[0],
        context=context,
        cache_type=cache_type,
        is_known=is_known(layers.architecture),
    )


def _layers(metadata: Mapping[str, Any]) -> Layers | None:
    arch = metadata.get(keys.ARCHITECTURE)
    if not isinstance(arch, str) or arch in DRAFTS:
        return None
    layers = Layers(arch, 0, metadata)
    count = layers.integer("block_count")
    return Layers(arch, count, metadata) if count is not None and 0 < count <= MOST_LAYERS else None


def _usual_context(layers: Layers) -> int:
    return min(CONTEXT, layers.integer("context_length") or CONTEXT)


def _row(width: int, type: TensorType, rows: int) -> int:  # noqa: A002
    if width % type.block_size:
        type = TensorType.F16  # noqa: A001
    return type.row_bytes(width) * rows if width else 0


def _bytes(tensor: Described) -> int:
    shape = tensor.shape or (1,)
    size = tensor.type.row_bytes(shape[-1]) * math.prod(shape[:-1])
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _is_repacked(name: str, tensor: Described) -> bool:
    is_matrix = len(tensor.shape) == 2 or (len(tensor.shape) == 3 and "_exps" in name)
    return (
        is_matrix
        and tensor.type in _REPACKED
        and tensor.shape[-2] % _LANES == 0
        and name.endswith(".weight")
        and name not in _NEVER_REPACKED
    )


def _compute(layers: Layers, tensors: Mapping[str, Described], remembered: Memory, context: int) -> int:
    """At most what the largest moment of the graph takes.

    What is alive then: the masks, which stay to the end; the stream of the layers with its norms; and the inside of
    attention, of the feed-forward part, or of recurrent attention, or the logits, whichever is the largest.
    """
    tokens = min(BATCH, context)
    return tokens * (_FLOAT * _widest_moment(layers, tensors, tokens) + _scores(layers, remembered, context, tokens))


def _scores(layers: Layers, remembered: Memory, context: int, tokens: int) -> int:
    """Bytes for each token of a batch that grow with the context: masks, and scores where these are stored."""
    arch = layers.architecture
    has_full = any(not cache.window for cache in remembered.caches)
    has_window = any(cache.window for cache in remembered.caches)
    each = _HALF
    if arch in _PLAIN_ATTENTION:
        each = _FLOAT * (1 + _PLAIN_ATTENTION[arch] * max(heads(layers), default=1))
    if arch in _WHOLE_TEXT:  # every token of a batch looks at every other, with and without a window
        return tokens * each * (1 if remembered.window is None else 2)
    each += _SPARSE.get(arch, 0)
    if arch == "minimax-m3":
        each += 3 * _FLOAT * (layers.integer("attention.indexer.head_count") or 1)
    seen = padded(min(context, (remembered.window or 0) + BATCH)) if has_window else 0
    return each * context * has_full + _HALF * seen


def _widest_moment(layers: Layers, tensors: Mapping[str, Described], tokens: int) -> int:
    """The most float32 values for each token of a batch that are alive at once, inputs among them."""
    arch = layers.architecture
    head = tensors[keys.HEAD] if keys.HEAD in tensors else tensors[keys.EMBEDDING]
    width = head.shape[-1]
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    for name, tensor in tensors.items():
        place, _, part = name.removesuffix(".weight").rpartition(".")
        if name.endswith(".weight") and len(tensor.shape) >= 2:
            parts.setdefault(place, {})[part] = (tensor.shape[-2], tensor.shape[-1])
    used = max(per_layer(layers, "expert_used_count"), default=0)
    streams = 2 * (layers.integer("hyper_connection.count") or 0)
    stream = (_STREAMS.get(arch, 7) + streams) * width
    moments = [max(_feed_forward(part, used), _attention(part)) for part in parts.values()]
    moments = [max(moments, default=0) + _of_heads(layers, tokens)]
    if arch not in _WITHOUT_LOGITS:
        moments.append(head.shape[0])
    return stream + max(moments) + _INPUTS


def _feed_forward(parts: Mapping[str, tuple[int, int]], used: int) -> int:
    """Values for each token inside the feed-forward part of a layer, from the (rows, columns) of its matrices."""
    found = [0]
    for kind, times in (("", 1), ("_exps", used), ("_shexp", 1), ("_chexps", used)):
        rows = sum(parts.get(f"ffn_{name}{kind}", (0, 0))[0] for name in ("up", "gate", "gate_up"))
        inner = parts.get(f"ffn_down{kind}", (0, 0))[1]
        found.append(times * (rows if rows <= inner else rows + inner))  # without a gate it changes where it is
    return max(found)


def _attention(parts: Mapping[str, tuple[int, int]]) -> int:
    """Values for each token inside the attention of a layer, of whatever kind."""
    rows = {name: shape[0] for name, shape in parts.items()}
    queries = max(rows.get("attn_q", 0), rows.get("attn_q_b", 0))
    plain = 2 * queries + 2 * rows.get("attn_k", 0) + rows.get("attn_v", 0) + rows.get("attn_gate", 0)
    fused = 2 * rows.get("attn_qkv", 0) + rows.get("attn_gate", 0)
    latent = 3 * (queries + rows["attn_kv_b"]) + 2 * rows.get("attn_kv_a_mqa", 0) if "attn_kv_b" in rows else 0
    if "ssm_out" in rows or "ssm_conv1d" in rows:
        fused = 3 * (rows.get("attn_qkv", 0) + rows.get("attn_gate", 0))
        plain *= 2
    states = 3 * max(rows.get("ssm_in", 0), rows.get("ssm_conv1d", 0))
    return max(plain, fused, latent, states) + 4 * rows.get("per_layer_model_proj", 0)


def _of_heads(layers: Layers, tokens: int) -> int:
    """What is there for each token and head besides, where the matrices do not show it."""
    arch, count = layers.architecture, max(heads(layers), default=0)
    if arch == "minimax-01":  # how far each token of a batch has faded for each other
        return 3 * count * tokens
    if not is_latent(layers):
        return 0
    wide, low = head_widths(layers, False)[0], layers.integer("attention.kv_lora_rank") or 0
    return count * (wide + low) + wide
