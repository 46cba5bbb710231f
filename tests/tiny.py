"""Tiny random llama models and LoRA adapters, written with gguf-py, that llama.cpp loads and runs in milliseconds.

Weights depend on (seed, tensor name) only, so two models of different depth share their common tensors, and
`tune=(seed, strength)` adds a second set of noise: `write_tiny_llama(a)` and `write_tiny_llama(b, tune=(1, 0.02))`
are a base and a fine-tune of it. Quantized types are written by ggml itself.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gguf
import numpy as np

from ggufmerge.types import FileType, TensorType
from tests import ggml

Draw = Callable[[str, tuple[int, ...], int], np.ndarray]  # (tensor name, shape, seed) -> float32
Weights = Mapping[str, np.ndarray]
Layout = Callable[[Weights], Weights]
Quantize = Callable[[np.ndarray, TensorType], np.ndarray]  # float32 [rows, n] -> uint8 [rows, row_bytes]

WORDS = ("the", "and", "of", "to", "in", "that", "is", "was", "for", "with", "on", "as", "he", "it", "his", "not")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_llama(
    path: pathlib.Path | str,
    *,
    layers: int = 2,
    embed: int = 64,
    ff: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 320,
    tokenizer: str = "spm",
    words: Sequence[str] = WORDS,
    added: Mapping[str, int] | None = None,
    context: int = 512,
    tied: bool = False,
    experts: int = 0,
    experts_used: int = 2,
    seed: int = 0,
    tune: tuple[int, float] | None = None,
    type: TensorType | str = TensorType.F32,  # noqa: A002
    types: Mapping[str, TensorType | str] | None = None,
    replace: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    layout: Layout | None = None,
    draw: Draw | None = None,
    quantize: Quantize | None = None,
) -> dict[str, np.ndarray]:
    """Write a valid GGUF file of architecture llama; returns its float32 weights as they were before quantization.

    embed, ff: with 256 (and multiples) every row is a whole number of K-quant super-blocks.
    vocab: number of tokens; at least 259 + the words, the rest is filled with unused tokens.
    tokenizer: "spm" (SentencePiece with byte tokens) or "bpe" (gpt2, with ChatML control tokens and template).
    added: tokens behind the words that no text is cut into by merging, with their types, in the order of their ids.
    tied: no `output.weight`. experts: > 0 makes the feed-forward part a mixture of that many experts.
    tune: (seed, strength): adds noise of that strength relative to each matrix, as a fine-tune would.
    type: of all matrices; vectors are always F32. types: file-name-like patterns on tensor names that override it.
    replace: arrays to write instead of the random ones. metadata: further keys, or other values for known ones;
    None leaves one out.  extra: float32 tensors behind those of the model.
    layout: another one for the same weights, such as `split_experts`; they are returned as they were before.
    draw: where the random numbers come from, instead of NumPy.  quantize: who writes blocks, instead of ggml.
    """
    shape = _Shape(layers, embed, ff, heads, kv_heads, vocab, tied, experts)
    weights = {name: _weight(name, dims, seed, tune, draw or _normal) for name, dims in shape.tensors()}
    for name, values in (replace or {}).items():
        assert weights[name].shape == values.shape, f"{name}: {values.shape} instead of {weights[name].shape}"
        weights[name] = values.astype(np.float32)

    writer = gguf.GGUFWriter(path, "llama")
    kind = TensorType.parse(type)
    known: dict[str, Any] = {
        "general.name": f"Tiny {seed}",
        "general.quantization_version": 2,
        "general.file_type": next(f.id for f in FileType if f.default is kind),
        "llama.block_count": layers,
        "llama.context_length": context,
        "llama.embedding_length": embed,
        "llama.feed_forward_length": ff,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": embed // heads,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": vocab,
        **({"llama.expert_count": experts, "llama.expert_used_count": experts_used} if experts else {}),
        **(_spm if tokenizer == "spm" else _bpe)(vocab, words, added or {}),
        **(metadata or {}),
    }
    for key, value in known.items():
        if value is not None:
            _add(writer, key, value)
    for name, values in (layout(weights) if layout else weights).items():
        wanted = next((t for pattern, t in (types or {}).items() if fnmatch.fnmatchcase(name, pattern)), kind)
        _add_tensor(writer, name, values, TensorType.parse(wanted), quantize or _by_ggml)
    for name, values in (extra or {}).items():
        _add_tensor(writer, name, values, TensorType.F32, _by_ggml)
    _finish(writer)
    return weights


def split_experts(weights: Weights) -> dict[str, np.ndarray]:
    """The first layout of Mixtral: each expert has matrices of its own, which llama.cpp v0.5.0 does not read."""
    out = {}
    for name, values in weights.items():
        stem, stacked, _ = name.partition("_exps")
        out |= {f"{stem}.{e}.weight": values[e] for e in range(len(values))} if stacked else {name: values}
    return out


def fused(weights: Weights) -> dict[str, np.ndarray]:
    """Q, K and V in one tensor, and gate and up of the experts, as convert_hf_to_gguf.py writes them when asked to."""
    out = {}
    for name, values in weights.items():
        layer, _, part = name.rpartition(".attn_q.")
        if layer:
            out[f"{layer}.attn_qkv.{part}"] = np.concatenate([weights[f"{layer}.attn_{x}.{part}"] for x in "qkv"])
        elif name.endswith(".ffn_gate_exps.weight"):
            up = weights[name.replace("_gate_", "_up_")]
            out[name.replace("_gate_", "_gate_up_")] = np.concatenate([values, up], axis=1)
        elif not any(part in name for part in (".attn_k.", ".attn_v.", ".ffn_up_exps.")):
            out[name] = values
    return out


def write_tiny_deepseek(
    path: pathlib.Path | str,
    *,
    joined: bool = False,
    seed: int = 0,
    tune: tuple[int, float] | None = None,
    type: TensorType | str = TensorType.F32,  # noqa: A002
) -> dict[str, np.ndarray]:
    """Write a model of one layer of architecture deepseek2, whose attention is latent; returns its float32 weights.

    joined: in the layout of before April 2025, in which `attn_kv_b` has the keys and the values of each head.
    """
    heads, keys, rope, width, rank, embed, ff, vocab = 2, 32, 32, 64, 64, 64, 128, 320
    shapes = {
        "token_embd.weight": (vocab, embed),
        "blk.0.attn_norm.weight": (embed,),
        "blk.0.attn_q_a.weight": (rank, embed),
        "blk.0.attn_q_a_norm.weight": (rank,),
        "blk.0.attn_q_b.weight": (heads * (keys + rope), rank),
        "blk.0.attn_kv_a_mqa.weight": (rank + rope, embed),
        "blk.0.attn_kv_a_norm.weight": (rank,),
        "blk.0.attn_kv_b.weight": (heads * (keys + width), rank),
        "blk.0.attn_output.weight": (embed, heads * width),
        "blk.0.ffn_norm.weight": (embed,),
        "blk.0.ffn_gate.weight": (ff, embed),
        "blk.0.ffn_up.weight": (ff, embed),
        "blk.0.ffn_down.weight": (embed, ff),
        "output_norm.weight": (embed,),
        "output.weight": (vocab, embed),
    }
    weights = {name: _weight(name, dims, seed, tune, _normal) for name, dims in shapes.items()}
    if not joined:
        each = weights["blk.0.attn_kv_b.weight"].reshape(heads, keys + width, rank)
        halves = {"k": np.ascontiguousarray(each[:, :keys].swapaxes(1, 2)), "v": np.ascontiguousarray(each[:, keys:])}
        weights = {
            new: values if new == name else halves[new[-10]]
            for name, values in weights.items()
            for new in ([name.replace("_kv_", f"_{x}_") for x in "kv"] if "_kv_b" in name else [name])
        }
    known: dict[str, Any] = {
        "block_count": 1,
        "context_length": 512,
        "embedding_length": embed,
        "feed_forward_length": ff,
        "vocab_size": vocab,
        "attention.head_count": heads,
        "attention.head_count_kv": heads if joined else 1,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.q_lora_rank": rank,
        "attention.kv_lora_rank": rank,
        "attention.key_length": (keys if joined else rank) + rope,
        "attention.value_length": width if joined else rank,
        **({} if joined else {"attention.key_length_mla": keys + rope, "attention.value_length_mla": width}),
        "rope.dimension_count": rope,
        "rope.freq_base": 10000.0,
        "leading_dense_block_count": 1,
        "expert_count": 0,
        "expert_used_count": 0,
        "expert_shared_count": 0,
        "expert_feed_forward_length": ff,
        "expert_weights_scale": 1.0,
    }
    writer = gguf.GGUFWriter(path, "deepseek2")
    for key, value in {**{f"deepseek2.{key}": v for key, v in known.items()}, **_spm(vocab, WORDS, {})}.items():
        _add(writer, key, value)
    for name, values in weights.items():
        _add_tensor(writer, name, values, TensorType.parse(type), _by_ggml)
    _finish(writer)
    return weights


def write_tiny_lora(
    path: pathlib.Path | str,
    base: Mapping[str, np.ndarray],
    *,
    rank: int = 4,
    alpha: float = 8.0,
    targets: Sequence[str] = ("*attn_q.weight", "*ffn_down.weight"),
    strength: float = 0.1,
    seed: int = 0,
    rows: int | None = None,
    type: TensorType | str = TensorType.F32,  # noqa: A002
    factor: float | None = None,
    architecture: str = "llama",
    draw: Draw | None = None,
    quantize: Quantize | None = None,
) -> dict[str, np.ndarray]:
    """Write a LoRA adapter for a model of `write_tiny_llama`; returns the delta of each target at strength 1.

    base: the model's weights by name. targets: patterns on tensor names (`token_embd.weight` is stored flipped, as
    llama.cpp wants it). strength: size of the delta relative to the weights. rows: only the first so many are changed.
    factor: of the random numbers of `lora_b`, instead of what gives that strength.  draw, quantize: as for models.
    """
    draw = draw or _normal
    writer = gguf.GGUFWriter(path, architecture)
    known = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": float(alpha)}
    for key, value in known.items():
        _add(writer, key, value)
    deltas = {}
    for name, w in base.items():
        if w.ndim < 2 or not any(fnmatch.fnmatchcase(name, pattern) for pattern in targets):
            continue
        *experts, n_out, n_in = w.shape
        a = draw(f"{name}.lora_a", (*experts, rank, n_in), seed)
        b = draw(f"{name}.lora_b", (*experts, n_out, rank), seed)
        b *= np.float32(factor or strength * w.std() / (alpha / rank * np.std(b @ a)))
        b[..., rows or n_out :, :] = 0
        deltas[name] = np.float32(alpha / rank) * (b @ a)
        # llama.cpp multiplies embeddings from the other side: lora_a holds the vocabulary, lora_b the width
        first, second = (b, a.T) if name == "token_embd.weight" else (a, b)
        for half, values in (("a", first), ("b", second)):
            kind = TensorType.parse(type)
            _add_tensor(writer, f"{name}.lora_{half}", np.ascontiguousarray(values), kind, quantize or _by_ggml)
    _finish(writer)
    return deltas


@dataclasses.dataclass(frozen=True)
class _Shape:
    layers: int
    embed: int
    ff: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool
    experts: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and NumPy shapes (rows first) in the order llama.cpp's converter writes them."""
        kv = self.embed // self.heads * self.kv_heads
        yield "token_embd.weight", (self.vocab, self.embed)
        for i in range(self.layers):
            yield f"blk.{i}.attn_norm.weight", (self.embed,)
            yield f"blk.{i}.attn_q.weight", (self.embed, self.embed)
            yield f"blk.{i}.attn_k.weight", (kv, self.embed)
            yield f"blk.{i}.attn_v.weight", (kv, self.embed)
            yield f"blk.{i}.attn_output.weight", (self.embed, self.embed)
            yield f"blk.{i}.ffn_norm.weight", (self.embed,)
            if self.experts:
                yield f"blk.{i}.ffn_gate_inp.weight", (self.experts, self.embed)
                yield f"blk.{i}.ffn_gate_exps.weight", (self.experts, self.ff, self.embed)
                yield f"blk.{i}.ffn_up_exps.weight", (self.experts, self.ff, self.embed)
                yield f"blk.{i}.ffn_down_exps.weight", (self.experts, self.embed, self.ff)
            else:
                yield f"blk.{i}.ffn_gate.weight", (self.ff, self.embed)
                yield f"blk.{i}.ffn_up.weight", (self.ff, self.embed)
                yield f"blk.{i}.ffn_down.weight", (self.embed, self.ff)
        yield "output_norm.weight", (self.embed,)
        if not self.tied:
            yield "output.weight", (self.vocab, self.embed)


