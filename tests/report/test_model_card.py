"""Model cards: what the Hub reads at their head, and what people read below it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import ggufmerge
from ggufmerge.errors import GgufmergeError
from ggufmerge.files import describe
from ggufmerge.report.model_card import _code, hub_parents, model_card, read_evaluation
from ggufmerge.text import count, size
from tests.systems import needs_pipes
from tests.tiny import write_tiny_llama

RECIPE = """
name: Kingfisher
merge_method: linear
models:
  - {model: a.gguf, parameters: {weight: 0.5}}
  - {model: b.gguf, parameters: {weight: 0.5}}
# - model: hf:not/merged
"""
SCORES = {
    "reference": "models/base.gguf",
    "scores": [
        {"model": "out.gguf", "text": "texts/wiki.txt", "perplexity": 12.3456, "perplexity_error": 0.1}
        | {"kl_divergence": 0.01234},
        {"model": "models/base.gguf", "text": "texts/wiki.txt", "perplexity": 13.0, "perplexity_error": 0.2},
    ],
}


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of two models that say where they are from."""
    folder = tmp_path_factory.mktemp("merged")
    for number, name in enumerate("ab"):
        facts = {
            "general.name": f"Model {name.upper()} | [x](y)",
            "general.license": "Apache-2.0",
            "general.tags": ["text-generation", "chat"],
            "general.languages": ["en", "de"],
            "general.repo_url": f"https://huggingface.co/owner/{name}",
        }
        write_tiny_llama(folder / f"{name}.gguf", layers=2, tune=(number, 0.1), type="Q8_0", metadata=facts)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    ggufmerge.build(folder / "recipe.yaml", folder / "out.gguf")
    return folder / "out.gguf"


def card_of(path: Path, **options: Any) -> str:
    with ggufmerge.open(path) as file:
        return model_card(file, **options)


