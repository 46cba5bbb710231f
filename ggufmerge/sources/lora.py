"""LoRA adapters in GGUF form: the low-rank change is added to a tensor's rows while they stream.

Facts from llama.cpp (`convert_lora_to_gguf.py`, `src/llama-adapter.cpp`): a tensor `W` of the base, [out, in], has two
halves, `W.lora_a` [rank, in] and `W.lora_b` [out, rank]; the change is strength * alpha / rank * B @ A, without the
alpha / rank when alpha is 0. `token_embd.weight` is flipped: its lora_a is [vocab, rank], its lora_b [embed, rank].
Stacks of experts have a leading expert dimension. Entries for norm tensors are tolerated and ignored.
"""

from __future__ import annotations

import os
import struct

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import PlanError, RoleError
from ggufmerge.files import open_gguf
from ggufmerge.formats.stored import StoredFile, StoredTensor
from ggufmerge.kernels import kernel
from ggufmerge.quants import codec

_FLIPPED = "token_embd.weight"


class Delta:
    """The change of one tensor in factored form: row i changes by scale * left[i] @ right of its expert.

    left: [rows, rank] of the whole tensor (experts stacked).  right: [experts * rank, n]; flipped: [n, rank].
    Both stay in the mapped file; one expert's right factor, float32 [rank, n], is held at a time. Several threads may
    add at once.
    """

    def __init__(self, left: StoredTensor, right: StoredTensor, scale: float, *, flipped: bool = False) -> None:
        with np.errstate(over="ignore"):  # what an infinite factor makes of the rows is refused
            self.left, self.right, self.scale = left, right, np.float32(scale)
        self.rank, self._flipped = left.n, flipped
        self._experts = 1 if flipped else right.rows // left.n
        self._held: tuple[int, NDArray[np.float32]] | None = None

    def add_to(self, rows: NDArray[np.float32], start: int) -> None:
        """Add the change to `rows`, float32 [k, n], which are rows [start, start + k) of the tensor, in place.

        Each element's products are summed rank by rank in float32, scaled and added, so the bits do not depend on how
        rows are cut into chunks.
        """
        per_expert = self.left.rows // self._experts
        done = 0
        while done < len(rows):
            expert, inside = divmod(start + done, per_expert)
            k = min(len(rows) - done, per_expert - inside)
            left = _values(self.left, start + done, start + done + k)
            _add_low_rank(rows[done : done + k], left, self._right_of(expert), self.scale)
            done += k

    def _right_of(self, expert: int) -> NDArray[np.float32]:
        held = self._held
        if held is None or held[0] != expert:
            if self._flipped:
                right = np.ascontiguousarray(_values(self.right, 0, self.right.rows).T)
            else:
                right = _values(self.right, expert * self.rank, (expert + 1) * self.rank)
            self._held = held = (expert, right)
        return held[1]


def _values(tensor: StoredTensor, start: int, stop: int) -> NDArray[np.float32]:
    out = np.empty((stop - start, tensor.n), np.float32)
    codec(tensor.type).dequantize(tensor.raw_rows(start, stop), out)
    return out


@kernel
def _add_low_rank(rows, left, right, scale):  # type: ignore[no-untyped-def]
    """rows [k, n] += scale * left [k, rank] @ right [rank, n]."""
    n = rows.shape[1]
    change = np.empty(n, np.float32)
    for i in range(rows.shape[0]):
        change[:] = 0
        for r in range(right.shape[0]):
            f = left[i, r]
            for j in range(n):
                change[j] += f * right[r, j]
        for j in range(n):
            rows[i, j] += scale * change[j]


