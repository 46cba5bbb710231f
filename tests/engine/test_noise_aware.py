"""Merges of quantized models heed their rounding errors, and all others are what they were."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ggufmerge
from ggufmerge.engine import BuildReport, make_plan
from ggufmerge.errors import GgufmergeError
from ggufmerge.planning.opened import Opened
from ggufmerge.planning.plan import Plan
from ggufmerge.running.run import run
from ggufmerge.running.signal import Heeded, shares_of_change, signal_runs, together
from ggufmerge.running.worker import Worker
from ggufmerge.sources import TensorReader
from tests.engine.conftest import raw, weights
from tests.engine.test_interruption import Stop
from tests.engine.test_worker import made
from tests.tiny import write_tiny_llama, write_tiny_lora

SIZE: dict[str, Any] = {"layers": 1, "embed": 256, "ff": 512}
KINDS = ("F32", "Q8_0", "Q5_0", "Q4_0")
METHODS = {
    "dare_ties": {"weight": 0.5, "density": 0.1},
    "della_linear": {"weight": 0.5, "density": 0.2, "epsilon": 0.1},
    "ties": {"weight": 0.5, "density": 0.2},
    "breadcrumbs": {"weight": 0.5, "density": 0.5},
}
MATRIX = "blk.0.ffn_down.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, a and b, which differ from it by 1 %, in several types, two adapters of base-Q4_0, and experts in Q4_0."""
    folder = tmp_path_factory.mktemp("noise_aware")
    for kind in KINDS:
        for number, name in enumerate(("base", "a", "b")):
            tune = (number, 0.01) if number else None
            base = write_tiny_llama(folder / f"{name}-{kind}.gguf", **SIZE, type=kind, tune=tune)
            if number == 0 and kind == "Q4_0":
                for seed, adapter in enumerate("xy"):
                    write_tiny_lora(folder / f"{adapter}.gguf", base, strength=0.01, seed=seed)
    for number, name in enumerate(("base", "a")):
        tune = (number, 0.01) if number else None
        write_tiny_llama(folder / f"{name}-moe.gguf", layers=1, type="Q4_0", experts=3, tune=tune)
    return folder


def recipe_of(folder: Path, method: str, models: list[str], **keys: Any) -> str:
    base, *others = (str(folder / name) for name in models)
    entries = [{"model": name.replace("+", f"+{folder}/")} for name in others]
    shared = {"merge_method": method, "base_model": base, "models": entries, "parameters": METHODS[method]}
    return yaml.safe_dump({**shared, **keys})


def of_kind(folder: Path, method: str, kind: str, **keys: Any) -> str:
    return recipe_of(folder, method, [f"{name}-{kind}.gguf" for name in ("base", "a", "b")], **keys)


def built(recipe: str, output: Path, **options: Any) -> BuildReport:
    return ggufmerge.build(ggufmerge.load_recipe(recipe), output, overwrite=True, **options)


def densities(report: BuildReport) -> list[float]:
    """Used for MATRIX, model by model."""
    return [one.used["density"] for one in report.heeded.get(MATRIX, [])]


@pytest.mark.parametrize("method", METHODS)
def test_exact_differences_are_merged_as_ever(folder: Path, tmp_path: Path, method: str) -> None:
    """Of floats, and of adapters on one quantized file: byte for byte as without a look at rounding errors."""
    exact = [of_kind(folder, method, "F32"), recipe_of(folder, method, ["base-Q4_0.gguf", *ADAPTED])]
    for recipe in exact:
        report = built(recipe, tmp_path / "auto.gguf")
        built(recipe + "noise_aware: off\n", tmp_path / "off.gguf")
        assert report.heeded == {}
        assert raw(tmp_path / "auto.gguf") == raw(tmp_path / "off.gguf")
        assert not any(t.noise_aware for t in ggufmerge.plan(ggufmerge.load_recipe(recipe)).tensors)


ADAPTED = ["base-Q4_0.gguf+x.gguf", "base-Q4_0.gguf+y.gguf"]


@pytest.mark.parametrize("method", METHODS)
def test_off_is_the_method_as_it_is(folder: Path, tmp_path: Path, method: str) -> None:
    """Nothing is heeded, and auto is something else."""
    report = built(of_kind(folder, method, "Q4_0", noise_aware="off"), tmp_path / "off.gguf")
    assert report.heeded == {}
    assert not report.notes
    built(of_kind(folder, method, "Q4_0"), tmp_path / "auto.gguf")
    assert raw(tmp_path / "auto.gguf")[MATRIX] != raw(tmp_path / "off.gguf")[MATRIX]


