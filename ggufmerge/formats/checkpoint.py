"""Hugging Face checkpoints as sources: a folder with config.json and safetensors files, read as the GGUF file that
llama.cpp's converter would make of it, without making it.

Names go through gguf's tables. As in the converter, the rows of Q and K are permuted for architecture llama, the norms
of Gemma 3 have 1 added, and vectors become F32; matrices keep their type and stay in the mapped files.

A checkpoint brings weights only: metadata and tokenizer of a result come from a GGUF file.

Source: `conversion/{base,llama,qwen,gemma}.py` of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import FormatError, PlanError
from ggufmerge.files import MetadataEditor
from ggufmerge.files.metadata import ValueKind
from ggufmerge.files.small import open_regular, read_json
from ggufmerge.files.tensor import MappedFile
from ggufmerge.formats.safetensors import FloatArray, SafetensorsFile
from ggufmerge.formats.stored import StoredFile, StoredTensor
from ggufmerge.quants import dequantize
from ggufmerge.types import TensorType

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PERMUTED = {"llama", "granite", "arcee", "smollm3", "minicpm", "olmo"}  # in these the rows of Q and K are
_MAX_JSON = 1 << 25  # bytes
_MAX_NAME = 200  # letters of a file's name; most file systems take 255 bytes
_MAX_LAYERS = 10_000

_ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "Gemma3ForCausalLM": gguf.MODEL_ARCH.GEMMA3,
    "Gemma3ForConditionalGeneration": gguf.MODEL_ARCH.GEMMA3,
}
# What configurations may leave out, in transformers as in the converter.
_GEMMA3_DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
_NOT_TEXT = re.compile(r"(model\.)?(vision_tower|multi_modal_projector|vision_model)\.")  # goes into a mmproj file
_COMPUTED = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")  # old checkpoints store them


class Checkpoint:
    """An open checkpoint, with the interface of `files.GGUFFile`.

    metadata: the hyper-parameters under GGUF's keys; no tokenizer.  paths: config.json and the files of weights.
    FormatError and PlanError say what is missing, damaged or not supported.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._config = _read_config(folder)
        self._arch = _architecture(folder, self._config)
        self.metadata = _metadata(folder, self._config, self.architecture)
        weights = _weight_files(folder)
        self.paths = [folder / CONFIG, *weights]
        self._files: list[SafetensorsFile] = []
        try:
            for path in weights:
                self._files.append(SafetensorsFile(path, dimensions=(1, 2)))
            self.tensors = self._mapped()
        except BaseException:
            self.close()
            raise

    @property
    def architecture(self) -> str:
        return gguf.MODEL_ARCH_NAMES[self._arch]

    @property
    def mapped(self) -> list[MappedFile]:
        """The files of weights."""
        return [mapped for file in self._files for mapped in file.mapped]

    def close(self) -> None:
        """Let go of the files; tensors cannot be read any more."""
        for file in self._files:
            file.close()

    def _mapped(self) -> dict[str, StoredTensor]:
        """The tensors of the language model by their names in GGUF."""
        names = gguf.get_tensor_name_map(self._arch, self._config["num_hidden_layers"])
        tied = self._config.get("tie_word_embeddings", False)
        found: dict[str, StoredTensor] = {}
        for file in self._files:
            for own in (*file.tensors, *file.others):
                if _NOT_TEXT.match(own) or own.endswith(_COMPUTED):
                    continue
                name = names.get_name(own.replace("language_model.", ""), (".weight", ".bias"))
                if name == "output.weight" and tied:
                    continue
                if name is None or name in found:
                    what = "has no place" if name is None else "appears twice"
                    raise PlanError(
                        f'{file.path}: "{own}" {what} in a GGUF file of architecture {self.architecture!r}; {_CONVERT}'
                    )
                stored = file.tensors.get(own)
                if stored is None:
                    raise PlanError(
                        f'{file.path}: "{own}" is not a matrix or vector of F32, F16, BF16; use the checkpoint in full '
                        "precision"
                    )
                found[name] = self._converted(name, stored)
        if not found:
            raise PlanError(f"{self.path}: holds no tensors, so there is nothing to merge")
        return found

    def _converted(self, name: str, stored: FloatArray) -> StoredTensor:
        order = row_order(self, name, stored.shape[0])
        if len(stored.shape) == 2:
            return stored.renamed(name, order)
        shift = 1.0 if self._arch == gguf.MODEL_ARCH.GEMMA3 and name.endswith("norm.weight") else 0.0
        return Vector(name, stored, shift, order)


@dataclass(frozen=True, eq=False)
class Vector:
    """A vector of a checkpoint as F32: shifted, its values in another order. It is small and made when asked for."""

    name: str
    stored: FloatArray
    shift: float
    order: NDArray[np.intp] | None

    type = TensorType.F32
    rows = 1

    @property
    def n(self) -> int:
        return self.stored.n

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def path(self) -> Path:
        return self.stored.path

    @property
    def raw(self) -> NDArray[np.uint8]:
        """uint8 [4 n]."""
        values = dequantize(self.stored.raw_rows(0, 1), self.stored.type, self.n)[0]
        if self.shift:
            values = values + np.float32(self.shift)
            if self.stored.type is TensorType.F16:  # the converter adds in the type that is stored, but for BF16
                values = values.astype(np.float16).astype(np.float32)
        if self.order is not None:
            values = values[self.order]
        return np.ascontiguousarray(values).view(np.uint8)

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """uint8 [stop - start, 4 n], of one row."""
        return self.raw.reshape(1, -1)[start:stop]


