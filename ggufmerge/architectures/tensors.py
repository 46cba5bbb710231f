"""Which tensors llama.cpp reads of each architecture, and which it needs in every layer.

llama.cpp refuses a file that lacks a tensor it needs, and also one that has a tensor it does not know. The table
(tensors.json, made by scripts/make_architecture_tensors.py) is of llama.cpp v0.5.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ggufmerge.architectures.stacks import layer_of, part_of, stack_of

_NUMBER = re.compile(r"\.\d+\.", re.ASCII)
_SCALES = (".scale", ".input_scale")  # of weights, in any architecture


def is_known(architecture: str) -> bool:
    """Whether llama.cpp knows an architecture."""
    return architecture in _table()


def unread(architecture: str, names: Iterable[str]) -> list[str]:
    """The tensors that llama.cpp does not read; none for an architecture that it does not know."""
    table = _table().get(architecture)
    known = set(table["read"]) if table else set()
    return [n for n in names if table and not n.endswith(_SCALES) and _plain(n) not in known]


def lacking(architecture: str, names: Iterable[str], layers: int) -> list[str]:
    """The tensors that every model of an architecture has, or every layer, and that are not among `names`."""
    table = _table().get(architecture)
    own = set(names)
    if not table or any(name.startswith(("enc.", "dec.")) for name in own):
        return []
    inside = {_plain(name) for name in own if layer_of(name) is not None}
    wanted: list[str] = []
    for name in table["needed"]:
        if name.startswith(("token_embd", "output_norm")):
            wanted.append(name)
        elif name in inside:
            wanted += [f"blk.{layer}.{name}" for layer in range(layers)]
    return [name for name in wanted if name not in own]


def _plain(name: str) -> str:
    """A tensor's name without the number of its layer."""
    return _NUMBER.sub(".N.", stack_of(name) + part_of(name))


@cache
def _table() -> dict[str, dict[str, list[str]]]:
    text = (Path(__file__).parent / "tensors.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)["architectures"]
    return found
