"""Calibrated rounding from end to end: which tensors get it, what it is worth, and that nobody is misled about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import GgufmergeError
from ggufmerge.formats.imatrix import save_imatrix
from ggufmerge.planning.actions import _uncalibrated
from ggufmerge.planning.plan import PlannedTensor
from ggufmerge.quants.correlations import Correlation, loadings_of
from ggufmerge.quants.importance import Imatrix, ImatrixEntry
from ggufmerge.types import TensorType
from tests.engine.conftest import raw, weights
from tests.tiny import write_tiny_llama

RECIPE: dict[str, Any] = {
    "merge_method": "linear",
    "models": [{"model": "a.gguf", "parameters": {"weight": 0.6}}, {"model": "b.gguf", "parameters": {"weight": 0.4}}],
    "out_type": "Q4_0",
}


def inputs(n: int) -> np.ndarray:
    """Inputs that have a few directions in common, [tokens, n]."""
    rng = np.random.default_rng(n)
    return rng.normal(size=(300, 4)) @ rng.normal(size=(4, n)) + rng.normal(size=(300, n)) * 0.5


def write_statistics(path: Path, model: Path, *, correlated: bool = True) -> Path:
    """Those that all weights of layers would have if their inputs were `inputs`."""
    entries, correlations = {}, {}
    with ggufmerge.open(model) as file:
        widths = {name: t.shape[-1] for name, t in file.tensors.items() if "blk." in name and len(t.shape) == 2}
    shared = {}
    for n in set(widths.values()):
        h = inputs(n).T @ inputs(n)
        root = np.sqrt(np.diag(h))
        shared[n] = h, (Correlation(loadings=loadings_of(h / root / root[:, None], 16)),)
    for name, n in widths.items():
        entries[name] = ImatrixEntry(np.diag(shared[n][0]).astype(np.float32), np.array([300]))
        correlations[name] = shared[n][1]
    save_imatrix(Imatrix(entries, datasets=["x"], correlations=correlations if correlated else None), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    for name, tune in (("a", None), ("b", (1, 0.1))):
        write_tiny_llama(folder / f"{name}.gguf", type="F16", tune=tune)
        write_tiny_llama(folder / f"{name}.q4.gguf", type="Q4_0", tune=tune)
    write_statistics(folder / "stats.gguf", folder / "a.gguf")
    write_statistics(folder / "plain.gguf", folder / "a.gguf", correlated=False)
    return folder


def recipe_in(folder: Path, **keys: Any) -> ggufmerge.Recipe:
    return ggufmerge.load_recipe(RECIPE | keys).in_folder(str(folder))


def loss(exact: dict[str, np.ndarray], path: Path) -> float:
    """The error of all products with `inputs`, relative to these."""
    written, error, energy = weights(path), 0.0, 0.0
    for name, w in exact.items():
        if "blk." in name and w.ndim == 2:
            x = inputs(w.shape[1])
            error += np.square(x @ (written[name] - w).T).sum()
            energy += np.square(x @ w.T).sum()
    return error / energy


def test_a_calibrated_merge_keeps_its_outputs(folder: Path, tmp_path: Path) -> None:
    """At the same types and size, with far less error in what comes out of the matrices than by importance alone."""
    exact = ggufmerge.build(recipe_in(folder, out_type="F32"), tmp_path / "exact.gguf").output
    plain = ggufmerge.build(recipe_in(folder), tmp_path / "plain.gguf", imatrix=[folder / "stats.gguf"])
    made = ggufmerge.build(recipe_in(folder), tmp_path / "made.gguf", calibration=[folder / "stats.gguf"])
    sizes = [{name: len(data) for name, data in raw(one.output).items()} for one in (plain, made)]
    assert sizes[0] == sizes[1]
    assert loss(weights(exact), made.output) < 0.6 * loss(weights(exact), plain.output)


def test_its_bytes_depend_on_the_weights_and_the_statistics_only(folder: Path, tmp_path: Path) -> None:
    """Not on threads or chunks, nor on whether a recipe or an option names the statistics."""
    stats = folder / "stats.gguf"
    first = raw(ggufmerge.build(recipe_in(folder), tmp_path / "1.gguf", calibration=[stats], threads=1).output)
    ways = [
        ggufmerge.build(recipe_in(folder, calibration="stats.gguf"), tmp_path / "2.gguf", threads=2, chunk=1024),
        ggufmerge.build(recipe_in(folder, imatrix="stats.gguf", encoder="calibrated"), tmp_path / "3.gguf"),
    ]
    assert [raw(way.output) == first for way in ways] == [True, True]


def test_the_encoder_of_ggml_takes_statistics_as_importances(folder: Path, tmp_path: Path) -> None:
    """As a file that llama-quantize is given."""
    one = ggufmerge.build(recipe_in(folder, calibration="stats.gguf", encoder="ggml"), tmp_path / "1.gguf")
    other = ggufmerge.build(recipe_in(folder), tmp_path / "2.gguf", imatrix=[folder / "plain.gguf"])
    assert raw(one.output) == raw(other.output)


def test_what_is_as_coarse_already_is_left_and_told_of(folder: Path) -> None:
    """Files of Q4_0 into Q4_0: their own rounding is the damage."""
    coarse = [{"model": f"{name}.q4.gguf", "parameters": {"weight": 0.5}} for name in "ab"]
    tensors = ggufmerge.plan(recipe_in(folder, models=coarse, calibration="stats.gguf")).tensors
    told = [t for t in tensors if any("as coarse as the result" in line for line in t.decisions)]
    assert not any(t.calibrated for t in tensors)
    assert {t.name for t in told} == {t.name for t in tensors if "blk." in t.name and len(t.shape) == 2}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"calibration": "plain.gguf"}, "without correlations"),
        ({"encoder": "calibrated"}, "--calibration FILE"),
        ({"calibration": "nowhere.gguf"}, "nowhere.gguf"),
    ],
)
def test_statistics_that_cannot_serve_are_refused(folder: Path, keys: dict[str, Any], words: str) -> None:
    """In the plan, before any work."""
    with pytest.raises(GgufmergeError, match=words):
        ggufmerge.plan(recipe_in(folder, **keys))


def test_types_and_weights_without_are_named(folder: Path, tmp_path: Path) -> None:
    """Code books cannot be written so; a weight that the statistics do not know is rounded by itself."""
    assert not ggufmerge.plan(recipe_in(folder, calibration="stats.gguf")).warnings
    known = ggufmerge.load_imatrix(folder / "stats.gguf")
    save_imatrix(known.select(exclude=["blk.1.ffn_up"]), tmp_path / "less.gguf")
    warnings = ggufmerge.plan(recipe_in(folder), calibration=[tmp_path / "less.gguf"]).warnings
    assert any("has no correlations for blk.1.ffn_up.weight" in line for line in warnings)
    write_tiny_llama(tmp_path / "wide.gguf", embed=256, ff=256, type="F16")
    stats = write_statistics(tmp_path / "wide-stats.gguf", tmp_path / "wide.gguf")
    alone = {"merge_method": "linear", "models": [{"model": str(tmp_path / "wide.gguf")}], "parameters": {"weight": 1}}
    plan = ggufmerge.plan({**alone, "out_type": "IQ3_XXS"}, calibration=[stats])
    assert any("IQ3_XXS" in line and "with the importance alone" in line for line in plan.warnings)


def test_parts_of_a_fused_weight_serve_for_it(folder: Path) -> None:
    """Statistics of Q, K and V are those of the three in one tensor, and nothing is said to be missing."""
    known = ggufmerge.load_imatrix(folder / "stats.gguf")
    fused = PlannedTensor("blk.0.attn_qkv.weight", (128, 64), TensorType.Q4_0, "convert", ())
    assert known.correlation(fused.name, fused.n) is known.correlations["blk.0.attn_q.weight"]
    assert not _uncalibrated([fused], known)
