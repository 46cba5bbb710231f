"""The plan of writing one file in another file type: what `llama-quantize --allow-requantize` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggufmerge import keys
from ggufmerge.errors import GgufmergeError, RoleError
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.formats.experts import open_types
from ggufmerge.formats.imatrix import load_together
from ggufmerge.formats.layers import layer_count
from ggufmerge.places.opening import open_source
from ggufmerge.places.references import check_found, locate
from ggufmerge.planning import provenance
from ggufmerge.planning.actions import with_actions
from ggufmerge.planning.checks import check_donor
from ggufmerge.planning.fitting import Fitting, Market, market
from ggufmerge.planning.header import QUANTIZATION_VERSION
from ggufmerge.planning.models import planned_source
from ggufmerge.planning.opened import Opened
from ggufmerge.planning.plan import Input, Opening, Plan, PlannedTensor
from ggufmerge.planning.tensor_types import with_decided_types
from ggufmerge.quants.encoders import CALIBRATED
from ggufmerge.quants.mixture import decide_types, guess_file_type, types_like
from ggufmerge.recipe import ModelReference
from ggufmerge.recipe.budget import ByteBudget
from ggufmerge.running.progress import Progress
from ggufmerge.running.run import BuildReport, run
from ggufmerge.sources import Source
from ggufmerge.types import FileType, TensorType


def quantize_file(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    out_type: FileType | str | None = None,
    *,
    like: str | os.PathLike[str] | None = None,
    imatrix: Sequence[str | os.PathLike[str]] = (),
    calibration: Sequence[str | os.PathLike[str]] = (),
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    pure: bool = False,
    tensor_types: Sequence[tuple[str, TensorType | str]] = (),
    output_tensor_type: TensorType | str | None = None,
    token_embedding_type: TensorType | str | None = None,
    leave_output_tensor: bool = False,
    max_size: str | int | None = None,
    max_bpw: float | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    split: SplitLimit | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Write the GGUF file `path` in another file type as `output`, tensor by tensor as llama-quantize would.

    out_type: such as "Q4_K_M", or "COPY"; None with `like`, `max_size` and `max_bpw`.
    tensor_types: (regular expression, type) pairs.
    max_size: the most that the tensors may take, bytes or a text such as "3.5G"; max_bpw: bits per weight. The types
    that do least harm within them are chosen (docs/fitting.md).
    The others: see `plan_quantize` and `run`. The report's `errors` has the relative error of each tensor.
    GgufmergeError (PlanError, FormatError, OutputError) says what does not fit.
    """
    plan, opened = plan_quantize(
        path,
        out_type,
        like=like,
        imatrix=imatrix,
        calibration=calibration,
        include_weights=include_weights,
        exclude_weights=exclude_weights,
        pure=pure,
        tensor_types=tensor_types,
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        leave_output_tensor=leave_output_tensor,
        budget=ByteBudget.parse(max_size, max_bpw),
        threads=threads,
    )
    options: dict[str, Any] = {"overwrite": overwrite, "threads": threads, "split": split, "progress": progress}
    with opened:
        return run(plan, opened, output, measure=True, **options)


def plan_quantize(
    path: str | os.PathLike[str],
    ftype: FileType | str | None,
    *,
    like: str | os.PathLike[str] | None = None,
    imatrix: Sequence[str | os.PathLike[str]] = (),
    calibration: Sequence[str | os.PathLike[str]] = (),
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    pure: bool = False,
    tensor_types: Sequence[tuple[str, TensorType | str]] = (),
    output_tensor_type: TensorType | str | None = None,
    token_embedding_type: TensorType | str | None = None,
    leave_output_tensor: bool = False,
    keep_split: bool = False,
    budget: ByteBudget | None = None,
    fitted: Fitting | Callable[[Market], Fitting] | None = None,
    threads: int | None = None,
) -> tuple[Plan, Opened]:
    """The plan of quantizing `path` to a file type, and what it reads from, opened.

    ftype: a file type, "COPY" to change nothing, or None with `like` and `budget`.
    like: another GGUF file whose types are taken over tensor by tensor.
    budget: the most that the tensors may take; their types are chosen for it, from samples of the weights.
    fitted: types that were chosen for this model before; or what chooses instead of the budget itself: it is given the
        choice and may look at it. threads: for that.
    imatrix: importance matrices, which add up; include_weights and exclude_weights as in `Imatrix.select`.
    calibration: files of `ggufmerge calibrate`, which add up: importance matrices with correlations to round with.
    The others: see `ggufmerge.quants.mixture.plan_types`.
    GgufmergeError (PlanError, FormatError) says what does not fit.
    """
    chooses = (lambda found: found.fit(budget)) if fitted is None and budget is not None else fitted
    if sum(way is not None for way in (ftype, like, chooses)) != 1:
        raise GgufmergeError(
            "give either a type, such as Q4_K_M, a budget with --max-size or --max-bpw, or a file to follow with --like"
        )
    if chooses is not None and pure:
        raise GgufmergeError("--pure gives all tensors one type, and a budget each its own: leave one of them out")
    if imatrix and calibration:
        raise GgufmergeError(
            "give --imatrix or --calibration: statistics for calibration are an importance matrix, too"
        )
    reference = ModelReference(os.fspath(path))
    named = [("", reference.path), *(("--imatrix", os.fspath(file)) for file in imatrix)]
    named += [("--calibration", os.fspath(file)) for file in calibration]
    check_found([*named, *([] if like is None else [("--like", os.fspath(like))])])
    try:
        source = open_source(reference)
    except RoleError as error:
        raise error.to_do(f"bake it into one first: ggufmerge bake MODEL {reference.path}") from None
    with ExitStack() as on_failure:
        on_failure.callback(source.close)
        check_donor(source)
        made = _planned(
            reference,
            source,
            ftype,
            like=like,
            imatrix=[*imatrix, *calibration],
            calibrated=bool(calibration),
            include_weights=include_weights,
            exclude_weights=exclude_weights,
            fitted=chooses,
            threads=threads,
            mixture={
                "pure": pure,
                "tensor_types": tensor_types,
                "output_tensor_type": output_tensor_type,
                "token_embedding_type": token_embedding_type,
                "leave_output_tensor": leave_output_tensor,
                "keep_split": keep_split,
            },
        )
        on_failure.pop_all()
    return made


