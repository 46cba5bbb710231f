"""The recipe that a result records is the one in effect: by itself it makes the same file again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import GgufmergeError
from tests.quants.test_imatrix import write_gguf as write_imatrix
from tests.tiny import write_tiny_llama, write_tiny_lora

PLAIN = """\
# the ends of both
merge_method: linear
models:
  - model: a.gguf
    parameters: {weight: 0.75}   # mostly this one
  - {model: b.gguf, parameters: {weight: 0.25}}
"""
ADAPTED = "merge_method: passthrough\nmodels: [{model: a.gguf+style.gguf=0.5}]\nseed: 5\n"
LIKE = "{merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}, like: b.gguf}\n"
STAGES = """\
name: half
merge_method: linear
models: [{model: a.gguf}, {model: b.gguf}]
parameters: &equal {weight: 1}
---
merge_method: linear
models: [{model: half}, {model: b.gguf}]
parameters: {weight: [{filter: attn, value: 0.3}, {value: 2e-1}]}
out_type: F16
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, an adapter and an importance matrix; `elsewhere` has another one."""
    place = tmp_path_factory.mktemp("effective")
    (place / "elsewhere").mkdir()
    a = write_tiny_llama(place / "a.gguf", layers=1, type="Q4_0")
    write_tiny_llama(place / "b.gguf", layers=1, tune=(1, 0.05), type="Q8_0")
    write_tiny_lora(place / "style.gguf", a, factor=0.002)
    for number, path in enumerate((place / "matrix.gguf", place / "elsewhere" / "other.gguf")):
        random = np.random.default_rng(number)
        entries = {
            name: (random.random((1, rows.shape[-1]), np.float32) ** 2, [4.0])
            for name, rows in a.items()
            if name.startswith("blk.") and rows.ndim == 2
        }
        write_imatrix(path, entries)
    return place


def built(recipe: Path | str, output: Path, **options: Any) -> tuple[str, bytes]:
    """(the recipe that a result records, its bytes)."""
    ggufmerge.build(recipe, output, overwrite=True, **options)
    with ggufmerge.open(output) as file:
        assert "ggufmerge.options" not in file.metadata
        recorded = file.metadata["ggufmerge.recipe"]
    return recorded, output.read_bytes()


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (PLAIN, {"out_type": "Q5_1"}),
        (PLAIN, {"out_type": "Q4_0", "imatrix": ["matrix.gguf", "elsewhere/other.gguf"]}),
        (ADAPTED, {"rounding": "stochastic"}),
        (ADAPTED, {"rounding": "nearest", "imatrix": ["matrix.gguf"]}),
        (LIKE, {"out_type": "Q8_0"}),
        (STAGES, {"out_type": "Q4_0", "imatrix": ["elsewhere/other.gguf"], "rounding": "stochastic"}),
    ],
)
def test_what_a_result_records_makes_it_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, options: dict[str, Any]
) -> None:
    """Byte for byte, from the text alone, in the recipe's folder, wherever the program runs and the result goes."""
    (folder / "mine.yaml").write_text(text)
    monkeypatch.chdir(folder / "elsewhere")
    given = {**options, "imatrix": [str(Path("..", path)) for path in options.get("imatrix", ())]}
    recorded, data = built(folder / "mine.yaml", tmp_path / "first.gguf", **given)
    assert str(folder) not in recorded
    (folder / "again.yaml").write_text(recorded)
    monkeypatch.chdir(tmp_path)
    assert built(folder / "again.yaml", tmp_path / "second.gguf") == (recorded, data)
    monkeypatch.chdir(folder)
    assert built(recorded, tmp_path / "third.gguf") == (recorded, data)


@pytest.mark.parametrize("options", [{}, {"out_type": "Q5_1", "rounding": "nearest", "imatrix": ["matrix.gguf"]}])
def test_what_a_baked_model_records_makes_it_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Byte for byte, though no recipe was written for it."""
    monkeypatch.chdir(folder)
    ggufmerge.bake("a.gguf", ["style.gguf=0.5"], tmp_path / "baked.gguf", **options)
    with ggufmerge.open(tmp_path / "baked.gguf") as file:
        recorded = file.metadata["ggufmerge.recipe"]
    assert built(recorded, tmp_path / "again.gguf") == (recorded, (tmp_path / "baked.gguf").read_bytes())


@pytest.mark.parametrize("text", [PLAIN, STAGES, LIKE])
def test_what_no_option_changes_is_recorded_as_written(folder: Path, tmp_path: Path, text: str) -> None:
    """With its comments, also where an option says what the recipe says."""
    (folder / "mine.yaml").write_text(text)
    same = {"out_type": "F16"} if "out_type" in text else {}
    assert built(folder / "mine.yaml", tmp_path / "out.gguf", **same)[0] == text


def test_the_plan_says_what_the_file_will_record(folder: Path) -> None:
    """What options changed stands nowhere else."""
    (folder / "mine.yaml").write_text(PLAIN)
    plan = ggufmerge.plan(folder / "mine.yaml", out_type="Q8_0")
    assert plan.recipe == plan.metadata["ggufmerge.recipe"]
    assert ggufmerge.load_recipe(plan.recipe).out_type == "Q8_0"
    assert "options" not in plan.to_json()


def test_a_name_that_a_model_has_is_not_taken(folder: Path, tmp_path: Path) -> None:
    """A recipe records the name of its file, unless one of its documents is called so: that would be another model."""
    (folder / "half.yaml").write_text(STAGES)
    recorded, _ = built(folder / "half.yaml", tmp_path / "out.gguf", out_type="Q8_0")
    assert [document.name for document in ggufmerge.load_recipe(recorded).stages] == ["half"]


def test_a_recipe_in_effect_is_a_recipe_like_any_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a mapping too; its keys, its text and further changes agree, and options that say the same change nothing."""
    monkeypatch.chdir(folder)
    given = {"merge_method": "linear", "models": [{"model": "a.gguf"}], "parameters": {"weight": 1}, "like": "b.gguf"}
    options = {"out_type": "q8_0", "imatrix": [Path("matrix.gguf")], "rounding": "nearest"}
    recipe = ggufmerge.load_recipe(given).with_options(**options)
    for same in (recipe, ggufmerge.load_recipe(recipe.text), recipe.with_changes(seed=0)):
        assert (same.out_type, same.like, same.imatrix, same.rounding) == ("Q8_0", None, ("matrix.gguf",), "nearest")
    assert recipe.with_options(**options) is recipe


