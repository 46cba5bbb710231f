"""Metadata of a result: provenance in, stale keys out, the rest as the base has it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import ggufmerge
from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation.llama import LlamaModel
from tests.tiny import write_tiny_llama

RECIPE = "{merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}}\n"


def merged(folder: Path, a: Mapping[str, Any], b: Mapping[str, Any], recipe: str = RECIPE) -> Mapping[str, Any]:
    write_tiny_llama(folder / "a.gguf", metadata=a)
    write_tiny_llama(folder / "b.gguf", metadata=b, tune=(1, 0.02))
    (folder / "my-merge.yaml").write_text(recipe)
    ggufmerge.build(folder / "my-merge.yaml", folder / "out.gguf", overwrite=True, out_type="Q8_0")
    return ggufmerge.open(folder / "out.gguf").metadata


def test_provenance_is_written(tmp_path: Path) -> None:
    """Parents, recipe, version and digests: enough to make the file again and to prove it."""
    own = {"general.organization": "Org", "general.repo_url": "https://example.org/a", "general.uuid": "1"}
    out = merged(tmp_path, {"general.name": "A", **own}, {"general.name": "B"})
    assert out["general.name"] == "my-merge"
    assert out["general.finetune"] == "merge"
    assert out["general.base_model.count"] == 2
    assert [out[f"general.base_model.{i}.name"] for i in (0, 1)] == ["A", "B"]
    assert out["general.base_model.0.organization"] == "Org"
    assert out["general.base_model.0.repo_url"] == "https://example.org/a"
    assert not {"general.organization", "general.repo_url", "general.uuid"} & set(out)
    assert out["ggufmerge.recipe"].startswith("name: my-merge\n")
    assert ggufmerge.load_recipe(out["ggufmerge.recipe"]).out_type == "Q8_0"
    assert out["general.file_type"] == 7
    assert out["general.quantization_version"] == 2
    for i, name in enumerate(("a.gguf", "b.gguf")):
        assert out[f"ggufmerge.source.{i}.file"] == name
        assert out[f"ggufmerge.source.{i}.sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_tags_gain_merge_once(tmp_path: Path) -> None:
    """What the base has stays in front."""
    out = merged(tmp_path, {"general.tags": ["chat", "merge"]}, {})
    assert list(out["general.tags"]) == ["chat", "merge", "ggufmerge"]


def test_a_licence_is_kept_only_if_all_agree(tmp_path: Path) -> None:
    """Otherwise none is claimed, unless the recipe says which."""
    key = "general.license"
    assert merged(tmp_path, {key: "mit"}, {key: "mit"})[key] == "mit"
    assert key not in merged(tmp_path, {key: "mit"}, {key: "gpl-3.0"})
    chosen = RECIPE.replace("{merge", "{metadata: {general.license: other}, merge", 1)
    assert merged(tmp_path, {key: "mit"}, {}, chosen)[key] == "other"


def test_keys_that_no_longer_hold_are_dropped(tmp_path: Path) -> None:
    """What described the base's own quantization and origin."""
    stale = {"quantize.imatrix.file": "x", "general.source.url": "y", "general.quantized_by": "z"}
    assert not set(stale) & set(merged(tmp_path, stale, {}))


def test_tokenizer_and_template_come_from_the_base(tmp_path: Path) -> None:
    """Byte for byte, every key."""
    out = merged(tmp_path, {"tokenizer.chat_template": "{{ a }}"}, {"tokenizer.chat_template": "{{ b }}"})
    base = ggufmerge.open(tmp_path / "a.gguf").metadata
    keys = [k for k in base if k.startswith("tokenizer.")]
    assert len(keys) > 4
    assert all(out.raw(k) == base.raw(k) for k in keys)


