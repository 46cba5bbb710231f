"""A tiny model of each architecture that llama.cpp knows, written with gguf-py.

Their headers, and what llama.cpp makes of the places of their layers, are in `vendor/architectures/models.json.gz`,
made by llama.cpp itself (`scripts/make_architecture_models.py`). Weights depend on (seed, tensor name) only.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

MODELS = Path(__file__).parent.parent / "vendor" / "architectures" / "models.json.gz"
TOKENS = 128
# of each kind of layer one: the fast tests try these, the slow ones all
SAMPLE = (
    *("bert", "deepseek2", "gemma2", "gpt2", "jamba", "lfm2", "llama", "llama4", "nemotron_h_moe", "qwen3next-mtp"),
    *("rwkv7", "smollm3"),
)
_ARRAY, _TYPES = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType
# what a layer adds to its input: without these it adds nothing, if its norms come first
_OUTPUTS = re.compile(
    r"(?:enc\.)?blk\.(\d+)\.(attn_output|attn_out|attn_o|ffn_down|ffn_down_exps|ffn_down_shexp|ffn_down_chexps|ssm_out|"
    r"shortconv\.out_proj|time_mix_output|channel_mix_value|layer_output_scale)\.(weight|bias|lora_b)"
)


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """A header of a model.

    kinds: for each layer what llama.cpp v0.5.0 makes of it: `swa` (sliding), `recr` (recurrent), `has_kv`, `rope`, ...
    runs: whether llama.cpp computes logits with it alone (drafts for other models do not).
    """

    name: str
    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, Any]
    runs: bool

    @property
    def layers(self) -> int:
        """The number of layers, `block_count`."""
        return int(self.metadata[f"{self.architecture}.block_count"])

    def write(
        self,
        path: Path,
        *,
        seed: int = 0,
        tune: float = 0.0,
        metadata: Mapping[str, Any] | None = None,
        change: Callable[[str, np.ndarray], np.ndarray | None] | None = None,
    ) -> Path:
        """Write the model with random float32 weights; returns the path.

        tune: strength of noise that is added to them, as a fine-tune would.
        metadata: further keys, or other values for known ones; None leaves one out.
        change: gives other values for a tensor, or None to leave it out.
        """
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in {**_TOKENIZER, **self.metadata, **(metadata or {})}.items():
            if value is not None:
                add(writer, key, value)
        for name, shape in self.tensors.items():
            values: np.ndarray | None = weight(name, shape, seed)
            if tune and len(shape) > 1:
                values = values + tune * weight(name, shape, seed + 1000)
            if change is not None:
                values = change(name, values)
            if values is not None:
                writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def is_output(name: str, layers: Collection[int]) -> bool:
    """Whether a tensor gives what one of some layers adds to its input: with zeros there it adds nothing."""
    match = _OUTPUTS.fullmatch(name)
    return match is not None and int(match[1]) in layers


def without_effect(*layers: int) -> Callable[[str, np.ndarray], np.ndarray]:
    """A `change` after which some layers pass their input on as it is."""
    return lambda name, values: values * 0 if is_output(name, layers) else values


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float32 values of a tensor that keep a model's activations in bounds."""
    random = np.random.default_rng([seed, zlib.crc32(re.sub(r"^blk\.\d+\.", "", name).encode()), _layer(name)])
    values = random.standard_normal(shape).astype(np.float32) * np.float32(
        0.5 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.1
    )
    if "norm" in name and name.endswith("weight"):
        values += 1
    return -np.abs(values) if "ssm_a" in name else values


def _layer(name: str) -> int:
    match = re.search(r"blk\.(\d+)\.", name)
    return int(match[1]) + 1 if match else 0


@functools.cache
def tiny_models() -> dict[str, TinyModel]:
    """All of them, by name: that of the architecture, with `-moe` and `-mtp` behind it for variants."""
    found = json.loads(gzip.decompress(MODELS.read_bytes()))
    return {
        name: TinyModel(
            name,
            model["architecture"],
            model["metadata"],
            {tensor: tuple(shape) for tensor, shape in model["tensors"].items()},
            model["kinds"],
            model["runs"],
        )
        for name, model in found.items()
    }


def each(*names: str, sample: Sequence[str] = SAMPLE) -> list[Any]:
    """Parameters for a test of these models, or of all: the names, of which those not in the sample are slow."""
    found = names or tuple(tiny_models())
    return [pytest.param(name, marks=[] if name in sample else [pytest.mark.slow]) for name in found]


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Write a value in the type that converters give it; {"u64": [...]} is a list of wide numbers."""
    if isinstance(value, dict):
        writer.add_key_value(key, value["u64"], _ARRAY, sub_type=_TYPES.UINT64)
    elif isinstance(value, list) and isinstance(value[0], str):
        writer.add_array(key, value)
    elif isinstance(value, list):
        writer.add_key_value(key, value, _ARRAY, sub_type=_type(value[0], min(value)))
    else:
        writer.add_key_value(key, value, _type(value, value))


def _type(value: Any, least: Any) -> gguf.GGUFValueType:
    if isinstance(value, bool):
        return _TYPES.BOOL
    if isinstance(value, str):
        return _TYPES.STRING
    if isinstance(value, float):
        return _TYPES.FLOAT32
    return _TYPES.INT32 if least < 0 else _TYPES.UINT32


_TOKENIZER = {
    "tokenizer.ggml.model": "test",
    "tokenizer.ggml.tokens": [f"tok_{i}" for i in range(TOKENS)],
    "tokenizer.ggml.scores": [0.0] * TOKENS,
}
