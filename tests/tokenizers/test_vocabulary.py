"""Vocabularies out of GGUF metadata: what they hold, and files that llama.cpp would refuse or misread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import PlanError
from ggufmerge.files import MetadataEditor
from ggufmerge.tokenizers import TokenType, Vocabulary, read_vocabulary
from tests.tiny import write_tiny_llama


def metadata(**values: Any) -> MetadataEditor:
    """Metadata of a vocabulary of three tokens; `_` in a name is a dot, None removes the key."""
    editor = MetadataEditor()
    known = {"model": "llama", "tokens": ["a", "b", "c"], "scores": np.zeros(3, np.float32), "token_type": [1, 3, 1]}
    for key, value in {**known, **values}.items():
        if value is not None:
            editor.set(f"tokenizer.ggml.{key}", value)
    return editor


def read(**values: Any) -> Vocabulary:
    return read_vocabulary(metadata(**values), "x.gguf")


def test_a_vocabulary_is_read_with_its_ids(tmp_path: Path) -> None:
    """Tokens, types, special ids, placeholders; scores only where there are some."""
    write_tiny_llama(tmp_path / "m.gguf", tokenizer="bpe", vocab=300)
    with ggufmerge.open(tmp_path / "m.gguf") as file:
        vocabulary = read_vocabulary(file.metadata, "m")
    assert (vocabulary.kind, vocabulary.pre, len(vocabulary), vocabulary.rows) == ("gpt2", "gpt-2", 300, 300)
    assert vocabulary.special_ids == {"bos": 0, "eos": 2, "padding": 0}
    assert vocabulary.tokens[vocabulary.index["<|im_end|>"]] == "<|im_end|>"
    assert vocabulary.types[1] == TokenType.CONTROL
    assert vocabulary.padding.tolist() == [False] * 292 + [True] * 8
    assert vocabulary.scores is None


def test_bytes_survive() -> None:
    """A token that is not UTF-8 is compared and written as the bytes it is."""
    token = b"\xff\x00z".decode("utf-8", "surrogateescape")
    editor = metadata(tokens=["a", token, "c"])
    vocabulary = read_vocabulary(editor, "x")
    assert vocabulary.index[token] == 1
    written = MetadataEditor(editor)
    written.set("tokenizer.ggml.tokens", vocabulary.tokens)
    assert written.raw("tokenizer.ggml.tokens") == editor.raw("tokenizer.ggml.tokens")


def test_tokens_without_a_text_get_one() -> None:
    """As in llama.cpp, where they would otherwise be one token."""
    assert read(tokens=["", "b", ""]).tokens == ["[EMPTY_0]", "b", "[EMPTY_2]"]


def test_a_longer_list_of_scores_is_cut() -> None:
    """llama.cpp reads as many as there are tokens."""
    vocabulary = read(scores=np.arange(5, dtype=np.float32), token_type=[1, 2, 3, 4, 5])
    assert vocabulary.scores is not None
    assert vocabulary.scores.tolist() == [0, 1, 2]
    assert vocabulary.types.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"model": None}, "holds no vocabulary"),
        ({"model": 7}, "not a text"),
        ({"tokens": None}, "holds no vocabulary"),
        ({"tokens": "abc"}, "tokens is not a list of texts"),
        ({"tokens": [1, 2, 3]}, "tokens is not a list of texts"),
        ({"tokens": ["a", "b", "a"]}, "the token 'a' appears 2 times"),
        ({"scores": np.zeros(2, np.float32)}, "scores has 2 values for 3 tokens"),
        ({"scores": ["1", "2", "3"]}, "scores is not a list of F32 numbers"),
        ({"scores": 1.0}, "scores is not a list of F32 numbers"),
        ({"token_type": [1, 1]}, "token_type has 2 values for 3 tokens"),
        ({"token_type": np.ones(3, np.float32)}, "token_type is not a list of I32 numbers"),
    ],
)
def test_damaged_vocabularies_are_refused(values: dict[str, Any], complaint: str) -> None:
    """In one line that names the file and the key."""
    with pytest.raises(PlanError, match=rf"^x\.gguf: .*{complaint}"):
        read(**values)


def test_ids_out_of_range_have_no_role() -> None:
    """llama.cpp ignores them, too."""
    assert read(bos_token_id=1, eos_token_id=3, eot_token_id="b").special_ids == {"bos": 1}
