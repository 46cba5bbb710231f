"""Perplexity and KL divergence: what must hold for any model."""

from __future__ import annotations

import pathlib
from functools import partial

import numpy as np
import pytest

from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation import LlamaModel, Perplexity, kl_divergence, perplexity
from tests.models import smollm2
from tests.tiny import write_tiny_llama

TEXT = "the history of the wind and that which was in it, as he said to the others with his hat on. " * 3


def naive_losses(model: LlamaModel, tokens: list[int]) -> list[float]:
    """-log p of every token but the first, by the definition of softmax."""
    probabilities = [np.exp(row) / np.exp(row).sum() for row in model.logits(tokens).astype(np.float64)]
    return [-np.log(p[t]) for p, t in zip(probabilities, tokens[1:], strict=False)]


def test_perplexity_of_a_uniform_model_is_its_vocabulary(tmp_path: pathlib.Path) -> None:
    """A model that finds every token equally likely is as perplexed as it has tokens, without any spread."""
    write_tiny_llama(tmp_path / "uniform.gguf", replace={"output.weight": np.zeros((320, 64))})
    with LlamaModel(tmp_path / "uniform.gguf") as model:
        found = perplexity(model, TEXT)
    assert found.value == pytest.approx(320, rel=1e-6)
    assert found.error == pytest.approx(0, abs=1e-6)


def test_perplexity_is_the_mean_over_windows(tiny: LlamaModel) -> None:
    """Each window is predicted by itself, the last partial one too; its first token is given."""
    tokens = tiny.tokenize(TEXT)
    losses = [loss for i in range(0, len(tokens), 50) for loss in naive_losses(tiny, tokens[i : i + 50])]
    found = perplexity(tiny, TEXT, context=50)
    assert found.tokens == len(losses)
    assert found.nll == pytest.approx(np.mean(losses), rel=1e-6)
    assert found.standard_error == pytest.approx(np.std(losses, ddof=1) / np.sqrt(len(losses)), rel=1e-6)


def test_windows_begin_with_bos_where_the_model_wants_it(tmp_path: pathlib.Path) -> None:
    """With BOS every token of the text is predicted, the first of each window from BOS alone."""
    write_tiny_llama(tmp_path / "spm.gguf", tokenizer="spm")
    with LlamaModel(tmp_path / "spm.gguf") as model:
        tokens = model.tokenize(TEXT)
        losses = [loss for i in range(0, len(tokens), 50) for loss in naive_losses(model, [1, *tokens[i : i + 50]])]
        found = perplexity(model, TEXT, context=50)
    assert found.tokens == len(tokens)
    assert found.nll == pytest.approx(np.mean(losses), rel=1e-6)


def test_perplexity_beyond_float64_is_infinite() -> None:
    """A model that is sure of something else has a finite loss, but no finite perplexity."""
    assert Perplexity(nll=1e6, tokens=2, standard_error=1.0).value == np.inf


def test_limit_uses_the_beginning_of_the_text(tiny: LlamaModel) -> None:
    """A limit of n tokens gives the perplexity of the text's first n tokens."""
    beginning = tiny.detokenize(tiny.tokenize(TEXT)[:20])
    assert perplexity(tiny, TEXT, context=32, limit=20) == perplexity(tiny, beginning, context=32)


def test_divergence_from_itself_is_zero(tiny: LlamaModel) -> None:
    """A model agrees with itself everywhere, and its perplexity comes along."""
    found = kl_divergence(tiny, tiny, TEXT, context=50)
    assert (found.mean, found.same_top) == (0, 1)
    assert found.perplexity == perplexity(tiny, TEXT, context=50)


def test_divergence_is_the_mean_over_positions(tmp_path: pathlib.Path, tiny: LlamaModel) -> None:
    """KL(reference || model) follows its definition, and is not symmetric."""
    write_tiny_llama(tmp_path / "tuned.gguf", tokenizer="bpe", tune=(1, 0.2))
    tokens = tiny.tokenize(TEXT)[:60]
    text = tiny.detokenize(tokens)
    with LlamaModel(tmp_path / "tuned.gguf", context=64) as tuned:
        p, q = (np.exp(m.logits(tokens[:-1]).astype(np.float64)) for m in (tiny, tuned))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        found = kl_divergence(tuned, tiny, text, context=64)
        assert found.mean == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-6)
        assert found.same_top == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
        assert found.tokens == 59
        assert kl_divergence(tiny, tuned, text, context=64).mean != pytest.approx(found.mean, rel=1e-3)


def test_other_vocabularies_cannot_be_compared(tmp_path: pathlib.Path, tiny: LlamaModel) -> None:
    """Equal vocabulary sizes are not enough: the text must be the same tokens."""
    write_tiny_llama(tmp_path / "spm.gguf", tokenizer="spm", vocab=tiny.vocabulary_size)
    with (
        LlamaModel(tmp_path / "spm.gguf") as other,
        pytest.raises(GgufmergeError, match="different vocabularies"),
    ):
        kl_divergence(tiny, other, TEXT)


@pytest.mark.parametrize(
    ("text", "context", "message"),
    [("", 32, "fewer than two tokens"), (TEXT, 65, "must be 2 to 64"), (TEXT, 1, "must be 2 to 64")],
)
def test_what_cannot_be_scored_is_refused(tiny: LlamaModel, text: str, context: int, message: str) -> None:
    """Empty texts and windows that do not fit are errors, not NaN."""
    with pytest.raises(GgufmergeError, match=message):
        perplexity(tiny, text, context=context)


@pytest.mark.slow
def test_a_real_model_understands_english() -> None:
    """SmolLM2's perplexity of plain prose is that of a working model: 135 M weights find about 20 tokens plausible."""
    with LlamaModel(smollm2()) as model:
        found = perplexity(model, (pathlib.Path(__file__).parents[2] / "LICENSE").read_text(), limit=512)
    assert 1.5 < found.value < 30


def test_a_reader_hears_of_every_token(tiny: LlamaModel) -> None:
    """Window by window, whatever is measured."""
    text = "the history of the wind " * 10
    size = len(tiny.tokenize(text))
    for measure in (perplexity, partial(kl_divergence, reference=tiny)):
        heard: list[int] = []
        measure(tiny, text=text, context=32, advance=heard.append)
        assert sum(heard) == size
        assert max(heard) == 32


def test_a_perplexity_knows_its_losses_and_tokens(tiny: LlamaModel) -> None:
    """For comparisons token by token."""
    found = perplexity(tiny, "the wind and the history", context=16)
    assert found.losses.shape == (found.tokens,)
    assert found.nll == found.losses.mean()
    assert found.fingerprint == perplexity(tiny, "the wind and the history", context=8).fingerprint
    assert found.fingerprint != perplexity(tiny, "the wind and the story", context=16).fingerprint
