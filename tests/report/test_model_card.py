"""Model cards: what the Hub reads at their head, and what people read below it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import ggufmerge
from ggufmerge.errors import GgufmergeError
from ggufmerge.report.model_card import hub_parents, model_card, read_evaluation
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
    assert f"| Kingfisher.gguf | {merged.stat().st_size} bytes |" in card
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
