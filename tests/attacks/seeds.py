"""Valid files of every reader, small enough that a build of them takes some hundredths of a second.

Each is made when it is first asked for, always with the same bytes.
"""

from __future__ import annotations

import functools
import json
import random
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ggufmerge.types import TensorType
from tests.attacks.containers import Gguf, Pieces, Safetensors, elements, to_varint
from tests.attacks.damage import BYTE_SCALES, SCALES
from tests.files import craft
from tests.tiny import write_tiny_llama, write_tiny_lora

SMALL: dict[str, Any] = {"embed": 64, "ff": 64, "vocab": 320}
WIDE: dict[str, Any] = {"embed": 256, "ff": 32, "heads": 8, "kv_heads": 1, "layers": 1, "vocab": 288, "words": ()}
FAMILIES = {  # models that merge with each other; every one has the suffixes a, b and base
    "q4": {**SMALL, "type": "Q4_0"},
    "q8": {**SMALL, "type": "Q8_0"},
    "f16": {**SMALL, "type": "F16", "tied": True},
    "f32": {**SMALL, "embed": 32, "ff": 32, "heads": 2, "kv_heads": 1, "tied": True},
    "bpe": {**SMALL, "type": "Q8_0", "tokenizer": "bpe", "vocab": 352},
    "moe": {**SMALL, "type": "Q5_0", "experts": 2, "tied": True, "layers": 1},
}
WIDE_TYPES = tuple(str(t) for t in TensorType if str(t) in SCALES | BYTE_SCALES and t.block_size > 1)
MODELS = tuple(f"{family}-{which}.gguf" for family in FAMILIES for which in ("base", "a", "b"))
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
PEFT_CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 6,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {"v_proj": 4},
    "alpha_pattern": {},
    "use_rslora": False,
    "target_modules": ["q_proj", "down_proj"],
}
MORE_PEFT_CONFIG = PEFT_CONFIG | {"modules_to_save": ["norm"], "trainable_token_indices": [300, 5]}


@functools.cache
def seed(name: str) -> bytes:
    """The bytes of a valid file."""
    for suffix, make in _MAKERS.items():
        if name.endswith(suffix):
            return make(name)
    raise KeyError(name)


@functools.cache
def parsed(name: str) -> Gguf:
    """A GGUF file in pieces, to be copied before they are changed."""
    return Gguf.parse(seed(name))


@functools.cache
def safetensors(name: str) -> Safetensors:
    return Safetensors.parse(seed(name))


@functools.cache
def pieces(name: str) -> Pieces:
    return Pieces.parse(seed(name))


def _written(write: Callable[[Path], Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


def _model(name: str) -> bytes:
    family, which = name.removesuffix(".gguf").rsplit("-", 1)
    tune = {"base": None, "a": (1, 0.02), "b": (2, 0.02)}[which]
    return _written(lambda path: write_tiny_llama(path, tune=tune, **FAMILIES[family]))


def _wide(name: str) -> bytes:
    """wide-Q4_K.gguf: matrices of random blocks whose scales are small numbers."""
    kind = TensorType.parse(name.removesuffix(".gguf").removeprefix("wide-"))
    file = Gguf.parse(_written(lambda path: write_tiny_llama(path, tied=True, type="F16", **WIDE)))
    rng = random.Random(name)
    for entry in file.entries:
        if len(entry.ne) < 2 or entry.ne[0] % kind.block_size or entry.name == b"token_embd.weight":
            continue
        blocks = entry.ne[0] * entry.ne[1] // kind.block_size
        data = bytearray(rng.randbytes(blocks * kind.block_bytes))
        for start in range(0, len(data), kind.block_bytes):
            for at in SCALES.get(str(kind), ()):
                data[start + at : start + at + 2] = struct.pack("<e", rng.uniform(0.001, 0.01))
            for at in BYTE_SCALES.get(str(kind), ()):
                data[start + at] = 115 if str(kind) == "MXFP4" else 24
        entry.type, entry.data = kind.id, bytes(data)
    return bytes(file.settle())


def _scaled(_: str) -> bytes:
    """NVFP4 weights with scales beside them."""
    from tests.engine.test_side_tensors import write_scaled

    return _written(lambda path: write_scaled(path, layers=1, tied=True, names=("attn_q", "ffn_down"), **SMALL))


def _lora(_: str) -> bytes:
    weights: dict[str, np.ndarray] = {}
    _written(lambda path: weights.update(write_tiny_llama(path, **SMALL)))
    targets = ("*attn_q.weight", "*ffn_down.weight")
    return _written(lambda path: write_tiny_lora(path, weights, targets=targets))


def _embedding_lora(_: str) -> bytes:
    weights: dict[str, np.ndarray] = {}
    _written(lambda path: weights.update(write_tiny_llama(path, **SMALL)))
    return _written(lambda path: write_tiny_lora(path, weights, targets=("token_embd.weight", "blk.1.attn_k.weight")))


def _numbers(name: str, *shape: int) -> np.ndarray:
    values = [random.Random(name).uniform(-0.1, 0.1) for _ in range(int(np.prod(shape)))]
    return np.array(values, np.float32).reshape(shape)


def _peft_weights(_: str) -> bytes:
    tensors = {}
    for module, rows, n in (("self_attn.q_proj", 64, 64), ("self_attn.v_proj", 32, 64), ("mlp.down_proj", 64, 64)):
        stem = f"base_model.model.model.layers.0.{module}"
        tensors[f"{stem}.lora_A.weight"] = _numbers(stem + "A", 4, n)
        tensors[f"{stem}.lora_B.weight"] = _numbers(stem + "B", rows, 4)
    return _safetensors(tensors)


def _more_peft_weights(_: str) -> bytes:
    """A whole module, and rows of tokens."""
    tensors = {
        "base_model.model.model.norm.weight": 1 + _numbers("norm", 64),
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": _numbers("tokens", 2, 64),
    }
    return _safetensors(tensors)


def _checkpoint_weights(_: str) -> bytes:
    from tests.formats.test_checkpoint import hf_name

    weights: dict[str, np.ndarray] = {}
    _written(lambda path: weights.update(write_tiny_llama(path, **SMALL)))
    return _safetensors({hf_name(name): values for name, values in weights.items()}, "BF16")


def _safetensors(tensors: dict[str, np.ndarray], dtype: str = "F32") -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        stored = values.astype("<f4").tobytes()
        if dtype == "BF16":
            stored = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(stored)],
        }
        data += stored
    return Safetensors(header, data).pack()


