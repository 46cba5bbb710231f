"""What the weights of a model are multiplied with while llama.cpp reads a text.

llama.cpp calls back for each node of its graph (`LlamaModel(watch=...)`). Products of a weight with its inputs are
looked at by the rules of llama-imatrix (`tools/imatrix/imatrix.cpp` of llama.cpp v0.5.0): weights of layers, and those
of the output if wanted; no products of fewer than 16 tokens, which only a decoder that writes has; of a stack of
experts, each input goes to those that the router chose.
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufmerge.evaluation.libllama import Node, operations

MIN_TOKENS = 16  # of a product that is looked at
_LAYER = "blk."
_OUTPUT = ("output.weight", "token_embd.weight", "nextn.post_projection.weight")
_F32 = 0

Take = Callable[[str, Sequence[tuple[int, NDArray[np.float32]]]], None]


@dataclass(frozen=True)
class Weight:
    """A weight that is multiplied with inputs.

    n: columns.  matrices: how many it stacks.  experts: whether a router chooses among them.
    inputs: the name of the weight that has the same inputs and comes first; its own name without another.
    """

    name: str
    n: int
    matrices: int
    experts: bool
    inputs: str


class Finder:
    """A `watch` that computes nothing more: it finds the weights that inputs can be taken of, and which share them."""

    def __init__(self, *, output: bool = False) -> None:
        self._output, self._operations = output, operations()
        self._found: dict[str, tuple[int, int, bool]] = {}
        self._inputs: dict[str, list[tuple[int, ...]]] = {}

    def __call__(self, node: Node, ask: bool) -> bool:
        name = _name_of(node, self._operations, output=self._output)
        if name is not None:
            weight, experts = node.src[0].contents, node.op == self._operations["MUL_MAT_ID"]
            self._found[name] = (weight.ne[0], weight.ne[2] * weight.ne[3], experts)
            ids = C.addressof(node.src[2].contents) if experts else 0
            self._inputs.setdefault(name, []).append((C.addressof(node.src[1].contents), ids, weight.ne[2]))
        return False

    @property
    def weights(self) -> list[Weight]:
        """The weights, in the order in which they are used."""
        first: dict[tuple[tuple[int, ...], ...], str] = {}
        return [
            Weight(name, *found, first.setdefault(tuple(self._inputs[name]), name))
            for name, found in self._found.items()
        ]


class Taker:
    """A `watch` that hands on the inputs of some weights.

    names: of the weights.  take: called with the name of a weight, and for each of its matrices that is used with the
    matrix's number and its inputs, float32 [tokens, n]: views of llama.cpp's memory, for the time of the call only.
    """

    def __init__(self, names: Sequence[str], take: Take, *, output: bool = False) -> None:
        self._names, self._take = frozenset(names), take
        self._output, self._operations = output, operations()

    def __call__(self, node: Node, ask: bool) -> bool:
        name = _name_of(node, self._operations, output=self._output)
        if name not in self._names or name is None:
            return False
        if not ask:
            experts = node.op == self._operations["MUL_MAT_ID"]
            self._take(name, _of_experts(node) if experts else _of_matrices(node))
        return True


def _name_of(node: Node, numbers: dict[str, int], *, output: bool) -> str | None:
    """The name of the weight in a product whose inputs are looked at; None for all other nodes."""
    experts = node.op == numbers["MUL_MAT_ID"]
    if not experts and node.op != numbers["MUL_MAT"]:
        return None
    inputs = node.src[1].contents
    if inputs.type != _F32 or inputs.nb[0] != 4 or (not experts and inputs.ne[1] < MIN_TOKENS):
        return None
    name: str = node.src[0].contents.name.decode("utf-8", "replace")
    if "#" in name:  # a copy in another memory: CUDA0#blk.0.attn_k.weight#0
        name = name.split("#")[1]
    return name if name.startswith(_LAYER) or (output and name in _OUTPUT) else None


def _of_matrices(node: Node) -> list[tuple[int, NDArray[np.float32]]]:
    """What each matrix of a weight is multiplied with; usually there is one, and it gets all rows."""
    weight, x = node.src[0].contents, _values(node.src[1].contents)
    n, matrices = x.shape[-1], weight.ne[2] * weight.ne[3]
    if matrices == 1:
        return [(0, x.reshape(-1, n))]
    outer, inner = weight.ne[3], weight.ne[2]
    return [(m, x[m // inner :: outer, m % inner :: inner].reshape(-1, n)) for m in range(matrices)]


def _of_experts(node: Node) -> list[tuple[int, NDArray[np.float32]]]:
    """What each expert that was chosen is multiplied with."""
    x = _values(node.src[1].contents)[0]  # [tokens, 1 or experts that are used, n]
    chosen = _values(node.src[2].contents, np.int32)[0, 0]  # [tokens, experts that are used]
    tokens, slots = np.nonzero(chosen >= 0)
    of = chosen[tokens, slots]
    order = np.argsort(of, kind="stable")
    tokens, slots, of = tokens[order], slots[order], of[order]
    starts = np.flatnonzero(np.diff(of, prepend=-1))
    return [
        (int(of[start]), x[tokens[start:stop], slots[start:stop] % x.shape[1]])
        for start, stop in zip(starts, [*starts[1:], len(of)], strict=True)
    ]


def _values(node: Node, dtype: type = np.float32) -> NDArray:
    """A view of what a node holds, 4 bytes each: [ne3, ne2, ne1, ne0]."""
    shape, steps = tuple(reversed(node.ne)), tuple(reversed(node.nb))
    extent = sum((count - 1) * step for count, step in zip(shape, steps, strict=True)) + 4
    raw = np.frombuffer((C.c_char * extent).from_address(node.data), np.uint8)
    return np.ndarray(shape, dtype, raw, 0, steps)
