"""The rounding error that is read from the blocks of a file is the one that was made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.noise.factors import noise_of
from ggufmerge.quants import codec
from ggufmerge.quants.units import TYPES
from ggufmerge.types import TensorType
from tests.noise.weights import LAYERS, SYNTHETIC, layer, stored, synthetic

MODES = [
    pytest.param(kind, weighted, id=f"{kind}-{'imatrix' if weighted else 'plain'}")
    for kind in TYPES
    for weighted in (False, True)
    if not (codec(kind).quantize_weighted is None if weighted else codec(kind).needs_imatrix)
]


def known(values: int) -> dict[str, np.ndarray]:
    return {name: synthetic(name, values // 1024, 1024) for name in SYNTHETIC} | {
        name: layer(name, values) for name in LAYERS
    }


def ratio(x: np.ndarray, kind: TensorType, weighted: bool) -> float:
    """Predicted to measured RMS of the error."""
    if kind == TensorType.NVFP4:
        x = x * np.float32(50)  # as its files have weights, in units of a scale for the whole tensor
    rng = np.random.default_rng(5)
    matrix = np.exp(rng.standard_normal(x.shape[1])).astype(np.float32) if weighted else None
    back, squares = stored(x, kind, matrix)
    noise = noise_of(kind, weighted)
    assert noise is not None
    step = float(np.mean(squares, dtype=np.float64))
    predicted = noise.factor(float(np.mean(np.square(back, dtype=np.float64))) / step) * step / 12
    return float(np.sqrt(predicted / np.mean(np.square(back.astype(np.float64) - x))))


@pytest.mark.parametrize(("kind", "weighted"), MODES)
def test_the_error_is_read_from_the_blocks(kind: TensorType, weighted: bool) -> None:
    """To 5 % in the RMS, for weights of many shapes and layers that the factors were not measured on."""
    shows_too_little = {TensorType.Q1_0: {"laplace", "t5", "uniform"}, TensorType.MXFP4: {"uniform"}}
    weights = known(1 << 14 if kind.startswith("IQ") else 1 << 16)
    found = {
        name: ratio(x, kind, weighted) for name, x in weights.items() if name not in shows_too_little.get(kind, ())
    }
    assert found == pytest.approx(dict.fromkeys(found, 1), abs=0.05)


def test_types_without_scales_have_no_factor() -> None:
    """Whole numbers and floats, which have no blocks."""
    assert [noise_of(kind, False) for kind in (TensorType.F32, TensorType.BF16, TensorType.I8)] == [None] * 3


def test_every_type_that_is_quantized_has_factors() -> None:
    """Those that stand in files."""
    assert set(TYPES) == {kind for kind in TensorType if kind.is_quantized} - {TensorType.Q8_1, TensorType.Q8_K}


def test_the_page_of_diff_has_a_factor_for_every_type() -> None:
    """The measured one, in the RMS, with and without a matrix."""
    page = (Path(ggufmerge.__file__).parents[1] / "docs" / "diff.md").read_text("utf-8")
    for kind in TYPES:
        (row,) = [line.split(" | ") for line in page.splitlines() if line.startswith(f"| {kind} |") and "/" not in line]
        for shown, weighted in zip(row[1:3], (False, True), strict=True):
            if pytest.param(kind, weighted, id=f"{kind}-{'imatrix' if weighted else 'plain'}") in MODES:
                noise = noise_of(kind, weighted)
                assert noise is not None
                assert shown == f"{np.sqrt(noise.factor(float(np.exp(noise.shape)))):.2f}"
            else:
                assert shown == "-"
