"""SentencePiece models and the vocabularies that GGUF files make of them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor

import ggufmerge
from ggufmerge.engine import make_plan
from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation import LlamaModel
from ggufmerge.recipe import load_recipe
from ggufmerge.tokenizers import (
    TokenType,
    Vocabulary,
    difference,
    read_tokenizer_model,
    read_vocabulary,
    write_tokenizer_model,
)
from tests.tiny import WORDS, write_tiny_llama

USER, CONTROL = int(gguf.TokenType.USER_DEFINED), int(gguf.TokenType.CONTROL)


def vocabulary_of(path: Path) -> Vocabulary:
    with ggufmerge.open(path) as file:
        return read_vocabulary(file.metadata, path.name)


@pytest.fixture(scope="module")
def union(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of two SentencePiece models with different words and added tokens, in one vocabulary."""
    folder = tmp_path_factory.mktemp("spm")
    write_tiny_llama(folder / "a.gguf", layers=1, vocab=400, added={"<tool>": USER})
    others = (*reversed(WORDS), "these", "otter")
    write_tiny_llama(folder / "b.gguf", layers=1, vocab=400, words=others, added={"<plan>": CONTROL, "two words": USER})
    recipe = "{merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}}\n"
    (folder / "r.yaml").write_text(recipe.replace("}}\n", "}, tokenizer_source: union}\n"))
    ggufmerge.build(folder / "r.yaml", folder / "out.gguf")
    return folder / "out.gguf"


def test_a_merged_vocabulary_round_trips(union: Path, tmp_path: Path) -> None:
    """Pieces, scores and types come back; only user-defined pieces count as normal, and their spaces as ▁."""
    vocabulary = vocabulary_of(union)
    write_tokenizer_model(vocabulary, tmp_path / "tokenizer.model")
    back = read_tokenizer_model(tmp_path / "tokenizer.model")
    assert back.tokens == [t.replace(" ", "▁") for t in vocabulary.tokens]
    np.testing.assert_array_equal(back.scores, vocabulary.scores)
    normal = np.where(vocabulary.types == TokenType.USER_DEFINED, TokenType.NORMAL, vocabulary.types)
    np.testing.assert_array_equal(back.types, normal)
    assert difference(vocabulary, back) is None


def test_sentencepiece_cuts_texts_as_llama_cpp_does(union: Path, tmp_path: Path) -> None:
    """Words that both models know, words of one, letters and bytes: the same ids. (Around user-defined tokens the two
    disagree about added spaces, for any vocabulary.)"""
    write_tokenizer_model(vocabulary_of(union), tmp_path / "tokenizer.model")
    model = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    dice = random.Random(7)
    texts = [" ".join(dice.choices([*WORDS, "these", "otter", "zebra", "né"], k=8)) for _ in range(100)]
    with LlamaModel(union, threads=1) as llama:
        for text in [*texts, "theotter", "  of  the", "ünï→"]:
            assert model.encode(text) == llama.tokenize(text), text


def test_the_model_beside_a_file_is_compared(union: Path, tmp_path: Path) -> None:
    """A tokenizer.model that is not the GGUF file's is a warning of the plan; one that is says nothing."""
    (tmp_path / "m.gguf").write_bytes(union.read_bytes())
    (tmp_path / "r.yaml").write_text("{merge_method: passthrough, models: [{model: m.gguf}]}\n")
    vocabulary = vocabulary_of(union)

    def warnings() -> list[str]:
        plan, _ = make_plan(load_recipe(tmp_path / "r.yaml"))
        return [w for w in plan.warnings if "tokenizer.model" in w]

    assert warnings() == []
    write_tokenizer_model(vocabulary, tmp_path / "tokenizer.model")
    assert warnings() == []
    tokens = [*vocabulary.tokens]
    tokens[300] = "other"
    write_tokenizer_model(replace(vocabulary, tokens=tokens), tmp_path / "tokenizer.model")
    [line] = warnings()
    assert line.startswith(
        "tokenizer.model in the folder of m.gguf is not its tokenizer: piece 300 is 'other', in m.gguf it is"
    )
    data = (tmp_path / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(data.replace(b"other", b"oth\xffr", 1))
    [line] = warnings()
    assert "a piece of it is not UTF-8" in line
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    [line] = warnings()
    assert "not a SentencePiece model" in line


def changed(vocabulary: Vocabulary, at: int, **values: float) -> Vocabulary:
    arrays = {key: np.array(getattr(vocabulary, key)) for key in values}
    for key, value in values.items():
        arrays[key][at] = value
    return replace(vocabulary, **arrays)


def test_differences_are_named() -> None:
    """Missing pieces, scores, types; a vocabulary may have tokens besides, and other types for special pieces."""
    types, scores = np.array([2, 3, 1, 1], np.int32), np.array([0, 0, -1, -2], np.float32)
    model = Vocabulary("tokenizer.model", "llama", ["<unk>", "<s>", "a", "b"], types, scores)
    own = replace(model, label="x.gguf")
    assert difference(own, model) is None
    assert difference(replace(own, tokens=[*own.tokens, "new"]), model) is None
    assert difference(changed(own, 2, types=4, scores=-1000), model) is None
    assert difference(replace(own, tokens=own.tokens[:3]), model) == "it has 4 pieces, x.gguf has 3 tokens"
    assert difference(changed(own, 3, scores=-5), model) == "the score of piece 3, 'b', is -2, in x.gguf it is -5"
    assert difference(changed(own, 1, types=1), model) == "piece 1, '<s>', is control, in x.gguf it is normal"


def test_what_sentencepiece_cannot_hold_is_refused(tmp_path: Path) -> None:
    """With a reason, and no file appears."""
    types = np.array([1, 1], np.int32)
    cases = {
        'of kind "gpt2"': Vocabulary("x", "gpt2", ["a", "b"], types),
        "token 1 is not UTF-8": Vocabulary("x", "llama", ["a", "\udcff"], types),
        "SentencePiece cannot hold this vocabulary": Vocabulary("x", "llama", ["a", "a"], types),
    }
    for complaint, vocabulary in cases.items():
        with pytest.raises(GgufmergeError, match=complaint):
            write_tokenizer_model(vocabulary, tmp_path / "tokenizer.model")
    with pytest.raises(GgufmergeError, match="cannot be written"):
        write_tokenizer_model(Vocabulary("x", "llama", ["a", "b"], types), tmp_path / "no" / "tokenizer.model")
    assert list(tmp_path.iterdir()) == []
