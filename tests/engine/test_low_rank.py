"""Randomized SVD of a matrix that is read row by row: as good as the SVD of the whole, in little memory."""

from __future__ import annotations

import tracemalloc

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from ggufmerge.engine import low_rank as module
from ggufmerge.engine.low_rank import LowRank, low_rank
from ggufmerge.running.scheduler import Job, drive

Floats = NDArray[np.float32]
SMALL = 4 if numba.config.DISABLE_JIT else 1  # plain Python is slow


def factor(d: Floats, rank: int, *, threads: int = 2, key: int = 1) -> LowRank:
    results: list[LowRank] = []

    def read(start: int, out: Floats) -> None:
        out[:] = d[start : start + len(out)]

    def job() -> Job:
        results.append((yield from low_rank(*d.shape, rank, read, key, lambda values: None)))

    drive([job()], threads)
    return results[0]


def matrix(rows: int, n: int, spectrum: NDArray[np.float64], seed: int = 0) -> Floats:
    """A matrix with these singular values and random singular vectors."""
    random = np.random.default_rng(seed)
    u, v = (np.linalg.qr(random.standard_normal((size, len(spectrum))))[0] for size in (rows, n))
    return ((u * spectrum) @ v.T).astype(np.float32)


def relative(x: Floats, y: Floats) -> float:
    return float(np.linalg.norm(x.astype(np.float64) - y) / np.linalg.norm(y))


@pytest.mark.parametrize("shape", [(240, 160), (100, 240), (64, 64)])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_no_approximation_of_that_rank_is_better_by_a_percent(shape: tuple[int, int], exponent: float) -> None:
    """Compared with the full SVD (Eckart and Young), for spectra that fall slowly and fast."""
    rows, n = shape[0] // SMALL, shape[1] // SMALL
    spectrum = np.arange(1, min(rows, n) + 1) ** -exponent
    got = factor(matrix(rows, n, spectrum), 8)
    best = (spectrum[:8] ** 2).sum()
    assert 0.99 * best < got.captured < (1 + 1e-6) * best
    assert got.energy == pytest.approx((spectrum**2).sum(), rel=1e-5)


@pytest.mark.parametrize("rank", [1, 5, 8])
def test_a_matrix_of_that_rank_comes_back(rank: int) -> None:
    """To float32 rounding, whether the rank asked for is just enough or too much."""
    d = matrix(120, 90, np.linspace(3, 1, rank))
    for asked in (rank, rank + 3):
        got = factor(d, asked)
        assert relative(got.left @ got.right, d) < 2e-6
        assert got.captured == pytest.approx(got.energy, rel=1e-6)


def test_the_full_rank_gives_the_matrix() -> None:
    """Also of matrices smaller than the subspace that is iterated."""
    for shape in ((3, 40), (40, 3), (1, 1)):
        d = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        got = factor(d, min(shape))
        assert relative(got.left @ got.right, d) < 2e-6


def test_singular_values_are_spread_evenly_over_both_factors() -> None:
    """So neither leaves the range of F16."""
    got = factor(matrix(80, 60, np.array([900.0, 30.0, 1.0])), 3)
    np.testing.assert_allclose(np.linalg.norm(got.left, axis=0), np.sqrt([900.0, 30.0, 1.0]), rtol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(got.right, axis=1), np.sqrt([900.0, 30.0, 1.0]), rtol=1e-2)


def test_a_change_of_nothing_has_factors_of_zeros() -> None:
    """No division by zero."""
    got = factor(np.zeros((20, 30), np.float32), 4)
    assert not got.left.any()
    assert not got.right.any()
    assert got.energy == got.captured == 0


def test_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are cut at fixed rows and added in order."""
    monkeypatch.setattr(module, "_CHUNK", 512)
    d = matrix(70, 50, np.linspace(1, 0.1, 40))
    one, many = factor(d, 6, threads=1), factor(d, 6, threads=5)
    assert (one.left.tobytes(), one.right.tobytes()) == (many.left.tobytes(), many.right.tobytes())
    assert (one.energy, one.captured) == (many.energy, many.captured)


def test_memory_holds_chunks_and_factors() -> None:
    """Not the matrix, whose rows are made up as they are asked for."""
    rows, n = (1 << 14) // SMALL**2, 64
    row = np.random.default_rng(0).standard_normal(n).astype(np.float32)

    def read(start: int, out: Floats) -> None:
        out[:] = row * np.arange(start, start + len(out), dtype=np.float32)[:, None]

    def job() -> Job:
        yield from low_rank(rows, n, 1, read, 1, lambda values: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", rows // 4)
        patch.setattr(module, "_LANES", 2)
        patch.setattr(module, "OVERSAMPLING", 1)
        drive([job()], 2)  # compiles
        tracemalloc.start()
        drive([job()], 2)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < rows * n * 4 / 2


def test_eigenvectors() -> None:
    """Against LAPACK, of ordinary matrices and of such as have few values that are not zero, or very small ones."""
    random = np.random.default_rng(0)
    for m in (1, 2, 7, 24):
        x = random.standard_normal((m, 2 * m))
        low = x[:, :1] * x[0, :1]
        for a in (x @ x.T, low @ low.T, np.diag(np.arange(m) * 1.0), np.zeros((m, m)), 1e-90 * x @ x.T):
            found, v = module._eigen_of_symmetric(a.copy())
            np.testing.assert_allclose(np.sort(found), np.linalg.eigvalsh(a), atol=1e-13 * abs(a).max(), rtol=0)
            np.testing.assert_allclose((v.T * found) @ v, a, atol=1e-13 * abs(a).max(), rtol=0)
            np.testing.assert_allclose(v @ v.T, np.eye(m), atol=1e-13)


def test_the_whole_of_a_matrix_comes_back() -> None:
    """At its full rank, which many small matrices are asked for: the number of eigenvectors is that of its columns."""
    d = np.random.default_rng(0).standard_normal((48, 40)).astype(np.float32)
    got = factor(d, 40)
    assert relative(got.left @ got.right, d) < 1e-6
