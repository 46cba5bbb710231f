"""Every recipe in the docs and in recipes/ can be planned, shown and built, over tiny models of the names it has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

import ggufmerge
from ggufmerge.recipe import load_recipe
from tests.formats.test_checkpoint import LLAMA, write_checkpoint
from tests.tiny import write_tiny_llama, write_tiny_lora

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]
PLAIN = "merge_method: linear\nmodels: [{model: base.gguf}, {model: chat.gguf}]\nparameters: {weight: 1}\n"
CHAT = {"<|im_start|>": 3, "<|im_end|>": 3}


def yaml_blocks(text: str) -> list[str]:
    """What stands in fences of YAML, and indented blocks that are recipes."""
    fenced = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    indented = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return fenced + [dedent(block) for block in indented if re.search(r"^    merge_method:", block, re.MULTILINE)]


def documented() -> dict[str, str]:
    """Recipes by where they stand. What is no recipe but a part of one is put into one, keys that exclude each other
    into one each.
    """
    found = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in (ROOT / "recipes").rglob("*.yaml")}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, block in enumerate(yaml_blocks(page.read_text("utf-8")), 1):
            keys = re.findall(r"^(\w+):", block, re.MULTILINE)
            parts = [block] if "merge_method" in keys or len(keys) == len(set(keys)) else block.splitlines()
            for letter, part in zip("abcdefgh", parts, strict=False):
                whole = part if "merge_method:" in part else f"{part}\n{PLAIN}"
                where = f"{page.name} {number}" + (letter if len(parts) > 1 else "")
                # models of stores and of the Hub are files here
                found[where] = re.sub(r"(ollama|hf):[^\s,}]+", lambda m: re.sub(r"\W", "-", m[0]) + ".gguf", whole)
    return found


RECIPES = documented()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four layers under every name that a recipe has."""
    folder = tmp_path_factory.mktemp("documented")
    names: dict[str, None] = {"other.gguf": None}
    lora: dict[str, None] = {}
    for text in RECIPES.values():
        recipe = load_recipe(text)
        names |= {reference.path: None for stage in (*recipe.stages, recipe) for reference in stage.references()}
        names |= {graft.model.path: None for graft in recipe.graft}
        lora |= {a.path: None for stage in (*recipe.stages, recipe) for r in stage.references() for a in r.adapters}
    for number, name in enumerate(names):
        tune = (number, 0.05) if number else None
        target = folder / name
        if target.suffix == ".gguf":
            more = {"added": CHAT, "vocab": 371} if name == "chat.gguf" else {}
            write_tiny_llama(target, layers=4, tune=tune, **more)
    base = write_tiny_llama(folder / "spare.gguf", layers=4)
    for name in names:
        if (folder / name).suffix != ".gguf":
            write_checkpoint(folder / name, base, config={**LLAMA, "num_hidden_layers": 4})
    for seed, name in enumerate(lora):
        (folder / name).parent.mkdir(exist_ok=True)
        write_tiny_lora(folder / name, base, seed=seed)
    return folder


def test_no_page_is_overlooked() -> None:
    """The pages that have recipes; the rest has none."""
    pages = {name.split()[0] for name in RECIPES if not name.startswith("recipes/")}
    assert pages >= {"README.md", "recipes.md", "lora.md", "hub.md", "ollama.md", "sources.md", "tokenizers.md"}
    assert sum(name.startswith("recipes/demo") for name in RECIPES) >= 5


@pytest.mark.parametrize("where", RECIPES)
def test_a_documented_recipe_works(where: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan is shown and printed as JSON, the dry run shows the same plan, the build makes a file."""
    monkeypatch.chdir(folder)
    Path("recipe.yaml").write_text(RECIPES[where], "utf-8")
    code, shown, err = run("plan", "recipe.yaml", "--all")
    assert (code, "error" in err) == (0, False), err
    assert json.loads(run("plan", "recipe.yaml", "--json")[1])
    assert _lasting(run("build", "recipe.yaml", "--dry-run")[1]) == _lasting(run("plan", "recipe.yaml")[1])
    code, _, err = run("build", "recipe.yaml", "-o", "out.gguf", "--overwrite")
    assert code == 0, err
    with ggufmerge.open("out.gguf") as file:
        assert all(name in shown for name in file.tensors)


def _lasting(shown: str) -> list[str]:
    """A plan without what changes from one minute to the next, with whatever else this machine does."""
    return [line for line in shown.splitlines() if not line.strip().startswith(("disk", "time", "memory"))]
