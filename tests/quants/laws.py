"""The laws that every codec keeps, with the data to test them on.

A codec's test file names its types and inherits the laws:

    @pytest.mark.parametrize("kind", [TensorType.Q4_0, TensorType.Q8_0])
    class TestLegacy(CodecLaws):
        '''Q4_0 and Q8_0 have the bits of ggml.'''

Arrays of values are float32 [rows, N] without NaN. With NUMBA_DISABLE_JIT=1 kernels are interpreted, a thousand times
slower, so there each kind of data is one row.
"""

from __future__ import annotations

import functools
import json
import pathlib
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numba
import numpy as np
import pytest

from ggufmerge import quants
from ggufmerge.types import TensorType
from tests import ggml

VENDOR = pathlib.Path(__file__).resolve().parents[2] / "vendor"
INTERPRETED = bool(numba.config.DISABLE_JIT)  # type: ignore[attr-defined]
N = 512
ROWS = 1 if INTERPRETED else 6
# Samples whose scales a half holds well; elsewhere the scale itself moves when it is taken again.
ORDINARY = "Gaussian", "heavy-tailed", "positive", "negative", "constant", "zero", "sparse", "outliers", "SmolLM2"


class CodecLaws:
    """Laws of one `kind` of block format, which the subclass parametrizes."""

    # Data that ggml itself aborts on, for some types: names of `sample_rows`.
    ggml_aborts_on: ClassVar[frozenset[str]] = frozenset()

    @pytest.mark.oracle
    def test_quantized_rows_dequantize_to_the_bits_of_ggml(self, kind):
        """Rows that ggml quantized, zeros included, come back as the floats that ggml makes of them."""
        for name, x in self.samples().items():
            raw = ggml.quantize(x, kind, plain_imatrix())
            assert_same_floats(quants.dequantize(raw, kind, N), ggml.dequantize(raw, kind, N), kind, name)

    @pytest.mark.oracle
    def test_any_bytes_dequantize_to_the_bits_of_ggml(self, kind):
        """Whatever a block holds, infinite and NaN scales too, the floats are ggml's; only a NaN's payload may differ,
        which IEEE 754 leaves open.
        """
        raw = np.random.default_rng(kind.id).integers(0, 256, (16 * ROWS, kind.row_bytes(N)), np.uint8)
        raw[0], raw[-1] = 0, 255
        assert_same_floats(quants.dequantize(raw, kind, N), ggml.dequantize(raw, kind, N), kind, "random bytes")

    @pytest.mark.oracle
    def test_quantize_writes_the_bytes_of_ggml(self, kind):
        """Without an importance matrix the bytes are those of ggml_quantize_chunk."""
        if quants.codec(kind).quantize is None:
            assert quants.codec(kind).needs_imatrix == ggml.lib().ggml_quantize_requires_imatrix(kind.id)
            return
        for name, x in self.samples().items():
            assert_same_bytes(quants.quantize(x, kind), ggml.quantize(x, kind), x, kind, name)

    @pytest.mark.oracle
    def test_quantize_with_an_imatrix_writes_the_bytes_of_ggml(self, kind):
        """So they are with one, zeros in it included, also for types that ignore it."""
        for name, x in self.samples().items():
            for case, imatrix in imatrices().items():
                expected = ggml.quantize(x, kind, imatrix)
                assert_same_bytes(quants.quantize(x, kind, imatrix), expected, x, kind, f"{name}, {case} imatrix")

    def test_the_golden_bytes_of_ggml_are_kept(self, kind):
        """Bytes and floats recorded from ggml, for processors that its wheels do not run on."""
        golden, digests = goldens()
        x = golden["x"][:ROWS]
        for case, imatrix in (("", None), ("+imatrix", golden["imatrix"])):
            key = f"{kind}{case}"
            if key not in golden:  # ggml refuses to work without an imatrix
                assert quants.codec(kind).needs_imatrix
                continue
            assert_same_bytes(quants.quantize(x, kind, imatrix), golden[key][:ROWS], x, kind, f"golden{case}")
            back = quants.dequantize(golden[key][:ROWS], kind, x.shape[1])
            assert [digest(row) for row in back] == digests[key][:ROWS]

    def test_rows_are_independent(self, kind):
        """A row's bytes do not depend on the rows beside it, nor on the thread that works on it."""
        codec = quants.codec(kind)
        x = sample_rows()["heavy-tailed"]
        imatrix = plain_imatrix() if codec.needs_imatrix else None
        together = quants.quantize(x, kind, imatrix)
        with ThreadPoolExecutor(2) as pool:
            alone = list(pool.map(lambda row: quants.quantize(row, kind, imatrix), x))
            floats = list(pool.map(lambda row: quants.dequantize(row, kind, N), together))
        assert np.array_equal(np.concatenate(alone), together)
        assert np.array_equal(np.concatenate(floats), quants.dequantize(together, kind, N))

    def test_inputs_may_be_read_only(self, kind):
        """Mapped files are read-only; kernels read them as they are."""
        codec = quants.codec(kind)
        x = sample_rows()["Gaussian"]
        imatrix = plain_imatrix()
        raw, out = np.empty((x.shape[0], kind.row_bytes(N)), np.uint8), np.empty_like(x)
        for array in (x, imatrix):
            array.flags.writeable = False
        if codec.quantize_weighted is not None:
            codec.quantize_weighted(x, raw, imatrix)
        if codec.quantize is not None:
            codec.quantize(x, raw)
        raw.flags.writeable = False
        codec.dequantize(raw, out)
        assert np.isfinite(out).all()

    def test_damaged_is_what_holds_no_finite_numbers(self, kind):
        """Of any bytes, the first block whose values are not all finite; of what was quantized, none."""
        rng = np.random.default_rng(kind.id)
        raw = rng.integers(0, 256, (16 * ROWS, kind.row_bytes(N)), np.uint8)
        blocks = raw.reshape(-1, kind.block_bytes)
        values = any_values(raw, kind).reshape(-1, kind.block_size)
        bad = ~np.isfinite(values).all(1) | [has_nan_scale(block, kind) for block in blocks]
        codec = quants.codec(kind)
        assert [codec.damaged(block[None]) == 0 for block in blocks] == bad.tolist()
        assert codec.damaged(raw) == (int(bad.argmax()) if bad.any() else -1)
        assert codec.damaged(np.ascontiguousarray(raw[:0])) == -1
        out = np.empty((len(raw), N), np.float32)
        assert codec.decode(raw, out) == codec.damaged(raw)
        for name in ORDINARY:
            x = sample_rows()[name]
            written = quants.quantize(x, kind, plain_imatrix())
            out = np.empty_like(x)
            assert codec.damaged(written) == codec.decode(written, out) == -1
            assert out.tobytes() == quants.dequantize(written, kind, N).tobytes()

    def test_values_that_a_type_cannot_hold_are_above_its_limit_or_damage_it(self, kind):
        """Values of any size are lost only if one of the two tells: else their error is that of ordinary values, or at
        least less than half of them.
        """
        codec, rng = quants.codec(kind), np.random.default_rng(kind.id)
        x = rng.standard_normal((1, N)).astype(np.float32)
        for imatrix in (None, plain_imatrix()):
            if imatrix is None and codec.needs_imatrix:
                continue
            ordinary = loss(x, kind, imatrix)
            for exponent in range(0, 38, 1 if not INTERPRETED else 9):
                large = x * np.float32(10.0**exponent)
                damaged = codec.damaged(quants.quantize(large, kind, imatrix)) >= 0
                told = damaged or float(np.abs(large).max()) > 2 * codec.limit
                assert told or loss(large, kind, imatrix) < max(1.2 * ordinary, 0.5), f"1e{exponent}"

    def test_kernels_stay_inside_their_arrays(self, kind):
        """Whatever the values, NaN of both signs too, and whatever the bytes: nothing beside the output is written.
        With NUMBA_BOUNDSCHECK=1 every index is checked as well.
        """
        codec = quants.codec(kind)
        for x in hostile_rows().values():
            for imatrix in (None, plain_imatrix()):
                if codec.needs_imatrix and imatrix is None:
                    continue
                memory = np.full((len(x) + 2, kind.row_bytes(N)), 0xA5, np.uint8)
                codec.encode(x, memory[1:-1], imatrix)
                assert (memory[[0, -1]] == 0xA5).all()
        raw = np.random.default_rng(kind.id).integers(0, 256, (ROWS, kind.row_bytes(N)), np.uint8)
        floats = np.full((ROWS + 2, N), 7, np.float32)
        codec.dequantize(raw, floats[1:-1])
        assert (floats[[0, -1]] == 7).all()

    def samples(self) -> Mapping[str, np.ndarray]:
        return {name: x for name, x in sample_rows().items() if name not in self.ggml_aborts_on}


