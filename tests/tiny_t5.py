"""Tiny random T5 models, written with gguf-py, that llama.cpp loads and runs: an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ggufmerge.types import TensorType
from tests import tiny

EMBED, FF, HEADS, VOCAB, BUCKETS = 64, 128, 4, 320, 32


def write_tiny_t5(
    path: Path,
    *,
    encoder: int = 3,
    decoder: int | None = 3,
    own_positions: bool = False,
    tune: tuple[int, float] | None = None,
    metadata: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Write a valid GGUF file of architecture t5; returns its float32 weights.

    encoder, decoder: numbers of layers; decoder None leaves the decoder out (t5encoder).
    own_positions: every layer has relative positions of its own, as in UMT5, not only layer 0.  tune: as for Llamas.
    metadata: further keys; None leaves one out.
    """
    arch = "t5encoder" if decoder is None else "t5"
    shapes = dict(_tensors(encoder, decoder, own_positions))
    weights = {name: tiny._weight(name, shape, 0, tune, tiny._normal) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, arch)
    known: dict[str, Any] = {
        "general.name": "Tiny T5",
        "general.quantization_version": 2,
        "general.file_type": 0,
        f"{arch}.block_count": encoder,
        f"{arch}.context_length": 512,
        f"{arch}.embedding_length": EMBED,
        f"{arch}.feed_forward_length": FF,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.key_length": EMBED // HEADS,
        f"{arch}.attention.value_length": EMBED // HEADS,
        f"{arch}.attention.layer_norm_epsilon": 1e-6,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{arch}.attention.relative_buckets_count": BUCKETS,
        f"{arch}.decoder_start_token_id": 0,
        **({} if decoder is None else {f"{arch}.decoder_block_count": decoder}),
        **tiny._spm(VOCAB, tiny.WORDS, {}),
        "tokenizer.ggml.model": "t5",
        **(metadata or {}),
    }
    for key, value in known.items():
        if value is not None:
            tiny._add(writer, key, value)
    for name, values in weights.items():
        tiny._add_tensor(writer, name, values, TensorType.F32, tiny._by_ggml)
    tiny._finish(writer)
    return weights


def _tensors(encoder: int, decoder: int | None, own_positions: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and NumPy shapes (rows first), as src/models/t5.cpp and t5encoder.cpp of llama.cpp read them."""
    yield "token_embd.weight", (VOCAB, EMBED)
    for stack, layers in (("dec", decoder or 0), ("enc", encoder)):
        for i in range(layers):
            block = f"{stack}.blk.{i}."
            for part in ("attn", "cross_attn") if stack == "dec" else ("attn",):
                yield f"{block}{part}_norm.weight", (EMBED,)
                for matrix in "qkvo":
                    yield f"{block}{part}_{matrix}.weight", (EMBED, EMBED)
            if i == 0 or own_positions:
                yield f"{block}attn_rel_b.weight", (BUCKETS, HEADS)
            yield f"{block}ffn_norm.weight", (EMBED,)
            yield f"{block}ffn_gate.weight", (FF, EMBED)
            yield f"{block}ffn_up.weight", (FF, EMBED)
            yield f"{block}ffn_down.weight", (EMBED, FF)
        if layers:
            yield f"{stack}.output_norm.weight", (EMBED,)
    if decoder is not None:
        yield "output.weight", (VOCAB, EMBED)
