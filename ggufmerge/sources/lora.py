"""LoRA adapters: what they change is added to a tensor's rows while they stream. This file has the GGUF form.

Facts from llama.cpp (`convert_lora_to_gguf.py`, `src/llama-adapter.cpp`): a tensor `W` of the base, [out, in], has two
halves, `W.lora_a` [rank, in] and `W.lora_b` [out, rank]; the change is strength * alpha / rank * B @ A, without the
alpha / rank when alpha is 0. `token_embd.weight` is flipped: its lora_a is [vocab, rank], its lora_b [embed, rank].
Stacks of experts have a leading expert dimension; adapters for files in which each expert had tensors of its own name
those. Entries for norm tensors are tolerated and ignored.

llama.cpp refuses whatever else stands in an adapter, harmless or not. Here tables that are computed, halves for the
vision part of a model, and matrices that are the base's own are left out with a note.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ggufmerge import keys
from ggufmerge.architectures.fused import of_expert
from ggufmerge.errors import PlanError, RoleError
from ggufmerge.files import facts, open_gguf
from ggufmerge.formats.copies import COMPUTED, FROZEN, NORMS, VISION, grown, is_copy, may_be_left_out
from ggufmerge.formats.stored import StoredFile, StoredTensor
from ggufmerge.kernels import kernel
from ggufmerge.sources.replaced import Rows, values
from ggufmerge.sources.tying import is_tied, may_part

_LOOK = 1 << 16  # values of a half that are looked at together


class Change(Protocol):
    """What an adapter changes in one tensor.

    rank: how many products a value costs.  path: of the adapter.  parts: the tensors of the adapter that it is made of.
    """

    @property
    def rank(self) -> int: ...
    @property
    def path(self) -> Path: ...
    @property
    def parts(self) -> Sequence[StoredTensor]: ...
    def add_to(self, rows: NDArray[np.float32], start: int) -> None:
        """Change `rows`, float32 [k, n], which are rows [start, start + k) of the tensor, in place."""


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
        self.path, self.parts = left.path, (left, right)
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
            left = values(self.left, start + done, start + done + k)
            _add_low_rank(rows[done : done + k], left, self._right_of(expert), self.scale)
            done += k

    def _right_of(self, expert: int) -> NDArray[np.float32]:
        held = self._held
        if held is None or held[0] != expert:
            if self._flipped:
                right = np.ascontiguousarray(values(self.right, 0, self.right.rows).T)
            else:
                right = values(self.right, expert * self.rank, (expert + 1) * self.rank)
            self._held = held = (expert, right)
        return held[1]


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


class Moved:
    """A change of rows that stand elsewhere in the tensor than in the one that it was made for; see `Change`."""

    def __init__(self, change: Change, spans: Sequence[tuple[int, int, int]]) -> None:
        """spans: rows [start, stop) of the tensor, and which row of the other one the first of them is."""
        self.rank, self.path, self.parts = change.rank, change.path, change.parts
        self._change, self._spans = change, spans

    def add_to(self, rows: NDArray[np.float32], start: int) -> None:
        for first, last, own in self._spans:
            a, b = max(start, first), min(start + len(rows), last)
            if a < b:
                self._change.add_to(rows[a - start : b - start], own + a - first)


class LoraAdapter:
    """A checked adapter. `changes(name)` gives what it adds to one tensor of the base it was opened for, `whole(name)`
    the tensor that it brings in its place.

    A base may use one matrix as token embedding and as output head. An adapter that means only one of the two `parts`
    them; then the base has a head of its own, and the adapter's other changes of the shared matrix hold for both.

    alpha: the adapter's own scale, 0 for none.  strength: the factor that the recipe asks for.
    ignored: tensors of the adapter that are left out, by what they are.
    """

    def __init__(self, path: str | os.PathLike[str], base: StoredFile, strength: float = 1.0) -> None:
        self.file = self._open(path, base)
        self.strength = float(strength)
        self.ignored = dict(self._left_out)
        self._base_is_tied = is_tied(base)
        try:
            self._check_header(base)
            self.alpha = self._read_alpha()
            self._pairs = self._pair(base)
            if not (self._pairs or self._wholes or self._rows):
                left_out = "; ".join(f"it has only {what}" for what in self.ignored)
                raise PlanError(
                    f"{self.file.path}: the adapter changes no tensor{left_out and f': {left_out}'}; use another one"
                )
            if self._may_part and not may_part(base.architecture):
                self._refuse_to_part(base)
        except BaseException:
            self.file.close()
            raise

    @property
    def _left_out(self) -> Mapping[str, list[str]]:
        """What reading the file has left out already, as in `ignored`."""
        return {}

    @property
    def _wholes(self) -> Mapping[str, StoredTensor]:
        """Tensors that stand in the place of the base's."""
        return {}

    @property
    def _rows(self) -> Mapping[str, tuple[Sequence[int], StoredTensor]]:
        """Rows that stand in the place of the base's: their numbers, and the rows."""
        return {}

    @property
    def _shared(self) -> tuple[bool, bool, bool]:
        """Whether low-rank changes, whole tensors and rows for the embedding are meant for a tied head, too."""
        both = self.file.metadata.flag(keys.TIED_CHANGE) is True
        return both, both, both

    @property
    def _may_part(self) -> bool:
        """Whether it is an adapter for one of two tensors that are one matrix in the base."""
        kinds = zip((self._pairs, self._wholes, self._rows), self._shared, strict=True)
        return self._base_is_tied and any(
            keys.HEAD in kind or (keys.EMBEDDING in kind and not shared) for kind, shared in kinds
        )

    @property
    def parts(self) -> bool:
        """Whether it changes one of two tensors that are one matrix in the base; not at strength 0."""
        return self._may_part and not self.names.isdisjoint((keys.EMBEDDING, keys.HEAD))

    @property
    def names(self) -> set[str]:
        """The tensors of the base that the adapter changes; none at strength 0."""
        return {*self.wholes, *self.changed}

    @property
    def changed(self) -> set[str]:
        """Those of which it changes a part, or all by a little."""
        live, rows = (self._live, set(self._rows)) if self.strength else (set[str](), set[str]())
        live = {place[0] if (place := of_expert(name)) else name for name in live}
        low_rank, _, tokens = self._shared
        return self._with_head(live, low_rank) | self._with_head(rows, tokens)

    @property
    def wholes(self) -> set[str]:
        """Those in the place of which it brings another."""
        return self._with_head(set(self._wholes), self._shared[1]) if self.strength else set()

    def changes(self, name: str) -> list[Change]:
        """The changes of tensor `name` with the strength applied; none when the adapter leaves it alone."""
        found: list[Change] = []
        if name not in self.changed:
            return found
        low_rank, _, tokens = self._shared
        if (own := self._own_name(name, self._live, low_rank)) is not None:
            a, b = self._pairs[own]
            scale = self.strength * self._scale(own, b.n)
            flipped = own == keys.EMBEDDING
            found.append(Delta(a, b, scale, flipped=True) if flipped else Delta(b, a, scale))
        for expert, single in self._single_experts.get(name, ()):
            a, b = self._pairs[single]
            change = Delta(b, a, self.strength * self._scale(single, b.n))
            found.append(Moved(change, [(expert * b.rows, (expert + 1) * b.rows, 0)]))
        if (own := self._own_name(name, self._rows, tokens)) is not None:
            found.append(Rows(*self._rows[own], self.strength))
        return found

    def whole(self, name: str) -> StoredTensor:
        """The tensor that it brings for `name`, one of `wholes`."""
        own = self._own_name(name, self._wholes, self._shared[1])
        assert own is not None, "asked for one of `wholes`"
        return self._wholes[own]

    def idle(self) -> str:
        """Why the adapter changes nothing; empty when it changes something."""
        if self.names:
            return ""
        if not self.strength:
            return "its strength is 0"
        if not any(self._scale(name, b.n) for name, (_, b) in self._pairs.items()):
            return "its alpha is 0"
        zero = "B" if all(_is_zero(self._zero_halves(name)[1]) for name in self._pairs) else "A or B"
        return f"all its {zero} halves are zero, as before training"

    def settings(self) -> bytes:
        """What besides the halves decides about the changes, for fingerprints."""
        return struct.pack("<2d", self.strength, self.alpha) + bytes(self._shared)

    @cached_property
    def _live(self) -> set[str]:
        """The tensors whose low-rank change is not zero."""
        return {
            name
            for name, (a, b) in self._pairs.items()
            if self._scale(name, b.n) and not any(map(_is_zero, self._zero_halves(name)))
        }

    @cached_property
    def _single_experts(self) -> dict[str, list[tuple[int, str]]]:
        """The changes that are not zero and are for the tensor of one expert, by the stack that it is in today."""
        found: dict[str, list[tuple[int, str]]] = {}
        for name in self._live:
            if (place := of_expert(name)) is not None:
                found.setdefault(place[0], []).append((place[1], name))
        return {stack: sorted(experts) for stack, experts in found.items()}

    def _zero_halves(self, name: str) -> tuple[StoredTensor, StoredTensor]:
        """The halves of a pair as PEFT counts them: A, which is random before training, and B, which is zero. For
        embeddings it is the other way round, and GGUF keeps A transposed.
        """
        a, b = self._pairs[name]
        return (b, a) if name == keys.EMBEDDING else (a, b)

    def _with_head(self, names: set[str], shared: bool) -> set[str]:
        """The names, and the head where what is said of the embedding holds for it, too."""
        both = shared and self._base_is_tied and keys.EMBEDDING in names
        return names | {keys.HEAD} if both else names

    def _own_name(self, name: str, kind: set[str] | Mapping[str, object], shared: bool) -> str | None:
        """What the adapter calls the tensor among its changes of a kind; None when it has none for it."""
        if name in kind:
            return name
        both = name == keys.HEAD and shared and self._base_is_tied and keys.EMBEDDING in kind
        return keys.EMBEDDING if both else None

    def _open(self, path: str | os.PathLike[str], base: StoredFile) -> StoredFile:
        return open_gguf(path)

    def _scale(self, name: str, rank: int) -> float:
        """The factor on B @ A at strength 1."""
        return self.alpha / rank if self.alpha else 1.0

    def _check_header(self, base: StoredFile) -> None:
        meta, path = self.file.metadata, self.file.path
        kind = facts.kind(self.file)
        if kind != "adapter" or meta.text(keys.ADAPTER_TYPE) != "lora":
            found = "model" if kind == "model" and self.file.architecture else ""
            what = "a model, not a LoRA adapter" if found else "not a LoRA adapter in GGUF form"
            todo = "only adapters may follow a +; to merge models, list each of them under models: of a recipe"
            raise RoleError(f"{path}: {what}", todo, wanted="adapter", found=found)
        if keys.INVOCATION_TOKENS in meta:
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
        key = keys.LORA_ALPHA
        alpha = self.file.metadata.number(key)
        if alpha is None and key in self.file.metadata:
            found = self.file.metadata.found(key)
            raise PlanError(f"{self.file.path}: {key} is {found}, no finite number; convert the adapter again")
        return alpha or 0.0

    def _refuse_to_part(self, base: StoredFile) -> None:
        raise PlanError(
            f"{self.file.path}: changes the token embedding or the output head, which are one matrix in {base.path}; "
            f"llama.cpp reads no other head from files of architecture {base.architecture!r}, so only a change of both "
            f"can be written: {self._to_share}"
        )

    @property
    def _to_share(self) -> str:
        """What to do so that changes for the embedding hold for a tied head, too."""
        return "use an adapter that leaves both alone, or a PEFT folder with ensure_weight_tying in adapter_config.json"

    def _pair(self, base: StoredFile) -> dict[str, tuple[StoredTensor, StoredTensor]]:
        pairs = {}
        for name, tensor in self.file.tensors.items():
            stem, _, half = name.rpartition(".")
            if half not in ("lora_a", "lora_b"):
                self._leave_out(base, name, tensor)
                continue
            if stem not in base.tensors and may_be_left_out(stem):
                self._ignore(VISION, name)
                continue
            other = self.file.tensors.get(f"{stem}.lora_{'b' if half == 'lora_a' else 'a'}")
            if other is None:
                raise PlanError(
                    f'{self.file.path}: "{name}" has no counterpart; the adapter is incomplete, convert it again'
                )
            if half == "lora_a":
                self._check_pair(base, stem, tensor, other)
                pairs[stem] = (tensor, other)
        return pairs

    def _ignore(self, what: str, name: str) -> None:
        self.ignored.setdefault(what, []).append(name)

    def _leave_out(self, base: StoredFile, name: str, tensor: StoredTensor) -> None:
        """PlanError unless a tensor that is no half of a change can be left out."""
        target = base.tensors.get(name)
        if name.endswith("_norm.weight"):
            self._ignore(NORMS, name)
        elif name.rpartition(".")[0].rpartition(".")[2].startswith(("rope_freqs", "rope_factors")):
            self._ignore(COMPUTED, name)
        elif target is None and may_be_left_out(name):
            self._ignore(VISION, name)
        elif target is not None and is_copy(tensor, target):
            self._ignore(FROZEN, name)
        else:
            raise PlanError(f'{self.file.path}: tensor "{name}" is not part of a LoRA adapter (.lora_a, .lora_b)')

    def _target(self, base: StoredFile, name: str) -> StoredTensor | None:
        """The tensor of the base that a change is for; the stack of all experts for the change of one."""
        if (place := of_expert(name)) is not None:
            name = place[0]
        return base.tensors.get(keys.EMBEDDING if name == keys.HEAD and self._base_is_tied else name)

    def _check_pair(self, base: StoredFile, name: str, a: StoredTensor, b: StoredTensor) -> None:
        target = self._target(base, name)
        place = of_expert(name)
        if target is None or (place is not None and place[1] >= target.shape[0]):
            raise PlanError(
                f'{self.file.path}: changes "{name}", which {base.path} does not have; '
                "use an adapter made for this base"
            )
        tokens = (a if name == keys.EMBEDDING else b).shape[0] if len(a.shape) == len(b.shape) == 2 else 0
        if name in (keys.EMBEDDING, keys.HEAD) and tokens > target.shape[0]:
            raise grown(self.file.path, name, tokens, base.path, target.shape[0])
        shape = target.shape if place is None else target.shape[1:]
        if not _fits(name, a.shape, b.shape, shape):
            raise PlanError(
                f'{self.file.path}: the halves of "{name}" have shapes {list(a.shape)} and {list(b.shape)}, '
                f"which do not fit the base's {list(shape)}; use an adapter made for this base"
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
    if name == keys.EMBEDDING:
        return len(a) == 2 and a[1] == b[1] > 0 and target == (a[0], b[0])
    return a[-2] == b[-1] > 0 and target == (*b[:-1], a[-1]) and a[:-2] == b[:-2]


def _is_zero(tensor: StoredTensor) -> bool:
    """Whether a tensor holds nothing but zeros; mostly the first few rows tell."""
    step = max(1, _LOOK // max(1, tensor.n))
    return not any(values(tensor, row, min(row + step, tensor.rows)).any() for row in range(0, tensor.rows, step))
