"""LoRA adapters as Hugging Face's PEFT saves them: a folder with adapter_config.json and adapter_model.safetensors.

They are read as what llama.cpp's `convert_lora_to_gguf.py` would make of them, without writing that file: names are
mapped through gguf's tables, and where the converter of an architecture permutes the rows of Q and K (for the other
layout of rotary embeddings) the rows of their B halves are permuted too.

The scale of a tensor is PEFT's: alpha / rank, or alpha / sqrt(rank) for rank-stabilized LoRA (Kalajdzievski 2023,
arXiv:2312.03732), with alpha_pattern and rank_pattern heeded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from ggufmerge.errors import FormatError, PlanError
from ggufmerge.files import MetadataEditor, ValueKind
from ggufmerge.files.small import read_json
from ggufmerge.files.tensor import MappedFile
from ggufmerge.formats.checkpoint import PERMUTED, row_order
from ggufmerge.formats.layers import layer_count
from ggufmerge.formats.safetensors import FloatArray, SafetensorsFile
from ggufmerge.formats.stored import StoredFile
from ggufmerge.patterns import Budget, Pattern, PatternError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_MAX_CONFIG = 1 << 20  # bytes

# architectures (of GGUF) to whose matrices llama.cpp's converter does nothing but rename them
_RENAMED = {
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "gemma",
    "gemma2",
    "gemma3",
    "phi2",
    "phi3",
    "command-r",
    "cohere2",
    "olmo2",
    "stablelm",
    "starcoder2",
    "exaone",
}
_ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
_HALF = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<half>[AB])(?:\.\w+)*")
# ways to begin training that change the base as well
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class PeftFile:
    """A PEFT adapter under GGUF's names for the model `base`, with the interface of `StoredFile`.

    tensors: the halves as `X.lora_a` and `X.lora_b`, still in the mapped file.  scales: of each change, by tensor.
    """

    def __init__(self, path: Path, base: StoredFile) -> None:
        folder = path if path.is_dir() else path.parent
        self.path = path / WEIGHTS if path.is_dir() else path
        self.paths = [self.path, folder / CONFIG]
        self.architecture = base.architecture
        self._config_path = folder / CONFIG
        self._config = self._read_config(folder)
        self.metadata = MetadataEditor(where=str(self._config_path))
        self.metadata.set("general.name", folder.resolve().name or "adapter")
        self.metadata.set("general.type", "adapter")
        self.metadata.set("general.architecture", base.architecture)
        self.metadata.set("adapter.type", "lora")
        self.metadata.set("adapter.lora.alpha", float(self._config["lora_alpha"]), ValueKind.F64)
        if base.architecture not in PERMUTED | _RENAMED:
            raise PlanError(
                f"{self.path}: PEFT adapters are not read for architecture {base.architecture!r}, whose weights GGUF "
                "arranges in its own way; convert it with convert_lora_to_gguf.py of llama.cpp"
            )
        self._file = SafetensorsFile(self.path)
        try:
            self.scales: dict[str, float] = {}
            self.tensors = self._mapped(base)
        except BaseException:
            self.close()
            raise

    @property
    def mapped(self) -> list[MappedFile]:
        return self._file.mapped

    def close(self) -> None:
        """Let go of the file; tensors cannot be read any more."""
        self._file.close()

    def _read_config(self, folder: Path) -> dict[str, Any]:
        for path in (self._config_path, self.path):
            if not path.is_file():
                older = (folder / "adapter_model.bin").is_file() and path == self.path
                hint = "save the adapter with safe_serialization=True" if older else "give the folder that PEFT saved"
                raise PlanError(f"{path}: is missing, and a PEFT adapter needs it; {hint}")
        try:
            config = read_json(self._config_path, _MAX_CONFIG)
        except ValueError as error:
            raise FormatError(f"{self._config_path}: no PEFT configuration: {error}; download it again") from None
        except OSError as error:
            raise FormatError(f"{self._config_path}: cannot be read ({error.strerror}); check the file") from None
        self._check_config(config)
        return config

    def _check_config(self, config: dict[str, Any]) -> None:
        for key in ("r", "lora_alpha"):
            if not _is_number(config.get(key)):
                raise FormatError(f"{self._config_path}: {key} is not a number; give the folder that PEFT saved")
        for key in ("rank_pattern", "alpha_pattern"):
            patterns = config.get(key) or {}
            if not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
                raise FormatError(f"{self._config_path}: {key} is not a mapping to numbers; let PEFT save it again")
        saved = config.get("modules_to_save")
        if saved is not None and not (isinstance(saved, list) and all(isinstance(name, str) for name in saved)):
            raise FormatError(
                f"{self._config_path}: modules_to_save is not a list of names; let PEFT save the adapter again"
            )
        if refused := _refused_feature(config):
            raise PlanError(f"{self._config_path}: {refused}")

    def _mapped(self, base: StoredFile) -> dict[str, FloatArray]:
        budget = Budget()
        ranks, alphas = (self._patterns(key, budget) for key in ("rank_pattern", "alpha_pattern"))
        names = gguf.get_tensor_name_map(_ARCHITECTURES[base.architecture], layer_count(base))
        tensors: dict[str, FloatArray] = {}
        for name in (*self._file.tensors, *self._file.others):
            match = _HALF.fullmatch(name)
            half = self._file.tensors.get(name)
            if match is None or half is None:
                raise PlanError(f'{self.path}: "{name}" is {_what(name)}, which cannot be added to a tensor; {_MERGE}')
            module = match["module"].replace("language_model.", "")
            target = names.get_name(f"{module}.weight", (".weight",))
            if target is None:
                raise PlanError(
                    f'{self.path}: changes "{module}", for which a GGUF file of architecture {base.architecture!r} has '
                    "no tensor of its own; convert it with convert_lora_to_gguf.py of llama.cpp"
                )
            if match["half"] == "A":
                rank = _by_pattern(ranks, module, self._config["r"])
                alpha = _by_pattern(alphas, module, self._config["lora_alpha"])
                self.scales[target] = self._scale_of(module, half.rows, rank, float(alpha))
                half = half.transposed() if match["embedding"] else half
            order = row_order(base, target, half.rows) if match["half"] == "B" else None
            renamed = half.renamed(f"{target}.lora_{match['half'].lower()}", order)
            if renamed.name in tensors:
                raise FormatError(f'{self.path}: changes "{module}" twice, under several names; save the adapter again')
            tensors[renamed.name] = renamed
        return tensors

    def _patterns(self, key: str, budget: Budget) -> _Patterns:
        """The expressions of a key of the configuration and their numbers."""
        try:
            return [
                (Pattern(rf"(.*\.)?({pattern})", 0, budget), number)
                for pattern, number in (self._config.get(key) or {}).items()
            ]
        except PatternError as error:
            raise FormatError(f"{self._config_path}: {key}: {error}; let PEFT save it again") from None

    def _scale_of(self, module: str, rank: int, declared: float, alpha: float) -> float:
        if rank < 1:
            raise FormatError(f'{self.path}: "{module}" has rank 0 and no values; let PEFT save the adapter again')
        if declared != rank:
            raise PlanError(
                f'{self.path}: "{module}" has rank {rank}, but {CONFIG} says {declared}; '
                "use the configuration that belongs to these weights"
            )
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") is True else rank)


_MERGE = "merge the adapter into its base with PEFT and convert the result"


def _refused_feature(config: Mapping[str, Any]) -> str:
    """What of a configuration cannot be expressed as a change of matrices, with what to do; empty when all can."""
    kind = config.get("peft_type", "LORA")
    beginning = config.get("init_lora_weights")
    if kind != "LORA":
        return f"a {kind} adapter, not a LoRA adapter; {_MERGE}"
    if config.get("use_dora"):
        return f"DoRA rescales whole weights, which is not a low-rank change; {_MERGE}"
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        return f"it was trained with biases, which a LoRA in GGUF cannot hold; {_MERGE}"
    if config.get("modules_to_save"):
        listed = ", ".join(map(str, config["modules_to_save"]))
        return f"it replaces whole modules ({listed}) besides its low-rank changes; {_MERGE}"
    if config.get("alora_invocation_tokens"):
        return "an activated LoRA works only after its invocation tokens and would always work once merged"
    if config.get("layer_replication") or config.get("use_qalora"):
        return f"it changes the structure of its base (layer_replication, use_qalora); {_MERGE}"
    if isinstance(beginning, str) and beginning.lower().startswith(_CHANGES_BASE):
        return (
            f"init_lora_weights {beginning!r} changed the base too, so the adapter does not fit the original; save it "
            "with path_initial_model_for_weight_conversion"
        )
    return ""


def _what(name: str) -> str:
    if "lora_magnitude_vector" in name:
        return "a part of DoRA"
    return "not half of a low-rank change of a matrix"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)  # and finite, as all that `read_json` gives


_Patterns = list[tuple[Pattern, float]]


def _by_pattern(patterns: _Patterns, module: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends in (PEFT's `get_pattern_key`)."""
    return next((number for pattern, number in patterns if pattern.fullmatch(module)), default)
