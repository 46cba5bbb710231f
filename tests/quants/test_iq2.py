"""IQ2_XXS, IQ2_XS and IQ2_S are ggml's."""

import pytest

from ggufmerge.types import TensorType
from tests.quants.laws import CodecLaws

TYPES = [TensorType.IQ2_XXS, TensorType.IQ2_XS, TensorType.IQ2_S]


@pytest.mark.parametrize("kind", TYPES)
class TestIQ2(CodecLaws):
    """The laws of every codec."""

    ggml_aborts_on = frozenset({"huge"})  # squares overflow: no neighbour is nearest
