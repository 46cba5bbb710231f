"""What rounding leaves of a merge: chosen so that changes survive, measured, and told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ggufmerge
from ggufmerge.engine import BuildReport, make_plan
from ggufmerge.engine.bake import plan_bake
from ggufmerge.planning.plan import Plan
from ggufmerge.running.run import run
from ggufmerge.running.survey import sample_runs
from tests.engine.conftest import raw, weights
from tests.engine.test_side_tensors import write_scaled
from tests.tiny import write_tiny_llama, write_tiny_lora

CHANGED = ("blk.0.attn_q.weight", "blk.0.ffn_down.weight")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base in Q4_0 and Q4_K, adapters x and y of it, and tunes a and b of the same model that were quantized alone."""
    folder = tmp_path_factory.mktemp("survey")
    for kind in ("Q4_0", "Q4_K", "Q8_0"):
        base = write_tiny_llama(folder / f"base-{kind}.gguf", layers=1, embed=256, ff=512, type=kind)
    for number, name in enumerate("ab", 1):
        write_tiny_llama(folder / f"{name}-Q4_0.gguf", layers=1, embed=256, ff=512, type="Q4_0", tune=(number, 0.02))
    for seed, name in enumerate("xy"):
        write_tiny_lora(folder / f"{name}.gguf", base, strength=0.02, seed=seed)
    return folder


def recipe_of(folder: Path, method: str, models: list[str], **keys: Any) -> str:
    """A recipe of models that are named from this folder."""
    entries = [{"model": {"model": str(folder / m.split("+")[0])}} for m in models]
    for entry, name in zip(entries, models, strict=True):
        if "+" in name:
            entry["model"]["lora"] = str(folder / name.split("+")[1])
        elif "base_model" in keys:
            entry["model"] = entry["model"]["model"]
    return yaml.safe_dump({"merge_method": method, "models": entries, "parameters": {"weight": 1.0}, **keys})


def adapters(folder: Path, kind: str = "Q4_0", **keys: Any) -> str:
    return recipe_of(folder, "linear", [f"base-{kind}.gguf+x.gguf", f"base-{kind}.gguf+y.gguf"], **keys)


def built(recipe: str, output: Path, **options: Any) -> BuildReport:
    return ggufmerge.build(ggufmerge.load_recipe(recipe), output, overwrite=True, **options)


def planned(recipe: str, **options: Any) -> Plan:
    plan, opened = make_plan(ggufmerge.load_recipe(recipe), **options)
    opened.close()
    return plan


def kept(folder: Path, kind: str, result: Path, exact: Path) -> float:
    """The share of a merge's change that is in a file, over all weights; `exact` is the merge in F32."""
    base, out, wanted = weights(folder / f"base-{kind}.gguf"), weights(result), weights(exact)
    change = {n: wanted[n].astype(np.float64) - base[n] for n in CHANGED}
    top = sum(float(((out[n] - base[n]) * change[n]).sum()) for n in CHANGED)
    return top / sum(float((change[n] ** 2).sum()) for n in CHANGED)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_a_merge_of_adapters_survives_in_the_type_of_their_base(folder: Path, tmp_path: Path, kind: str) -> None:
    """By itself; rounded to the nearest next to nothing of it is left."""
    built(adapters(folder, kind), tmp_path / "exact.gguf", out_type="F32")
    built(adapters(folder, kind), tmp_path / "out.gguf")
    built(adapters(folder, kind), tmp_path / "nearest.gguf", rounding="nearest")
    assert kept(folder, kind, tmp_path / "out.gguf", tmp_path / "exact.gguf") == pytest.approx(1, abs=0.1)
    assert kept(folder, kind, tmp_path / "nearest.gguf", tmp_path / "exact.gguf") < 0.2


@pytest.mark.parametrize("method", ["ties", "task_arithmetic"])
def test_a_merge_of_task_vectors_survives_in_the_type_of_its_base(folder: Path, tmp_path: Path, method: str) -> None:
    """Methods with a base round the change from it."""
    models = ["base-Q4_0.gguf+x.gguf", "base-Q4_0.gguf+y.gguf"]
    recipe = recipe_of(folder, method, models, base_model=str(folder / "base-Q4_0.gguf"))
    built(recipe, tmp_path / "exact.gguf", out_type="F32")
    built(recipe, tmp_path / "out.gguf")
    assert kept(folder, "Q4_0", tmp_path / "out.gguf", tmp_path / "exact.gguf") == pytest.approx(1, abs=0.1)


def test_baking_is_the_same_as_building(folder: Path, tmp_path: Path) -> None:
    """A recipe of one model with an adapter gives the bytes of `bake`."""
    plan, opened = plan_bake(folder / "base-Q4_0.gguf", [folder / "x.gguf"])
    run(plan, opened, tmp_path / "baked.gguf")
    built(recipe_of(folder, "passthrough", ["base-Q4_0.gguf+x.gguf"], parameters={}), tmp_path / "built.gguf")
    assert raw(tmp_path / "baked.gguf") == raw(tmp_path / "built.gguf")


