"""Vocabularies, tokenizers and hyper-parameters: what models say differently of themselves is merged or told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufmerge.files import open_gguf
from tests.cases.conftest import Build, metadata, weights
from tests.tiny import CHAT_TEMPLATE, write_tiny_llama

SHAPE: dict[str, Any] = {"layers": 2, "embed": 32, "ff": 64, "heads": 2, "kv_heads": 1}
ROWS = ("token_embd.weight", "output.weight")


def linear(*models: str, more: str = "") -> str:
    listed = ", ".join(f"{{model: {name}.gguf}}" for name in models)
    return f"merge_method: linear\nbase_model: {models[0]}.gguf\nmodels: [{listed}]\nparameters: {{weight: 1}}\n{more}"


def onto(base: str, *tunes: str, weight: float = 1) -> str:
    listed = ", ".join(f"{{model: {name}.gguf}}" for name in tunes)
    head = f"merge_method: task_arithmetic\nbase_model: {base}.gguf\n"
    return f"{head}models: [{listed}]\nparameters: {{weight: {weight}}}\n"


@pytest.mark.parametrize("source", ["base", "union"])
def test_placeholders_of_a_padded_vocabulary_stay(
    folder: Path, build: Build, refused: Callable[[str], list[str]], source: str
) -> None:
    """18: arcee-ai/mergekit#425, Qwen2.5 with a padded matrix and a merge of it without. Rows that both have are
    merged, the others are those of the model that has them; without a tokenizer_source nothing is guessed.
    """
    write_tiny_llama(folder / "padded.gguf", tokenizer="bpe", vocab=384, **SHAPE)
    write_tiny_llama(folder / "cut.gguf", tokenizer="bpe", vocab=350, tune=(1, 0.05), **SHAPE)
    [line] = refused(linear("padded", "cut"))
    assert "padded.gguf has 384 tokens, cut.gguf has 350" in line
    assert "tokenizer_source: base" in line
    assert build(linear("padded", "cut", more=f"tokenizer_source: {source}\n")) == []
    padded, cut, out = (weights(f"{name}.gguf") for name in ("padded", "cut", "out"))
    for name in ROWS:
        np.testing.assert_allclose(out[name][:350], (padded[name][:350] + cut[name]) / 2, atol=1e-6)
        np.testing.assert_array_equal(out[name][350:], padded[name][350:])


def test_a_union_of_two_sentencepiece_vocabularies(folder: Path, build: Build) -> None:
    """19: arcee-ai/mergekit#139, TowerInstruct with some more tokens than ALMA."""
    write_tiny_llama(folder / "tower.gguf", words=("the", "tower"), vocab=330, added={"<|im_start|>": 3}, **SHAPE)
    write_tiny_llama(folder / "alma.gguf", words=("the", "soul"), vocab=330, tune=(1, 0.05), **SHAPE)
    build(linear("alma", "tower", more="tokenizer_source: union\n"))
    rows = {}
    for name in ("tower", "alma", "out"):
        with open_gguf(folder / f"{name}.gguf") as file:
            tokens = file.metadata["tokenizer.ggml.tokens"]
            rows[name] = dict(zip(tokens, file.tensors["token_embd.weight"].dequantize(), strict=False))
    np.testing.assert_array_equal(rows["out"]["<|im_start|>"], rows["tower"]["<|im_start|>"])
    np.testing.assert_array_equal(rows["out"]["▁soul"], rows["alma"]["▁soul"])
    np.testing.assert_allclose(rows["out"]["▁the"], (rows["tower"]["▁the"] + rows["alma"]["▁the"]) / 2, atol=1e-6)


