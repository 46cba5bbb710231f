"""Shows attention that was stored before April 2025 as it is stored since, and the other way round.

`architectures.mla` says what the layouts are. Values go from one to the other exactly; blocks cannot, so what is
transposed is made in F32 as it is read, a head at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ggufmerge import keys
from ggufmerge.architectures.mla import METADATA, READ_WITH_BOTH, is_joined, is_split
from ggufmerge.files import MetadataEditor
from ggufmerge.formats.rearranged import Computed, Span, rearranged
from ggufmerge.formats.stored import StoredTensor
from ggufmerge.sources.model import Source
from ggufmerge.sources.replaced import values
from ggufmerge.types import TensorType

_Parts = dict[str, dict[str, StoredTensor]]
_PLACE = re.compile(r"(blk\.\d+\.)attn_(?:kv_b|k_b|v_b)\.weight", re.ASCII)


def to_attention_of(source: Source, first: Source) -> None:
    """Show the attention of a model in the layout of the first one, if the two have different ones and the shapes fit.

    Not where adapters change it: their changes are not transposed.
    """
    arch = source.file.architecture
    if arch != first.file.architecture or arch not in READ_WITH_BOTH:
        return
    if is_joined(source.tensors) and is_split(first.tensors):
        parts = _split(source, first)
    elif is_split(source.tensors) and is_joined(first.tensors):
        parts = _joined(source)
    else:
        return
    touched = [name for name in parts if name in source.side_tensors or source.changed_by_adapter(name)]
    left = {name for name in source.tensors if _PLACE.fullmatch(name)} - parts.keys()
    if touched or left or any(name in source.replaced for name in parts):
        return
    metadata = MetadataEditor(source.metadata, str(source.file.path))
    for key in (keys.of(arch, name) for name in METADATA):
        if key in first.metadata:
            metadata.set_raw(key, first.metadata.raw(key))
        elif key in metadata:
            metadata.remove(key)
    source.take_apart(parts, metadata)


def _split(source: Source, first: Source) -> _Parts:
    """The keys and the values of each `attn_kv_b` on their own."""
    there = first.tensors
    pairs = ((there[k], there[v]) for k in there if (v := k.replace(".attn_k_b.", ".attn_v_b.")) != k and v in there)
    shapes = next(((k.shape, v.shape) for k, v in pairs if len(k.shape) == len(v.shape) == 3), None)
    if shapes is None:
        return {}
    (heads, rank, n_keys), (_, n_values, _) = shapes
    parts: _Parts = {}
    for layer, tensor in _of_layers(source, "attn_kv_b").items():
        if tensor.shape != (heads * (n_keys + n_values), rank):
            continue
        parts[f"{layer}attn_kv_b.weight"] = {
            part.name: part
            for part in (
                _keys(f"{layer}attn_k_b.weight", tensor, heads, n_keys, n_values),
                _values(f"{layer}attn_v_b.weight", tensor, heads, n_keys, n_values),
            )
        }
    return parts


def _joined(source: Source) -> _Parts:
    """The keys and the values as one tensor."""
    of_keys, of_values = _of_layers(source, "attn_k_b"), _of_layers(source, "attn_v_b")
    parts: _Parts = {}
    for layer in of_keys.keys() & of_values.keys():
        k, v = of_keys[layer], of_values[layer]
        if len(k.shape) == len(v.shape) == 3 and k.shape[0] == v.shape[0] and k.shape[1] == v.shape[2]:
            joined = _both(f"{layer}attn_kv_b.weight", k, v)
            parts |= {k.name: {joined.name: joined}, v.name: {}}
    return parts


def _of_layers(source: Source, part: str) -> Mapping[str, StoredTensor]:
    """The tensors of a name by the beginnings of their names, `blk.N.`."""
    end = f"{part}.weight"
    tensors = source.file.tensors.items()
    return {name.removesuffix(end): tensor for name, tensor in tensors if name.endswith(f".{end}")}


def _keys(name: str, kv: StoredTensor, heads: int, n_keys: int, n_values: int) -> StoredTensor:
    def make(head: int) -> NDArray[np.float32]:
        start = head * (n_keys + n_values)
        return values(kv, start, start + n_keys).T

    shape = heads, kv.n, n_keys
    return Computed(name, shape, TensorType.F32, (kv,), _fitting(kv.type, n_keys), kv.n, make)


def _values(name: str, kv: StoredTensor, heads: int, n_keys: int, n_values: int) -> StoredTensor:
    each = n_keys + n_values
    spans = [Span(kv, head * each + n_keys, (head + 1) * each) for head in range(heads)]
    return rearranged(name, (heads, n_values, kv.n), spans)


def _both(name: str, k: StoredTensor, v: StoredTensor) -> StoredTensor:
    (heads, rank, n_keys), (_, n_values, _) = k.shape, v.shape

    def make(head: int) -> NDArray[np.float32]:
        of_keys = values(k, head * rank, (head + 1) * rank).T
        return np.concatenate([of_keys, values(v, head * n_values, (head + 1) * n_values)])

    each = n_keys + n_values
    return Computed(name, (heads * each, rank), TensorType.F32, (k, v), v.type, each, make)


def _fitting(kind: TensorType, n: int) -> TensorType:
    """A type like this one that rows of `n` values fit."""
    return next(t for t in (kind, TensorType.Q8_0, TensorType.F16) if n % t.block_size == 0)


def shapes_of_attention(architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors by name, with latent attention in the layout of before April 2025."""
    shown = dict(shapes)
    for k in [name for name in shapes if name.endswith(".attn_k_b.weight") and architecture in READ_WITH_BOTH]:
        v = k.replace(".attn_k_b.", ".attn_v_b.")
        of_keys, of_values = shapes[k], shapes.get(v, ())
        if len(of_keys) == len(of_values) == 3:
            del shown[k], shown[v]
            heads, rank, n_keys = of_keys
            shown[k.replace(".attn_k_b.", ".attn_kv_b.")] = (heads * (n_keys + of_values[1]), rank)
    return shown