def test_more_noise_means_a_higher_density(folder: Path, tmp_path: Path) -> None:
    """For each model: in Q8_0 about what was asked for, in Q4_0 much more."""
    used = [densities(built(of_kind(folder, "dare_ties", kind), tmp_path / "out.gguf")) for kind in KINDS[1:]]
    few, more, most = (float(np.mean(of_kind or [0.1])) for of_kind in used)
    assert 0.1 <= few < more < most <= 1
    assert few < 0.3
    assert most > 0.5


def test_chance_is_no_larger_than_from_full_precision(folder: Path, tmp_path: Path) -> None:
    """DARE of Q4_0 files ends about as far from the merge without chance as DARE of the originals does from theirs."""
    away = []
    for kind, keys in (("F32", {}), ("Q4_0", {}), ("Q4_0", {"noise_aware": "off"})):
        results = []
        for parameters in (METHODS["dare_ties"], {"weight": 0.5}):
            text = of_kind(folder, "dare_ties", kind, out_type="F32", **keys).replace("dare_ties", "dare_linear")
            data = yaml.safe_load(text) | {"parameters": parameters}
            built(yaml.safe_dump(data), tmp_path / "out.gguf")
            results.append(weights(tmp_path / "out.gguf")[MATRIX].astype(np.float64))
        away.append(float(np.square(results[0] - results[1]).mean()))
    original, aware, off = away
    assert aware < 1.5 * original
    assert off > 5 * original


@pytest.mark.parametrize("method", METHODS)
def test_chunks_and_threads_change_nothing(folder: Path, tmp_path: Path, method: str) -> None:
    """Neither the bytes nor what is told."""
    recipe = of_kind(folder, method, "Q4_0")
    found = [
        (built(recipe, tmp_path / "out.gguf", chunk=chunk, threads=threads).heeded, raw(tmp_path / "out.gguf"))
        for chunk, threads in ((3000, 2), (1 << 18, 1))
    ]
    assert found[0] == found[1]


def test_an_interrupted_build_tells_all(folder: Path, tmp_path: Path) -> None:
    """Also what was made of the rounding errors in tensors that were finished before."""
    recipe = of_kind(folder, "ties", "Q4_0")
    whole = built(recipe, tmp_path / "whole.gguf")
    with pytest.raises(KeyboardInterrupt):
        built(recipe, tmp_path / "out.gguf", progress=Stop(KeyboardInterrupt(), 8))
    report = built(recipe, tmp_path / "out.gguf")
    assert report.resumed == 8
    assert report.heeded == whole.heeded
    assert raw(tmp_path / "out.gguf") == raw(tmp_path / "whole.gguf")


def test_another_worker_makes_the_same_of_it(folder: Path, tmp_path: Path) -> None:
    """It looks at the noise by itself."""
    plan, opened = make_plan(ggufmerge.load_recipe(of_kind(folder, "dare_ties", "Q4_0")))
    with opened, Opened.from_plan(plan) as again:
        worker = Worker(plan, again)
        found = made(plan, opened, lambda plan, task, known: worker.execute(task, known))
        run(plan, opened, tmp_path / "out.gguf")
    assert found == raw(tmp_path / "out.gguf")


def test_the_plan_says_where_it_acts(folder: Path) -> None:
    """On matrices, of which not all are exact; and it comes back from JSON."""
    plan, opened = make_plan(ggufmerge.load_recipe(of_kind(folder, "dare_ties", "Q4_0")))
    opened.close()
    acting = {t.name for t in plan.tensors if t.noise_aware}
    assert MATRIX in acting
    assert not any("norm" in name for name in acting)
    for tensor in plan.tensors:
        assert any("noise_aware: off" in decision for decision in tensor.decisions) == tensor.noise_aware
        assert tensor.models.get("density", (0.1,))[0] == 0.1  # as asked for
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_float_model_on_a_quantized_base_is_not_exact(folder: Path) -> None:
    """Their difference holds the rounding errors of the base."""
    plan = ggufmerge.plan(
        ggufmerge.load_recipe(recipe_of(folder, "ties", ["base-Q4_0.gguf", "a-F32.gguf", ADAPTED[0]]))
    )
    assert any(t.noise_aware for t in plan.tensors)


