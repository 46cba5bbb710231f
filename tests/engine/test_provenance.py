"""What a result says of its making is true of it, and what its parents said of theirs is kept apart as lineage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import ggufmerge
from ggufmerge.engine.bake import plan_bake
from ggufmerge.engine.extract import extract, plan_extract
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.planning.provenance import MAX_ANCESTORS, MAX_LINEAGE
from ggufmerge.report.model_card import model_card
from ggufmerge.running.run import run
from tests.tiny import write_tiny_llama, write_tiny_lora


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: base.gguf, and one.gguf and two.gguf with adapters baked in."""
    monkeypatch.chdir(tmp_path)
    base = write_tiny_llama(tmp_path / "base.gguf", layers=1, type="Q4_0", metadata={"general.name": "Base"})
    for seed, name in enumerate(("one", "two")):
        write_tiny_lora(tmp_path / f"{name}.lora.gguf", base, seed=seed)
        plan, opened = plan_bake("base.gguf", [f"{name}.lora.gguf"], rounding="stochastic")
        run(plan, opened, f"{name}.gguf")
    return tmp_path


def linear(*models: str, **keys: str) -> str:
    lines = ["merge_method: linear", "parameters: {weight: 1}", "models:", *(f"  - model: {m}" for m in models)]
    return "\n".join([*lines, *(f"{key}: {value}" for key, value in keys.items())]) + "\n"


def built(recipe: str, name: str = "out.gguf", **options: Any) -> dict[str, Any]:
    """What a result says of its making."""
    ggufmerge.build(ggufmerge.load_recipe(recipe), name, overwrite=True, **options)
    return ours(Path(name))


def ours(path: Path) -> dict[str, Any]:
    with ggufmerge.open(path) as file:
        return {k: v for k, v in dict(file.metadata).items() if k.startswith("ggufmerge.")}


