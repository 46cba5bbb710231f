"""IQ1_S and IQ1_M are ggml's."""

import pytest

from ggufmerge.types import TensorType
from tests.quants.laws import CodecLaws

TYPES = [TensorType.IQ1_S, TensorType.IQ1_M]


@pytest.mark.parametrize("kind", TYPES)
class TestIQ1(CodecLaws):
    """The laws of every codec."""

    ggml_aborts_on = frozenset({"huge"})  # squares overflow: no neighbour is nearest
