"""What a plan finds out about its changes by trying a few tensors."""

from __future__ import annotations

from pathlib import Path

import pytest

import ggufmerge
from ggufmerge.engine import make_plan
from ggufmerge.engine.documents import planned_documents
from ggufmerge.engine.forecast import Forecast, forecast
from ggufmerge.engine.trial import Trial, try_out
from ggufmerge.running.rates import Rates
from ggufmerge.running.run import DEFAULT_CHUNK
from tests.tiny import write_tiny_llama, write_tiny_lora

RECIPE = """merge_method: task_arithmetic
base_model: base.gguf
models:
  - {model: base.gguf+x.gguf, parameters: {weight: 1}}
  - {model: base.gguf+y.gguf, parameters: {weight: 1}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base in Q4_0 and two adapters, whose changes are smaller than its steps; the kernels are compiled."""
    weights = write_tiny_llama(tmp_path / "base.gguf", layers=4, embed=256, ff=512, type="Q4_0")
    for seed, name in enumerate("xy"):
        write_tiny_lora(tmp_path / f"{name}.gguf", weights, strength=0.02, seed=seed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ggufmerge.engine.trial.is_prepared", lambda kind: True)
    return tmp_path


def tried(recipe: str = RECIPE, **options: float) -> Trial | None:
    plan, opened = make_plan(ggufmerge.load_recipe(recipe))
    try:
        return try_out(plan, opened, Rates({}), chunk=DEFAULT_CHUNK, **options)
    finally:
        opened.close()


def foretold(recipe: str = RECIPE) -> Forecast:
    with planned_documents(ggufmerge.load_recipe(recipe)) as documents:
        return forecast(documents, None, chunk=DEFAULT_CHUNK, rates=Rates({}), try_changes=True)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_trial_is_near_to_what_the_build_finds(folder: Path, rounding: str) -> None:
    """Share and noise of the change, by type, of two tensors of each that changes; what changes is counted."""
    recipe = RECIPE + f"rounding: {rounding}\n"
    found = tried(recipe, seconds=1e9)
    assert found is not None
    [one] = found.kept
    [all_of_them] = ggufmerge.build(ggufmerge.load_recipe(recipe), "out.gguf").kept
    assert (one.type, one.tensors) == (all_of_them.type, 2) == ("Q4_0", 2)
    assert found.changing["Q4_0"] >= all_of_them.tensors > 2
    assert abs(one.survival.share - all_of_them.survival.share) < 0.05 + 4 * one.survival.uncertainty
    assert one.survival.noise == pytest.approx(all_of_them.survival.noise, rel=0.3, abs=0.05)
    [line] = found.lines()
    assert line.startswith("Q4_0: ")
    assert line.endswith(f"(2 of {found.changing['Q4_0']} tensors tried)")


def test_a_trial_that_takes_long_is_not_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what such work has taken here, and because kernels were never compiled here."""
    assert tried(seconds=0) is None
    monkeypatch.setattr("ggufmerge.engine.trial.is_prepared", lambda kind: False)
    assert tried(seconds=1e9) is None


def test_without_a_change_there_is_nothing_to_try(folder: Path) -> None:
    """Which is known at once."""
    found = tried("merge_method: passthrough\nmodels: [{model: base.gguf}]\nout_type: Q8_0\n", seconds=0)
    assert found == Trial((), {})


def test_a_measured_change_takes_the_place_of_estimates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two figures for one thing the reader would not know which to believe."""
    measured = foretold(RECIPE + "rounding: nearest\n")
    assert measured.trial is not None
    assert any("of the change is lost" in worry for worry in measured.worries)
    assert not any("may be lost" in worry for worry in measured.worries)
    write_tiny_llama(folder / "tune.gguf", layers=4, embed=256, ff=512, type="Q4_0", tune=(1, 0.02))
    recipe = RECIPE.replace("base.gguf+x.gguf", "tune.gguf")
    monkeypatch.setattr("ggufmerge.engine.trial.is_prepared", lambda kind: False)
    estimated = foretold(recipe)
    assert estimated.trial is None
    assert any("may be lost" in worry for worry in estimated.worries)
