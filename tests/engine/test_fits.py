"""A model fits a size of memory: what is said in one line, and what is left for weights."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ggufmerge.architectures.memory import memory_need
from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.planning.fits import Fits, budget_for_weights, parse_fits
from ggufmerge.types import TensorType
from tests.architecture_models import tiny_models


@dataclass(frozen=True)
class Described:
    """A tensor of a header."""

    type: TensorType
    shape: tuple[int, ...]


LLAMA = tiny_models()["llama"]
METADATA = {**LLAMA.metadata, "general.architecture": "llama"}
TENSORS = {name: Described(TensorType.F32, shape) for name, shape in LLAMA.tensors.items()}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("8G", Fits(8 * 10**9)),
        ("500m, ctx=1024", Fits(500 * 10**6, 1024)),
        ("8G,ctx=8192,kv=q8_0", Fits(8 * 10**9, 8192, TensorType.Q8_0)),
        ("8G,kv=F32", Fits(8 * 10**9, None, TensorType.F32)),
    ],
)
def test_a_size_a_context_and_a_type_are_read(text: str, fits: Fits) -> None:
    """The size counts in powers of 1000, as the sizes of shards do; what is left out has its usual value."""
    assert parse_fits(text) == fits


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no size of memory"),
        ("8", "is no size of memory"),
        ("0G", "is no size of memory"),
        ("ctx=8192", "is no size of memory"),
        ("8G,8192", "write ctx=8192"),
        ("8G,context=8192", "neither ctx nor kv"),
        ("8G,ctx=", "says nothing"),
        ("8G,ctx=0", "is no context"),
        ("8G,ctx=8k", "is no context"),
        ("8G,ctx=512,ctx=512", "given twice"),
        ("8G,kv=q8", 'did you mean "q8_0"'),
        ("8G,kv=q4_k", "no type in which llama.cpp keeps keys"),
    ],
)
def test_anything_else_is_one_line(text: str, words: str) -> None:
    """What is wrong is said in one line, with what to write."""
    with pytest.raises(GgufmergeError, match=words) as caught:
        parse_fits(text)
    assert len(caught.value.lines) == 1


def test_weights_get_what_all_else_leaves() -> None:
    """The budget and all that is needed besides make the size that was given."""
    need = memory_need(METADATA, TENSORS, 4096)
    assert need is not None
    fits = Fits(100 * 10**6, 4096)
    assert budget_for_weights(fits, METADATA, TENSORS) == fits.bytes - need.beside_weights


def test_smaller_keys_and_values_leave_more() -> None:
    """What q8_0 saves goes to the weights."""
    plain = budget_for_weights(Fits(10**9, 4096), METADATA, TENSORS)
    assert budget_for_weights(Fits(10**9, 4096, TensorType.Q8_0), METADATA, TENSORS) > plain


def test_when_nothing_is_left_the_line_says_what_would_leave_some() -> None:
    """The context that is named leaves room for weights indeed."""
    with pytest.raises(PlanError, match="kv=q8_0 or ctx=2048 would leave some") as caught:
        budget_for_weights(Fits(16 * 10**6, 4096), METADATA, TENSORS)
    assert len(caught.value.lines) == 1
    assert budget_for_weights(Fits(16 * 10**6, 2048), METADATA, TENSORS) > 0
    assert budget_for_weights(Fits(16 * 10**6, 4096, TensorType.Q8_0), METADATA, TENSORS) > 0


def test_a_size_that_holds_no_context_at_all_needs_more_memory() -> None:
    """Where no setting helps, none is named."""
    with pytest.raises(PlanError, match="give more memory"):
        budget_for_weights(Fits(10**6, 512), METADATA, TENSORS)


def test_a_model_that_does_not_run_alone_has_no_budget() -> None:
    """A draft for another model is refused in one line."""
    with pytest.raises(PlanError, match="not known"):
        budget_for_weights(Fits(10**9), {**METADATA, "general.architecture": "eagle3"}, TENSORS)