def hostile_rows() -> dict[str, np.ndarray]:
    """Float32 [rows, N] that no model should have: NaN, infinities, and the ends of float32."""
    rng = np.random.default_rng(11)
    normal = rng.standard_normal((ROWS, N))
    bits = rng.integers(0, 2**32, (ROWS, N), np.uint64).astype(np.uint32)
    negative_nan = np.uint32(0xFFC00000).view(np.float32)  # what inf - inf gives on x86-64
    few = normal.copy()
    few[:, 3::50], few[:, 7::90], few[:, 11::70] = np.nan, np.inf, -np.inf
    rows: dict[str, np.ndarray] = {
        "any bits": bits.view(np.float32),
        "NaN": np.full((ROWS, N), np.nan),
        "negative NaN": np.full((ROWS, N), negative_nan),
        "infinite": np.full((ROWS, N), -np.inf),
        "a few": few,
        "huge": np.clip(normal * 3e38, -3.4e38, 3.4e38),
        "subnormal": normal * 1e-42,
        "the largest": np.where(normal > 0, np.finfo(np.float32).max, np.finfo(np.float32).min),
    }
    with np.errstate(all="ignore"):
        return {name: np.ascontiguousarray(x, np.float32) for name, x in rows.items()}


def any_values(raw: np.ndarray, kind: TensorType) -> np.ndarray:
    """Values of any bytes, without numpy's warnings."""
    with np.errstate(all="ignore"):
        return quants.dequantize(raw, kind, N)


