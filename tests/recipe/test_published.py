"""Recipes in the forms in which people have published them: all of them merge, and say which of their words do nothing.

The recipes and the index of their origins lie in `published/`. Paths are those of small stand-ins, of four layers, and
ranges of layers are scaled to them; everything else, comments too, is as it was.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.engine import make_plan
from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.planning.opened import Opened
from ggufmerge.recipe import load_recipe
from tests.tiny import write_tiny_llama, write_tiny_lora

PUBLISHED = Path(__file__).with_name("published")
ROW = re.compile(r"\| `(.+?)` \| (.+?) \| (.*?) ?\|")
INDEX = {
    match[1]: set(re.findall("`(.+?)`", match[3]))
    for match in map(ROW.fullmatch, (PUBLISHED / "README.md").read_text(encoding="utf-8").splitlines())
    if match
}
SOME = 4  # models of a recipe that is also built


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, five tunes of it and two adapters, and the recipes."""
    folder = tmp_path_factory.mktemp("published")
    shape = {"layers": 4, "embed": 32, "ff": 64, "heads": 2, "kv_heads": 1, "tokenizer": "bpe"}
    base = write_tiny_llama(folder / "base.gguf", **shape)
    for number, name in enumerate("abcde", 1):
        write_tiny_llama(folder / f"{name}.gguf", tune=(number, 0.05), **shape)
    for name in ("lora.gguf", "other.lora.gguf"):
        write_tiny_lora(folder / name, base, targets=("*attn_q.weight",))
    for path in PUBLISHED.glob("*.yaml"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_the_index_names_every_recipe() -> None:
    """Each file with where its form was seen, and the words in it that have no effect."""
    assert INDEX.keys() == {path.name for path in PUBLISHED.glob("*.yaml")}
    assert len(INDEX) >= 60


@pytest.mark.parametrize("name", INDEX)
def test_published_recipes_merge(folder: Path, tmp_path: Path, name: str) -> None:
    """They load and plan as they are, warn of what mergekit never reads and of nothing else, and those of a few models
    are built.
    """
    recipe = load_recipe(folder / name)
    warnings = [warning for stage in (*recipe.stages, recipe) for warning in stage.warnings]
    documents = (*recipe.stages, recipe)
    models = {reference.path for document in documents for reference in document.references()}
    if len(models - {stage.name for stage in recipe.stages}) <= SOME:
        warnings += ggufmerge.build(recipe, tmp_path / "out.gguf").warnings
        with ggufmerge.open(tmp_path / "out.gguf") as file:
            assert all(np.isfinite(tensor.dequantize()).all() for tensor in file.tensors.values())
    else:
        plan, opened = make_plan(recipe)
        opened.close()
        warnings += plan.warnings
    words = [re.search('"(.+?)"', line) for line in warnings if "no effect" in line]
    assert {match[1] for match in words if match} == INDEX[name]
    assert all(re.match(rf"{re.escape(name)}:\d+:\d+: ", line) for line in warnings if "no effect" in line)


@pytest.mark.parametrize("fence", ["```", "```yaml", "~~~", "'''yaml"])
def test_a_recipe_may_stand_in_the_fence_of_its_page(folder: Path, fence: str) -> None:
    """With the words around it, which are left out; lines are counted as in the file."""
    text = (PUBLISHED / "example-linear.yaml").read_text(encoding="utf-8")
    inside = load_recipe(
        f"# A card\n\n{fence}\n{text}{fence[:3]}\n\nUsage:\n\n{fence[:3]}python\nprint()\n{fence[:3]}\n"
    )
    assert inside.methods == ("linear",)
    assert inside.warnings == ("recipe:3:1: a code fence: what stands outside of it has no effect; remove it",)
    assert load_recipe(f"{text}{fence[:3]}\n").models == inside.models
    assert load_recipe(f"{fence}\n{text}").models == inside.models
    with pytest.raises(GgufmergeError, match="recipe:4:"):
        load_recipe(f"\n{fence}\n{text}".replace("models:", "modls:").replace("\nmodls", "\nx: 1\nmodls"))


def test_the_label_of_a_fence_is_left_out() -> None:
    """Pages copy it along with the recipe."""
    text = (PUBLISHED / "example-linear.yaml").read_text(encoding="utf-8")
    recipe = load_recipe(f"yaml\n{text}")
    assert recipe.models == load_recipe(text).models
    assert recipe.warnings == ('recipe:1:1: "yaml" has no effect; remove it',)


def test_two_recipes_in_fences_are_not_one() -> None:
    """Nothing says which of them is meant."""
    text = (PUBLISHED / "example-linear.yaml").read_text(encoding="utf-8")
    with pytest.raises(GgufmergeError, match="code fence"):
        load_recipe(f"```\n{text}```\n\n```\n{text}```\n")


def test_the_base_alone_stays_what_it_is(folder: Path, tmp_path: Path) -> None:
    """As in mergekit, and with a warning; an adapter of the base is in the result."""
    report = ggufmerge.build(folder / "lorablation.yaml", tmp_path / "out.gguf", out_type="F32")
    assert [line for line in report.warnings if "lorablation.yaml:7:3: only the base takes part" in line]
    ggufmerge.bake(folder / "base.gguf", [folder / "lora.gguf"], output=tmp_path / "baked.gguf", out_type="F32")
    with ggufmerge.open(tmp_path / "out.gguf") as out, ggufmerge.open(tmp_path / "baked.gguf") as baked:
        assert [bytes(out.tensors[name].raw) == bytes(t.raw) for name, t in baked.tensors.items()].count(False) == 0


def test_of_several_modules_the_language_model_is_merged(folder: Path) -> None:
    """The others are in a file of their own; without a name that says which one it is, nothing can be merged."""
    models = "models: [{model: a.gguf, parameters: {weight: 1}}, {model: b.gguf, parameters: {weight: 1}}]"
    text = f"merge_method: linear\nmodules:\n  text_decoder: {{{models}}}\n  vision_tower: {{{models}}}\n"
    recipe = load_recipe(text)
    assert [str(model.model) for model in recipe.models or ()] == ["a.gguf", "b.gguf"]
    assert recipe.warnings == (
        'recipe:2:1: only "text_decoder" is merged: a GGUF file holds the language model, not "vision_tower"',
    )
    with pytest.raises(GgufmergeError, match="a GGUF file holds one module"):
        load_recipe(text.replace("text_decoder", "encoder").replace("vision_tower", "decoder"))


def test_a_plus_sign_may_be_part_of_a_name(folder: Path, tmp_path: Path) -> None:
    """Where there is a file of the whole name, with and without an adapter behind it."""
    for name in ("L3-8B+v2.gguf", "more+lora.gguf"):
        (folder / name).write_bytes((folder / ("a.gguf" if name[0] == "L" else "lora.gguf")).read_bytes())
    text = "merge_method: linear\nmodels:\n- model: ./L3-8B+v2.gguf\n- model: L3-8B+v2.gguf+more+lora.gguf=0.5\n"
    (folder / "plus.yaml").write_text(text + "- model: base.gguf+lora.gguf\nparameters: {weight: 1}\n")
    references = load_recipe(folder / "plus.yaml").references()
    assert [(r.path, [(a.path, a.strength) for a in r.adapters]) for r in references] == [
        ("L3-8B+v2.gguf", []),
        ("L3-8B+v2.gguf", [("more+lora.gguf", 0.5)]),
        ("base.gguf", [("lora.gguf", 1.0)]),
    ]
    assert ggufmerge.build(folder / "plus.yaml", tmp_path / "out.gguf").output == tmp_path / "out.gguf"
    (folder / "plus.yaml").write_text(f"{text}parameters: {{weight: 1}}\ntokenizer_source: base\n")
    plan, opened = make_plan(load_recipe(folder / "plus.yaml"))
    opened.close()
    Opened.from_plan(plan).close()
    (folder / "plus.yaml").write_text(text.replace("L3-8B", "L4-8B"))
    with pytest.raises(PlanError, match=r"L4-8B: no such file"):
        make_plan(load_recipe(folder / "plus.yaml"))
