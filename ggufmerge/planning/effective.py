"""What the settings in the metadata of a model mean to llama.cpp: under a key that is missing, its own default
(`architectures/defaults.py`). A key that is missing and has no default that is known is unlike any value.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from ggufmerge import keys
from ggufmerge.architectures.defaults import FINETUNED, NUMBERS, SEPARATING, STARTING, TOKENIZERS
from ggufmerge.files.metadata import KeyValues
from ggufmerge.sources import Source


class _Missing:
    """No value, and no default that is known."""

    def __repr__(self) -> str:
        return "none"


MISSING = _Missing()
ROWS = "a token for each row"  # what a number of tokens is that agrees with the embedding, or is missing

_OF_TOKENIZER = "tokenizer.ggml."


class Effective:
    """The settings of a model, or of a tokenizer that belongs to none, as llama.cpp takes them.

    label: what messages call it.  number: of the model among those of the recipe, None for a tokenizer of no model.
    metadata: of its file; `source` is None for a tokenizer of no model.  layers: how many it has.
    """

    def __init__(
        self, label: str, metadata: KeyValues, source: Source | None = None, number: int | None = None, layers: int = 0
    ) -> None:
        self.label, self.metadata, self.source, self.number = label, metadata, source, number
        self.layers = layers
        self._prefix = f"{source.file.architecture}." if source is not None else "\0"
        self._values: dict[str, Any] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.metadata

    def raw(self, key: str) -> bytes | None:
        """The span of a key as it stands in the file; None when it is missing."""
        return self.metadata.raw(key) if key in self.metadata else None

    def value(self, key: str) -> Any:
        """The value that llama.cpp goes by: MISSING, a number, a text, a list of texts or an array. A list of one value
        for each layer that are all the same is that value, and a number of tokens that agrees with the rows is ROWS.
        """
        if key not in self._values:
            self._values[key] = self._stated(key) if key in self.metadata else self.default(key)
        return self._values[key]

    def default(self, key: str) -> Any:
        """What llama.cpp takes when the key is missing; MISSING when that is not known here."""
        if key.startswith(self._prefix):
            return self._of_architecture(key.removeprefix(self._prefix))
        if key.startswith(_OF_TOKENIZER):
            return self._of_tokenizer(key)
        return MISSING

    def same(self, other: Effective, key: str) -> bool:
        """Whether a key means the same to llama.cpp in both: equal in value, whatever types of numbers store it."""
        raw = self.raw(key)
        if raw is not None and raw == other.raw(key):
            return True
        if key.endswith(".rope.scaling.type") and not self.is_scaled and not other.is_scaled:
            values = [side.value(key) for side in (self, other)]
            if all(isinstance(value, str) and value in ("none", "linear") for value in values):
                return True  # stretched by 1, which is not stretched
        return self.means(key, other.value(key))

    def means(self, key: str, value: Any) -> bool:
        """Whether the value under a key is this one."""
        return equal(self.value(key), value)

    @cached_property
    def tokens(self) -> list[str]:
        """The vocabulary; empty without one."""
        tokens = self.metadata.get(keys.TOKENS)
        return tokens if isinstance(tokens, list) else []

    @cached_property
    def tokens_as_set(self) -> set[str]:
        """The vocabulary, to look tokens up."""
        return set(self.tokens)

    @property
    def is_scaled(self) -> bool:
        """Whether the rotation is stretched by a factor."""
        return self.value(self._prefix + "rope.scaling.factor") != 1

    def token(self, number: Any) -> str | None:
        """The text of a token by its id; None when there is none."""
        is_id = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(self.tokens)
        return self.tokens[number] if is_id else None

    def _stated(self, key: str) -> Any:
        value = self.metadata[key]
        if isinstance(value, np.ndarray):
            uniform = len(value) == self.layers > 0 and bool((value == value[0]).all())
            if not (uniform and key.startswith((self._prefix, "xielu."))):
                return value
            value = value[0].item()
        if isinstance(value, float):
            value = float(np.float32(value))
        if key == self._prefix + "vocab_size":
            return ROWS if value == self._rows() else value
        if key == self._prefix + "rope.scaling.factor" and value == 0:
            return 1.0
        return value

    def _rows(self) -> int | None:
        embedding = self.source.file.tensors.get(keys.EMBEDDING) if self.source is not None else None
        return embedding.shape[0] if embedding is not None and embedding.shape else None

    def _of_tokenizer(self, key: str) -> Any:
        kind, pre = self.metadata.get(keys.TOKENIZER_MODEL), self.metadata.get(keys.TOKENIZER_PRE)
        name = key.removeprefix(_OF_TOKENIZER)
        if kind == "gpt2" and name in ("add_bos_token", "add_sep_token"):  # without a pre-tokenizer nobody knows
            return pre in (STARTING if name == "add_bos_token" else SEPARATING) if isinstance(pre, str) else MISSING
        value: Any = TOKENIZERS.get(kind, {}).get(name, MISSING) if isinstance(kind, str) else MISSING
        return MISSING if keys.is_token_id(key) and value is not MISSING and value >= len(self.tokens) else value

    def _of_architecture(self, name: str) -> Any:
        p = self._prefix
        if name in NUMBERS:
            return NUMBERS[name]
        if name == "vocab_size":
            return ROWS
        if name == "attention.head_count_kv":
            return self.value(p + "attention.head_count")
        if name in ("attention.key_length", "attention.value_length"):
            return self._head_width()
        if name == "rope.dimension_count":
            return self.value(p + "attention.key_length")
        if name.endswith("_swa") and name.removesuffix("_swa") in (
            "rope.dimension_count",
            "attention.key_length",
            "attention.value_length",
        ):
            return self.value(p + name.removesuffix("_swa"))
        if name == "rope.scaling.factor":  # the old name is read when the new one is missing
            return self._stated(p + "rope.scale_linear") if p + "rope.scale_linear" in self.metadata else 1.0
        if name == "rope.scale_linear":
            return self._stated(p + "rope.scaling.factor") if p + "rope.scaling.factor" in self.metadata else 1.0
        if name == "rope.scaling.finetuned" and not p.startswith(FINETUNED):
            return False
        return MISSING

    def _head_width(self) -> Any:
        width, heads = self.value(self._prefix + "embedding_length"), self.value(self._prefix + "attention.head_count")
        heads = heads[0].item() if isinstance(heads, np.ndarray) and len(heads) else heads
        if isinstance(width, int) and isinstance(heads, int) and heads > 0:
            return width // heads
        return MISSING


def equal(a: Any, b: Any) -> bool:
    """Whether two values of settings are the same."""
    if a is MISSING or b is MISSING:
        return a is b
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
            return False
        if a.dtype.kind == "f" or b.dtype.kind == "f":
            a, b = a.astype(np.float32), b.astype(np.float32)
        return bool(np.array_equal(a, b))
    return bool(a == b) and isinstance(a, str) == isinstance(b, str)