def test_models_on_different_grids_are_rounded_to_the_nearest(folder: Path, tmp_path: Path) -> None:
    """The mean of two tunes that were quantized alone is on neither grid, so nothing is caught and no noise is due."""
    recipe = recipe_of(folder, "linear", ["a-Q4_0.gguf", "b-Q4_0.gguf"])
    report = built(recipe, tmp_path / "out.gguf")
    built(recipe, tmp_path / "nearest.gguf", rounding="nearest")
    assert raw(tmp_path / "out.gguf") == raw(tmp_path / "nearest.gguf")
    assert [k.stochastic for k in report.kept] == [0]


def test_a_scaled_model_is_not_forced_onto_its_old_grid(folder: Path, tmp_path: Path) -> None:
    """A factor on all weights moves the grid with them, and the nearest loses nothing."""
    recipe = recipe_of(folder, "passthrough", ["base-Q4_0.gguf"], parameters={"scale": 0.98})
    built(recipe, tmp_path / "out.gguf")
    base, out = weights(folder / "base-Q4_0.gguf"), weights(tmp_path / "out.gguf")
    for name in CHANGED:
        np.testing.assert_allclose(out[name], 0.98 * base[name], atol=2e-3 * np.abs(base[name]).max())


def test_blocks_that_no_adapter_reaches_keep_their_bytes(folder: Path, tmp_path: Path) -> None:
    """Also where all inputs have adapters, and in types that change when they are quantized again."""
    base = write_tiny_llama(tmp_path / "base.gguf", layers=1, embed=256, ff=512, type="Q5_K")
    for seed, name in enumerate("xy"):
        write_tiny_lora(tmp_path / f"{name}.gguf", base, strength=0.02, seed=seed, rows=100)
    models = ["base.gguf+x.gguf", "base.gguf+y.gguf"]
    for rounding in (None, "nearest"):
        built(recipe_of(tmp_path, "linear", models), tmp_path / "out.gguf", rounding=rounding)
        before, after = raw(tmp_path / "base.gguf"), raw(tmp_path / "out.gguf")
        for name in CHANGED:
            start = 100 * len(before[name]) // base[name].shape[0]
            assert before[name][start:] == after[name][start:]
            assert before[name] != after[name] or rounding == "nearest"


def test_the_bytes_depend_on_nothing_but_the_recipe(folder: Path, tmp_path: Path) -> None:
    """Threads and chunks change neither bytes nor figures."""
    first = built(adapters(folder), tmp_path / "a.gguf", threads=1)
    second = built(adapters(folder), tmp_path / "b.gguf", threads=3, chunk=1024)
    assert raw(tmp_path / "a.gguf") == raw(tmp_path / "b.gguf")
    assert first.survival == second.survival
    assert first.kept == second.kept


def test_a_seed_is_another_chance(folder: Path, tmp_path: Path) -> None:
    """And the same share of the change."""
    built(adapters(folder), tmp_path / "a.gguf")
    built(adapters(folder, seed=1), tmp_path / "b.gguf")
    assert raw(tmp_path / "a.gguf")[CHANGED[0]] != raw(tmp_path / "b.gguf")[CHANGED[0]]


def test_figures_of_the_sample_are_those_of_the_file(folder: Path, tmp_path: Path) -> None:
    """The share that is reported is the share over all weights, to its standard error."""
    built(adapters(folder), tmp_path / "exact.gguf", out_type="F32")
    for rounding in (None, "nearest"):
        report = built(adapters(folder), tmp_path / "out.gguf", rounding=rounding)
        [found] = report.kept
        true = kept(folder, "Q4_0", tmp_path / "out.gguf", tmp_path / "exact.gguf")
        assert (found.type, found.tensors) == ("Q4_0", 2)
        assert found.survival.share == pytest.approx(true, abs=4 * found.survival.uncertainty + 0.01)
        assert 0 < found.survival.uncertainty < 0.1


def test_another_type_is_measured_before_it_is_proposed(folder: Path, tmp_path: Path) -> None:
    """What is said of a wider type is what that type gives."""
    report = built(adapters(folder), tmp_path / "out.gguf", rounding="nearest")
    proposed = report.kept[0].wider
    assert set(proposed) == {"Q6_K", "Q8_0"}
    for name, survival in proposed.items():
        wider = built(adapters(folder), tmp_path / "wider.gguf", out_type=name)
        [found] = wider.kept
        assert survival.share == pytest.approx(found.survival.share, abs=0.05)
        assert report.kept[0].sizes[name] == pytest.approx(wider.nbytes, rel=0.1)
    assert proposed["Q8_0"].share == pytest.approx(1, abs=0.05)


def test_a_result_that_lost_its_change_says_so(folder: Path, tmp_path: Path) -> None:
    """In a warning, with the share, the type and the ways out; one whose change is all there says nothing."""
    [warning] = built(adapters(folder), tmp_path / "out.gguf", rounding="nearest").warnings
    assert re.match(r"Q4_0: \d+ % of the change is lost.*: --rounding stochastic keeps it", warning)
    assert re.search(r"--type Q8_0 keeps \d+ % \(a file of about [\d.]+ [kM]B\)", warning)
    assert built(adapters(folder), tmp_path / "out.gguf", out_type="Q8_0").warnings == ()


