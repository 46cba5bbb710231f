"""Files of calibration statistics: importance matrices with correlations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggufmerge.errors import FormatError, OutputError
from ggufmerge.files import open_gguf
from ggufmerge.files.metadata import MetadataEditor
from ggufmerge.files.tensor import TensorInfo
from ggufmerge.files.writer import GGUFWriter
from ggufmerge.formats.imatrix import load_imatrix, save_imatrix, statistics_facts
from ggufmerge.quants.correlations import Correlation, loadings_of, triangle_of
from ggufmerge.quants.importance import Imatrix, ImatrixEntry
from ggufmerge.types import TensorType

N, RANK = 8, 3
Q, K, EXPERTS, PLAIN = "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_up_exps.weight", "blk.0.ffn_down.weight"


def some(seed: int, *, full: bool = False) -> Correlation:
    x = np.random.default_rng(seed).standard_normal((20, N)) + 1
    c = x.T @ x
    root = np.sqrt(np.diag(c))
    c /= root[:, None] * root
    return Correlation(triangle=triangle_of(c)) if full else Correlation(loadings=loadings_of(c, RANK))


def statistics(*, full: bool = False, seed: int = 0, scale: float = 1) -> Imatrix:
    """Of two weights that share their inputs, of two experts, and of one without correlations."""
    shared, experts = (some(seed, full=full),), (some(seed + 1, full=full), some(seed + 2, full=full))
    rng = np.random.default_rng(seed)
    own = (scale * rng.random(N) + 0.1).astype(np.float32)
    return Imatrix(
        {
            Q: ImatrixEntry(own, np.array([40])),
            K: ImatrixEntry(own, np.array([40])),
            EXPERTS: ImatrixEntry(rng.random(2 * N).astype(np.float32), np.array([30, 10])),
            PLAIN: ImatrixEntry(rng.random(4).astype(np.float32), np.array([40])),
        },
        datasets=["prose.txt"],
        chunks=2,
        chunk_size=20,
        file="stats.gguf",
        correlations={Q: shared, K: shared, EXPERTS: experts},
    )


@pytest.mark.parametrize("full", [False, True])
def test_what_is_written_is_read(tmp_path: Path, full: bool) -> None:
    """Sums, counts and correlations come back; weights that shared theirs still do."""
    path, written = tmp_path / "stats.gguf", statistics(full=full)
    save_imatrix(written, path)
    found = load_imatrix(path)
    assert (found.datasets, found.chunks, found.chunk_size) == (("prose.txt",), 2, 20)
    for name in written:
        assert np.array_equal(found.entry(name).sums, written.entry(name).sums)
        assert np.array_equal(found.entry(name).counts, written.entry(name).counts)
    assert set(found.correlations) == {Q, K, EXPERTS}
    assert found.correlations[Q] is found.correlations[K]
    for name in found.correlations:
        for one, other in zip(found.correlations[name], written.correlations[name], strict=True):
            np.testing.assert_allclose(one.matrix(), other.matrix(), atol=2e-3)
    assert found.correlation(EXPERTS, N, 2) is found.correlations[EXPERTS]
    save_imatrix(found, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_squares_of_loadings_stay_within_one(tmp_path: Path) -> None:
    """Rounding to 16 bits makes no correlation of an input with itself that is above 1."""
    loadings = np.full((1, 64), 0.99999, np.float32)
    entry = ImatrixEntry(np.ones(64, np.float32), np.array([1]))
    one = Imatrix({Q: entry}, chunk_size=1, correlations={Q: (Correlation(loadings=loadings),)})
    save_imatrix(one, tmp_path / "stats.gguf")
    found = load_imatrix(tmp_path / "stats.gguf").correlations[Q][0].loadings
    assert found is not None
    assert 0.99 < (found.astype(np.float64) ** 2).max() <= 1


def test_the_layout_is_the_one_that_is_written_down(tmp_path: Path) -> None:
    """Another reader of GGUF finds the tensors of llama-imatrix, and ours beside them, once for shared inputs."""
    save_imatrix(statistics(), tmp_path / "stats.gguf")
    reader = gguf.GGUFReader(tmp_path / "stats.gguf")
    shapes = {t.name: (t.tensor_type.name, list(map(int, t.shape))[::-1]) for t in reader.tensors}
    assert shapes[f"{Q}.in_sum2"] == ("F32", [1, N])
    assert shapes[f"{Q}.counts"] == ("F32", [1, 1])
    assert shapes[f"{EXPERTS}.counts"] == ("F32", [2, 1])
    assert shapes[f"{EXPERTS}.in_loadings"] == ("F16", [2, RANK, N])
    assert [name for name in shapes if name.startswith("blk.0.attn") and "loadings" in name] == [f"{K}.in_loadings"]
    assert shapes[f"{K}.in_loadings"] == ("F16", [RANK, N])
    with open_gguf(tmp_path / "stats.gguf") as file:
        assert file.metadata.text("general.type") == "imatrix"
        assert file.metadata["ggufmerge.calibration.rank"] == RANK
        assert list(file.metadata["ggufmerge.calibration.weights"]) == [K, Q, EXPERTS]
        assert list(file.metadata["ggufmerge.calibration.inputs"]) == [K, K, EXPERTS]
        facts = statistics_facts(file)
    assert facts is not None
    assert (facts["weights"], facts["correlated"], facts["inputs"], facts["tokens"]) == (4, 3, 2, 40)
    assert (facts["rank"], facts["full"]) == (RANK, False)


def test_without_correlations_it_is_a_plain_matrix(tmp_path: Path) -> None:
    """No key and no tensor of ours is in it."""
    plain = statistics()
    save_imatrix(
        Imatrix({n: plain.entry(n) for n in plain}, datasets=["a"], chunks=1, chunk_size=8), tmp_path / "i.gguf"
    )
    with open_gguf(tmp_path / "i.gguf") as file:
        assert all(key.startswith(("imatrix.", "general.")) for key in file.metadata)
        assert all(name.endswith((".in_sum2", ".counts")) for name in file.tensors)
    assert load_imatrix(tmp_path / "i.gguf").correlations == {}


def test_a_file_is_not_replaced_by_chance(tmp_path: Path) -> None:
    """Only when that is asked for; and then whole."""
    path = tmp_path / "stats.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        save_imatrix(statistics(), path)
    assert path.read_bytes() == b"mine"
    save_imatrix(statistics(), path, overwrite=True)
    assert load_imatrix(path).correlations
    assert [p.name for p in tmp_path.iterdir()] == ["stats.gguf"]


Change = Callable[[MetadataEditor, dict[str, tuple[TensorInfo, np.ndarray]]], None]


def _set(key: str, value: object) -> Change:
    return lambda metadata, tensors: metadata.set(f"ggufmerge.calibration.{key}", value)


def _put(name: str, values: np.ndarray, kind: TensorType) -> Change:
    def change(metadata: MetadataEditor, tensors: dict[str, tuple[TensorInfo, np.ndarray]]) -> None:
        tensors[name] = (TensorInfo(name, values.shape, kind), values)

    return change


def _drop(name: str) -> Change:
    return lambda metadata, tensors: tensors.pop(name) and None


LOADINGS = f"{K}.in_loadings"
DAMAGE: dict[str, tuple[Change, str]] = {
    "version": (_set("version", 2), "version is u32 2, not 1; update ggufmerge"),
    "one list": (_set("inputs", [K]), "not two lists of as many names"),
    "no list": (_set("inputs", 7), "not two lists of as many names"),
    "unknown weight": (_set("weights", [K, "blk.9.x.weight", EXPERTS]), "but no blk.9.x.weight.in_sum2"),
    "other weight": (_set("inputs", [K, K, K]), f"but {EXPERTS} has 16"),
    "gone": (_drop(LOADINGS), "neither of .*in_loadings and .*in_correlation is there"),
    "both": (_put(f"{K}.in_correlation", np.zeros(36, np.int8), TensorType.I8), "both of .* is there"),
    "type": (_put(LOADINGS, np.zeros((RANK, N), np.float32), TensorType.F32), "is F32 instead of F16"),
    "columns": (_put(LOADINGS, np.zeros((RANK, N + 1), np.float16), TensorType.F16), "1 x 9 inputs, but .* has 8"),
    "shape": (_put(LOADINGS, np.zeros(N, np.float16), TensorType.F16), "has the shape"),
    "empty": (_put(LOADINGS, np.zeros((0, N), np.float16), TensorType.F16), "has the shape"),
    "nan": (_put(LOADINGS, np.full((RANK, N), np.nan, np.float16), TensorType.F16), "NaN or infinity"),
    "large": (_put(LOADINGS, np.full((RANK, N), 0.9, np.float16), TensorType.F16), "correlations above 1"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_in_a_line(tmp_path: Path, name: str) -> None:
    """What does not fit is named, with the file."""
    change, message = DAMAGE[name]
    save_imatrix(statistics(), tmp_path / "good.gguf")
    with open_gguf(tmp_path / "good.gguf") as file:
        metadata = MetadataEditor(file.metadata)
        tensors = {n: (TensorInfo(n, t.shape, t.type), np.array(t.raw)) for n, t in file.tensors.items()}
    change(metadata, tensors)
    path = tmp_path / "stats.gguf"
    with GGUFWriter(path, metadata, [info for info, _ in tensors.values()]) as writer:
        for info, values in tensors.values():
            writer.write(info.name, 0, np.ascontiguousarray(values))
        writer.commit()
    with pytest.raises(FormatError, match=message) as caught:
        load_imatrix(path)
    assert str(path) in str(caught.value)
    assert len(caught.value.lines) == 1


def test_a_triangle_has_the_size_of_one(tmp_path: Path) -> None:
    """Whole correlations of 35 values are of no number of inputs."""
    metadata = MetadataEditor()
    for key, value in {"general.type": "imatrix", "imatrix.datasets": ["a"]}.items():
        metadata.set(key, value)
    for key in ("imatrix.chunk_count", "imatrix.chunk_size", "ggufmerge.calibration.version"):
        metadata.set(key, 1)
    metadata.set("ggufmerge.calibration.weights", [Q])
    metadata.set("ggufmerge.calibration.inputs", [Q])
    tensors = {
        f"{Q}.in_sum2": (np.ones((1, N), np.float32), TensorType.F32),
        f"{Q}.counts": (np.ones((1, 1), np.float32), TensorType.F32),
        f"{Q}.in_correlation": (np.zeros(35, np.int8), TensorType.I8),
    }
    infos = [TensorInfo(name, values.shape, kind) for name, (values, kind) in tensors.items()]
    with GGUFWriter(tmp_path / "stats.gguf", metadata, infos) as writer:
        for name, (values, _) in tensors.items():
            writer.write(name, 0, values)
        writer.commit()
    with pytest.raises(FormatError, match="no triangle"):
        load_imatrix(tmp_path / "stats.gguf")


def test_matrices_of_several_texts_put_their_correlations_together() -> None:
    """Second moments add up; weights that shared their inputs still do."""
    a, b = statistics(), statistics(seed=5, scale=4)
    both = a.combine([b])
    assert both.correlations[Q] is both.correlations[K]
    sums = [m.entry(Q).sums.astype(np.float64) for m in (a, b)]
    moments = sum(
        np.sqrt(s)[:, None] * (low.T @ low) * np.sqrt(s)
        for m, s in zip((a, b), sums, strict=True)
        if (low := m.correlations[Q][0].loadings) is not None
    )
    root = np.sqrt(sum(sums))
    values = np.sort(np.linalg.eigvalsh(moments / root[:, None] / root))[::-1]
    found = both.correlations[Q][0].loadings
    assert found is not None
    np.testing.assert_allclose((found.astype(np.float64) ** 2).sum(axis=1), values[:RANK], rtol=0.05)
    assert len(both.correlations[EXPERTS]) == 2


def test_correlations_of_one_text_are_kept_beside_a_plain_matrix() -> None:
    """A file of llama-imatrix adds its sums, and takes nothing away."""
    a = statistics()
    plain = Imatrix({name: a.entry(name) for name in a}, chunks=1, chunk_size=20)
    assert plain.combine([a]).correlations == a.combine([plain]).correlations == a.correlations


def test_correlations_follow_their_weights() -> None:
    """A selection has those of its entries; the fingerprint tells matrices with others apart."""
    a = statistics()
    plain = Imatrix({name: a.entry(name) for name in a}, datasets=["prose.txt"], chunks=2, chunk_size=20)
    assert set(a.select(include=["attn_q"]).correlations) == {Q}
    assert len({a.fingerprint(), plain.fingerprint(), statistics(full=True).fingerprint()}) == 3
    assert a.fingerprint() == statistics().fingerprint()
