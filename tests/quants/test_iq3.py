"""IQ3_XXS and IQ3_S are ggml's."""

import pytest

from ggufmerge.types import TensorType
from tests.quants.laws import CodecLaws

TYPES = [TensorType.IQ3_XXS, TensorType.IQ3_S]


@pytest.mark.parametrize("kind", TYPES)
class TestIQ3(CodecLaws):
    """The laws of every codec."""

    ggml_aborts_on = frozenset({"huge"})  # squares overflow: no neighbour is nearest
