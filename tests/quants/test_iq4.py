"""IQ4_NL and IQ4_XS are ggml's."""

import pytest

from ggufmerge.types import TensorType
from tests.quants.laws import CodecLaws

TYPES = [TensorType.IQ4_NL, TensorType.IQ4_XS]


@pytest.mark.parametrize("kind", TYPES)
class TestIQ4(CodecLaws):
    """The laws of every codec."""
