"""LoRA adapters as Hugging Face's PEFT saves them: a folder with adapter_config.json and adapter_model.safetensors.

They are read as what llama.cpp's `convert_lora_to_gguf.py` would make of them, without writing that file: names are
mapped through gguf's tables, and where the converter of an architecture permutes the rows of Q and K (for the other
layout of rotary embeddings) the rows of their B halves are permuted too.

The scale of a tensor is PEFT's: alpha / rank, or alpha / sqrt(rank) for rank-stabilized LoRA (Kalajdzievski 2023,
arXiv:2312.03732), with alpha_pattern and rank_pattern heeded.

Beside the halves such a folder may hold whole modules (`modules_to_save`) and the rows of single tokens
(`trainable_token_indices`), which take the place of the base's; and copies of frozen weights, which are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from ggufmerge import keys
from ggufmerge.errors import FormatError, PlanError
from ggufmerge.files import MetadataEditor, ValueKind
from ggufmerge.files.small import read_json
from ggufmerge.files.tensor import MappedFile
from ggufmerge.formats.checkpoint import PERMUTED, Vector, row_order
from ggufmerge.formats.copies import COMPUTED, FROZEN, SAMPLERS, VISION, grown, is_copy, is_of_tower
from ggufmerge.formats.layers import layer_count
from ggufmerge.formats.safetensors import FloatArray, SafetensorsFile
from ggufmerge.formats.stored import StoredFile, StoredTensor
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
_ADDS_ONE = {"gemma", "gemma2", "gemma3"}  # of those above; their converters add 1 to the weights of norms
_PREFIX = "base_model.model."
_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<half>[AB])(?:\.\w+)*")
_COPY = re.compile(r"(?P<module>.+?)\.(token_adapter\.)?(base_layer|original_module)\.(weight|bias)")
_TOKENS = re.compile(r"(?P<module>.+?)\.(token_adapter\.)?trainable_tokens_delta(\.\w+)?")
_WHOLE = re.compile(r"(?P<module>(?!.*\.lora_).+?)(?P<saved>\.modules_to_save(\.\w+)?)?\.(?P<part>weight|bias)")
# ways to begin training that change the base as well
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class PeftFile:
    """A PEFT adapter under GGUF's names for the model `base`, with the interface of `StoredFile`.

    tensors: the halves as `X.lora_a` and `X.lora_b`, still in the mapped file.  scales: of each change, by tensor.
    wholes: what takes the place of tensors of the base.  rows: the same of some rows, their numbers and the rows.
    shared: whether low-rank changes, whole tensors and rows for the embedding hold for a head that is tied to it.
    ignored: names of what is left out, by what it is.
    """

    def __init__(self, path: Path, base: StoredFile) -> None:
        folder = path if path.is_dir() else path.parent
        self.path = path / WEIGHTS if path.is_dir() else path
        self.paths = [self.path, folder / CONFIG]
        self.architecture = base.architecture
        self._config_path = folder / CONFIG
        self._config = self._read_config(folder)
        self.metadata = MetadataEditor(where=str(self._config_path))
        self.metadata.set(keys.NAME, folder.resolve().name or "adapter")
        self.metadata.set(keys.TYPE, "adapter")
        self.metadata.set(keys.ARCHITECTURE, base.architecture)
        self.metadata.set(keys.ADAPTER_TYPE, "lora")
        self.metadata.set(keys.LORA_ALPHA, float(self._config["lora_alpha"]), ValueKind.F64)
        if base.architecture not in PERMUTED | _RENAMED:
            raise PlanError(
                f"{self.path}: PEFT adapters are not read for architecture {base.architecture!r}, whose weights GGUF "
                "arranges in its own way; convert it with convert_lora_to_gguf.py of llama.cpp"
            )
        self._file = SafetensorsFile(self.path, dimensions=(1, 2))
        self.scales: dict[str, float] = {}
        self.wholes: dict[str, StoredTensor] = {}
        self.rows: dict[str, tuple[list[int], FloatArray]] = {}
        self.ignored: dict[str, list[str]] = {}
        self._unlisted: set[str] = set()  # tensors among the whole ones that were not trained as such
        try:
            self.tensors = self._mapped(base)
            self._check_saved(base)
            self._join_tied(base)
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

    @property
    def shared(self) -> tuple[bool, bool, bool]:
        """What PEFT does in training: low-rank changes and modules are tied if that is asked for, rows in any case but
        when others are given for the head; and what was not trained is put into the one matrix.
        """
        tied = self._config.get("ensure_weight_tying") is True
        whole = keys.HEAD not in self.wholes and (tied or keys.EMBEDDING in self._unlisted)
        return tied, whole, keys.HEAD not in self.rows

    def _mapped(self, base: StoredFile) -> dict[str, FloatArray]:
        budget = Budget()
        ranks, alphas = (self._patterns(key, budget) for key in ("rank_pattern", "alpha_pattern"))
        names = gguf.get_tensor_name_map(_ARCHITECTURES[base.architecture], layer_count(base))
        tensors: dict[str, FloatArray] = {}
        for name in (*self._file.tensors, *self._file.others):
            own = name.removeprefix(_PREFIX)
            if harmless := _left_out(own):
                self._ignore(harmless, name)
                continue
            stored = self._file.tensors.get(name)
            half = _HALF.fullmatch(own)
            match = half or _COPY.fullmatch(own) or _TOKENS.fullmatch(own) or _WHOLE.fullmatch(own)
            if match is None or stored is None or (half and len(stored.shape) != 2):
                raise PlanError(f'{self.path}: "{name}" is {_what(name)}, which cannot be added to a tensor; {_MERGE}')
            module = match["module"].replace("language_model.", "")
            part = "bias" if match.groupdict().get("part") == "bias" else "weight"
            target = names.get_name(f"{module}.{part}", (f".{part}",))
            if target is None and f"{module}.{part}" == "lm_head.weight":
                target = keys.HEAD  # which the tables know only where llama.cpp reads one
            if target is None:
                raise PlanError(
                    f'{self.path}: changes "{module}", for which a GGUF file of architecture {base.architecture!r} has '
                    "no tensor of its own; convert it with convert_lora_to_gguf.py of llama.cpp"
                )
            if half is None:
                self._take(base, match, module, target, name, stored)
                continue
            if half["half"] == "A":
                rank = _by_pattern(ranks, module, self._config["r"])
                alpha = _by_pattern(alphas, module, self._config["lora_alpha"])
                self.scales[target] = self._scale_of(module, stored.rows, rank, float(alpha))
                stored = stored.transposed() if half["embedding"] else stored
            order = row_order(base, target, stored.rows) if half["half"] == "B" else None
            renamed = stored.renamed(f"{target}.lora_{half['half'].lower()}", order)
            if renamed.name in tensors:
                raise self._twice(module)
            tensors[renamed.name] = renamed
        return tensors

    def _ignore(self, what: str, name: str) -> None:
        self.ignored.setdefault(what, []).append(name)

    def _twice(self, module: str) -> FormatError:
        return FormatError(f'{self.path}: changes "{module}" twice, under several names; save the adapter again')

    def _take(
        self,
        base: StoredFile,
        match: re.Match[str],
        module: str,
        target: str,
        name: str,
        stored: FloatArray,
    ) -> None:
        """Note a tensor that is no half: of a whole module, of some rows, or a copy."""
        tied = target == keys.HEAD and target not in base.tensors
        there = base.tensors.get(keys.EMBEDDING if tied else target)
        if there is None:
            raise PlanError(
                f'{self.path}: brings "{module}", but {base.path} has no {target}; use an adapter made for this base'
            )
        by_token = target in (keys.EMBEDDING, keys.HEAD)
        if match.re is _TOKENS:
            if target in self.rows:
                raise self._twice(module)
            self.rows[target] = (self._token_numbers(base, module, target, stored, there), stored)
            return
        if by_token and stored.shape[0] > there.shape[0]:
            raise grown(self.path, module, stored.shape[0], base.path, there.shape[0])
        if match.re is _COPY:
            self._ignore(FROZEN, name)
            return
        if stored.shape != there.shape:
            raise PlanError(
                f'{self.path}: brings "{module}" with shape {list(stored.shape)}, but {target} of {base.path} has '
                f"{list(there.shape)}; use an adapter made for this base"
            )
        if tied and self._config.get("ensure_weight_tying") is True:
            return  # PEFT saves what is given for the embedding under both names
        converted = self._converted(base, target, stored)
        if not (match["saved"] or self._is_listed(module)):
            if is_copy(converted, there):
                self._ignore(FROZEN, name)
                return
            self._unlisted.add(target)
        if target in self.wholes:
            raise self._twice(module)
        self.wholes[target] = converted

    def _converted(self, base: StoredFile, target: str, stored: FloatArray) -> StoredTensor:
        """A whole tensor as llama.cpp's converter would write it."""
        order = row_order(base, target, stored.shape[0])
        if len(stored.shape) == 2:
            return stored.renamed(target, order)
        one = base.architecture in _ADDS_ONE and target.endswith("norm.weight")
        return Vector(target, stored, 1.0 if one else 0.0, order)

    def _is_listed(self, module: str) -> bool:
        """Whether the configuration says that a module was trained whole."""
        return any(_ends(module, name) for name in self._config.get("modules_to_save") or ())

    def _check_saved(self, base: StoredFile) -> None:
        """PlanError when an embedding or a head that was trained whole is not in the file."""
        names = {"embed_tokens": keys.EMBEDDING, "wte": keys.EMBEDDING, "lm_head": keys.HEAD}
        tied = self._config.get("ensure_weight_tying") is True and keys.HEAD not in base.tensors
        for listed in self._config.get("modules_to_save") or ():
            target = names.get(listed.rpartition(".")[2])
            if target is None or target in self.wholes or (tied and target == keys.HEAD):
                continue
            raise PlanError(
                f'{self._config_path}: says that "{listed}" was trained whole, but {self.path.name} does not hold it; '
                "let PEFT save the adapter again"
            )

    def _join_tied(self, base: StoredFile) -> None:
        """Where the base has one matrix for the embedding and the head, leave out what is given for the head and is
        that for the embedding; what was not trained as the head is loaded into the one matrix.
        """
        if keys.HEAD in base.tensors:
            return
        if self._config.get("ensure_weight_tying") is True:
            a, b = (self.tensors.pop(f"{keys.HEAD}.lora_{half}", None) for half in "ab")
            scale = self.scales.pop(keys.HEAD, None)
            if a and b and scale is not None and keys.EMBEDDING not in self.scales:
                self.scales[keys.EMBEDDING] = scale
                self.tensors[f"{keys.EMBEDDING}.lora_a"] = b.renamed(f"{keys.EMBEDDING}.lora_a")
                self.tensors[f"{keys.EMBEDDING}.lora_b"] = a.transposed().renamed(f"{keys.EMBEDDING}.lora_b")
        if keys.HEAD in self._unlisted:
            self.wholes.setdefault(keys.EMBEDDING, self.wholes.pop(keys.HEAD))
            self._unlisted.add(keys.EMBEDDING)

    def _token_numbers(
        self, base: StoredFile, module: str, target: str, stored: FloatArray, there: StoredTensor
    ) -> list[int]:
        """The tokens that rows of a tensor are for, as the configuration lists them."""
        given = self._config.get("trainable_token_indices")
        if isinstance(given, dict):
            given = next((found for name, found in given.items() if _ends(module, name)), None)
        if not isinstance(given, list) or not all(type(i) is int and i >= 0 for i in given):
            raise FormatError(
                f'{self._config_path}: trainable_token_indices does not list the tokens of "{module}"; let PEFT save '
                "the adapter again"
            )
        if given and max(given) >= there.shape[0]:
            raise grown(self.path, module, max(given) + 1, base.path, there.shape[0])
        if stored.shape != (len(given), *there.shape[1:]) or len(set(given)) < len(given):
            shape = list(stored.shape)
            raise PlanError(
                f'{self.path}: brings rows of "{module}" with shape {shape} for {len(given)} tokens, which do not fit '
                f"{target} of {base.path} {list(there.shape)}; use an adapter made for this base"
            )
        return given

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
    if config.get("alora_invocation_tokens"):
        return "an activated LoRA works only after its invocation tokens and would always work once merged"
    if config.get("kasa_config"):
        return f"KaSA cut parts off the base's weights before training, so it does not fit the original; {_MERGE}"
    if config.get("arrow_config"):
        return "Arrow chooses among several adapters for each token, which no fixed weights do; bake one of them"
    if config.get("use_bdlora"):
        return f"its halves are block-diagonal (use_bdlora) and stored in a form of their own; {_MERGE}"
    if config.get("layer_replication") or config.get("use_qalora"):
        return f"it changes the structure of its base (layer_replication, use_qalora); {_MERGE}"
    if isinstance(beginning, str) and beginning.lower().startswith(_CHANGES_BASE):
        return (
            f"init_lora_weights {beginning!r} changed the base too, so the adapter does not fit the original; save it "
            "with path_initial_model_for_weight_conversion"
        )
    return ""


def _left_out(name: str) -> str:
    """What a tensor is that says nothing of the language model's weights; empty for others."""
    if is_of_tower(name):
        return VISION
    if name.endswith(".rotary_emb.inv_freq"):
        return COMPUTED
    return SAMPLERS if ".lora_monteclora_sampler." in name else ""


def _what(name: str) -> str:
    if "lora_magnitude_vector" in name:
        return "a part of DoRA"
    return "not half of a low-rank change of a matrix"


def _ends(module: str, name: str) -> bool:
    """Whether a name means a module: all of its path, or the end of it."""
    return f".{module}".endswith(f".{name}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)  # and finite, as all that `read_json` gives


_Patterns = list[tuple[Pattern, float]]


def _by_pattern(patterns: _Patterns, module: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends in (PEFT's `get_pattern_key`)."""
    return next((number for pattern, number in patterns if pattern.fullmatch(module)), default)
