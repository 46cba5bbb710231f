"""Perplexity of a text and KL divergence between two models: llama.cpp's accepted measures of quality.

A text is cut into windows of `context` tokens. Each window is computed by itself, and every token of it but the first
is predicted from those before it; where the model wants one, the window begins with BOS and all its text is predicted.
(llama-perplexity scores the second half of each window only and drops the last, partial one: its figures are lower
by some percent, and need long texts.)
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation.llama import LlamaModel

_LARGEST_EXPONENT = math.log(sys.float_info.max)
_ROWS = 32  # logits are turned into float64 probabilities for so many tokens at once, to keep memory flat


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    nll: mean negative log-likelihood of a token, in nats. tokens: how many were predicted.
    standard_error: of `nll`; NaN for a single token.
    losses: float64 [tokens], the negative log-likelihood of each.
    fingerprint: of the token ids; only readings of the same tokens can be compared token by token.
    """

    nll: float
    tokens: int
    standard_error: float
    losses: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)
    fingerprint: str = field(default="", repr=False, compare=False)

    @property
    def value(self) -> float:
        """The perplexity, exp(nll); infinite where a float64 cannot hold it."""
        return math.exp(self.nll) if self.nll < _LARGEST_EXPONENT else math.inf

    @property
    def error(self) -> float:
        """The standard error of the perplexity, to first order."""
        return self.value * self.standard_error


@dataclass(frozen=True)
class KLDivergence:
    """How far a model's predictions are from those of a reference over a text.

    mean: mean of KL(reference || model) over the predicted tokens, in nats. standard_error: of the mean.
    same_top: share (0 to 1) of positions where both find the same token most likely.
    perplexity: of the model on the text, which comes for free. tokens: positions compared.
    """

    mean: float
    standard_error: float
    same_top: float
    tokens: int
    perplexity: Perplexity


def perplexity(
    model: LlamaModel,
    text: str,
    *,
    context: int = 256,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Perplexity:
    """Perplexity of a text, in windows of `context` tokens; `limit`: use only its first so many tokens.

    advance: is told after each window how many tokens of the text are done with it.
    Raises GgufmergeError when the text has fewer than two tokens or the window does not fit the model's context.
    """
    losses = []
    tokens = _tokens(model, text, limit)
    for inputs, following, size in _windows(model, tokens, context):
        losses += [_losses(_log_softmax(rows), targets) for rows, targets in _blocks(model.logits(inputs), following)]
        advance(size)
    return _perplexity(np.concatenate(losses), tokens)


def kl_divergence(
    model: LlamaModel,
    reference: LlamaModel,
    text: str,
    *,
    context: int = 256,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> KLDivergence:
    """Mean KL(reference || model) over a text, with windows and `advance` as in `perplexity`.

    Raises GgufmergeError when the two models do not read the text as the same tokens.
    """
    if model.vocabulary_size != reference.vocabulary_size or model.tokenize(text) != reference.tokenize(text):
        raise GgufmergeError(
            f"{model.path} and {reference.path} have different vocabularies, so their predictions cannot be compared"
        )
    losses, divergences, same = [], [], 0
    tokens = _tokens(model, text, limit)
    for inputs, following, size in _windows(model, tokens, context):
        ours, theirs = model.logits(inputs), reference.logits(inputs)
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        for (q, targets), (p, _) in zip(_blocks(ours, following), _blocks(theirs, following), strict=True):
            log_q, log_p = _log_softmax(q), _log_softmax(p)
            divergences.append((np.exp(log_p) * (log_p - log_q)).sum(1))
            losses.append(_losses(log_q, targets))
        advance(size)
    each = np.concatenate(divergences)
    mine = _perplexity(np.concatenate(losses), tokens)
    return KLDivergence(float(each.mean()), _standard_error(each), same / each.size, each.size, mine)


def _tokens(model: LlamaModel, text: str, limit: int | None) -> NDArray[np.int32]:
    tokens = np.array(model.tokenize(text)[:limit], np.int32)
    if tokens.size < 2:
        raise GgufmergeError("the text has fewer than two tokens: nothing to predict")
    return tokens


def _windows(
    model: LlamaModel, tokens: NDArray[np.int32], context: int
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], int]]:
    """Inputs int32 [n] of each window, the tokens int32 [n] that follow each of them, and how many the window has."""
    if not 2 <= context <= model.context:
        raise GgufmergeError(f"windows of {context} tokens: must be 2 to {model.context}, the model's context")
    begin = [] if model.begin_token is None else [model.begin_token]
    for start in range(0, tokens.size, context):
        window = np.concatenate([np.array(begin, np.int32), tokens[start : start + context]])
        if window.size > 1:
            yield window[:-1], window[1:], window.size - len(begin)


def _blocks(
    logits: NDArray[np.float32], targets: NDArray[np.int32]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    for i in range(0, len(targets), _ROWS):
        yield logits[i : i + _ROWS], targets[i : i + _ROWS]


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _losses(log_probabilities: NDArray[np.float64], targets: NDArray[np.int32]) -> NDArray[np.float64]:
    return -np.take_along_axis(log_probabilities, targets[:, None], 1)[:, 0]


def _perplexity(losses: NDArray[np.float64], tokens: NDArray[np.int32]) -> Perplexity:
    fingerprint = hashlib.blake2b(tokens.tobytes(), digest_size=8).hexdigest()
    return Perplexity(float(losses.mean()), losses.size, _standard_error(losses), losses, fingerprint)


def _standard_error(x: NDArray[np.float64]) -> float:
    return float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else math.nan