class LoraAdapter:
    """A checked adapter. `delta(name)` gives the change of one tensor of the base it was opened for.

    alpha: the adapter's own scale, 0 for none.  strength: the factor that the recipe asks for.
    ignored: tensors of the adapter that llama.cpp tolerates without using them.
    """

    def __init__(self, path: str | os.PathLike[str], base: StoredFile, strength: float = 1.0) -> None:
        self.file = self._open(path, base)
        self.strength = float(strength)
        self.ignored: list[str] = []
        try:
            self._check_header(base)
            self.alpha = self._read_alpha()
            self._pairs = self._pair(base)
        except BaseException:
            self.file.close()
            raise

    @property
    def names(self) -> set[str]:
        """The tensors of the base that the adapter changes; none at strength 0."""
        return set(self._pairs) if self.strength else set()

    def delta(self, name: str) -> Delta | None:
        """The change of tensor `name` with the strength applied; None when the adapter leaves it alone."""
        if name not in self.names:
            return None
        a, b = self._pairs[name]
        scale = self.strength * self._scale(name, b.n)
        if name == _FLIPPED:
            return Delta(a, b, scale, flipped=True)
        return Delta(b, a, scale)

    def settings(self) -> bytes:
        """What besides the halves decides about the changes, for fingerprints."""
        return struct.pack("<2d", self.strength, self.alpha)

    def _open(self, path: str | os.PathLike[str], base: StoredFile) -> StoredFile:
        return open_gguf(path)

    def _scale(self, name: str, rank: int) -> float:
        """The factor on B @ A at strength 1."""
        return self.alpha / rank if self.alpha else 1.0

    def _check_header(self, base: StoredFile) -> None:
        meta, path = self.file.metadata, self.file.path
        if meta.text("general.type") != "adapter" or meta.text("adapter.type") != "lora":
            found = "model" if meta.text("general.type") in (None, "model") and self.file.architecture else ""
            what = "a model, not a LoRA adapter" if found else "not a LoRA adapter in GGUF form"
            todo = "only adapters may follow a +; to merge models, list each of them under models: of a recipe"
            raise RoleError(f"{path}: {what}", todo, wanted="adapter", found=found)
        if "adapter.alora.invocation_tokens" in meta:
            raise PlanError(
                f"{path}: an activated LoRA, which works only after its invocation tokens and would always work "
                "once merged; use an ordinary LoRA adapter"
            )
        if self.file.architecture != base.architecture:
            raise PlanError(
                f"{path}: an adapter for architecture {self.file.architecture!r}, "
                f"but {base.path} is {base.architecture!r}; use an adapter made for this base"
            )

    def _read_alpha(self) -> float:
        key = "adapter.lora.alpha"
        alpha = self.file.metadata.number(key)
        if alpha is None and key in self.file.metadata:
            found = self.file.metadata.found(key)
            raise PlanError(f"{self.file.path}: {key} is {found}, no finite number; convert the adapter again")
        return alpha or 0.0

    def _pair(self, base: StoredFile) -> dict[str, tuple[StoredTensor, StoredTensor]]:
        pairs = {}
        for name, tensor in self.file.tensors.items():
            if name.endswith("_norm.weight"):
                self.ignored.append(name)
                continue
            stem, _, half = name.rpartition(".")
            if half not in ("lora_a", "lora_b"):
                raise PlanError(f'{self.file.path}: tensor "{name}" is not part of a LoRA adapter (.lora_a, .lora_b)')
            other = self.file.tensors.get(f"{stem}.lora_{'b' if half == 'lora_a' else 'a'}")
            if other is None:
                raise PlanError(
                    f'{self.file.path}: "{name}" has no counterpart; the adapter is incomplete, convert it again'
                )
            if half == "lora_a":
                self._check_pair(base, stem, tensor, other)
                pairs[stem] = (tensor, other)
        if not pairs:
            raise PlanError(f"{self.file.path}: the adapter changes no tensor; use another one")
        return pairs

    def _check_pair(self, base: StoredFile, name: str, a: StoredTensor, b: StoredTensor) -> None:
        target = base.tensors.get(name)
        if target is None:
            tied = "; its output head is its token embedding" if name == "output.weight" else ""
            raise PlanError(
                f'{self.file.path}: changes "{name}", which {base.path} does not have{tied}; '
                "use an adapter made for this base"
            )
        if not _fits(name, a.shape, b.shape, target.shape):
            raise PlanError(
                f'{self.file.path}: the halves of "{name}" have shapes {list(a.shape)} and {list(b.shape)}, '
                f"which do not fit the base's {list(target.shape)}; use an adapter made for this base"
            )
        for tensor in (a, b, target):
            if not (tensor.type.is_quantized or tensor.type.is_float):
                raise PlanError(
                    f"{tensor.path}: {tensor.name} holds {tensor.type} numbers, which no adapter can change"
                )


def _fits(name: str, a: tuple[int, ...], b: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether the two halves multiply to the target's shape, with a rank of at least 1."""
    if not len(a) == len(b) == len(target) or len(a) not in (2, 3):
        return False
    if name == _FLIPPED:
        return len(a) == 2 and a[1] == b[1] > 0 and target == (a[0], b[0])
    return a[-2] == b[-1] > 0 and target == (*b[:-1], a[-1]) and a[:-2] == b[:-2]
