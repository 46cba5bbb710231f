"""K-quants are ggml's, and so are the corners of their scale searches."""

import numba
import numpy as np
import pytest

from ggufmerge import quants
from ggufmerge.quants.lanes import LANES
from ggufmerge.types import TensorType
from tests import ggml
from tests.quants.laws import CodecLaws, assert_same_bytes, plain_imatrix

TYPES = [TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K]
INTERPRETED = bool(numba.config.DISABLE_JIT)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", TYPES)
class TestK(CodecLaws):
    """The laws of every codec."""


@pytest.mark.oracle
@pytest.mark.parametrize("blocks", [1, LANES - 1, LANES, 2 * LANES + 1])
@pytest.mark.parametrize("kind", TYPES)
def test_any_number_of_super_blocks(kind, blocks):
    """A super-block's bytes do not depend on how many share its group of lanes, with and without a matrix."""
    x = np.random.default_rng(blocks).standard_normal((1, 256 * blocks)).astype(np.float32)
    imatrix = np.random.default_rng(1).random(256 * blocks, np.float32)
    assert_same_bytes(quants.quantize(x, kind), ggml.quantize(x, kind), x, kind, "one row")
    assert_same_bytes(quants.quantize(x, kind, imatrix), ggml.quantize(x, kind, imatrix), x, kind, "one row, imatrix")


@pytest.mark.oracle
@pytest.mark.parametrize("kind", TYPES)
def test_rows_of_three_super_blocks_take_their_own_columns_of_the_imatrix(kind):
    """Groups of lanes span rows whose length is no divisor of theirs; each lane weighs with its own columns."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((LANES // 3 + 2, 768)).astype(np.float32)
    imatrix = np.repeat(np.float32([1, 100, 0]), 256) * rng.random(768, np.float32)
    assert_same_bytes(quants.quantize(x, kind, imatrix), ggml.quantize(x, kind, imatrix), x, kind, "imatrix")


@pytest.mark.oracle
@pytest.mark.parametrize("kind", TYPES)
def test_sub_blocks_whose_stored_scale_is_zero_keep_the_codes_of_the_search(kind):
    """Next to a large sub-block a small one has scale 0, and ggml leaves the codes that fitted its own scale."""
    x = np.random.default_rng(6).standard_normal((4, 512)).astype(np.float32)
    x[:, 64:] *= np.float32(1e-4)
    x[:, 300:310] = 0
    for imatrix in (None, plain_imatrix()):
        assert_same_bytes(quants.quantize(x, kind, imatrix), ggml.quantize(x, kind, imatrix), x, kind, "small scales")


@pytest.mark.oracle
@pytest.mark.parametrize("kind", TYPES)
def test_magnitudes_around_the_threshold_of_zero(kind):
    """Blocks below 1e-15 count as zero for some searches, also where only the scales are as small."""
    x = np.random.default_rng(7).standard_normal((8, 512)) * np.logspace(-17, -11, 8)[:, None]
    x = np.ascontiguousarray(x, np.float32)
    for imatrix in (None, plain_imatrix()):
        assert_same_bytes(quants.quantize(x, kind, imatrix), ggml.quantize(x, kind, imatrix), x, kind, "tiny values")


@pytest.mark.oracle
@pytest.mark.parametrize("kind", TYPES)
def test_negative_importances_do_what_they_do_in_ggml(kind):
    """A matrix should hold no negative value; with one, scales fall below 0 and wrap around in bytes as in ggml."""
    rng = np.random.default_rng(8)
    x, imatrix = rng.standard_normal((48, 512)).astype(np.float32), rng.standard_normal(512).astype(np.float32)
    if INTERPRETED:
        x = x[:2]
    assert_same_bytes(quants.quantize(x, kind, imatrix), ggml.quantize(x, kind, imatrix), x, kind, "negative imatrix")


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_thousands_of_blocks_have_the_bytes_of_ggml(kind):
    """Rare decisions, such as the tie of two candidate grids, fall as in ggml."""
    rng = np.random.default_rng(kind.id)
    imatrix = (rng.standard_t(3, 4096) ** 2).astype(np.float32)
    for x in (rng.standard_normal((512, 4096)), rng.standard_t(3, (512, 4096)), rng.integers(-16, 17, (512, 4096))):
        x = (x * 0.0625).astype(np.float32)
        assert_same_bytes(quants.quantize(x, kind), ggml.quantize(x, kind), x, kind, "many rows")
        assert_same_bytes(quants.quantize(x, kind, imatrix), ggml.quantize(x, kind, imatrix), x, kind, "and imatrix")
