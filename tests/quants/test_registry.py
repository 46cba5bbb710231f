"""Every tensor type has a codec or a message, and the public functions check what they are given."""

import numpy as np
import pytest

from ggufmerge import quants
from ggufmerge.errors import GgufmergeError
from ggufmerge.quants import codec
from ggufmerge.types import TensorType
from tests.quants.laws import sample_rows

INTERMEDIATE = {TensorType.Q8_1, TensorType.Q8_K}


@pytest.mark.parametrize("kind", [t for t in TensorType if t not in INTERMEDIATE])
def test_every_type_of_files_has_a_codec(kind):
    """And the codec is the one of that type."""
    assert codec(kind).type is kind


@pytest.mark.parametrize("kind", sorted(INTERMEDIATE))
def test_types_that_never_stand_in_files_are_refused(kind):
    """By name, in one line."""
    with pytest.raises(GgufmergeError, match=f"^{kind} is an intermediate type"):
        codec(kind)


def test_type_names_have_any_case():
    """As in llama.cpp, where q4_K is a name."""
    x = sample_rows()["Gaussian"]
    assert np.array_equal(quants.quantize(x, "q8_0"), quants.quantize(x, TensorType.Q8_0))


def test_one_row_may_be_given_as_a_vector():
    """quantize makes a matrix of one row of it."""
    x = sample_rows()["Gaussian"][0]
    raw = quants.quantize(x, "Q8_0")
    assert raw.shape == (1, TensorType.Q8_0.row_bytes(x.size))
    assert quants.dequantize(raw, "Q8_0", x.size).shape == (1, x.size)


def test_quantize_says_what_cannot_be_written():
    """Types that can only be read, and types that need an importance matrix."""
    with pytest.raises(GgufmergeError, match="I32 can be read but not written"):
        quants.quantize(np.zeros((1, 4), np.float32), "I32")
    with pytest.raises(GgufmergeError, match="IQ2_XXS cannot be written without an importance matrix"):
        quants.quantize(np.zeros((1, 256), np.float32), "IQ2_XXS")


def test_unknown_types_get_a_suggestion():
    """The nearest name."""
    with pytest.raises(GgufmergeError, match='unknown tensor type "Q4_KM": did you mean "Q4_K"'):
        quants.quantize(np.zeros((1, 32), np.float32), "Q4_KM")


def test_rows_must_be_whole_blocks():
    """A row that ends inside a block is an error of the caller."""
    with pytest.raises(ValueError, match="whole number of blocks of 32"):
        quants.quantize(np.zeros((1, 33), np.float32), "Q8_0")


def test_an_imatrix_has_one_value_per_column():
    """Another length is an error."""
    with pytest.raises(ValueError, match=r"imatrix has shape \(31,\), expected \(32,\)"):
        quants.quantize(np.zeros((1, 32), np.float32), "Q4_0", np.ones(31))


@pytest.mark.parametrize(
    ("x", "out"),
    [
        (np.zeros((2, 32), np.float32), np.zeros((1, 34), np.uint8)),
        (np.zeros((1, 32), np.float64), np.zeros((1, 34), np.uint8)),
        (np.zeros((1, 64), np.float32)[:, ::2], np.zeros((1, 34), np.uint8)),
        (np.zeros((1, 32), np.float32), np.zeros((1, 33), np.uint8)),
    ],
)
def test_kernels_are_guarded(x, out):
    """A codec never lets a kernel write past an array: shape, dtype and layout are checked first."""
    with pytest.raises(ValueError, match=r"Q8_0: .* do not go with"):
        codec(TensorType.Q8_0).quantize(x, out)


def test_kernels_are_guarded_against_an_imatrix_of_another_size():
    """Its values would be read past its end."""
    x, out = np.zeros((1, 64), np.float32), np.zeros((1, 36), np.uint8)
    with pytest.raises(ValueError, match=r"Q4_0: .* are no imatrix for 64 columns"):
        codec(TensorType.Q4_0).quantize_weighted(x, out, np.ones(32, np.float32))