def test_an_old_base_gets_what_it_lacks_and_is_told_where_it_differs(folder: Path, build: Build) -> None:
    """20: ggml-org/llama.cpp#7476, a base from before pre-tokenizers and with another end of text."""
    pre, template, end = "tokenizer.ggml.pre", "tokenizer.chat_template", "tokenizer.ggml.eos_token_id"
    write_tiny_llama(folder / "old.gguf", tokenizer="bpe", metadata={pre: None, template: None, end: 0}, **SHAPE)
    for number, name in enumerate(("one", "two"), 1):
        write_tiny_llama(folder / f"{name}.gguf", tokenizer="bpe", tune=(number, 0.05), **SHAPE)
    taken, differs = build(onto("old", "one", "two", weight=0.5))
    assert taken.startswith("old.gguf lacks tokenizer.ggml.pre ('gpt-2') and tokenizer.chat_template (")
    assert taken.endswith("taken from one.gguf and two.gguf, which agree")
    assert f"{end} (2 '<|im_end|>', taken 0 '<|endoftext|>')" in differs
    assert differs.endswith(f"write metadata: {{{end}: 2}}")
    assert metadata("out.gguf", pre, template, end) == ["gpt-2", CHAT_TEMPLATE, 0]
    [still] = build(onto("old", "one", "two", weight=0.5) + f"metadata: {{{end}: 2}}\n", "told")
    assert still == taken
    assert metadata("told.gguf", end) == [2]


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("tokenizer.ggml.add_bos_token", True, "true"),
        ("tokenizer.ggml.padding_token_id", 1, "1 '<|im_start|>'"),
        ("tokenizer.ggml.eot_token_id", 1, "1 '<|im_start|>'"),
        ("tokenizer.ggml.add_eos_token", True, "true"),
        ("tokenizer.ggml.pre", "qwen2", "'qwen2'"),
        ("llama.attention.layer_norm_rms_epsilon", 1e-6, "1e-06"),
        ("llama.expert_weights_scale", 2.5, "2.5"),
    ],
)
def test_any_other_key_that_a_tune_has_otherwise_is_told(
    folder: Path, build: Build, key: str, value: Any, shown: str
) -> None:
    """20 and 22: whichever key it is, with the value that is lost."""
    write_tiny_llama(folder / "base.gguf", tokenizer="bpe", **SHAPE)
    write_tiny_llama(folder / "tune.gguf", tokenizer="bpe", tune=(1, 0.05), metadata={key: value}, **SHAPE)
    [line] = build(onto("base", "tune"))
    assert f"{key} ({shown}" in line


def test_the_rotation_of_a_long_context_tune_comes_with_its_weights(folder: Path, build: Build) -> None:
    """22: arcee-ai/mergekit#325. A base that says nothing of its rotation gets the tune's; one that says something else
    keeps its own, and the difference is told.
    """
    long = {"rope.freq_base": 1e6, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    keys = [f"llama.{key}" for key in long]
    write_tiny_llama(folder / "silent.gguf", metadata={"llama.rope.freq_base": None}, **SHAPE)
    write_tiny_llama(folder / "plain.gguf", **SHAPE)
    write_tiny_llama(
        folder / "long.gguf", tune=(1, 0.05), metadata=dict(zip(keys, long.values(), strict=True)), **SHAPE
    )
    [line] = build(onto("silent", "long"))
    assert line.startswith("silent.gguf lacks llama.rope.freq_base (1e+06)")
    assert metadata("out.gguf", *keys) == list(long.values())
    [line] = build(onto("plain", "long"), "kept")
    assert "long.gguf differs from plain.gguf in llama.rope.freq_base (1e+06, taken 10000)" in line
    assert metadata("kept.gguf", *keys) == [10000.0, None, None]


def test_a_head_of_its_own_among_tied_models(folder: Path, build: Build) -> None:
    """24: arcee-ai/mergekit#464, tunes of Llama 3.2 with and without a head. A tied model lends its embedding, and a
    filter for the head means it.
    """
    tied = write_tiny_llama(folder / "tied.gguf", tied=True, **SHAPE)
    own = write_tiny_llama(folder / "own.gguf", tune=(1, 0.05), **SHAPE)
    assert build(onto("tied", "own", weight=0.5)) == []
    head = weights("out.gguf")["output.weight"]
    np.testing.assert_allclose(head, (tied["token_embd.weight"] + own["output.weight"]) / 2, atol=1e-6)
    weight = "weight: [{filter: lm_head, value: 1}, {value: 0}]"
    text = f"merge_method: linear\nmodels:\n- model: own.gguf\n  parameters: {{{weight}}}\n"
    build(
        f"{text}- model: tied.gguf\n  parameters: {{{weight.replace('value: 1', 'value: 0').replace('0}]', '1}]')}}}\n",
        "f",
    )
    np.testing.assert_array_equal(weights("f.gguf")["output.weight"], own["output.weight"])
    np.testing.assert_array_equal(weights("f.gguf")["token_embd.weight"], tied["token_embd.weight"])


@pytest.mark.parametrize("more", ["", "tokenizer_source: union\n", "tokenizer_source: base\n"])
def test_tokenizers_of_two_kinds_are_refused_whatever_is_asked_for(
    folder: Path, refused: Callable[[str], list[str]], more: str
) -> None:
    """No advice leads to another refusal."""
    write_tiny_llama(folder / "spm.gguf", **SHAPE)
    write_tiny_llama(folder / "bpe.gguf", tokenizer="bpe", **SHAPE)
    [line] = refused(linear("spm", "bpe", more=more))
    assert 'different kinds of tokenizers: spm.gguf has "llama", bpe.gguf has "gpt2"; their tokens cannot be' in line
    assert "tokenizer_source" not in line
