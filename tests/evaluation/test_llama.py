"""The binding to llama.cpp: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest

from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation import LlamaModel
from tests.tiny import write_tiny_llama, write_tiny_lora

TEXT = "the history of the wind and that which was in it"


def test_logits_have_a_row_for_each_token(tiny: LlamaModel) -> None:
    """Every token of a sequence gets finite logits over the whole vocabulary, up to a full context."""
    logits = tiny.logits([5] * tiny.context)
    assert logits.shape == (tiny.context, tiny.vocabulary_size)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_repeated_calls_are_equal(tiny: LlamaModel) -> None:
    """A sequence is computed from its beginning, whatever was computed before."""
    tokens = tiny.tokenize(TEXT)
    first = tiny.logits(tokens)
    tiny.logits(tokens[::-1])
    assert np.array_equal(first, tiny.logits(tokens))


def test_extend_continues_the_sequence(tiny: LlamaModel) -> None:
    """Feeding a sequence in pieces gives the logits of feeding it at once."""
    tokens = tiny.tokenize(TEXT)
    whole = tiny.logits(tokens)
    tiny.reset()
    tiny.extend(tokens[:4])
    np.testing.assert_allclose(tiny.extend(tokens[4:]), whole[-1], atol=1e-2)


@pytest.mark.parametrize("text", ["the wind", " naïve façade 😀\n", "", "<|im_end|>"])
def test_text_survives_tokenizing(tiny: LlamaModel, text: str) -> None:
    """Detokenizing gives the text back, also when it looks like a control token."""
    assert tiny.detokenize(tiny.tokenize(text)) == text


def test_control_tokens_are_read_only_on_demand(tiny: LlamaModel) -> None:
    """A control token's name is plain text unless `special` says otherwise."""
    assert len(tiny.tokenize("<|im_end|>")) > 1
    assert [tiny.is_end(t) for t in tiny.tokenize("<|im_end|>", special=True)] == [True]


def test_begin_token_is_what_the_file_says(tmp_path: pathlib.Path, tiny: LlamaModel) -> None:
    """BOS is reported only for models that want it before a text."""
    write_tiny_llama(tmp_path / "spm.gguf", tokenizer="spm")
    with LlamaModel(tmp_path / "spm.gguf") as model:
        assert (model.begin_token, tiny.begin_token) == (1, None)


def test_adapters_change_logits_as_their_merge_does(tmp_path: pathlib.Path) -> None:
    """A model with an adapter at a strength predicts what the model with the delta added predicts."""
    weights = write_tiny_llama(tmp_path / "base.gguf", tokenizer="bpe")
    deltas = write_tiny_lora(tmp_path / "lora.gguf", weights, strength=0.5)
    merged = {name: weights[name] + np.float32(0.5) * delta for name, delta in deltas.items()}
    write_tiny_llama(tmp_path / "merged.gguf", tokenizer="bpe", replace=merged)

    logits = []
    for path, adapters in (("base", []), ("base", [(tmp_path / "lora.gguf", 0.5)]), ("merged", [])):
        with LlamaModel(tmp_path / f"{path}.gguf", adapters=adapters) as model:
            logits.append(model.logits(model.tokenize(TEXT)))
    base, adapted, expected = logits
    np.testing.assert_allclose(adapted, expected, atol=1e-2)
    assert np.abs(adapted - base).max() > 0.1


def test_a_broken_file_is_refused_with_llama_cpps_words(tmp_path: pathlib.Path) -> None:
    """The error names the file and carries what llama.cpp said about it."""
    path = tmp_path / "broken.gguf"
    write_tiny_llama(path, metadata={"llama.block_count": 3})
    with pytest.raises(GgufmergeError, match=r"llama\.cpp refuses .*broken\.gguf: .*'blk\.2\..*' not found"):
        LlamaModel(path)


def test_nan_in_weights_is_refused(tmp_path: pathlib.Path) -> None:
    """Tensors are checked when loading, so a NaN never reaches a figure."""
    path = tmp_path / "nan.gguf"
    write_tiny_llama(path, replace={"output.weight": np.full((320, 64), np.nan)})
    with pytest.raises(GgufmergeError, match="invalid data"):
        LlamaModel(path)


def test_weights_that_overflow_are_refused(tmp_path: pathlib.Path) -> None:
    """Finite weights that give infinite logits end in an error, not in NaN figures."""
    path = tmp_path / "huge.gguf"
    write_tiny_llama(path, replace={"output.weight": np.full((320, 64), 1e38)})
    with LlamaModel(path) as model, pytest.raises(GgufmergeError, match="NaN or infinite"):
        model.logits([1, 2, 3])


def test_a_foreign_adapter_is_refused(tmp_path: pathlib.Path, tiny_path: pathlib.Path) -> None:
    """An adapter made for another shape is refused by name."""
    other = write_tiny_llama(tmp_path / "wide.gguf", embed=128)
    write_tiny_lora(tmp_path / "wide-lora.gguf", other)
    with pytest.raises(GgufmergeError, match=r"refuses the adapter .*wide-lora\.gguf: .*shape"):
        LlamaModel(tiny_path, adapters=[(tmp_path / "wide-lora.gguf", 1.0)])


def test_a_missing_file_is_the_systems_error(tmp_path: pathlib.Path) -> None:
    """A path that does not exist is an OSError that names it."""
    with pytest.raises(FileNotFoundError, match="absent"):
        LlamaModel(tmp_path / "absent.gguf")


def test_more_tokens_than_the_context_are_refused(tiny: LlamaModel) -> None:
    """A sequence that does not fit is refused before it is computed, and so is one that grows too long."""
    with pytest.raises(GgufmergeError, match="65 tokens do not fit the context of 64"):
        tiny.logits([1] * 65)
    tiny.logits([1] * 64)
    with pytest.raises(GgufmergeError, match="65 tokens do not fit the context of 64"):
        tiny.extend([1])


@pytest.mark.parametrize("tokens", [[], [-1], [320], [[1, 2]]])
def test_bad_tokens_are_refused(tiny: LlamaModel, tokens: list) -> None:
    """Ids that llama.cpp would read past its tables for never reach it."""
    with pytest.raises(ValueError, match="token"):
        tiny.logits(tokens)


def test_a_closed_model_is_not_used(tiny_path: pathlib.Path) -> None:
    """After closing, which may be done twice, calls fail instead of touching freed memory."""
    model = LlamaModel(tiny_path)
    model.close()
    model.close()
    for use in (lambda: model.logits([1]), lambda: model.tokenize("x"), lambda: model.extend([1])):
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_a_busy_machine_gets_fewer_threads(tiny_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as got processors; the figures stay. Not when the user has said how many."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    with LlamaModel(tiny_path, context=16) as model, LlamaModel(tiny_path, context=16, threads=4) as fixed:
        before = model.logits([1, 2, 3])
        model._make_room(wall=2.0, busy=14.0)
        assert model.threads == 8
        model._make_room(wall=2.0, busy=4.2)
        assert model.threads == 2
        np.testing.assert_allclose(model.logits([1, 2, 3]), before, rtol=1e-4, atol=1e-4)
        fixed._make_room(wall=2.0, busy=0.2)
        assert fixed.threads == 4