def row_order(base: StoredFile, target: str, rows: int) -> NDArray[np.intp] | None:
    """Which row of the Hugging Face tensor each row of the GGUF tensor `target` is; None when they are the same.

    base: the model, whose metadata say how many heads there are.

    In a head, Hugging Face has first all first and then all second numbers of the pairs that are rotated together; the
    converter puts the two of each pair side by side (`LlamaModel.permute`).
    """
    part = target.split(".")[-2]
    if base.architecture not in PERMUTED or part not in ("attn_q", "attn_k"):
        return None
    key, layer = f"{base.architecture}.attention.head_count", int(target.split(".")[1])
    if part == "attn_k" and f"{key}_kv" in base.metadata:
        key += "_kv"
    heads = base.metadata.integer_of(key, layer, low=1)
    if heads is None:
        raise PlanError(
            f"{base.path}: {key} is {base.metadata.found(key)}, no number of heads of layer {layer}; take another file"
        )
    if rows % (2 * heads):
        raise PlanError(f"{base.path}: {target} has {rows} rows, which its {heads} heads cannot share evenly")
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


_CONVERT = "convert the checkpoint with convert_hf_to_gguf.py of llama.cpp and name the GGUF file"


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise PlanError(
            f"{folder}: a folder without {CONFIG}, so no Hugging Face checkpoint; name a GGUF file, or the folder that "
            "has the checkpoint's files"
        )
    config = _read_json(path)
    text = config.get("text_config")
    config |= text if isinstance(text, dict) else {}
    kind = config.get("quantization_config")
    if kind:
        method = kind.get("quant_method", "unknown") if isinstance(kind, dict) else "unknown"
        raise PlanError(f"{path}: a quantized checkpoint ({method}); use the one in full precision, or a GGUF file")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, _MAX_JSON, lenient=True)
    except ValueError as error:
        raise FormatError(f"{path}: not the JSON that a checkpoint has: {error}; download it again") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); check the file") from None


def _architecture(folder: Path, config: dict[str, Any]) -> gguf.MODEL_ARCH:
    """The architecture in GGUF; fills in what its configurations may leave out, and checks what is needed here."""
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise PlanError(f"{folder / CONFIG}: architecture {name} is not read from checkpoints, but {known}; {_CONVERT}")
    arch = _ARCHITECTURES[name]
    rope = config.get("rope_parameters")  # where transformers 5 keeps it, for each kind of layer if they differ
    rope = rope.get("full_attention", rope) if isinstance(rope, dict) else None
    if isinstance(rope, dict) and "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    for key, default in (_GEMMA3_DEFAULTS if arch == gguf.MODEL_ARCH.GEMMA3 else {}).items():
        config.setdefault(key, default)
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = config.get("num_attention_heads")
    for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size"):
        value = config.get(key)
        if type(value) is not int or not 0 < value <= _MAX_LAYERS * 1000:
            raise FormatError(f"{folder / CONFIG}: {key} is missing or no number; download it again")
    if config["num_hidden_layers"] > _MAX_LAYERS:
        raise FormatError(f"{folder / CONFIG}: {config['num_hidden_layers']} layers cannot be; download it again")
    return arch


def _metadata(folder: Path, config: Mapping[str, Any], arch: str) -> MetadataEditor:
    """The hyper-parameters that tell whether the checkpoint fits other models."""
    metadata = MetadataEditor()
    metadata.set("general.architecture", arch)
    metadata.set("general.name", folder.resolve().name or arch)
    if licence := _licence(folder):
        metadata.set("general.license", licence)
    for key, own in _COUNTS.items():
        count = config.get(own)
        if type(count) is int and 0 <= count < 1 << 32:
            metadata.set(f"{arch}.{key}", count, ValueKind.U32)
    for key, own in _NUMBERS.items():
        value: Any = config.get(own)
        if isinstance(value, (int, float)) and 0 < value < 1e30:
            metadata.set(f"{arch}.{key}", float(value), ValueKind.F32)
    return metadata


_COUNTS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
}
_NUMBERS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.freq_base": "rope_theta"}


def _licence(folder: Path) -> str | None:
    """The licence that the model card states in its front matter."""
    try:
        with open_regular(folder / "README.md") as file:
            head = file.read(1 << 14).decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:
        return None
    front = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    stated = re.search(r"^license:[ \t]*([\w.+-]+)[ \t]*$", front[1], re.MULTILINE) if front else None
    return stated[1] if stated else None


def _weight_files(folder: Path) -> list[Path]:
    """The files of weights, sorted: those that the index names, or the only one."""
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WEIGHTS).is_file():
            older = (folder / "pytorch_model.bin").is_file() or (folder / "pytorch_model.bin.index.json").is_file()
            hint = "save it with safe_serialization=True" if older else "download the whole checkpoint"
            raise PlanError(f"{folder}: has neither {WEIGHTS} nor {INDEX}; {hint}")
        return [folder / WEIGHTS]
    shards = _read_json(index).get("weight_map")
    values = list(shards.values()) if isinstance(shards, dict) else []
    names = sorted(set(values)) if all(isinstance(name, str) for name in values) else []
    if not names or any(
        Path(name).name != name or not name.endswith(".safetensors") or len(name) > _MAX_NAME for name in names
    ):
        raise FormatError(f"{index}: does not name the safetensors files in its folder; download it again")
    for name in names:
        if not (folder / name).is_file():
            raise PlanError(f"{folder}: lacks {name}, a part of the checkpoint; download it, too")
    return [folder / name for name in names]
