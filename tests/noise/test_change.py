"""A change between two quantized files is found beside their rounding errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ggufmerge.noise.change import (
    BINS,
    CLASSES,
    Estimate,
    Rounding,
    Stored,
    add_pairs,
    cosine,
    estimate,
    exact,
    same_sign,
)
from ggufmerge.noise.steps import GROUP
from ggufmerge.types import TensorType
from tests.noise import naive
from tests.noise.weights import layer, stored, synthetic

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
PAIRS = np.array([[0, 1], [0, 2], [1, 2]])


def changed(x: np.ndarray, size: float, alike: float, seed: int = 41) -> list[np.ndarray]:
    """Weights and two changes of them, of this relative size and cosine."""
    rng = np.random.default_rng(seed)
    common, *own = rng.standard_normal((3, *x.shape))
    rms = size * np.sqrt(np.mean(np.square(x, dtype=np.float64)))
    parts = [rms * (math.sqrt(alike) * common + math.sqrt(1 - alike) * one) for one in own]
    return [x, *((x + part).astype(np.float32) for part in parts)]


def estimates(files: list[np.ndarray], kinds: list[TensorType], matrix: np.ndarray | None = None) -> list[Estimate]:
    """Of the changes between the files of each of PAIRS, written in these types."""
    read = [stored(x, kind, matrix) for x, kind in zip(files, kinds, strict=True)]
    values, squares = (np.stack(parts) for parts in zip(*read, strict=True))
    sums, same = np.zeros((3, CLASSES, BINS, 4)), np.zeros((3, 2))
    add_pairs(values, squares, PAIRS, np.array([max(k.block_size // GROUP, 1) for k in kinds]), sums, same)
    tensors = [
        Stored(
            Rounding(kind, None if matrix is None else "matrix"),
            float(np.square(v, dtype=np.float64).sum()),
            GROUP * float(s.sum(dtype=np.float64)),
        )
        for kind, v, s in zip(kinds, values, squares, strict=True)
    ]
    return [estimate(sums[p], tensors[a], tensors[b]) for p, (a, b) in enumerate(PAIRS)]


def relative(found: Estimate, x: np.ndarray) -> float:
    return math.sqrt(found.change / float(np.square(x, dtype=np.float64).sum()))


@pytest.mark.parametrize("size", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("kind", TYPES)
def test_the_size_of_a_change_is_found(kind: str, size: float) -> None:
    """To a tenth, in every type from Q4_0 to Q8_0, and the cosine of two changes to .05: unrelated or half alike."""
    x = synthetic("normal", 1024, 1024)
    for alike in (0, 0.5):
        first, second, between = estimates(changed(x, size, alike), [TensorType(kind)] * 3)
        assert first.visible
        assert [relative(first, x), relative(second, x)] == pytest.approx([size, size], rel=0.1)
        assert cosine(first, second, between) == pytest.approx(alike, abs=0.05)


@pytest.mark.parametrize("kind", TYPES)
def test_so_it_is_in_layers_of_a_model(kind: str) -> None:
    """Of weights that are not normally distributed, written with an importance matrix."""
    x = layer("blk.17.ffn_down.weight", 1 << 19)
    matrix = np.exp(np.random.default_rng(2).standard_normal(512)).astype(np.float32)
    for weights in (None, matrix):
        first, *_ = estimates(changed(x, 0.03, 0), [TensorType(kind)] * 3, weights)
        assert relative(first, x) == pytest.approx(0.03, rel=0.1)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_rows_may_change_by_other_amounts(kind: str) -> None:
    """As in an embedding, in which a tune trains some words: a tenth of the rows holds nearly all of the change."""
    x = synthetic("normal", 1024, 512)
    large = np.where(np.arange(1024) % 10 == 0, 1.0, 0.05)[:, None]
    rng = np.random.default_rng(6)
    size = 10 if kind == "Q4_K" else 2
    changes = [0, *(0.031 * 0.02 * size * large * rng.standard_normal(x.shape) for _ in range(2))]
    first, second, between = estimates([(x + d).astype(np.float32) for d in changes], [TensorType(kind)] * 3)
    assert relative(first, x) == pytest.approx(float(np.linalg.norm(changes[1]) / np.linalg.norm(x)), rel=0.1)
    assert cosine(first, second, between) == pytest.approx(0, abs=0.05)


def test_files_of_two_types_have_errors_of_their_own() -> None:
    """They are taken off; what is smaller than they are known is not seen."""
    x = synthetic("laplace", 256, 1024)
    kinds = [TensorType.Q6_K, TensorType.Q4_K, TensorType.Q8_0]
    large, *_ = estimates(changed(x, 0.1, 0), kinds)
    assert large.visible
    assert relative(large, x) == pytest.approx(0.1, rel=0.1)
    small, between, _ = estimates(changed(x, 0.01, 0), kinds)
    assert not small.visible
    assert small.noise == small.seen
    assert relative(between, x) == pytest.approx(0.01, rel=0.1)  # Q6_K and Q8_0 leave it to be seen


def test_a_change_below_a_type_is_not_seen() -> None:
    """From a base in full precision to Q4_0: the rounding of the tune is all that there is."""
    x = synthetic("normal", 256, 1024)
    first, second, between = estimates(changed(x, 0.01, 0), [TensorType.F32, TensorType.Q4_0, TensorType.Q4_0])
    assert not first.visible
    assert math.isnan(cosine(first, second, between))
    assert relative(between, x) == pytest.approx(0.01 * math.sqrt(2), rel=0.1)  # the same rounding is in both


def test_without_rounding_a_change_is_what_is_seen() -> None:
    """F32 beside F32; F16 has noise, of a size that does not matter."""
    x = synthetic("normal", 64, 512)
    files = changed(x, 0.01, 0.5)
    for kind in (TensorType.F32, TensorType.F16):
        first, second, between = estimates(files, [kind] * 3)
        assert relative(first, x) == pytest.approx(0.01, rel=0.02)
        assert cosine(first, second, between) == pytest.approx(0.5, abs=0.02)
    equal, *_ = estimates([x, x, x], [TensorType.Q4_0] * 3)
    assert (equal.change, equal.seen, equal.visible) == (0, 0, True)


def test_signs_follow_from_the_cosine() -> None:
    """Half of them agree by chance; all, where two changes are the same."""
    assert [same_sign(c) for c in (-1, 0, 0.5, 1)] == pytest.approx([0, 0.5, 2 / 3, 1])
    assert math.isnan(same_sign(math.nan))


def test_matrices_make_grids_of_their_own() -> None:
    """Files with other importance matrices are not alike, but in a type that takes none; nor are those that changed."""
    kind = TensorType.Q4_K
    assert Rounding(kind, "a").alike(Rounding(kind, "a"))
    assert not Rounding(kind, "a").alike(Rounding(kind, "b"))
    assert not Rounding(kind).alike(Rounding(TensorType.Q5_K))
    assert Rounding(TensorType.Q8_0, "a").alike(Rounding(TensorType.Q8_0))
    assert not Rounding(kind).alike(Rounding(kind, moved=True))


@pytest.mark.parametrize("groups", [8, 1])
def test_sums_are_those_of_numpy(groups: int) -> None:
    """By bins of steps, with blocks that are the same."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 6, 50 if groups == 1 else 128)).astype(np.float32)
    x[1, 2] = x[0, 2]
    squares = np.exp(rng.normal(-5, 4, (3, 6, groups))).astype(np.float32)
    squares[:, 1] = 0
    blocks = np.array([min(2, groups), 1, 1])
    sums, same = np.zeros((3, CLASSES, BINS, 4)), np.zeros((3, 2))
    add_pairs(x, squares, PAIRS, blocks, sums, same)
    expected = naive.add_pairs(x, squares, PAIRS, blocks)
    assert sums == pytest.approx(expected[0], rel=1e-5)
    assert np.array_equal(same, expected[1])
    assert exact(sums[0]).seen == pytest.approx(np.square(x[0].astype(np.float64) - x[1]).sum())
