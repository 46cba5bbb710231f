"""Is a model any good, in words: how it compares with its base and its parents on each text.

Models read the same tokens, so they are compared token by token: the mean difference of their losses has a standard
error of its own, which is much smaller than those of the two perplexities. A difference below two of them is called
noise. Gains are in nats a token, so they add up, and the share of a gain that is kept is a share of information.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ggufmerge.evaluation.metrics import Perplexity

NONSENSE = 1000.0  # perplexity of a model that is lost; a poor one has less than 100
LOST = 3.0  # nats a token behind the base: twenty times its perplexity
SURE = 2.0  # standard errors
_TELLING = 0.3  # the standard error of a share that says something

Scores = Mapping[str, Perplexity]  # by text
Order = Literal["better", "worse", "same"]
Place = Literal["better", "best", "between", "worst", "worse", "same"]

_PLACES: dict[tuple[Order, Order], Place] = {  # by the order against the best and against the worst parent
    ("better", "better"): "better",
    ("better", "same"): "best",
    ("better", "worse"): "between",
    ("same", "better"): "best",
    ("same", "same"): "same",
    ("same", "worse"): "worst",
    ("worse", "better"): "between",
    ("worse", "same"): "worst",
    ("worse", "worse"): "worse",
}


@dataclass(frozen=True)
class Difference:
    """How many nats a token one model predicts better than another (negative: worse), and the standard error of it."""

    gain: float
    error: float

    @property
    def order(self) -> Order:
        if not abs(self.gain) > SURE * self.error:
            return "same"
        return "better" if self.gain > 0 else "worse"


@dataclass(frozen=True)
class OnText:
    """How a model stands on a text.

    base: the difference from its base; None without one.
    place: among its parents: "better" than all, as good as the "best", "between", as good as the "worst", "worse" than
    all, or the "same" as all of them, as far as these tokens tell. None without parents.
    best: the parent that predicts the text best.  gain: what that one gains, from the base, or from the worst parent.
    kept: the share of this gain that the model has, and its standard error; None when there is no gain to speak of.
    """

    text: str
    base: Difference | None = None
    place: Place | None = None
    best: str | None = None
    gain: Difference | None = None
    kept: float | None = None
    kept_error: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Of a model on all texts; `parts` say it in words, none when there is nothing to compare it with."""

    model: str
    texts: tuple[OnText, ...]
    nonsense: bool
    parts: tuple[str, ...]

    @property
    def sentence(self) -> str:
        return "; ".join(self.parts)


def difference(model: Perplexity, other: Perplexity) -> Difference | None:
    """What `model` gains over `other` on a text; None when they read it as different tokens."""
    if model.fingerprint != other.fingerprint or model.losses.shape != other.losses.shape or not model.losses.size:
        return None
    gains = other.losses - model.losses
    return Difference(float(gains.mean()), _error(gains))


def judge(
    model: str,
    scores: Scores,
    *,
    base: Scores | None = None,
    base_name: str = "its base",
    parents: Mapping[str, Scores] | None = None,
) -> Verdict:
    """The verdict on a model from its scores and those of its relatives on the same texts."""
    parents = parents or {}
    found = []
    incomparable = []
    for text, mine in scores.items():
        theirs = {name: s[text] for name, s in parents.items()}
        relatives = [*theirs.values(), *([] if base is None else [base[text]])]
        if any(difference(mine, other) is None for other in relatives):
            incomparable.append(text)
        else:
            found.append(_on_text(text, mine, None if base is None else base[text], theirs))
    low = min((s.value for s in scores.values()), default=0.0)
    lost = bool(found) and all(on.base is not None and on.base.gain < -LOST for on in found)
    if low > NONSENSE or lost:
        how = f"perplexity above {NONSENSE:.0f}" if low > NONSENSE else f"20 times the perplexity of {base_name}"
        return Verdict(model, tuple(found), True, (f"nonsense: {how} on {_texts(list(scores), len(scores))}",))
    parts = [*_against_base(found, base_name), *_among_parents(found, len(parents)), *_shares(found, len(parents))]
    if incomparable:
        where = _texts(incomparable, len(scores))
        parts.append(f"not compared on {where}, which it reads as other tokens than its relatives")
    return Verdict(model, tuple(found), False, tuple(parts))