def head_of(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_the_head_is_what_the_hub_reads(merged: Path) -> None:
    """Base models, licence, languages, tags of the sources and of a merge."""
    assert head_of(card_of(merged)) == {
        "base_model": ["owner/a", "owner/b"],
        "base_model_relation": "merge",
        "license": "apache-2.0",
        "language": ["en", "de"],
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["text-generation", "chat", "merge", "ggufmerge", "gguf"],
    }


def test_huggingface_hub_parses_the_card(merged: Path) -> None:
    """Its own class for cards finds the same facts."""
    from huggingface_hub import ModelCard

    data = ModelCard(card_of(merged)).data
    assert (data.base_model, data.license, data.library_name) == (["owner/a", "owner/b"], "apache-2.0", "gguf")


def test_the_body_says_what_it_is_made_of(merged: Path) -> None:
    """Recipe as it was written, digests of the sources, each kind of tensor with its type, files as they are called."""
    card = card_of(merged, names=["Kingfisher.gguf"])
    assert card.startswith("---\n")
    assert "# Kingfisher\n" in card
    assert f"```yaml\n{RECIPE.strip()}\n```" in card
    with ggufmerge.open(merged) as file:
        for number in (0, 1):
            assert f"`{file.metadata[f'ggufmerge.source.{number}.sha256']}`" in card
    assert f"| Kingfisher.gguf | {size(merged.stat().st_size)} |" in card
    with ggufmerge.open(merged) as file:
        assert f"{count(describe(file)['parameters'])} parameters" in card
    words = re.sub(r"```.*?```|`.*?`|^---.*?^---", "", card, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"(?<![\w.])\d{4,}(?![\w.])", words), "a number that nobody can read"
    assert "| blk.\\*.attn_q.weight | 2 | 64 x 64 | Q8_0 |" in card
    assert "| Q8_0 | 16 |" in card


def test_texts_of_files_are_no_markdown(merged: Path) -> None:
    """A name cannot add cells or links."""
    assert r"[Model A \| \[x\](y)](https://huggingface.co/owner/a)" in card_of(merged)


def test_an_evaluation_is_shown_if_there_is_one(merged: Path) -> None:
    """Perplexities, and KL divergence when it was measured."""
    card = card_of(merged, evaluation=SCORES)
    assert "| wiki.txt | out.gguf | 12.346 ± 0.100 | 0.0123 |" in card
    assert "| wiki.txt | base.gguf | 13.000 ± 0.200 |  |" in card
    plain = {"scores": [SCORES["scores"][1]], "reference": None}
    assert "| wiki.txt | base.gguf | 13.000 ± 0.200 |\n" in card_of(merged, evaluation=plain)
    assert "Evaluation" not in card_of(merged)


def test_recipes_name_base_models_of_the_hub(tmp_path: Path) -> None:
    """By hf: and by Ollama's hf.co, models and adapters, but not in comments."""
    recipe = """
models:
  - model: hf:owner/a-GGUF:Q4_K_M@v1+hf:owner/lora-GGUF/lora.gguf=0.5
  - model: ollama:hf.co/owner/b-GGUF:Q8_0
  - model: {path: "hf:owner/c.d/c.gguf"}
# - model: hf:owner/commented
"""
    write_tiny_llama(tmp_path / "a.gguf", layers=1, metadata={"ggufmerge.recipe": recipe})
    with ggufmerge.open(tmp_path / "a.gguf") as file:
        assert hub_parents(file) == ["owner/a-GGUF", "owner/lora-GGUF", "owner/b-GGUF", "owner/c.d"]


def test_a_recipe_cannot_end_its_block(tmp_path: Path) -> None:
    """However many backticks it has."""
    write_tiny_llama(tmp_path / "a.gguf", layers=1, metadata={"ggufmerge.recipe": "# ````\nname: x"})
    assert "`````yaml\n# ````\nname: x\n`````" in card_of(tmp_path / "a.gguf")


def test_a_file_that_says_nothing_has_a_card(tmp_path: Path) -> None:
    """Without what is not known."""
    write_tiny_llama(tmp_path / "a.gguf", layers=1)
    card = card_of(tmp_path / "a.gguf")
    assert head_of(card) == {"library_name": "gguf", "pipeline_tag": "text-generation", "tags": ["gguf"]}
    assert "Recipe" not in card
    assert "Merged models" not in card
    assert "No licence is stated" in card


def test_evaluations_are_checked(tmp_path: Path) -> None:
    """What is none is refused with the command that makes one."""
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(SCORES), encoding="utf-8")
    assert read_evaluation(path) == SCORES
    for text in ("", "[]", '{"scores": [{}]}', '{"scores": 3}', '{"scores": ["x"]}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(GgufmergeError, match="ggufmerge eval --json"):
            read_evaluation(path)


EVIL = (
    "[x](javascript:a) <script>a</script> ![i](https://e.org/i.png) `a` |b| _c_ *d* ~e~ &lt;f&gt; $g$ @hub "
    "https://e.org www.e.org\n\n# h\n---\nlicense: mit\n\u202ei\x1b[2J\r- j"
)
MARKUP = re.compile(
    r"(?<!\\)(\[x\]|<script|!\[|\*d|~e~|\$g|@hub|&lt;)|(?<![\\\w])_c|https://e|www\.e|^# h|^- j", re.MULTILINE
)


def test_texts_of_strangers_are_texts(tmp_path: Path) -> None:
    """In the body no markup, HTML, links, mentions or lines of their own; at the head no keys."""
    keys = ("name", "license", "license.name", "license.link", "languages", "tags", "base_model.0.name")
    facts: dict[str, Any] = {f"general.{key}": [EVIL, EVIL] if key in ("languages", "tags") else EVIL for key in keys}
    facts |= {f"general.base_model.0.{key}": EVIL for key in ("organization", "version", "repo_url")}
    facts |= {"general.base_model.count": 1, "ggufmerge.source.0.file": EVIL, "ggufmerge.source.0.sha256": EVIL}
    facts |= {"ggufmerge.version": EVIL, "ggufmerge.options": EVIL, "ggufmerge.recipe": "name: x"}
    write_tiny_llama(tmp_path / "a.gguf", layers=1, metadata=facts)
    scores = {"scores": [SCORES["scores"][1] | {"model": EVIL, "text": EVIL}], "reference": EVIL}
    card = card_of(tmp_path / "a.gguf", evaluation=scores, names=[EVIL])
    assert all(line.isprintable() for line in card.split("\n"))
    _, head, body = card.split("---\n", 2)
    assert set(yaml.safe_load(head)) <= {
        *("base_model_relation", "license", "license_name", "license_link", "language", "library_name"),
        *("pipeline_tag", "tags"),
    }
    without_code = re.sub(r"(`+)[^`].*?[^`]\1", "", body.replace("\\`", ""))
    assert not MARKUP.search(without_code)
    tables = [line for line in body.split("\n") if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} <= {3, 4, 5, 6}


@pytest.mark.parametrize("text", ["a", "`a", "a``b", "|a|", "", "```", "a\nb"])
def test_code_within_a_line_ends_where_it_should(text: str) -> None:
    """With more backticks around it than it has side by side."""
    shown = _code(text)
    fence = re.match("`+", shown)
    assert fence is not None
    assert shown.endswith(fence[0])
    assert fence[0] not in shown[len(fence[0]) : -len(fence[0])].strip()
    assert "\n" not in shown


@pytest.mark.parametrize(
    "recipe",
    [
        "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)),
        "&a [*a]",
        "[" * 100_000,
        "x: [" + "hf:a/b," * 200_000 + "]",
        "a: 1\n---\n" * 50_000,
        "!!python/object/apply:os.system [true]",
        "\x1b: [",
    ],
)
def test_recipes_in_files_are_read_as_recipes_are(tmp_path: Path, recipe: str) -> None:
    """Aliases that multiply or contain themselves, nesting and length end the look for base models, not the program."""
    write_tiny_llama(tmp_path / "a.gguf", layers=1, metadata={"ggufmerge.recipe": recipe})
    with ggufmerge.open(tmp_path / "a.gguf") as file:
        assert hub_parents(file) == []
        assert all(line.isprintable() for line in model_card(file).split("\n"))


@needs_pipes
def test_figures_that_are_no_numbers(tmp_path: Path) -> None:
    """`ggufmerge eval --json` writes null for them; what is no figure at all is refused, as is a pipe."""
    path = tmp_path / "scores.json"
    score = {"model": "a", "text": "b", "perplexity": None, "perplexity_error": None}
    path.write_text(json.dumps({"scores": [score]}), encoding="utf-8")
    write_tiny_llama(tmp_path / "a.gguf", layers=1)
    assert "| b | a | - ± - |" in card_of(tmp_path / "a.gguf", evaluation=read_evaluation(path))
    for wrong in ({"perplexity": "12"}, {"kl_divergence": []}, {"model": 1}, {"text": None}):
        path.write_text(json.dumps({"scores": [score | wrong]}), encoding="utf-8")
        with pytest.raises(GgufmergeError, match="ggufmerge eval --json"):
            read_evaluation(path)
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(GgufmergeError, match="ggufmerge eval --json"):
        read_evaluation(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(GgufmergeError, match="not a regular file"):
        read_evaluation(path)
