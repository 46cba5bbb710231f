"""Laws of IQ1_S and IQ1_M: the bits of ggml."""

import numpy as np
import pytest

from ggufmerge.quants import codec
from ggufmerge.types import TensorType
from tests import ggml

TYPES = [TensorType.IQ1_S, TensorType.IQ1_M]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", TYPES)
def test_dequantize_has_the_bits_of_ggml(kind):
    """Any bytes dequantize to ggml's bits, whatever NaN or infinity their scale is."""
    raw = np.random.default_rng(1).integers(0, 256, (9, kind.row_bytes(512)), np.uint8)
    out = np.empty((9, 512), np.float32)
    codec(kind).dequantize(raw, out)
    assert np.array_equal(out.view(np.uint32), ggml.dequantize(raw, kind, 512).view(np.uint32))
