"""What is done with each tensor once its type is known: copied, converted or merged, with which side tensors and which
rounding, and whether it can be written at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ggufmerge.architectures.stacks import layer_of
from ggufmerge.errors import PlanError
from ggufmerge.keys import EMBEDDING, HEAD
from ggufmerge.planning.plan import Input, PlannedTensor, Rounding
from ggufmerge.planning.side_tensors import with_side_tensors
from ggufmerge.quants import codec, grid_of
from ggufmerge.quants.calibrated.rounding import can_calibrate
from ggufmerge.quants.encoders import encoder, package_of
from ggufmerge.quants.importance import Imatrix
from ggufmerge.quants.mixture import needs_imatrix
from ggufmerge.sources import Source
from ggufmerge.text import first_few, size
from ggufmerge.types import FileType, TensorType

_FINER = 0.75  # bits of a weight by which a source must be finer than the result for correlations to be worth it


def with_actions(
    tensors: Iterable[PlannedTensor],
    sources: Sequence[Source],
    file_type: FileType,
    imatrix: Imatrix | None,
    rounding: Rounding | None = None,
    *,
    calibrated: bool = False,
) -> tuple[list[PlannedTensor], list[str]]:
    """The tensors, whose types are decided, with what is done with them, their side tensors behind each; and warnings.

    rounding: that is asked for; None leaves it to the weights.  calibrated: whether to round with the correlations in
    the matrix what has some.  PlanError says which one cannot be written.
    """
    if calibrated:
        _check_statistics(imatrix)
    done = with_side_tensors((_with_growth(_with_action(t, sources), sources) for t in tensors), sources)
    done = [_with_rounding(t, sources, rounding) for t in done]
    warnings = _check_writable(done, file_type, imatrix)
    if calibrated:
        assert imatrix is not None, "statistics are given with it"
        done = [_with_calibration(t, sources, imatrix) for t in done]
        warnings += _uncalibrated(done, imatrix)
    return done, warnings


def _with_action(tensor: PlannedTensor, sources: Sequence[Source]) -> PlannedTensor:
    """A tensor with a single input is copied if its bytes stay what they are, else converted."""
    if tensor.action == "merge":
        return tensor
    only = tensor.inputs[0]
    same = sources[only.source].stores(only.tensor, tensor.type, tensor.name)
    # a single input is what is left of a merge; the others play no part any more
    return replace(tensor, inputs=tensor.inputs[:1], action="copy" if same else "convert")


def _with_growth(tensor: PlannedTensor, sources: Sequence[Source]) -> PlannedTensor:
    """A tensor, with a note of its size if it is an output head that only adapters part from the embedding."""
    parted = [sources[i.source].parted or i.tensor == EMBEDDING for i in tensor.inputs]
    if tensor.name != HEAD or not all(parted) or not any(sources[i.source].parted for i in tensor.inputs):
        return tensor
    note = f"was tied to the embedding, and an adapter changes one of them: the file grows by {size(tensor.nbytes)}"
    return replace(tensor, decisions=(*tensor.decisions, note))


def _with_rounding(tensor: PlannedTensor, sources: Sequence[Source], asked: Rounding | None) -> PlannedTensor:
    """A tensor with the rounding of its change: as asked for where the weights lie on the type's grid already.

    Rows of a changed vocabulary are a change of no one model, and rounded to the nearest.
    asked: by the recipe; None leaves it to the weights ("auto").
    """
    if not _changes(tensor, sources) or any(sources[i.source].moves(i.tensor) for i in tensor.inputs):
        return tensor
    keeps = tensor.type in reference_types(tensor, sources).values()
    fits = (keeps and grid_of(tensor.type) is not None) or not encoder(asked or "stochastic").needs_grid
    decisions = tensor.decisions
    if fits and asked and (package := package_of(asked)):  # another version of it writes other bytes: no going on then
        decisions = (*decisions, f"{asked} is of the package {package}")
    return replace(tensor, keeps_type=keeps, rounding=(asked or "auto") if fits else "nearest", decisions=decisions)


def _with_calibration(tensor: PlannedTensor, sources: Sequence[Source], statistics: Imatrix) -> PlannedTensor:
    """A tensor that is rounded with the correlations of its inputs, if these are known and it is rounded at all.

    Where all that a tensor is made of is as coarse as what is written, the coarseness of the sources is the damage:
    there it changes little, and is not done.
    """
    if tensor.action == "copy" or not can_calibrate(tensor.type):
        return tensor
    if statistics.correlation(tensor.name, tensor.n, tensor.matrices) is None:
        return tensor
    if not any(_is_finer(i, tensor, sources) for i in tensor.inputs):
        note = "its sources are as coarse as the result, so correlations would gain little: rounded without"
        return replace(tensor, decisions=(*tensor.decisions, note))
    return replace(tensor, calibrated=True)


def _check_statistics(statistics: Imatrix | None) -> None:
    """PlanError unless there are correlations to round with."""
    if statistics is None:
        raise PlanError(
            "calibrated needs statistics: give a file that ggufmerge calibrate wrote with --calibration FILE"
        )
    if not statistics.correlations:
        raise PlanError(
            f"{statistics.file} is a plain importance matrix without correlations: give a file that ggufmerge "
            "calibrate wrote, or use this one with --imatrix"
        )


def _is_finer(given: Input, tensor: PlannedTensor, sources: Sequence[Source]) -> bool:
    """Whether the weights of an input are known better than the type of the result holds them."""
    source = sources[given.source]
    stored = source.file.tensors[given.tensor].type
    return stored.bits_per_weight > tensor.type.bits_per_weight + _FINER or source.changed_by_adapter(given.tensor)


def _uncalibrated(tensors: Sequence[PlannedTensor], statistics: Imatrix) -> list[str]:
    """Warnings of tensors that are rounded without correlations although statistics were given for that."""
    rounded = [t for t in tensors if t.action != "copy" and t.type.is_quantized and layer_of(t.name) is not None]
    able = [t for t in rounded if can_calibrate(t.type)]
    without = [t.name for t in able if statistics.correlation(t.name, t.n, t.matrices) is None]
    others = sorted({str(t.type) for t in rounded if not can_calibrate(t.type)})
    warnings = []
    if without:
        warnings.append(f"{statistics.file} has no correlations for {first_few(without, 1)}: rounded without")
    if others:
        warnings.append(
            f"{first_few(others, 4)} cannot be written with correlations: rounded with the importance alone"
        )
    return warnings


def _changes(tensor: PlannedTensor, sources: Sequence[Source]) -> bool:
    """Whether a tensor of the result has other weights than its inputs, apart from rounding."""
    first = tensor.inputs[0]
    return tensor.action == "merge" or (
        tensor.action == "convert" and sources[first.source].changed_by_adapter(first.tensor)
    )


def reference_types(tensor: PlannedTensor, sources: Sequence[Source]) -> dict[int, TensorType]:
    """The inputs of a tensor that its result may be a change of, by their numbers, with the types they are stored in.

    The base; without one the inputs that have the result's type, on whose grids it may be caught, else the first one.
    """
    candidates = tensor.inputs[:1] if tensor.has_base else tensor.inputs
    types = {i: sources[given.source].file.tensors[given.tensor].type for i, given in enumerate(candidates)}
    return {i: kind for i, kind in types.items() if kind == tensor.type} or {0: types[0]}


def _check_writable(tensors: Sequence[PlannedTensor], file_type: FileType, imatrix: Imatrix | None) -> list[str]:
    """PlanError for tensors that cannot be quantized as planned; warnings for those that go without their imatrix."""
    uncovered, unseen = [], dict[str, int]()
    for t in tensors:
        if t.action == "copy":
            continue
        if not codec(t.type).writable:
            raise PlanError(f"{t.name}: {t.type} can be read but not written; choose another --type")
        weights = imatrix.get(t.name, t.n, t.matrices) if imatrix else None
        if weights is None and (codec(t.type).needs_imatrix or needs_imatrix(t.name, t.type, file_type)):
            remedy = "one made for this model" if imatrix else "one with --imatrix FILE"
            raise PlanError(
                f"{t.name}: {t.type} cannot be written without an importance matrix: give {remedy}, "
                f"or choose a wider --type"
            )
        if imatrix and weights is None and layer_of(t.name) is not None and codec(t.type).quantize_weighted is not None:
            uncovered.append(t.name)
        if imatrix and weights is not None and codec(t.type).quantize_weighted is not None:
            unseen |= {t.name: missed} if (missed := imatrix.missed(t.name, t.matrices)) else {}
    warnings = []
    if uncovered:
        warnings.append(f"the importance matrix has no entry for {first_few(uncovered, 1)}: quantized without")
    if unseen:
        name, most = max(unseen.items(), key=lambda item: item[1])
        more = f", and some of {len(unseen) - 1} more" if len(unseen) > 1 else ""
        warnings.append(
            f"the importance matrix never saw {most} of the experts of {name}{more}: they are quantized without; one "
            "made from more text sees them"
        )
    return warnings