def test_tags_and_licences_of_another_type_are_left_out(tmp_path: Path) -> None:
    """With a warning that names file, key and type: a text is no list of its letters."""
    strange = {"general.tags": "abc", "general.license": ["MIT"]}
    out = merged(tmp_path, strange, strange)
    assert list(out["general.tags"]) == ["merge", "ggufmerge"]
    assert "general.license" not in out
    report = ggufmerge.build(tmp_path / "my-merge.yaml", tmp_path / "out.gguf", overwrite=True)
    assert f"{tmp_path / 'a.gguf'}: general.tags is a text, not a list of texts: it is ignored" in report.warnings
    assert sum("general.license is a list of 1 texts, not a text" in w for w in report.warnings) == 2


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ("llama.block_count: 3", "llama.block_count is 3, but the result has 2 layers"),
        ("llama.block_count: '2'", "llama.block_count is '2', but the result has 2 layers"),
        ("llama.vocab_size: 7", "llama.vocab_size is 7, but the result has 320 tokens"),
        ("llama.embedding_length: true", "llama.embedding_length is True, but the result has 64 values in a row"),
        ("tokenizer.ggml.tokens: [a, b]", "tokenizer.ggml.tokens is a list of 2 texts, but the result has 320 tokens"),
        ("tokenizer.ggml.tokens: 320", "tokenizer.ggml.tokens is 320, but the result has 320 tokens"),
        ("llama.rope.freq_base: fast", "llama.rope.freq_base is 'fast', but llama.cpp reads a number there"),
        ("llama.rope.scaling.factor: '4'", "llama.rope.scaling.factor is '4', but llama.cpp reads a number there"),
        ("llama.rope.scaling.type: 1", "llama.rope.scaling.type is 1, but llama.cpp reads a text"),
        ("llama.context_length: 2.5", "llama.context_length is 2.5, but llama.cpp reads a whole number"),
        ("llama.context_length: -1", "llama.context_length is -1, but llama.cpp reads a whole number, 0 or more"),
        ("tokenizer.ggml.add_bos_token: 2", "tokenizer.ggml.add_bos_token is 2, but llama.cpp reads true or false"),
        ("tokenizer.ggml.eos_token_id: 320", "tokenizer.ggml.eos_token_id is 320, but the result has 320 tokens"),
        ("tokenizer.ggml.eot_token_id: end", "tokenizer.ggml.eot_token_id is 'end', but llama.cpp reads a whole"),
        ("general.name: 7", "general.name is 7, but llama.cpp reads a text"),
        ("general.architecture: gemma", "general.architecture is written by ggufmerge"),
        ("general.file_type: 2", "general.file_type is written by ggufmerge"),
        ("general.alignment: 64", "general.alignment is written by ggufmerge"),
        ("split.count: 2", "split.count is written by ggufmerge"),
        ("ggufmerge.source.0.sha256: x", "ggufmerge.source.0.sha256 is written by ggufmerge"),
    ],
)
def test_a_recipe_cannot_contradict_its_tensors(tmp_path: Path, metadata: str, complaint: str) -> None:
    """Nor write what the plan and the writer write."""
    with pytest.raises(GgufmergeError, match=rf"my-merge\.yaml.*: {complaint}"):
        merged(tmp_path, {}, {}, RECIPE.replace("{merge", f"{{metadata: {{{metadata}}}, merge", 1))


def test_a_recipe_may_say_what_holds(tmp_path: Path) -> None:
    """Counts that are right, and whatever the tensors do not tell."""
    chosen = "{metadata: {llama.block_count: 2, llama.vocab_size: 320, llama.context_length: 99}, merge"
    assert merged(tmp_path, {}, {}, RECIPE.replace("{merge", chosen, 1))["llama.context_length"] == 99


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        ("1", "llama.rope.scaling.factor", 1.0),
        ("0", "llama.attention.clamp_kqv", 0.0),
        ("1000000", "llama.rope.freq_base", 1e6),
        ("512.0", "llama.context_length", 512),
        ("1", "tokenizer.ggml.add_eos_token", True),
        ("2", "tokenizer.ggml.eot_token_id", 2),
    ],
)
def test_numbers_of_a_recipe_are_written_as_llama_cpp_reads_them(
    tmp_path: Path, written: str, key: str, value: object
) -> None:
    """Also under keys that no model has: llama.cpp refuses a file with 1 where it reads 1.0."""
    out = merged(tmp_path, {}, {}, RECIPE.replace("{merge", f"{{metadata: {{{key}: {written}}}, merge", 1))
    assert (out[key], type(out[key])) == (value, type(value))
    with LlamaModel(tmp_path / "out.gguf", context=32, threads=1) as model:
        assert model.logits([1, 5, 9]).any()
