"""docs/recipes.md says what holds: its examples can be planned, its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ggufmerge.architectures.names import architectures, spellings
from ggufmerge.engine.documents import plan_stages
from ggufmerge.errors import RecipeError
from ggufmerge.recipe import ModelReference, Recipe, load_recipe
from ggufmerge.recipe.load import INERT
from ggufmerge.recipe.settings import parse
from tests.tiny import write_tiny_llama, write_tiny_lora

TEXT = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table that begins with this line."""
    lines = TEXT[TEXT.index(heading) :].split("\n\n")[0].split("\n")[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    base = write_tiny_llama(folder / "base.gguf", layers=4)
    write_tiny_llama(folder / "instruct.gguf", layers=4, tune=(1, 0.05))
    write_tiny_llama(folder / "coder.gguf", layers=4, tune=(2, 0.05))
    write_tiny_lora(folder / "lora.gguf", base)
    return folder


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_can_be_planned(models, example):
    """Each is complete and free of warnings."""
    path = models / "recipe.yaml"
    path.write_text(example, encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.warnings == ()
    plan_stages(recipe)


def test_the_error_shown_is_the_one_given(tmp_path):
    """For the first example with two letters swapped."""
    [shown] = re.findall(r"^    (recipe\.yaml:\d+.*)$", TEXT, re.MULTILINE)
    path = tmp_path / "recipe.yaml"
    path.write_text(EXAMPLES[0].replace("weight", "weigth", 1), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == shown


def test_every_key_is_explained():
    """And no other."""
    explained = [key for cells in rows("| key | meaning |") for key in code(cells[0])]
    assert sorted(explained) == sorted(Recipe.model_fields)


def test_keys_that_mergekit_lacks_are_marked():
    """With a plus; merge_method is mergekit's, its filters are ours."""
    marked = {key for cells in rows("| key | meaning |") for key in code(cells[0]) if "**+**" in cells[1]}
    theirs = {"merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype"}
    theirs |= {"tokenizer_source", "tokenizer", "chat_template", "name"}
    assert marked == set(Recipe.model_fields) - theirs | {"merge_method"}


@pytest.mark.parametrize("cells", rows("| reference | meaning |"), ids=lambda cells: cells[0])
def test_references_can_be_read(cells):
    """Strings and mappings alike, with the adapters that the table says."""
    [written] = code(cells[0])
    recipe = load_recipe(f"merge_method: linear\nmodels:\n  - model: {written}\n")
    expected = 2 if "several" in cells[1] else int("lora" in written)
    assert isinstance(recipe.models[0].model, ModelReference)
    assert len(recipe.models[0].model.adapters) == expected


def test_settings_can_be_read():
    """Each form of the table is a value of `t`."""
    for cells in rows("| setting | meaning |"):
        [written] = code(cells[0])
        assert load_recipe(
            f"merge_method: slerp\nbase_model: b\nmodels: [{{model: a}}]\nparameters: {{t: {written}}}\n"
        )


def test_names_of_both_vocabularies():
    """The pairs of the table are spellings of one tensor."""
    for ours, theirs in rows("| GGUF | Hugging Face |"):
        gguf_names, hf_names = code(ours), code(theirs)
        for name, other in zip(gguf_names, hf_names, strict=False):
            block = "" if "." in name or not gguf_names[0].startswith("blk") else "blk.0."
            written = f"{block}{name}.weight".replace(".N.", ".0.")
            found = [s for known in architectures() for s in spellings(written, known)]
            found += [s for known in architectures() for s in spellings(written.removesuffix(".weight"), known)]
            assert any(other.replace(".N.", ".0.") in s for s in found)


def test_inert_words_are_listed():
    """All of them, and no other."""
    [cells] = [cells for cells in rows("| in mergekit | here | why |") if "read by nobody" in cells[0]]
    assert set(code(cells[0])) == set(INERT)


@pytest.mark.parametrize("key", ["modules: {}", "merge_metod: linear", "weigth: 1"])
def test_what_is_said_to_be_an_error_is_one(key):
    """The refused keys of the table of differences."""
    with pytest.raises(RecipeError):
        load_recipe(f"merge_method: linear\nmodels: [{{model: a}}]\n{key}\n")


def test_patterns_of_the_text_match():
    """The globs that the text gives as examples find the tensors that they seem to mean."""
    for pattern, name in [("blk.*.ffn_*.weight", "blk.0.ffn_up.weight"), ("model.layers.[0-7].*", "blk.7.attn_q.bias")]:
        assert f"`{pattern}`" in TEXT
        assert parse({"filter": pattern, "value": 1}).rule_for(name, "llama")
