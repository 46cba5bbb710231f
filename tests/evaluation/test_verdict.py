"""What is said of a model from its losses and those of its relatives."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from ggufmerge.evaluation.metrics import Perplexity
from ggufmerge.evaluation.verdict import difference, judge

N = 400
NOISE = np.random.default_rng(0).standard_normal(N)


def score(nll: float, *, wobble: float = 0.0, seed: int = 1, fingerprint: str = "x") -> Perplexity:
    """A reading whose tokens are all hard or easy together with those of every other one, but for a wobble."""
    own = np.random.default_rng(seed).standard_normal(N)
    losses = nll + NOISE + wobble * (own - own.mean())
    return Perplexity(float(losses.mean()), N, float(losses.std() / N**0.5), losses, fingerprint)


def said(mine: Mapping[str, float], base: float | None = 3.0, **parents: Mapping[str, float]) -> str:
    """The sentence about a model with these mean losses."""
    texts = {text: score(nll) for text, nll in mine.items()}
    return judge(
        "m",
        texts,
        base=None if base is None else {text: score(base) for text in mine},
        parents={name: {text: score(nll) for text, nll in nlls.items()} for name, nlls in parents.items()},
    ).sentence


def test_a_small_difference_that_all_tokens_show_counts() -> None:
    """Models are compared token by token, so the spread of the text does not hide it."""
    found = difference(score(2.9, wobble=0.1), score(3.0))
    assert found is not None
    assert found.order == "better"
    assert found.gain == pytest.approx(0.1)
    assert found.error < 0.2 * score(3.0).standard_error


def test_noise_is_no_difference() -> None:
    """Less than two standard errors."""
    found = difference(score(2.99, wobble=1.0), score(3.0))
    assert found is not None
    assert found.order == "same"


def test_other_tokens_cannot_be_compared() -> None:
    """The figures are of other things; the text is named."""
    assert difference(score(2, fingerprint="x"), score(3, fingerprint="y")) is None
    verdict = judge("m", {"t": score(2)}, base={"t": score(3, fingerprint="y")})
    assert verdict.sentence == "not compared on t, which it reads as other tokens than its relatives"


def test_between_two_parents_with_the_shares_of_their_gains() -> None:
    """The share is that of the best parent on the text, in nats from the base."""
    sentence = said({"fr": 2.16, "py": 2.5}, a={"fr": 2.0, "py": 2.9}, b={"fr": 3.1, "py": 2.0})
    assert sentence == (
        "better than its base on both texts; between its parents on both texts; "
        "keeps of the best parent's gain: fr 84 ± 0 %, py 50 ± 0 %"
    )


def test_without_a_base_the_worse_parent_stands_for_it() -> None:
    """What the better one is ahead by is what can be kept."""
    sentence = said({"t": 2.25}, None, a={"t": 2.0}, b={"t": 3.0})
    assert sentence == "between its parents on t; keeps of the best parent's gain: t 75 ± 0 %"


def test_better_and_worse_are_told_by_text() -> None:
    """Few texts by name, many by number."""
    assert said({"a": 2.0, "b": 4.0}) == "better than its base on a, worse than its base on b"
    many = {f"t{i}": 2.0 for i in range(6)} | {"x": 4.0}
    assert said(many) == "better than its base on 6 of 7 texts, worse than its base on x"
    sentence = said({"a": 1.0}, p={"a": 2.0}, q={"a": 2.5})
    assert sentence.startswith("better than its base on a; better than both parents on a")


def test_an_unsure_share_is_not_told() -> None:
    """When the parent gains nothing to speak of, or the tokens leave more than a half open."""
    assert said({"t": 2.0}, p={"t": 3.0}, q={"t": 3.2}).endswith("gain cannot be told from these tokens")
    some = said({"t": 2.5, "u": 2.0}, p={"t": 2.0, "u": 3.0}, q={"t": 3.2, "u": 3.2})
    assert some.endswith("keeps of the best parent's gain: t 50 ± 0 % (cannot be told on the other)")
    wobbling = judge(
        "m",
        {"t": score(2.95, wobble=1, seed=2)},
        base={"t": score(3)},
        parents={"p": {"t": score(2.88, wobble=1.1, seed=3)}},
    )
    assert wobbling.texts[0].gain is not None
    assert "cannot be told" in wobbling.sentence


def test_the_error_of_a_share_is_that_of_many_texts() -> None:
    """As far as a ratio's is known to first order."""
    random = np.random.default_rng(5)
    shares, errors = [], []
    for _ in range(200):
        base = 3 + random.standard_normal(N)
        mine, parent = base - 0.4 + random.standard_normal(N), base - 0.8 + random.standard_normal(N)
        models = [Perplexity(float(x.mean()), N, 0.05, x, "x") for x in (mine, base, parent)]
        (found,) = judge("m", {"t": models[0]}, base={"t": models[1]}, parents={"p": {"t": models[2]}}).texts
        assert found.kept is not None
        assert found.kept_error is not None
        shares.append(found.kept)
        errors.append(found.kept_error)
    assert np.mean(errors) == pytest.approx(np.std(shares), rel=0.15)


def test_nonsense_is_called_so() -> None:
    """A perplexity that no model with any sense has on any of the texts, or far behind the base on all."""
    assert said({"a": 7.5, "b": 8.0}) == "nonsense: perplexity above 1000 on both texts"
    assert said({"a": 6.5}) == "nonsense: 20 times the perplexity of its base on a"
    assert "nonsense" not in said({"a": 7.5, "b": 3.0})


def test_nothing_to_compare_with_is_nothing_said() -> None:
    """A single model that makes sense."""
    assert said({"a": 3.0}, None) == ""
