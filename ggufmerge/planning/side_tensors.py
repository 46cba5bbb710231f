"""Which side tensors (`sources.side_tensors`) belong to the tensors of a result.

A copied tensor keeps those of the file it comes from. Any other is read with its scale multiplied in, so it needs none:
llama.cpp takes a missing scale for 1. NVFP4 is the exception. Its blocks have scales from 2^-9 to 448, far too coarse
for weights of a few hundredths, so a tensor that is quantized to NVFP4 is divided by the scale that one of its inputs
has in NVFP4, and that scale is written beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ggufmerge.planning.plan import Input, PlannedTensor
from ggufmerge.sources import Source
from ggufmerge.sources.side_tensors import SCALE, side_names
from ggufmerge.types import TensorType


def with_side_tensors(tensors: Iterable[PlannedTensor], sources: Sequence[Source]) -> list[PlannedTensor]:
    """The tensors, whose actions are decided, with their side tensors behind each."""
    result = []
    for tensor in tensors:
        origin = tensor.inputs[0] if tensor.action == "copy" else _scale_donor(tensor, sources)
        if origin is None:
            result.append(tensor)
            continue
        if tensor.action != "copy":
            note = f"{tensor.type} in units of the scale that it has in {sources[origin.source].label}"
            tensor = replace(tensor, scale=origin, decisions=(*tensor.decisions, note))
        result.append(tensor)
        source = sources[origin.source]
        new_names = dict(zip(side_names(origin.tensor), side_names(tensor.name), strict=True))
        for name in source.side_tensors.get(origin.tensor, ()):
            own = source.file.tensors[name]
            result.append(
                PlannedTensor(
                    new_names[name],
                    own.shape,
                    own.type,
                    "copy",
                    (Input(origin.source, name),),
                    why_type=f"belongs to {tensor.name}",
                )
            )
    return result


def _scale_donor(tensor: PlannedTensor, sources: Sequence[Source]) -> Input | None:
    """The input whose scale a tensor is written with: the first model's if it has one, else the first that has."""
    if tensor.type is not TensorType.NVFP4:
        return None
    scaled = [
        i
        for i in tensor.inputs
        if sources[i.source].tensors[i.tensor].type is TensorType.NVFP4
        and any(name.endswith(SCALE) for name in sources[i.source].side_tensors.get(i.tensor, ()))
    ]
    return min(scaled, key=lambda i: i.source, default=None)