def _imatrix(_: str) -> bytes:
    def write(path: Path) -> None:
        writer = gguf.GGUFWriter(path, "")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", ["wiki.txt"])
        writer.add_uint32("imatrix.chunk_count", 7)
        writer.add_uint32("imatrix.chunk_size", 512)
        for name, n in _MATRICES:
            writer.add_tensor(f"{name}.in_sum2", np.abs(_numbers(name, 1, n)) + np.float32(0.01))
            writer.add_tensor(f"{name}.counts", np.full((1, 1), 3, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return _written(write)


def _legacy_imatrix(_: str) -> bytes:
    out = struct.pack("<i", len(_MATRICES))
    for name, n in _MATRICES:
        values = (np.abs(_numbers(name, n)) + np.float32(0.01)).tobytes()
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 2, n) + values
    return out + struct.pack("<ii", 7, 8) + b"wiki.txt"


_MATRICES = [
    (f"blk.{layer}.{part}.weight", 64)
    for layer in range(2)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
]


def _projector(_: str) -> bytes:
    def write(path: Path) -> None:
        writer = gguf.GGUFWriter(path, "clip")
        writer.add_type(gguf.GGUFType.MMPROJ)
        writer.add_name("eyes")
        writer.add_vision_projection_dim(64)
        writer.add_tensor("mm.0.weight", _numbers("mm", 64, 32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return _written(write)


def _shard(name: str) -> bytes:
    """shard-00001-of-00003.gguf: thirds of q4-a.gguf."""
    number = int(name.removesuffix(".gguf").split("-")[1]) - 1
    whole = parsed("q4-a.gguf").copy()
    count = len(whole.entries)
    third = -(-count // 3)
    part = whole.copy()
    part.entries = whole.entries[number * third : (number + 1) * third]
    if number:
        part.pairs = []
    part.put(b"split.no", craft.U16, struct.pack("<H", number))
    part.put(b"split.count", craft.U16, struct.pack("<H", 3))
    part.put(b"split.tensors.count", craft.I32, struct.pack("<i", count))
    return bytes(part.settle())


def _tokenizer(_: str) -> bytes:
    """The SentencePiece model that the vocabulary of q4-a.gguf could come from."""
    values = {}
    for key in ("tokens", "scores", "token_type"):
        pair = parsed("q4-a.gguf").pair(f"tokenizer.ggml.{key}".encode())
        assert pair is not None
        values[key] = elements(pair.value)[1]
    scores = [float(struct.unpack("<f", score)[0]) for score in values["scores"]]
    kinds = [int(struct.unpack("<i", kind)[0]) for kind in values["token_type"]]
    trainer = b"\x18\x02\x20" + to_varint(len(scores)) + b"\x98\x02\x01"  # BPE, size of the vocabulary, byte fallback
    normalizer = b"\x0a\x08identity\x18\x01\x20\x00\x28\x01"
    rest = b"\x12" + to_varint(len(trainer)) + trainer + b"\x1a" + to_varint(len(normalizer)) + normalizer
    return bytes(Pieces(list(zip(values["tokens"], scores, kinds, strict=True)), rest))


_MAKERS: dict[str, Callable[[str], bytes]] = {
    "scaled.gguf": _scaled,
    "embedding-lora.gguf": _embedding_lora,
    "lora.gguf": _lora,
    "imatrix.gguf": _imatrix,
    "imatrix.dat": _legacy_imatrix,
    "mmproj.gguf": _projector,
    "-of-00003.gguf": _shard,
    "valid.gguf": lambda _: craft.valid(),
    "tokenizer.model": _tokenizer,
    "adapter_model.safetensors": _peft_weights,
    "more_adapter_model.safetensors": _more_peft_weights,
    "more_adapter_config.json": lambda _: json.dumps(MORE_PEFT_CONFIG).encode(),
    "adapter_config.json": lambda _: json.dumps(PEFT_CONFIG).encode(),
    "model.safetensors": _checkpoint_weights,
    "config.json": lambda _: json.dumps(CONFIG).encode(),
    **{f"wide-{kind}.gguf": _wide for kind in WIDE_TYPES},
    **dict.fromkeys(MODELS, _model),
}