def has_nan_scale(block: np.ndarray, kind: TensorType) -> bool:
    """Whether a block has a scale that is NaN by the standard of its format, though ggml reads it as a number."""
    if kind is TensorType.MXFP4:
        return bool(block[0] == 255)
    return kind is TensorType.NVFP4 and bool((block[:4] & 127 == 127).any())


def loss(x: np.ndarray, kind: TensorType, imatrix: np.ndarray | None) -> float:
    """Relative RMS error of writing x."""
    back = any_values(quants.quantize(x, kind, imatrix), kind).astype(np.float64)
    return float(np.sqrt(((back - x) ** 2).sum() / (x.astype(np.float64) ** 2).sum()))


def check_idempotent(kind: TensorType) -> None:
    """Values that came out of a block go back into the same bytes."""
    for name in ORDINARY:
        x = sample_rows()[name]
        once = quants.quantize(x, kind)
        twice = quants.quantize(quants.dequantize(once, kind, N), kind)
        assert_same_bytes(twice, once, x, kind, f"{name}, a second time")


def check_infinities(kind: TensorType) -> None:
    """Infinite values, as an overflow leaves them, give the bytes that ggml makes of them on x86-64."""
    rng = np.random.default_rng(9)
    for infinities in ([np.inf], [-np.inf], [np.inf, -np.inf]):
        x = rng.standard_normal((ROWS, N)).astype(np.float32)
        x[rng.integers(0, ROWS, 12), rng.integers(0, N, 12)] = rng.choice(infinities, 12)
        for name, imatrix in (("no", None), ("plain", plain_imatrix())):
            expected = ggml.quantize(x, kind, imatrix)
            assert_same_bytes(quants.quantize(x, kind, imatrix), expected, x, kind, f"{infinities}, {name} imatrix")


