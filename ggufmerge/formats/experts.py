"""Models whose experts have a tensor each, shown as they are stored today: all experts of a layer in one tensor.

Until April 2024 a mixture of experts had `blk.N.ffn_gate.E.weight`, `ffn_up.E` and `ffn_down.E`, matrices of one
expert E; since then `blk.N.ffn_gate_exps.weight` has all of them, [experts, rows, n]. The rows are the same. llama.cpp
read both for a time; v0.5.0 refuses the old files (`LLM_TENSOR_FFN_GATE_EXP` is a name in its `src/llama-arch.cpp` that
no loader asks for).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ggufmerge import keys
from ggufmerge.architectures.fused import expert_name, of_expert
from ggufmerge.errors import PlanError
from ggufmerge.files import GGUFFile, open_gguf
from ggufmerge.formats.rearranged import Mixed, Rearranged, Span, described, rearranged
from ggufmerge.formats.stored import StoredTensor, with_only
from ggufmerge.text import first_few

_OTHER = "take another file of the model"


def open_model(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF file as `files.open_gguf` does; experts that have a tensor each are shown stacked.

    FormatError as there; PlanError when experts are missing or do not fit together.
    """
    file = open_gguf(path)
    try:
        return with_stacked_experts(file)
    except BaseException:
        file.close()
        raise


def open_types(path: str | os.PathLike[str]) -> GGUFFile:
    """The same for a file of which only the types are looked at: experts of several types have the widest of them."""
    file = open_model(path)
    return with_only(file, {name: described(tensor) for name, tensor in file.tensors.items()})


def with_stacked_experts(file: GGUFFile) -> GGUFFile:
    """The same open file with its experts in one tensor for each layer, or itself when they are so already.

    PlanError when experts are missing or do not fit together.
    """
    found: dict[str, dict[int, StoredTensor]] = {}
    for name, tensor in file.tensors.items():
        if (place := of_expert(name)) is not None:
            found.setdefault(place[0], {})[place[1]] = tensor
    if not found:
        return file
    stacks = {name: _stack(file, name, experts) for name, experts in found.items()}
    shown: dict[str, StoredTensor] = {}
    for name, tensor in file.tensors.items():
        place = of_expert(name)
        stacked = name if place is None else place[0]
        shown[stacked] = tensor if place is None else stacks[stacked]
    return with_only(file, shown)


def stacks_of(tensors: Mapping[str, StoredTensor]) -> dict[str, Rearranged | Mixed]:
    """Those of a file's tensors that are shown stacked, though each expert has a tensor of its own in the file."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if isinstance(tensor, (Rearranged, Mixed)) and of_expert(tensor.spans[0].tensor.name) is not None
    }


def about_stacks(tensors: Mapping[str, StoredTensor]) -> str:
    """What a user should know of such a file; empty for others."""
    stacks = stacks_of(tensors)
    if not stacks:
        return ""
    count = max(len(stack.spans) for stack in stacks.values())
    told = (
        f"an old layout, in which each of the {count} experts of a layer has tensors of its own, and which llama.cpp "
        "does not read any more; they are stacked, as in files of today"
    )
    mixed = [name for name, stack in stacks.items() if isinstance(stack, Mixed)]
    if not mixed:
        return told
    kinds = sorted({str(span.tensor.type) for name in mixed for span in stacks[name].spans})
    verb = "has" if len(mixed) == 1 else "have"
    return (
        f"{told}; {first_few(mixed, 1)} {verb} experts of several types ({', '.join(kinds)}), of which the widest is "
        "taken for all unless another type is asked for"
    )


def _stack(file: GGUFFile, name: str, experts: Mapping[int, StoredTensor]) -> Rearranged | Mixed:
    """The tensors of a layer's experts as one."""
    first = experts[min(experts)]
    count = file.metadata.integer(keys.of(file.architecture, "expert_count")) or 0
    wanted = max(count, max(experts) + 1)
    missing = [str(expert_name(name, e)) for e in range(min(wanted, len(experts) + 1)) if e not in experts]
    if name in file.tensors:
        raise PlanError(f"{file.path}: has both {name} and {first.name}, which say the same; {_OTHER}")
    if missing:
        raise PlanError(
            f"{file.path}: lacks {missing[0]}, one of {wanted} experts of its layer; the file is incomplete, {_OTHER}"
        )
    if count and len(experts) > count:
        key = keys.of(file.architecture, "expert_count")
        raise PlanError(f"{file.path}: {name} would have {len(experts)} experts, but {key} is {count}; {_OTHER}")
    for tensor in experts.values():
        if tensor.shape != first.shape or len(tensor.shape) != 2:
            shown = f"{tensor.name} is {list(tensor.shape)}, {first.name} {list(first.shape)}"
            raise PlanError(f"{file.path}: experts of one layer have different shapes ({shown}); {_OTHER}")
    spans = [Span(experts[e], 0, first.rows) for e in range(len(experts))]
    return rearranged(name, (len(spans), *first.shape), spans)