def _on_text(text: str, mine: Perplexity, base: Perplexity | None, parents: Mapping[str, Perplexity]) -> OnText:
    against = None if base is None else _difference(mine, base)
    if not parents:
        return OnText(text, against)
    best, worst = (choose(parents, key=lambda name: parents[name].nll) for choose in (min, max))
    over_best, over_worst = _difference(mine, parents[best]), _difference(mine, parents[worst])
    place = _PLACES[over_best.order, over_worst.order]
    reference = base if base is not None else parents[worst]
    gain = _difference(parents[best], reference)
    if gain.order != "better" or (base is None and len(parents) == 1):
        return OnText(text, against, place, best, gain)
    kept = _difference(mine, reference).gain / gain.gain
    # the error of a ratio of two means over the same tokens, to first order
    rest = (reference.losses - mine.losses) - kept * (reference.losses - parents[best].losses)
    return OnText(text, against, place, best, gain, kept, _error(rest) / gain.gain)


def _difference(model: Perplexity, other: Perplexity) -> Difference:
    found = difference(model, other)
    assert found is not None, "the caller has looked whether the tokens are the same"
    return found


def _error(x: np.ndarray) -> float:
    return float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else math.inf


def _against_base(found: Sequence[OnText], name: str) -> list[str]:
    orders = {on.text: on.base.order for on in found if on.base is not None}
    words = {"better": f"better than {name}", "worse": f"worse than {name}", "same": f"as good as {name}"}
    return _told(orders, words)


def _among_parents(found: Sequence[OnText], parents: int) -> list[str]:
    places = {on.text: on.place for on in found if on.place is not None}
    if parents == 1:
        words = {"better": "better than", "same": "as good as", "worse": "worse than"}
        return _told(places, {place: f"{word} its parent" for place, word in words.items()})
    every = "both parents" if parents == 2 else "all its parents"
    words = {
        "better": f"better than {every}",
        "best": f"as good as the {'better' if parents == 2 else 'best'} of its parents",
        "between": "between its parents",
        "same": "as good as its parents",
        "worst": f"as good as the {'worse' if parents == 2 else 'worst'} of its parents",
        "worse": f"worse than {every}",
    }
    return _told(places, words)


def _told(orders: Mapping[str, str], words: Mapping[str, str]) -> list[str]:
    """`better than its base on 6 of 8 texts, worse than its base on French`, as one part; none without texts."""
    groups = {order: [text for text, found in orders.items() if found == order] for order in words}
    said = [f"{words[order]} on {_texts(texts, len(orders))}" for order, texts in groups.items() if texts]
    return [", ".join(said)] if said else []


def _shares(found: Sequence[OnText], parents: int) -> list[str]:
    """What is kept, text by text, where the tokens tell it well enough; the other texts are counted."""
    known = [on for on in found if on.kept is not None and on.kept_error is not None and on.kept_error < _TELLING]
    if not parents or not any(on.gain is not None for on in found) or (parents == 1 and found[0].base is None):
        return []
    whose = "its parent's gain" if parents == 1 else "the best parent's gain"
    if not known:
        return [f"what it keeps of {whose} cannot be told from these tokens"]
    shares = ", ".join(f"{on.text} {100 * (on.kept or 0):.0f} ± {100 * (on.kept_error or 0):.0f} %" for on in known)
    rest = len(found) - len(known)
    more = f" (cannot be told on the other{f' {rest}' if rest > 1 else ''})" if rest else ""
    return [f"keeps of {whose}: {shares}{more}"]


def _texts(texts: Sequence[str], of: int) -> str:
    """Texts by name while that is short, else how many: `both texts`, `all 8 texts`, `French and German`."""
    if len(texts) == of and of > 1:
        return "both texts" if of == 2 else f"all {of} texts"
    if len(texts) > 3:
        return f"{len(texts)} of {of} texts"
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
