"""What is left for weights where a model is to run in so much memory: `8G,ctx=8192,kv=q8_0`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ggufmerge.architectures.memory import CACHE_TYPES, Described, MemoryNeed, memory_need
from ggufmerge.errors import GgufmergeError, PlanError, nearest
from ggufmerge.recipe.budget import parse_bytes
from ggufmerge.text import quoted, size
from ggufmerge.types import TensorType

EXAMPLE = "8G,ctx=8192,kv=q8_0"
_LEAST_CONTEXT = 512


@dataclass(frozen=True)
class Fits:
    """Memory that a model may need in llama.cpp.

    bytes: all of it.  context: tokens; None for 4096, or what the model was trained on if that is less.
    kv_type: in which keys and values are kept.
    """

    bytes: int
    context: int | None = None
    kv_type: TensorType = TensorType.F16


def parse_fits(text: str) -> Fits:
    """`8G,ctx=8192,kv=q8_0`: a size in powers of 1000 (8G, 500M) or of 1024 (7.5GiB), then a context and a type, which
    may be left out.

    GgufmergeError, in one line, when it is anything else.
    """
    first, _, rest = (part.strip() for part in text.partition(","))
    no_size = GgufmergeError(f"{quoted(first)} is no size of memory: give one first, as in {EXAMPLE}")
    if first[-1:].isdigit():  # files are given in bytes, memory is not
        raise no_size
    try:
        most = parse_bytes(first)
    except GgufmergeError:
        raise no_size from None
    context, kv_type = parse_use(rest) if rest else (None, TensorType.F16)
    return Fits(most, context, kv_type)


def parse_use(text: str) -> tuple[int | None, TensorType]:
    """`ctx=8192,kv=q8_0`, one of them or both: tokens (None when there is no `ctx`), and the type (else F16).

    GgufmergeError, in one line, when it is anything else.
    """
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        key = key.lower()
        if not equals or not value:
            raise GgufmergeError(f"{quoted(part.strip())} says nothing: write ctx=8192 or kv=q8_0")
        if key not in ("ctx", "kv"):
            raise GgufmergeError(f"{quoted(key)} is neither ctx nor kv: write ctx=8192 or kv=q8_0")
        if key in given:
            raise GgufmergeError(f"{key} is given twice: leave one of them out")
        given[key] = value
    return (_context(given["ctx"]) if "ctx" in given else None), _kv_type(given.get("kv", "f16"))


def budget_for_weights(fits: Fits, metadata: Mapping[str, Any], tensors: Mapping[str, Described]) -> int:
    """Bytes of tensors that are left when llama.cpp has what it needs besides; more than 0.

    metadata, tensors: of the model that is to be written; the types of its tensors do not matter.
    PlanError, in one line, when nothing is left, with what would fit, or when it is no language model.
    """
    need = _need(fits, metadata, tensors)
    left = fits.bytes - need.beside_weights
    if left > 0:
        return left
    advice = _advice(replace(fits, context=need.context), metadata, tensors)
    raise PlanError(
        f"nothing of {size(fits.bytes)} is left for weights with a context of {need.context}: keys and values take "
        f"{size(need.cache + need.state)}, computing and output {size(need.compute + need.output)}; {advice}"
    )


def _need(fits: Fits, metadata: Mapping[str, Any], tensors: Mapping[str, Described]) -> MemoryNeed:
    need = memory_need(metadata, tensors, fits.context, fits.kv_type)
    if need is None:
        raise PlanError(
            "what this model needs in memory is not known, as it is no language model that llama.cpp runs alone: "
            "give a size of the file instead"
        )
    return need


def _advice(fits: Fits, metadata: Mapping[str, Any], tensors: Mapping[str, Described]) -> str:
    """What would leave room for weights: smaller keys and values, a shorter context, or more memory."""
    ways = []
    if fits.kv_type.bits_per_weight > TensorType.Q8_0.bits_per_weight:
        smaller = replace(fits, kv_type=TensorType.Q8_0)
        if smaller.bytes > _need(smaller, metadata, tensors).beside_weights:
            ways.append("kv=q8_0")
    context = (fits.context or _LEAST_CONTEXT) // 2
    while context >= _LEAST_CONTEXT:
        shorter = replace(fits, context=context)
        if shorter.bytes > _need(shorter, metadata, tensors).beside_weights:
            ways.append(f"ctx={context}")
            break
        context //= 2
    return f"{' or '.join(ways)} would leave some" if ways else "give more memory"


def _context(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise GgufmergeError(f"ctx={quoted(text)} is no context: give a number of tokens, such as ctx=8192")
    return int(text)


def _kv_type(text: str) -> TensorType:
    names = {known.value.lower(): known for known in CACHE_TYPES}
    if text.lower() not in names:
        raise GgufmergeError(f"kv={quoted(text)} is no type in which llama.cpp keeps keys: {nearest(text, names)}")
    return names[text.lower()]