def sample_rows() -> dict[str, np.ndarray]:
    """Float32 [rows, N] by name: ordinary weights, real ones, and the edges of float32 and of the formats."""
    rng = np.random.default_rng(7)
    normal = rng.standard_normal((ROWS, N))
    outlier = normal * 1e-3
    outlier[:, 5::97] = 4.0
    lone = np.zeros((ROWS, N))
    lone[:, 7::64] = -3.0
    zeros = np.where(rng.random((ROWS, N)) < 0.5, 0.0, -0.0)
    sparse = np.where(rng.random((ROWS, N)) < 0.2, normal, zeros)
    samples = {
        "Gaussian": normal * 0.02,
        "heavy-tailed": rng.standard_t(2, (ROWS, N)) * 0.02,
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "constant": np.full((ROWS, N), 0.37),
        "negative constant": np.full((ROWS, N), -0.37),
        "zero": np.zeros((ROWS, N)),
        "negative zero": np.full((ROWS, N), -0.0),
        "zeros of both signs": zeros,
        "sparse": sparse,
        "outliers": outlier,
        "lone values": lone,
        "ties": rng.integers(-8, 9, (ROWS, N)) * 0.5,
        "below 2**k": 2.0 ** rng.integers(-30, 30, (ROWS, N)) * (1 - 2.0**-24 * rng.integers(0, 60, (ROWS, N))),
        "subnormal": normal * 1e-40,
        "nearly subnormal": normal * 1e-38,
        "half subnormal": normal * 1e-7,
        "beyond half": normal * 1e6,
        "huge": np.clip(normal * 1e38, -3.4e38, 3.4e38),
        "SmolLM2": real_rows()[:: 1 if ROWS > 1 else 100],
    }
    return {name: np.ascontiguousarray(x, np.float32) for name, x in samples.items()}


@functools.cache
def real_rows() -> np.ndarray:
    """Float32 [rows, N] of a real model; see vendor/rows/README.md."""
    with np.load(VENDOR / "rows" / "smollm2.npz") as file:
        return file["rows"]


def imatrices() -> dict[str, np.ndarray]:
    """Importance matrices, float32 [N], by name."""
    plain = plain_imatrix()
    rng = np.random.default_rng(3)
    holes = np.where(rng.random(N) < 0.3, 0, plain)
    half = np.where(np.arange(N) < N // 2, 0, plain)
    return {name: x.astype(np.float32) for name, x in {"plain": plain, "holed": holes, "half zero": half}.items()}


def plain_imatrix() -> np.ndarray:
    """Mean squared activations of a few strong and many weak columns, float32 [N]."""
    return (np.random.default_rng(2).standard_t(3, N) ** 2 + 1e-4).astype(np.float32)


@functools.cache
def goldens() -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """ggml's bytes by type name (with "+imatrix"), the inputs "x" and "imatrix"; digests of the dequantized rows."""
    with np.load(VENDOR / "ggml" / "codecs.npz") as file:
        arrays = dict(file)
    return arrays, json.loads((VENDOR / "ggml" / "codecs.json").read_text(encoding="utf-8"))["digests"]


def digest(row: np.ndarray) -> str:
    """CRC-32 of the bits of a float32 row, as 8 hexadecimal digits."""
    return f"{zlib.crc32(np.ascontiguousarray(row, '<f4').tobytes()):08x}"


def assert_same_bytes(ours: np.ndarray, expected: np.ndarray, x: np.ndarray, kind: TensorType, what: str) -> None:
    """Byte equality; a failure names the block that differs most."""
    ours, expected = ours.reshape(-1, kind.block_bytes), expected.reshape(-1, kind.block_bytes)
    wrong = (ours != expected).sum(1)
    if not wrong.any():
        return
    worst = int(wrong.argmax())
    values = x.reshape(-1, kind.block_size)[worst]
    pytest.fail(
        f"{kind}, {what}: {np.count_nonzero(wrong)} of {wrong.size} blocks differ, most of all block {worst} "
        f"({wrong[worst]} of {kind.block_bytes} bytes)\n"
        f"ours     {ours[worst].tobytes().hex(' ')}\nexpected {expected[worst].tobytes().hex(' ')}\n"
        f"values   {np.array2string(values, threshold=40)}"
    )


def assert_same_floats(ours: np.ndarray, expected: np.ndarray, kind: TensorType, what: str) -> None:
    """Bit equality of floats, but any NaN equals any NaN; a failure names the block that differs most."""
    same = (ours.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(ours) & np.isnan(expected))
    if same.all():
        return
    wrong = (~same).reshape(-1, kind.block_size).sum(1)
    worst = int(wrong.argmax())
    ours, expected = (a.reshape(-1, kind.block_size)[worst] for a in (ours, expected))
    pytest.fail(
        f"{kind}, {what}: {np.count_nonzero(wrong)} of {wrong.size} blocks differ, most of all block {worst} "
        f"({wrong[worst]} of {kind.block_size} values)\nours     {ours}\nexpected {expected}"
    )