def _weight(name: str, shape: tuple[int, ...], seed: int, tune: tuple[int, float] | None, draw: Draw) -> np.ndarray:
    noise = draw(name, shape, seed)
    if tune:
        noise = noise + np.float32(tune[1]) * draw(name, shape, tune[0] + 1_000_000)
    return noise / np.sqrt(np.float32(shape[-1])) if len(shape) > 1 else 1 + np.float32(0.1) * noise


def _normal(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, np.float32)


def _spm(vocab: int, words: Sequence[str], added: Mapping[str, int]) -> dict[str, Any]:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    # SentencePiece joins two neighbours only when the result is a piece, so a word needs all its beginnings
    starts = dict.fromkeys(f"▁{word[:n]}" for word in words for n in range(len(word) + 1))
    pieces = [*starts, *(c for c in letters if c not in starts)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces, *added]
    types = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    types += [*[gguf.TokenType.NORMAL] * len(pieces), *added.values()]
    fill = _fill(tokens, vocab)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens + fill,
        "tokenizer.ggml.scores": [0.0] * 259
        + [-float(i) for i in range(len(pieces))]
        + [-1e3] * len(added)
        + [-1e4] * len(fill),
        "tokenizer.ggml.token_type": [int(t) for t in types] + [int(gguf.TokenType.UNUSED)] * len(fill),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def _bpe(vocab: int, words: Sequence[str], added: Mapping[str, int]) -> dict[str, Any]:
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = _byte_letters()
    merges = dict.fromkeys(("Ġ" + word)[:n] + " " + ("Ġ" + word)[n] for word in words for n in range(1, len(word) + 1))
    tokens = [*control, *alphabet, *(merge.replace(" ", "") for merge in merges), *added]
    fill = _fill(tokens, vocab)
    types = [int(gguf.TokenType.CONTROL)] * 3 + [int(gguf.TokenType.NORMAL)] * (len(tokens) - 3 - len(added))
    types += map(int, added.values())
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens + fill,
        "tokenizer.ggml.token_type": types + [int(gguf.TokenType.UNUSED)] * len(fill),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _fill(tokens: Sequence[str], vocab: int) -> list[str]:
    assert len(tokens) == len(set(tokens)), "a token stands twice"
    assert vocab >= len(tokens), f"vocab must be at least {len(tokens)}"
    return [f"[PAD{i}]" for i in range(len(tokens), vocab)]


def _byte_letters() -> list[str]:
    """The 256 printable characters that stand for bytes in GPT-2's byte-level BPE."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    letter = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [letter[b] for b in range(256)]


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: TensorType, quantize: Quantize) -> None:
    if values.ndim < 2 or kind is TensorType.F32 or "ffn_gate_inp" in name:
        writer.add_tensor(name, values.astype(np.float32))
        return
    raw = quantize(values.reshape(-1, values.shape[-1]), kind)
    raw_type = gguf.GGMLQuantizationType(kind.id)
    writer.add_tensor(name, raw.reshape(*values.shape[:-1], -1), raw_dtype=raw_type)


def _by_ggml(rows: np.ndarray, kind: TensorType) -> np.ndarray:
    needs_imatrix = ggml.lib().ggml_quantize_requires_imatrix(kind.id)
    return ggml.quantize(rows, kind, np.ones(rows.shape[1], np.float32) if needs_imatrix else None)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