def test_options_win_over_a_module(folder: Path) -> None:
    """As over a recipe that has none."""
    text = "modules:\n  one: {merge_method: passthrough, models: [{model: a.gguf}], out_type: F16, rounding: nearest}\n"
    recipe = ggufmerge.load_recipe(text).with_options(out_type="Q8_0", rounding="stochastic")
    for same in (recipe, ggufmerge.load_recipe(recipe.text)):
        assert (same.out_type, same.rounding) == ("Q8_0", "stochastic")
    assert recipe.where(("models",)) == "recipe:2:36"


def test_auto_is_what_a_recipe_without_rounding_has() -> None:
    """As a key, and as an option that wins over another one."""
    text = "merge_method: passthrough\nmodels: [{model: a.gguf}]\nrounding: "
    assert ggufmerge.load_recipe(text + "auto").rounding is None
    plain = ggufmerge.load_recipe(text + "auto")
    assert plain.with_options(rounding="auto") is plain
    assert ggufmerge.load_recipe(text + "nearest").with_options(rounding="auto").rounding is None


def test_a_recipe_that_is_large_without_its_aliases_takes_options() -> None:
    """What it says 70 times is written once in the recipe in effect, too."""
    rules = "".join(f"    - {{filter: layer{i}, value: {i}}}\n" for i in range(100))
    entries = "".join(f"  - {{model: m{i}.gguf, parameters: *all}}\n" for i in range(70))
    text = f"merge_method: linear\nparameters: &all\n  weight:\n{rules}models:\n{entries}"
    recipe = ggufmerge.load_recipe(text).with_options(out_type="Q8_0")
    again = ggufmerge.load_recipe(recipe.text)
    assert again.models == recipe.models == ggufmerge.load_recipe(text).models
    assert len(recipe.text) < 2 * len(text)


def test_words_without_effect_are_warned_of_with_options_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without them: a published recipe is built in another type."""
    monkeypatch.chdir(folder)
    (folder / "mine.yaml").write_text(PLAIN.replace("0.75}", "0.75, t: 1}") + "int8_mask: true\n")
    plain = ggufmerge.plan(folder / "mine.yaml").warnings
    assert plain[0].startswith("mine.yaml:5:32: ")
    plan = ggufmerge.plan(folder / "mine.yaml", out_type="Q8_0")
    assert set(plain) <= set(plan.warnings)
    assert ggufmerge.load_recipe(plan.recipe).out_type == "Q8_0"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (PLAIN.replace("0.75}", "x}"), {"out_type": "Q8_0"}, "mine.yaml:5:18: "),
        (PLAIN.replace("b.gguf", "c.gguf"), {"out_type": "Q8_0"}, "mine.yaml:6:6: c.gguf: no such file"),
        (
            PLAIN + "metadata: {llama.block_count: 9}\n",
            {"rounding": "nearest"},
            "mine.yaml:7:1: llama.block_count is 9",
        ),
        (PLAIN + "exclude: [nothing]\n", {"rounding": "nearest"}, 'mine.yaml:7:11: the filter "nothing"'),
        (PLAIN + "out_type: Q4_0\n", {"out_type": "Q9"}, "out_type=...: "),
        (PLAIN, {"rounding": "up"}, "rounding=...: "),
        (PLAIN, {"noise_aware": "on"}, "noise_aware=...: "),
        (PLAIN + "imatrix: gone.gguf\n", {"imatrix": ["missing.gguf"]}, "imatrix=[...]: missing.gguf: no such file"),
    ],
)
def test_complaints_name_the_recipe_as_it_was_written_or_the_option(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, options: dict[str, Any], message: str
) -> None:
    """The recipe in effect is a text that nobody has seen."""
    monkeypatch.chdir(folder)
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(GgufmergeError) as caught:
        ggufmerge.plan(folder / "mine.yaml", **options)
    assert caught.value.lines[0].startswith(message)
