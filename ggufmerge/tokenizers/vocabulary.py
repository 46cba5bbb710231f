"""The vocabulary of a model as its GGUF metadata describe it: tokens, scores, types and the ids with a special role.

Keys and their meaning: "Tokenizer" of ggml's `docs/gguf.md`; what is refused here, llama.cpp's `llama-vocab.cpp`
refuses too, only later and with less to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import PlanError
from ggufmerge.files.metadata import KeyValues, MetadataEditor, ValueKind

PREFIX = "tokenizer."
MODEL = "tokenizer.ggml.model"
PRE = "tokenizer.ggml.pre"
TOKENS = "tokenizer.ggml.tokens"
SCORES = "tokenizer.ggml.scores"
TYPES = "tokenizer.ggml.token_type"
# A tokenizer of Hugging Face in JSON: it describes the vocabulary of its own model and no other.
HUGGINGFACE_JSON = "tokenizer.huggingface.json"
_ID_PREFIX, _ID_SUFFIX = "tokenizer.ggml.", "_token_id"


class TokenType(IntEnum):
    """`llama_token_type`: what a token is for."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tokens in the order of their ids, and what the metadata say about them.

    label: what messages call it.
    kind: `tokenizer.ggml.model`: "llama" is SentencePiece, "gpt2" byte-level BPE.
    tokens: bytes that are not UTF-8 are kept as lone surrogates ("surrogateescape"). Each token stands once.
    types: int32 [tokens], of `TokenType`.
    scores: float32 [tokens]; None when the file has none, as with BPE.
    rows: how many tokens have a row in the embedding; the rest, if any, are names without numbers.
    metadata: the keys of `tokenizer.` with their raw spans.
    """

    label: str
    kind: str
    tokens: list[str]
    types: NDArray[np.int32]
    scores: NDArray[np.float32] | None = None
    rows: int = -1
    metadata: KeyValues = field(default_factory=MetadataEditor)

    def __post_init__(self) -> None:
        if self.rows < 0:
            object.__setattr__(self, "rows", len(self.tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Token to id."""
        return dict(zip(self.tokens, range(len(self.tokens)), strict=True))

    @cached_property
    def padding(self) -> NDArray[np.bool_]:
        """bool [tokens]: which are placeholders, "[PAD7]" at id 7, as llama.cpp's converter makes them for embedding
        rows that no token uses; of type UNUSED, in older files USER_DEFINED."""
        marked = np.zeros(len(self.tokens), bool)
        for i in np.flatnonzero(np.isin(self.types, (TokenType.UNUSED, TokenType.USER_DEFINED))):
            marked[i] = self.tokens[i] == padding_token(int(i))
        return marked

    @property
    def pre(self) -> str:
        """The pre-tokenizer of a BPE vocabulary (`tokenizer.ggml.pre`)."""
        return self.metadata.text(PRE) or ""

    @property
    def special_ids(self) -> dict[str, int]:
        """Role to id, for the roles that the metadata name: {"bos": 1, "eos": 2, "fim_pre": 7, ...}."""
        keys = [k for k in self.metadata if k.startswith(_ID_PREFIX) and k.endswith(_ID_SUFFIX)]
        ids = {k[len(_ID_PREFIX) : -len(_ID_SUFFIX)]: self.metadata.integer(k) for k in keys}
        return {role: i for role, i in ids.items() if i is not None and i < len(self.tokens)}

    def changes(self, donor: Vocabulary) -> dict[str, NDArray[Any] | list[str]]:
        """The arrays of `tokenizer.ggml.*` in which this vocabulary differs from the one its other keys come from."""
        if self is donor:
            return {}
        arrays: dict[str, NDArray[Any] | list[str]] = {TOKENS: self.tokens, TYPES: self.types}
        return arrays if self.scores is None else {**arrays, SCORES: self.scores}


def padding_token(i: int) -> str:
    """The name of the placeholder at id `i`."""
    return f"[PAD{i}]"


def read_vocabulary(metadata: KeyValues, label: str, rows: int | None = None) -> Vocabulary:
    """The vocabulary in the metadata of a file that messages call `label`.

    rows: rows of the embedding; None for as many as tokens.
    PlanError when there is none, or llama.cpp would not read it.
    """
    if MODEL not in metadata or TOKENS not in metadata:
        raise PlanError(f"{label}: holds no vocabulary ({MODEL}, {TOKENS}); take another file")
    kind, texts = metadata.text(MODEL), metadata.texts(TOKENS)
    if kind is None or texts is None:
        what = f"{MODEL} is {metadata.found(MODEL)}, not a text" if kind is None else f"{TOKENS} is not a list of texts"
        raise PlanError(f"{label}: {what}; the file is damaged, convert it again")
    # llama.cpp gives tokens without a text one of their own
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(texts)]
    if len(set(tokens)) < len(tokens):
        token, times = Counter(tokens).most_common(1)[0]
        raise PlanError(
            f"{label}: the token {token!r} appears {times} times in {TOKENS}; llama.cpp refuses such a file"
        )
    types = _numbers(metadata, TYPES, len(tokens), label, ValueKind.I32)
    scores = _numbers(metadata, SCORES, len(tokens), label, ValueKind.F32, ValueKind.I32)
    if types is None:
        types = np.full(len(tokens), TokenType.NORMAL, np.int32)
    own = MetadataEditor()
    for key in metadata:
        if key.startswith(PREFIX):
            own.set_raw(key, metadata.raw(key))
    return Vocabulary(
        label=label,
        kind=kind,
        tokens=tokens,
        types=types.astype(np.int32, copy=False),
        scores=None if scores is None else scores.astype(np.float32, copy=False),
        rows=len(tokens) if rows is None else min(rows, len(tokens)),
        metadata=own,
    )


def _numbers(metadata: KeyValues, key: str, count: int, label: str, *kinds: ValueKind) -> NDArray[Any] | None:
    """The first `count` numbers of an array of one of these kinds; None when the key is missing."""
    if key not in metadata:
        return None
    if metadata.kind(key) != ValueKind.ARRAY or metadata.element_kind(key) not in kinds:
        raise PlanError(f"{label}: {key} is not a list of {kinds[0].name} numbers; the file is damaged")
    values: NDArray[Any] = metadata[key]
    if len(values) < count:
        raise PlanError(
            f"{label}: {key} has {len(values)} values for {count} tokens; the file is damaged, convert it again"
        )
    return values[:count]