def _planned(
    reference: ModelReference,
    source: Source,
    ftype: FileType | str | None,
    *,
    like: str | os.PathLike[str] | None,
    imatrix: Sequence[str | os.PathLike[str]],
    calibrated: bool,
    include_weights: Sequence[str],
    exclude_weights: Sequence[str],
    fitted: Fitting | Callable[[Market], Fitting] | None,
    threads: int | None,
    mixture: dict[str, Any],
) -> tuple[Plan, Opened]:
    """The plan over a file that is open; see `plan_quantize`. mixture: further arguments of `decide_types`."""
    matrix = load_together([str(locate(os.fspath(p), ".")) for p in imatrix])
    if matrix is not None and (include_weights or exclude_weights):
        matrix = matrix.select(include_weights, exclude_weights)
    tensors = [
        PlannedTensor(name, t.shape, t.type, "copy", (Input(0, name),), why_type="as it is")
        for name, t in source.tensors.items()
    ]
    if fitted is not None:
        if keys.block_count(source.file.architecture) in source.metadata:
            layer_count(source.file)
        if isinstance(fitted, Fitting):
            chosen = fitted
        else:
            known = {name: value for name, value in mixture.items() if name != "pure"}
            chosen = fitted(market(source, tensors, [source], matrix, threads=threads, **known))
        tensors, file_type = chosen.tensors(), chosen.file_type
    elif like is not None:
        with open_types(locate(os.fspath(like), ".")) as other:
            tensors = with_decided_types(tensors, types_like(source, other))
        file_type = guess_file_type({t.name: t.type for t in tensors}, source)
    elif str(ftype).upper() == "COPY":
        file_type = guess_file_type({t.name: t.type for t in tensors}, source)
    else:
        file_type = FileType.parse(str(ftype))
        if keys.block_count(source.file.architecture) in source.metadata:
            layer_count(source.file)  # the mixture of types depends on it
        tensors = with_decided_types(tensors, decide_types(source, file_type, matrix, **mixture))
    # tensors of numbers that are no weights stay what they are under every rule, so none is converted here
    tensors, warnings = with_actions(tensors, [source], file_type, matrix, calibrated=calibrated)
    coarse = sorted({str(source.tensors[t.name].type) for t in tensors if t.action == "convert"} - _FULL_PRECISION)
    if coarse:
        warnings.append(
            f"{source.label} is quantized already ({', '.join(coarse)}): its error stays and the new one adds"
        )
    metadata: dict[str, Any] = {keys.FILE_TYPE: file_type.id}
    metadata |= {key: None for key in source.metadata if matrix and key.startswith(keys.IMATRIX)}
    if any(t.type.is_quantized for t in tensors):
        metadata[keys.QUANTIZATION_VERSION] = QUANTIZATION_VERSION
    metadata |= matrix.metadata() if matrix else {}
    settings = provenance.settings(
        file_type=str(file_type),
        imatrix=[Path(p).name for p in imatrix],
        encoder=CALIBRATED if calibrated else None,
    )
    metadata |= provenance.record([source], settings)
    planned = planned_source(reference, source)
    warnings += [*source.rearranged(), *source.misfits()]
    plan = Plan(
        method="",
        architecture=source.file.architecture,
        file_type=file_type,
        seed=0,
        folder=".",
        recipe="",
        sources=(planned,),
        tensors=tuple(tensors),
        imatrix=tuple(os.fspath(p) for p in imatrix),
        metadata=metadata,
        warnings=tuple(warnings),
    )
    opened = Opened([source], matrix, others=tuple(Path(p) for p in (*imatrix, *([like] if like else ()))))
    opening = Opening(tuple(opened.fingerprints()), include=tuple(include_weights), exclude=tuple(exclude_weights))
    return replace(plan, opening=opening), opened


_FULL_PRECISION = {str(t) for t in TensorType if t.is_float}
