"""Settings and their differences in the words of a message: short, and as a recipe would have them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufmerge import keys
from ggufmerge.planning.effective import MISSING, ROWS, Effective
from ggufmerge.text import printable

NONE = "none"
_LONG = 24  # letters of a text that a message shows


@dataclass(frozen=True)
class Difference:
    """A key that a model has otherwise than the owner, whose value the result has. theirs, owners: in words."""

    key: str
    theirs: str
    owners: str
    is_missing: bool = False  # in the model


def described(side: Effective, owner: Effective, key: str, tokens: int | None = None) -> Difference:
    """A difference in words: both values, short.

    tokens: of how many tokens the value differs, for a list of one value per token; None for other keys.
    """
    a, b = side.value(key), owner.value(key)
    if tokens is not None:
        return Difference(key, f"for {tokens} of its tokens", f"those of {owner.label}")
    if isinstance(a, np.ndarray | list) and isinstance(b, np.ndarray | list):
        return Difference(key, *_of_lists(a, b))
    if isinstance(a, str) and isinstance(b, str) and max(len(a), len(b)) > _LONG:
        common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        start = max(0, common - 8)
        return Difference(key, _text(a, start), _text(b, start))
    if key not in side:
        return Difference(key, in_words(side, key), in_words(owner, key), is_missing=True)
    why = ": texts are cut otherwise" if key == keys.TOKENIZER_PRE and isinstance(b, str) else ""
    return Difference(key, in_words(side, key), in_words(owner, key) + why)


def _of_lists(a: Any, b: Any) -> tuple[str, str]:
    if len(a) != len(b):
        return f"{len(a)} values", f"{len(b)}"
    at = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if not at:  # not a number
        return f"{len(a)} values", "others"
    few = f"{len(at)} of {len(a)} values, the first at {at[0]}: {_plain(a[at[0]])}"
    return few, _plain(b[at[0]])


def in_words(side: Effective, key: str) -> str:
    """The value under a key, short; where it is missing, what llama.cpp takes."""
    value = side.value(key)
    if value is MISSING:
        return NONE
    if value is ROWS:
        return "as many as rows"
    missing = "" if key in side else " by default"
    token = side.token(value) if keys.is_token_id(key) else None
    return _plain(value) + (f" {_plain(token)}" if token is not None else "") + missing


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, np.ndarray | list):
        few = ", ".join(map(_plain, value[:4])) if len(value) <= 4 else f"{len(value)} values"
        return f"[{few}]" if len(value) <= 4 else few
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _text(text: str, start: int = 0) -> str:
    cut = ("..." if start else "") + text[start : start + _LONG]
    return "'" + printable(cut + ("..." if len(text) > start + _LONG else "")) + "'"


def literal(side: Effective, key: str) -> str | None:
    """A value as a recipe has it under `metadata:`; None where that would be long, or there is none."""
    value = side.metadata[key] if key in side else None
    if isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(float(np.format_float_positional(np.float32(value), unique=True, trim="0")))
    short = isinstance(value, str) and len(value) <= _LONG and value.isprintable()
    return json.dumps(value, ensure_ascii=False) if short else None
