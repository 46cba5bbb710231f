"""SentencePiece models (`tokenizer.model`): compare one with a GGUF file's vocabulary, write one of a vocabulary.

A GGUF file of kind "llama" holds the pieces, scores and types of a SentencePiece model, but neither its trainer nor its
normalizer. llama.cpp joins pieces by score, as SentencePiece does for models of type BPE, and changes no character but
the space; the models written here say so. Field numbers: `sentencepiece_model.proto` of google/sentencepiece.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import numpy as np

from ggufmerge import keys
from ggufmerge.errors import GgufmergeError
from ggufmerge.files.small import read_small
from ggufmerge.text import one_line, quoted
from ggufmerge.tokenizers.vocabulary import TokenType, Vocabulary

KIND = "llama"
FILE_NAME = "tokenizer.model"
_SPACE = "▁"
_MAX_BYTES = 1 << 27  # of a model; the largest published ones have 5 MB
_BPE = 2  # TrainerSpec.ModelType


def tokenizer_model_beside(path: Path) -> Path | None:
    """The `tokenizer.model` in the folder of a GGUF file, if there is one."""
    beside = path.parent / FILE_NAME
    return beside if beside.is_file() else None


def read_tokenizer_model(path: str | os.PathLike[str]) -> Vocabulary:
    """The vocabulary of a SentencePiece model. User-defined pieces count as normal ones, as in llama.cpp's converter.

    GgufmergeError when the file is none.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_proto=read_small(path, _MAX_BYTES))
    except OSError as error:
        raise GgufmergeError(f"{path}: not a SentencePiece model: {error.strerror or error}") from None
    except (RuntimeError, UnicodeDecodeError) as error:
        raise GgufmergeError(f"{path}: not a SentencePiece model: {_first_line(error)}") from None
    count = model.get_piece_size()
    try:
        pieces = [model.id_to_piece(i) for i in range(count)]
    except UnicodeDecodeError:
        raise GgufmergeError(f"{path}: not a SentencePiece model: a piece of it is not UTF-8") from None
    types = np.full(count, TokenType.NORMAL, np.int32)
    for kind, holds in (
        (TokenType.UNKNOWN, model.is_unknown),
        (TokenType.CONTROL, model.is_control),
        (TokenType.UNUSED, model.is_unused),
        (TokenType.BYTE, model.is_byte),
    ):
        types[[i for i in range(count) if holds(i)]] = kind
    return Vocabulary(
        label=str(path),
        kind=KIND,
        tokens=pieces,
        types=types,
        scores=np.array([model.get_score(i) for i in range(count)], np.float32),
    )


def difference(vocabulary: Vocabulary, model: Vocabulary) -> str | None:
    """In what a vocabulary differs from the SentencePiece model it should come from, in words; None in nothing.

    Pieces must be the same; the vocabulary may have more of them, added after training. Scores and types are compared
    for normal and byte pieces only: converters change those of added and special ones.
    """
    count = len(model)
    if len(vocabulary) < count:
        return f"it has {count} pieces, {vocabulary.label} has {len(vocabulary)} tokens"
    for i, (token, piece) in enumerate(zip(vocabulary.tokens, model.tokens, strict=False)):
        if token != piece and token.replace(" ", _SPACE) != piece:
            return f"piece {i} is {piece!r}, in {vocabulary.label} it is {token!r}"
    compared = np.isin(vocabulary.types[:count], (TokenType.NORMAL, TokenType.BYTE))
    if (other := compared & (vocabulary.types[:count] != model.types)).any():
        i = int(other.argmax())
        kinds = [TokenType(v.types[i]).name.lower() for v in (model, vocabulary)]
        return f"piece {i}, {model.tokens[i]!r}, is {kinds[0]}, in {vocabulary.label} it is {kinds[1]}"
    if vocabulary.scores is not None and model.scores is not None:
        scores = vocabulary.scores[:count]
        if (other := compared & (scores != model.scores)).any():
            i = int(other.argmax())
            return (
                f"the score of piece {i}, {model.tokens[i]!r}, is {model.scores[i]:g}, "
                f"in {vocabulary.label} it is {scores[i]:g}"
            )
    return None


def write_tokenizer_model(vocabulary: Vocabulary, path: str | os.PathLike[str]) -> None:
    """Write a vocabulary of kind "llama" as a SentencePiece model, which appears when it is complete.

    GgufmergeError when the vocabulary is of another kind, or SentencePiece refuses it.
    """
    from sentencepiece import SentencePieceProcessor

    data = _model(vocabulary)
    try:
        SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise GgufmergeError(
            f"{vocabulary.label}: SentencePiece cannot hold this vocabulary: {_first_line(error)}"
        ) from None
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise GgufmergeError(f"{path}: cannot be written: {error.strerror}") from None


def _first_line(error: Exception) -> str:
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0])


def _model(vocabulary: Vocabulary) -> bytes:
    """A serialized ModelProto."""
    if vocabulary.kind != KIND:
        raise GgufmergeError(f"{vocabulary.label}: of kind {quoted(vocabulary.kind)}, not SentencePiece's (llama)")
    ids = vocabulary.special_ids
    unknown = np.flatnonzero(vocabulary.types == TokenType.UNKNOWN)
    unknown_id = ids.get("unknown", int(unknown[0]) if len(unknown) else 0)
    scores = np.zeros(len(vocabulary), np.float32) if vocabulary.scores is None else vocabulary.scores
    pieces = []
    for i, (token, kind, score) in enumerate(zip(vocabulary.tokens, vocabulary.types, scores, strict=True)):
        if i == unknown_id:
            kind = TokenType.UNKNOWN
        elif kind == TokenType.UNKNOWN:  # there is exactly one
            kind = TokenType.CONTROL
        elif kind == TokenType.UNDEFINED:
            kind = TokenType.NORMAL
        elif kind == TokenType.USER_DEFINED:  # written with spaces in GGUF files
            token = token.replace(" ", _SPACE)
        piece = _bytes(1, _utf8(vocabulary, i, token)) + _float(2, float(score)) + _int(3, int(kind))
        pieces.append(_bytes(1, piece))
    trainer = _int(3, _BPE) + _int(4, len(vocabulary)) + _int(35, int((vocabulary.types == TokenType.BYTE).any()))
    roles = {"unknown": (40, 45), "bos": (41, 46), "eos": (42, 47), "padding": (43, 48)}
    for role, (id_field, piece_field) in roles.items():
        at = unknown_id if role == "unknown" else ids.get(role, -1)
        trainer += _int(id_field, at)
        if at >= 0:
            trainer += _bytes(piece_field, _utf8(vocabulary, at, vocabulary.tokens[at]))
    prefix = vocabulary.metadata.flag(keys.ADD_SPACE_PREFIX) is not False
    normalizer = _bytes(1, b"identity") + _int(3, int(prefix)) + _int(4, 0) + _int(5, 1)
    return b"".join(pieces) + _bytes(2, trainer) + _bytes(3, normalizer)


def _utf8(vocabulary: Vocabulary, i: int, token: str) -> bytes:
    try:
        return token.encode()
    except UnicodeEncodeError:
        raise GgufmergeError(f"{vocabulary.label}: token {i} is not UTF-8; SentencePiece cannot hold it") from None


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    """A field of wire type 0."""
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, data: bytes) -> bytes:
    """A field of wire type 2."""
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _float(field: int, value: float) -> bytes:
    """A field of wire type 5."""
    return _varint(field << 3 | 5) + struct.pack("<f", value)
