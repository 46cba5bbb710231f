"""The layers that tensors belong to, by their names in GGUF: `blk.3.ffn_down.weight` is of layer 3.

An encoder and a decoder in one model (T5) are two stacks, each with its own layers: `enc.blk.3.`, `dec.blk.3.`.
What tensors are called in other words is told by `architectures/names.py`.
"""

from __future__ import annotations

import re

STACKS = ("", "enc.", "dec.")  # what the names of a stack's layers begin with
_BLOCK = re.compile(r"(enc\.|dec\.|)blk\.(\d+)\.(.+)", re.ASCII)


def layer_of(name: str) -> int | None:
    """The layer number of a GGUF tensor name, None outside the layers."""
    match = _BLOCK.fullmatch(name)
    return int(match[2]) if match else None


def stack_of(name: str) -> str:
    """Which of STACKS a tensor's layer is in; "" also for what is in none."""
    match = _BLOCK.fullmatch(name)
    return match[1] if match else ""


def with_layer(name: str, layer: int) -> str:
    """The same tensor in another layer of its stack; a name outside the layers stays what it is."""
    match = _BLOCK.fullmatch(name)
    return f"{match[1]}blk.{layer}.{match[3]}" if match else name


def kind_of(name: str) -> str:
    """A tensor's name with its layer left open: blk.*.attn_q.weight."""
    match = _BLOCK.fullmatch(name)
    return f"{match[1]}blk.*.{match[3]}" if match else name


def part_of(name: str) -> str:
    """What a tensor is in its layer: attn_q.weight; a name outside the layers as it is."""
    match = _BLOCK.fullmatch(name)
    return match[3] if match else name