def entries(keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lineage, an entry each, whose numbers have no gap."""
    found: dict[int, dict[str, Any]] = {}
    for key, value in keys.items():
        if key.startswith("ggufmerge.lineage.") and key != "ggufmerge.lineage.omitted":
            number, _, part = key.removeprefix("ggufmerge.lineage.").partition(".")
            found.setdefault(int(number), {})[part] = value
    assert sorted(found) == list(range(len(found)))
    return [found[i] for i in range(len(found))]


def test_settings_are_those_of_this_build(folder: Path) -> None:
    """Type, rounding, seed and version, wherever they were asked for; not those that its parents were built with."""
    keys = built(linear("one.gguf", "two.gguf"), rounding="nearest", out_type="Q8_0")
    recipe = ggufmerge.load_recipe(keys["ggufmerge.recipe"])
    assert (recipe.out_type, recipe.rounding) == ("Q8_0", "nearest")
    assert (keys["ggufmerge.type"], keys["ggufmerge.rounding"], keys["ggufmerge.seed"]) == ("Q8_0", "nearest", 0)
    keys = built(linear("one.gguf", "two.gguf", rounding="stochastic", seed="7"))
    assert keys["ggufmerge.recipe"] == linear("one.gguf", "two.gguf", rounding="stochastic", seed="7")
    assert (keys["ggufmerge.type"], keys["ggufmerge.rounding"], keys["ggufmerge.seed"]) == ("Q4_0", "stochastic", 7)
    assert keys["ggufmerge.version"] == ggufmerge.__version__


def test_nothing_of_a_parent_is_taken_for_the_result(folder: Path) -> None:
    """Neither options nor sources beyond the result's own, nor keys of a later version."""
    strange = {"ggufmerge.options": "--rounding stochastic", "ggufmerge.source.7.file": "x", "ggufmerge.future": 1}
    write_tiny_llama(folder / "a.gguf", layers=1, metadata={**strange, "ggufmerge.rounding": "up"})
    keys = built(linear("a.gguf", "base.gguf"))
    own = {k: v for k, v in keys.items() if not k.startswith("ggufmerge.lineage.")}
    assert set(own) == {
        *(f"ggufmerge.{key}" for key in ("version", "type", "rounding", "seed", "recipe", "recipe.sha256")),
        *(f"ggufmerge.source.{i}.{part}" for i in (0, 1) for part in ("file", "sha256")),
    }
    assert own["ggufmerge.rounding"] == "nearest"


def test_the_making_of_each_parent_is_kept_as_lineage(folder: Path) -> None:
    """Its name, recipe, settings and sources, under numbers that tell the parents apart."""
    one, two = entries(built(linear("one.gguf", "two.gguf")))
    for entry, name in ((one, "one"), (two, "two")):
        keys = ours(folder / f"{name}.gguf")
        assert entry["file"] == f"{name}.gguf"
        assert entry["recipe"] == keys["ggufmerge.recipe"]
        assert entry["rounding"] == "stochastic"
        assert entry["source.1.file"] == f"{name}.lora.gguf"
        assert entry["source.0.sha256"] == keys["ggufmerge.source.0.sha256"]
        assert "into" not in entry


def test_lineage_reaches_back_over_generations(folder: Path) -> None:
    """An ancestor names the entry of the model that it went into."""
    built(linear("one.gguf", "two.gguf"), "child.gguf")
    built(linear("child.gguf", "base.gguf"), "grandchild.gguf")
    found = entries(ours(folder / "grandchild.gguf"))
    assert [(e["file"], e.get("into")) for e in found] == [("child.gguf", None), ("one.gguf", 0), ("two.gguf", 0)]
    found = entries(built(linear("base.gguf", "grandchild.gguf", "one.gguf")))
    assert [(e["file"], e.get("into")) for e in found] == [
        ("grandchild.gguf", None),
        ("one.gguf", None),
        ("child.gguf", 0),
        ("one.gguf", 2),
        ("two.gguf", 2),
    ]


def test_lineage_does_not_grow_without_end(folder: Path) -> None:
    """What is beyond the limits is counted; a recipe that is too long leaves its digest."""
    many = {f"ggufmerge.lineage.{i}.name": f"n{i}" for i in range(500)}
    recipes = {f"ggufmerge.lineage.{i}.recipe": "x" * 16000 for i in range(500)}
    write_tiny_llama(folder / "a.gguf", layers=1, metadata={"ggufmerge.version": "1", **many, **recipes})
    write_tiny_llama(folder / "b.gguf", layers=1, metadata={"ggufmerge.recipe": "y" * 100_000, **many})
    keys = built(linear("a.gguf", "b.gguf"))
    found = entries(keys)
    assert 2 < len(found) <= MAX_ANCESTORS
    assert sum(len(str(v)) for e in found for v in e.values()) <= MAX_LINEAGE
    assert keys["ggufmerge.lineage.omitted"] == 1002 - len(found)
    assert "recipe" not in found[1]
    assert len(found[1]["recipe.sha256"]) == 64


@pytest.mark.parametrize("value", [1, True, 2.5, ["a", "b"], [1, 2], "@@@@", "x" * 5000])
def test_strangers_values_cannot_stop_a_build(folder: Path, value: Any) -> None:
    """Whatever stands under our keys: texts are texts, numbers are numbers, and the rest is left out."""
    parts = ("version", "recipe", "recipe.sha256", "options", "seed", "imatrix", "source.0.file", "source.0.sha256")
    keys = [*parts, "lineage.0.name", "lineage.0.into", "lineage.x.name", "lineage.0", "lineage.omitted"]
    write_tiny_llama(folder / "a.gguf", layers=1, metadata={f"ggufmerge.{key}": value for key in keys})
    data = (folder / "a.gguf").read_bytes().replace(b"@@@@", b"\xff\xfe\xfd\xfc")  # no UTF-8
    (folder / "a.gguf").write_bytes(data)
    for entry in entries(built(linear("a.gguf", "base.gguf"))):
        for key, kept in entry.items():
            number, names = key in ("seed", "into"), key == "imatrix"
            assert isinstance(kept, int if number else list if names else str)
            str(kept).encode()


def test_quantizing_is_a_making_of_its_own(folder: Path) -> None:
    """The recipe of a merge is not that of the file that was quantized from it, but its lineage."""
    built(linear("one.gguf", "two.gguf"), "merged.gguf")
    plan, opened = plan_quantize(folder / "merged.gguf", "Q8_0")
    run(plan, opened, folder / "out.gguf")
    keys = ours(folder / "out.gguf")
    assert {k: v for k, v in keys.items() if not k.startswith("ggufmerge.lineage.")} == {
        "ggufmerge.version": ggufmerge.__version__,
        "ggufmerge.type": "Q8_0",
        "ggufmerge.source.0.file": "merged.gguf",
    }
    assert [e["file"] for e in entries(keys)] == ["merged.gguf", "one.gguf", "two.gguf"]


def test_an_extracted_adapter_knows_its_models(folder: Path) -> None:
    """The tune, the base and what they were made from."""
    extract(*plan_extract(folder / "one.gguf", folder / "base.gguf", rank=2), folder / "out.gguf")
    keys = ours(folder / "out.gguf")
    assert [keys[f"ggufmerge.source.{i}.file"] for i in (0, 1)] == ["one.gguf", "base.gguf"]
    assert keys["ggufmerge.type"] == "F32"
    assert [e["file"] for e in entries(keys)] == ["one.gguf"]


def test_the_documents_of_a_recipe_are_lineage(folder: Path) -> None:
    """Each stage by its name, with the sources that the final file no longer names."""
    recipe = f"name: stage\n{linear('one.gguf', 'two.gguf')}---\n{linear('stage', 'base.gguf', name='final')}"
    first, *others = entries(built(recipe))
    assert (first["name"], first["source.0.file"]) == ("stage", "one.gguf")
    assert [(e["file"], e["into"]) for e in others] == [("one.gguf", 0), ("two.gguf", 0)]


def test_a_card_shows_the_settings_in_effect(folder: Path) -> None:
    """Of this build; those of the parents stand in their lineage."""
    built(linear("one.gguf", "two.gguf"), rounding="nearest")
    with ggufmerge.open(folder / "out.gguf") as file:
        card = model_card(file)
    assert "type Q4_0, rounding nearest, seed 0" in card
    assert "| one.gguf | " in card
    assert "stochastic" in card.partition("## Lineage")[2]
    assert "stochastic" not in card.partition("## Lineage")[0]


def test_options_of_older_files_are_still_told(folder: Path) -> None:
    """Files of older versions have options that won over the recipe beside it; cards of others do not speak of any."""
    older = {"ggufmerge.version": "0.0.9", "ggufmerge.recipe": "name: x\n", "ggufmerge.options": "--type Q8_0"}
    write_tiny_llama(folder / "older.gguf", layers=1, type="Q4_0", metadata=older)
    with ggufmerge.open(folder / "older.gguf") as file:
        assert "Built with the options `--type Q8_0`." in model_card(file)
    [entry, _] = entries(built(linear("older.gguf", "one.gguf"), out_type="Q5_1"))
    assert entry["options"] == "--type Q8_0"
    with ggufmerge.open(folder / "out.gguf") as file:
        card = model_card(file)
    assert "Built with" not in card
    assert "| options | went into |" in card.partition("## Lineage")[2]
    built(linear("one.gguf", "two.gguf"), out_type="Q5_1")
    with ggufmerge.open(folder / "out.gguf") as file:
        assert "options" not in model_card(file)
