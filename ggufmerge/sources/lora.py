"""LoRA adapters in GGUF form: the low-rank change is added to a tensor's rows while they stream.

Facts from llama.cpp (`convert_lora_to_gguf.py`, `src/llama-adapter.cpp`): a tensor `W` of the base, [out, in], has two
halves, `W.lora_a` [rank, in] and `W.lora_b` [out, rank]; the change is strength * alpha / rank * B @ A, without the
alpha / rank when alpha is 0. `token_embd.weight` is flipped: its lora_a is [vocab, rank], its lora_b [embed, rank].
Stacks of experts have a leading expert dimension. Entries for norm tensors are tolerated and ignored.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ggufmerge.errors import PlanError
from ggufmerge.files import GGUFFile, Tensor, open_gguf

_FLIPPED = "token_embd.weight"


@dataclass(frozen=True)
class Delta:
    """The change of one tensor in factored form: rows [r0, r1) change by left[r0:r1] @ right.

    left: [rows, rank] of the whole (expert-wise stacked) tensor.  right: float32 [experts, rank, n].
    """

    left: NDArray[np.float32]
    right: NDArray[np.float32]
    scale: float

    def add_to(self, rows: NDArray[np.float32], start: int) -> None:
        """Add the change to `rows`, float32 [k, n], which are rows [start, start + k) of the tensor, in place.

        Products are added rank by rank in float32, so the bits do not depend on how rows are cut into chunks.
        """
        per_expert = self.left.shape[0] // self.right.shape[0]
        done = 0
        while done < len(rows):
            expert, inside = divmod(start + done, per_expert)
            k = min(len(rows) - done, per_expert - inside)
            left = np.ascontiguousarray(self.left[start + done : start + done + k], np.float32)
            _add_low_rank(rows[done : done + k], left, self.right[expert], np.float32(self.scale))
            done += k


@njit(nogil=True, cache=True, error_model="numpy")
def _add_low_rank(rows, left, right, scale):  # type: ignore[no-untyped-def]
    for i in range(rows.shape[0]):
        for r in range(right.shape[0]):
            f = scale * left[i, r]
            for j in range(rows.shape[1]):
                rows[i, j] += f * right[r, j]


class LoraAdapter:
    """A checked adapter. `delta(name)` gives the change of one tensor of the base it was opened for."""

    def __init__(self, path: str | os.PathLike[str], base: GGUFFile, strength: float = 1.0) -> None:
        self.file = open_gguf(path)
        self.strength = strength
        self._check_header(base)
        alpha = self.file.metadata.get("adapter.lora.alpha", 0.0)
        self._alpha = float(alpha)
        self._pairs = self._pair(base)

    @property
    def names(self) -> set[str]:
        """The tensors of the base that the adapter changes."""
        return set(self._pairs)

    def delta(self, name: str) -> Delta | None:
        """The change of tensor `name` with the strength applied; None when the adapter leaves it alone."""
        pair = self._pairs.get(name)
        if pair is None:
            return None
        a, b = (t.dequantize() for t in pair)
        rank = b.shape[-1]
        scale = self.strength * (self._alpha / rank if self._alpha else 1.0)
        if name == _FLIPPED:
            return Delta(a, np.ascontiguousarray(b.T)[None], scale)
        right = a if a.ndim == 3 else a[None]
        return Delta(b.reshape(-1, rank), np.ascontiguousarray(right), scale)

    def _check_header(self, base: GGUFFile) -> None:
        meta, path = self.file.metadata, self.file.path
        if meta.get("general.type") != "adapter" or meta.get("adapter.type") != "lora":
            raise PlanError(
                f"{path}: not a LoRA adapter in GGUF form; what follows a + in a model reference must be one"
            )
        if self.file.architecture != base.architecture:
            raise PlanError(
                f"{path}: an adapter for architecture {self.file.architecture!r}, "
                f"but {base.path} is {base.architecture!r}; use an adapter made for this base"
            )

    def _pair(self, base: GGUFFile) -> dict[str, tuple[Tensor, Tensor]]:
        pairs = {}
        for name, tensor in self.file.tensors.items():
            if name.endswith("_norm.weight"):
                continue
            stem, _, half = name.rpartition(".")
            if half not in ("lora_a", "lora_b"):
                raise PlanError(f'{self.file.path}: tensor "{name}" is not part of a LoRA adapter (.lora_a, .lora_b)')
            other = self.file.tensors.get(f"{stem}.lora_{'b' if half == 'lora_a' else 'a'}")
            if other is None:
                raise PlanError(f'{self.file.path}: "{name}" has no counterpart; the adapter is incomplete')
            if half == "lora_a":
                self._check_shapes(base, stem, tensor, other)
                pairs[stem] = (tensor, other)
        return pairs

    def _check_shapes(self, base: GGUFFile, name: str, a: Tensor, b: Tensor) -> None:
        target = base.tensors.get(name)
        if target is None:
            raise PlanError(
                f'{self.file.path}: changes "{name}", which {base.path} does not have; '
                "use an adapter made for this base"
            )
        if name == _FLIPPED:
            fits = a.shape[-1:] == b.shape[-1:] and target.shape == (a.shape[0], b.shape[0])
        else:
            fits = (
                len(a.shape) == len(b.shape) == len(target.shape)
                and a.shape[-2] == b.shape[-1]
                and target.shape == (*b.shape[:-1], a.shape[-1])
                and a.shape[:-2] == b.shape[:-2]
            )
        if not fits:
            raise PlanError(
                f'{self.file.path}: the halves of "{name}" have shapes {list(a.shape)} and {list(b.shape)}, '
                f"which do not fit the base's {list(target.shape)}; use an adapter made for this base"
            )
