"""Where the tensors of a model stand when they are drawn: kinds of tensors below each other, layers side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ggufmerge.architectures.stacks import layer_of, part_of, stack_of

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Grid:
    """Tensors by kind and layer.

    kinds: what each row is called, in the order of the file: `attn_q`, `ffn_down`, `enc.attn_q`.
    layers: the numbers of the layers that have tensors, rising; there may be gaps.
    places: of each tensor that is in a layer: (row, column).
    outside: the tensors that are in no layer, each of which has a row of its own.
    """

    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    places: Mapping[str, tuple[int, int]]
    outside: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> Grid:
        """That of the tensors of these names."""
        kinds: dict[str, int] = {}
        found: dict[str, tuple[int, int]] = {}
        outside, taken = [], set()
        for name in dict.fromkeys(names):
            layer, kind = layer_of(name), stack_of(name) + shortly(part_of(name))
            if layer is None or (kind, layer) in taken:  # blk.7 and blk.07 are one layer
                outside.append(name)
            else:
                taken.add((kind, layer))
                found[name] = (kinds.setdefault(kind, len(kinds)), layer)
        layers = sorted({layer for _, layer in found.values()})
        column = {layer: i for i, layer in enumerate(layers)}
        places = {name: (row, column[layer]) for name, (row, layer) in found.items()}
        return cls(tuple(kinds), tuple(layers), places, tuple(outside))

    def rows(self, values: Mapping[str, _Value]) -> list[list[_Value | None]]:
        """The values of tensors as rows of the kinds with a column for each layer; None where there is none."""
        rows: list[list[_Value | None]] = [[None] * len(self.layers) for _ in self.kinds]
        for name, (row, column) in self.places.items():
            if name in values:
                rows[row][column] = values[name]
        return rows


def shortly(name: str) -> str:
    """A tensor without the ending that nearly all have.

    >>> shortly("attn_q.weight"), shortly("attn_q.bias"), shortly("weight")
    ('attn_q', 'attn_q.bias', 'weight')
    """
    return name.removesuffix(".weight")
