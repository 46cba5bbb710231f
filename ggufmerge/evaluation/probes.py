"""Types tried out in llama.cpp: what a suggestion really does to a model, and how sensitive its kinds of tensors are.

Each try writes a temporary file of the model, beside the place for temporary files that the system has, and compares
its predictions with those of the model as it is, on the built-in texts.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggufmerge.architectures.stacks import part_of
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.evaluation import texts
from ggufmerge.evaluation.llama import LlamaModel
from ggufmerge.evaluation.metrics import kl_divergence
from ggufmerge.places.references import find
from ggufmerge.planning.budget import Option
from ggufmerge.planning.fitting import Fitting, Market
from ggufmerge.planning.harm import Prediction
from ggufmerge.running.run import run

_COARSE = 4.5  # bits per weight of the types that a kind is probed with
_SPOKEN = 16  # tokens that speed is measured on
_TRUST = 4.0  # a probe may change the weight of a kind by so much, up or down


@dataclass(frozen=True)
class Measured:
    """kl: mean KL divergence from the model as it is, nats.  same_top: share (0 to 1) of tokens whose likeliest
    successor is the same.  speed: tokens per second, one after the other, on this machine.
    """

    kl: float
    same_top: float
    speed: float


class Bench:
    """A model in llama.cpp, to compare files of it with. Use it as a context manager.

    limit: tokens of each built-in text.  tell: is told what is being tried.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        imatrix: Sequence[str | os.PathLike[str]] = (),
        *,
        limit: int = texts.QUICK,
        threads: int | None = None,
        tell: Callable[[str], None] = lambda what: None,
    ) -> None:
        self._path, self._imatrix, self._limit, self._threads, self._tell = path, imatrix, limit, threads, tell
        self._reference = LlamaModel(find(os.fspath(path)).path, context=512, threads=threads)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self._reference.close()

    def measure(self, what: str, kind: str | Fitting) -> Measured:
        """What writing the model in a file type, or in types that were chosen, does to it."""
        self._tell(what)
        with tempfile.TemporaryDirectory(prefix="ggufmerge-") as folder:
            file = Path(folder) / "tried.gguf"
            ftype, fitted = (kind, None) if isinstance(kind, str) else (None, kind)
            plan, opened = plan_quantize(self._path, ftype, imatrix=self._imatrix, fitted=fitted)
            with opened:
                run(plan, opened, file, threads=self._threads)
            with LlamaModel(file, context=512, threads=self._threads) as model:
                found = [
                    kl_divergence(model, self._reference, texts.read(name), limit=self._limit) for name in texts.NAMES
                ]
                speed = _speed(model)
        tokens = sum(one.tokens for one in found)
        mean = sum(one.mean * one.tokens for one in found) / tokens
        return Measured(mean, sum(one.same_top * one.tokens for one in found) / tokens, speed)


def _speed(model: LlamaModel) -> float:
    """Tokens per second when they come one after the other."""
    tokens = model.tokenize(texts.read("english"))[: _SPOKEN + 1]
    model.reset()
    model.extend(tokens[:1])
    began = time.monotonic()
    for token in tokens[1:]:
        model.extend([token])
    return (len(tokens) - 1) / max(time.monotonic() - began, 1e-9)


def sensitivities(bench: Bench, market: Market) -> dict[str, float]:
    """What measuring each kind of tensor says: by part (`part_of`), how many times the predicted harm it does."""
    found = {}
    for part in dict.fromkeys(part_of(name) for name in market.prediction.options):
        fitting = _probe(market, part)
        if (predicted := fitting.harm) > 0:
            measured = bench.measure(part, fitting)
            found[part] = min(max(measured.kl / predicted, 1 / _TRUST), _TRUST)
    return found


def _probe(market: Market, part: str) -> Fitting:
    """The model with the tensors of one kind in a coarse type, everything else as it is."""
    whole = market.unchanged()

    def coarse(several: Iterable[Option]) -> Option:
        finite = [o for o in several if math.isfinite(o.harm)]
        return min(finite, key=lambda o: (abs(o.type.bits_per_weight - _COARSE), -o.harm))

    chosen = {
        name: coarse(market.prediction.options[name]) if part_of(name) == part else option
        for name, option in whole.allotted.items()
    }
    return Fitting(market, "a probe", whole.limit, chosen)


def scaled(market: Market, factors: Mapping[str, float]) -> Market:
    """A market whose harms are multiplied with what probes found, by part."""
    options = {
        name: tuple(replace(o, harm=o.harm * factors.get(part_of(name), 1.0)) for o in several)
        for name, several in market.prediction.options.items()
    }
    prediction = Prediction(options, market.prediction.statistics, dict(factors))
    mixtures = []
    for mixture in market.mixtures:
        harms = (next(o.harm for o in options[n] if o.type == mixture.types[n]) for n in options)
        mixtures.append(replace(mixture, harm=math.fsum(harms)))
    return replace(market, prediction=prediction, mixtures=tuple(mixtures))