def test_noise_larger_than_the_change_is_told(folder: Path, tmp_path: Path) -> None:
    """Stochastic rounding keeps the change beside noise, which is measured as the rest of what was written."""
    built(adapters(folder), tmp_path / "exact.gguf", out_type="F32")
    report = built(adapters(folder), tmp_path / "out.gguf")
    base, out, wanted = (
        weights(p) for p in (folder / "base-Q4_0.gguf", tmp_path / "out.gguf", tmp_path / "exact.gguf")
    )
    error = sum(float(((out[n].astype(np.float64) - wanted[n]) ** 2).sum()) for n in CHANGED)
    change = sum(float(((wanted[n].astype(np.float64) - base[n]) ** 2).sum()) for n in CHANGED)
    noise = report.kept[0].survival.noise
    assert noise == pytest.approx((error / change) ** 0.5, rel=0.2)
    assert noise > 1
    assert "the noise of rounding is" in report.warnings[0]


def test_a_change_of_type_adds_no_noise_of_its_own(folder: Path, tmp_path: Path) -> None:
    """The error that the untouched base would have in the type, too, is not the merge's."""
    [found] = built(adapters(folder, "Q8_0"), tmp_path / "out.gguf", out_type="Q4_0").kept
    assert found.survival.plain > 0
    assert found.survival.noise < 1
    assert found.survival.error > found.survival.energy


def test_the_command_line_wins_over_the_recipe(folder: Path) -> None:
    """And what holds is recorded."""
    for key, option, holds in (
        (None, None, "stochastic where nearest loses the change"),
        ("nearest", None, "nearest"),
        ("stochastic", None, "stochastic"),
        ("nearest", "stochastic", "stochastic"),
        ("stochastic", "nearest", "nearest"),
    ):
        plan = planned(adapters(folder, **({"rounding": key} if key else {})), rounding=option)
        assert plan.metadata["ggufmerge.rounding"] == holds
        assert ggufmerge.load_recipe(plan.recipe).rounding == (option or key)
        rounded = {t.rounding for t in plan.tensors if t.type.is_quantized}
        assert rounded == {{"stochastic where nearest loses the change": "auto"}.get(holds, holds)}


def test_only_types_that_stay_are_rounded_stochastically(folder: Path) -> None:
    """A type without a uniform grid, or one that the model did not have, is rounded to the nearest."""
    for kind in ("Q6_K", "F16", "Q5_1"):
        plan = planned(adapters(folder), out_type=kind, rounding="stochastic")
        changed = [t for t in plan.tensors if str(t.type) != "F32"]
        assert {t.rounding for t in changed} == {"nearest"}
        assert plan.metadata["ggufmerge.rounding"] == "nearest"


def test_a_plan_tells_what_it_can_know(folder: Path) -> None:
    """Of adapters what an ordinary change meets in the type; of other models that only the weights can tell."""
    [line] = planned(adapters(folder)).expectations
    assert line.startswith("Q4_0 (2 tensors): a change of 1 %")
    assert "noise about 5 times as large" in line
    [line] = planned(adapters(folder), rounding="nearest").expectations
    assert "keeps about 0 % of itself" in line
    assert planned(adapters(folder, "Q8_0")).expectations == ()
    assert planned(recipe_of(folder, "linear", ["a-Q4_0.gguf", "b-Q4_0.gguf"])).expectations == ()


def test_a_plan_with_its_expectations_is_json(folder: Path) -> None:
    """And the same plan when it comes back."""
    plan = planned(adapters(folder))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_weights_in_units_of_a_scale_can_be_baked(tmp_path: Path) -> None:
    """NVFP4 has steps of several sizes and a scale beside it; a small change is kept by chance in it, too."""
    base = write_scaled(tmp_path / "base.gguf", layers=1, embed=256, ff=512)
    write_tiny_lora(tmp_path / "x.gguf", base, strength=0.005)
    plan, opened = plan_bake(tmp_path / "base.gguf", [tmp_path / "x.gguf"])
    report = run(plan, opened, tmp_path / "out.gguf")
    assert {t.rounding for t in plan.tensors if t.action != "copy" and t.type.is_quantized} == {"auto"}
    [kept] = report.kept
    assert (kept.type, kept.stochastic) == ("NVFP4", kept.tensors)
    assert kept.survival.share == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("shape", [(1, 32, 1), (7, 576, 7), (192, 576, 192), (4096, 4096, 4096), (24, 64, 8)])
def test_samples_are_whole_rows_of_one_matrix(shape: tuple[int, int, int]) -> None:
    """Runs lie within the tensor, none twice, none across the end of a matrix."""
    rows, n, matrix = shape
    runs = sample_runs(rows, n, matrix)
    assert len(set(runs)) == len(runs) > 0
    for start, stop in runs:
        assert 0 <= start < stop <= rows
        assert start // matrix == (stop - 1) // matrix
    assert sample_runs(0, n, 0) == ()