def test_the_report_says_what_was_asked_and_used(folder: Path, tmp_path: Path) -> None:
    """For each model of a tensor, and it comes back from a journal."""
    report = built(of_kind(folder, "della_linear", "Q4_0"), tmp_path / "out.gguf")
    found = report.heeded[MATRIX]
    assert [one.model for one in found] == [str(folder / "a-Q4_0.gguf"), str(folder / "b-Q4_0.gguf")]
    for one in found:
        assert one.asked == {"density": 0.2, "epsilon": 0.1}
        assert one.used["density"] > 0.2
        assert one.used["epsilon"] < 0.1
        assert 0 < one.change < 0.5
        assert "density 0.2 became 0." in one.note
        assert Heeded.from_json(json.loads(json.dumps(asdict(one)))) == one


def test_experts_are_looked_at_one_by_one(folder: Path, tmp_path: Path) -> None:
    """And told of as one tensor, by their mean."""
    recipe = recipe_of(folder, "dare_ties", ["base-moe.gguf", "a-moe.gguf"])
    report = built(recipe, tmp_path / "out.gguf")
    plan, opened = make_plan(ggufmerge.load_recipe(recipe))
    with opened:
        [tensor] = [t for t in plan.tensors if "ffn_down_exps" in t.name]
        piece = Worker(plan, opened).piece(tensor.name)
        matrices = [piece.heeded(expert) for expert in range(tensor.experts)]
    assert len({one[0].change for one in matrices}) == len(matrices) == 3
    assert report.heeded[tensor.name] == together(matrices)
    assert report.heeded[tensor.name][0].change == pytest.approx(np.mean([one[0].change for one in matrices]))


def test_the_change_is_found_beside_the_noise(folder: Path) -> None:
    """To about a fifth of its true share in the square of the difference."""
    true = weights(folder / "a-F32.gguf")[MATRIX] - weights(folder / "base-F32.gguf")[MATRIX]
    for kind in ("Q5_0", "Q4_0"):
        seen = weights(folder / f"a-{kind}.gguf")[MATRIX] - weights(folder / f"base-{kind}.gguf")[MATRIX]
        plan, opened = make_plan(ggufmerge.load_recipe(of_kind(folder, "dare_ties", kind)))
        with opened:
            [tensor] = [t for t in plan.tensors if t.name == MATRIX]
            inputs: list[TensorReader] = opened.inputs(tensor)[:2]
            runs = signal_runs(0, tensor.rows, tensor.n)
            [share] = shares_of_change(inputs, [None] * len(inputs), runs)
        assert share == pytest.approx(float(np.square(true).sum() / np.square(seen).sum()), rel=0.2)


@pytest.mark.parametrize(("first", "rows", "n"), [(0, 1, 5), (7, 3, 4096), (100, 5000, 4096), (0, 40, 1 << 20)])
def test_a_sample_lies_within_its_matrix(first: int, rows: int, n: int) -> None:
    """In order, without an overlap, and of about as many values as there are to be at most."""
    runs = signal_runs(first, rows, n)
    edges = [row for run in runs for row in run]
    assert edges == sorted(edges)
    assert edges[0] >= first
    assert edges[-1] <= first + rows
    assert 0 < sum(stop - start for start, stop in runs) * n <= max(1 << 17, 16 * n)


def test_the_key_is_checked(folder: Path) -> None:
    """With its line and what it may be; off needs no quotes."""
    text = of_kind(folder, "ties", "Q4_0")
    with pytest.raises(GgufmergeError, match=r"\d+:\d+: .maybe. is not a valid noise_aware.*auto.*off"):
        ggufmerge.load_recipe(text + "noise_aware: maybe\n")
    for word in ("off", "'off'"):
        assert ggufmerge.load_recipe(text + f"noise_aware: {word}\n").noise_aware == "off"


def test_an_option_wins_and_is_kept_in_the_file(folder: Path, tmp_path: Path) -> None:
    """By the recipe in effect; auto needs no word."""
    recipe = of_kind(folder, "ties", "Q4_0")
    built(recipe, tmp_path / "off.gguf", noise_aware="off")
    kept = str(ggufmerge.open(tmp_path / "off.gguf").metadata["ggufmerge.recipe"])
    assert ggufmerge.load_recipe(kept).noise_aware == "off"
    built(recipe + "noise_aware: off\n", tmp_path / "auto.gguf", noise_aware="auto")
    kept = str(ggufmerge.open(tmp_path / "auto.gguf").metadata["ggufmerge.recipe"])
    assert ggufmerge.load_recipe(kept).noise_aware == "auto"
    assert raw(tmp_path / "auto.gguf") != raw(tmp_path / "off.gguf")
