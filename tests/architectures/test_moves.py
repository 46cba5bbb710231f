"""Layers that slices leave out or repeat stay what they were, in a tiny model of each architecture.

A layer that adds nothing to its input is as good as one that is left out. So a model without a layer computes what the
whole model computes when that layer has no effect, and one with a layer twice what the model itself computes when
either of both has none.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.architectures.layer_rules import layer_rules
from ggufmerge.architectures.layers import Layers
from ggufmerge.architectures.rules import ExpertStep, Period, Recurrent, Window
from ggufmerge.architectures.stacks import layer_of
from ggufmerge.errors import PlanError
from tests.architecture_models import TOKENS, TinyModel, is_output, tiny_models
from tests.llama_worker import LlamaWorker

TEXT = [(i * 37 + 5) % TOKENS for i in range(24)]
SAMPLE = ("gemma2", "glm4moe-mtp", "lfm2", "llama4", "minicpm3", "qwen3next-mtp", "smollm3")
# architectures whose layers do more with what comes in than to add to it, so that zeros do not make them idle
NORMED = "the sum goes through a norm, which is part of the layer"
MIXED = "layers mix several streams (hyper-connections)"
NO_STACK = {
    "bert": NORMED,
    "deepseek4": MIXED,
    "glm5-next": MIXED,
    "jina-bert-v2": NORMED,
    "jina-bert-v3": NORMED,
    "kimi-k3": "layers look back on the sums of others, of which idle ones change the number",
    "nomic-bert": NORMED,
    "nomic-bert-moe": NORMED,
}
PERIODIC = Window | Recurrent | ExpertStep | Period
RUNNING = [name for name, model in tiny_models().items() if model.runs and name != "t5"]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of small files."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def period(model: TinyModel) -> int:
    """After how many layers the kinds of layers repeat; 4 where they do not."""
    layers = Layers(model.architecture, model.layers, model.metadata)
    rules = [rule for rule in layer_rules(model.architecture) if isinstance(rule, PERIODIC)]
    kinds = list(zip(*(rule.of(layers)[: layers.main] for rule in rules), strict=True))
    if len(set(kinds)) < 2:
        return 4
    return next((p for p in range(2, len(kinds) // 2 + 1) if kinds[p:] == kinds[:-p]), 4)


def count_of(model: TinyModel) -> int:
    """The number of layers that have tensors: some models run theirs several times."""
    return len({layer for name in model.tensors if (layer := layer_of(name)) is not None}) or model.layers


def pieces(model: TinyModel, few: bool) -> Iterator[tuple[int, int]]:
    """The layers that are moved: each by itself, and each period. few: some of both."""
    n, p = count_of(model), period(model)
    singles = [(i, i + 1) for i in range(n)]
    periods = [(i, i + p) for i in range(0, n - p + 1, p) if p > 1 and p < n]
    yield from ([*singles[1:3], singles[-1], *periods[1:2]] if few else [*singles, *periods])


def build(model: Path, ranges: list[tuple[int, int]], output: Path) -> list[str]:
    """Put ranges of layers of a model behind each other; the warnings."""
    slices = [{"sources": [{"model": str(model), "layer_range": [a, b]}]} for a, b in ranges if a < b]
    recipe = {"merge_method": "passthrough", "slices": slices}
    return list(ggufmerge.build(recipe, output, overwrite=True, threads=1).warnings)


class Logits:
    """What llama.cpp computes with files whose layers can be without effect."""

    def __init__(self, llama: LlamaWorker) -> None:
        self._llama = llama

    def of(self, path: Path, without: Collection[int] = ()) -> np.ndarray:
        """The logits of a file, whose values are put back when some layers had to have no effect."""
        found = {}
        with ggufmerge.open(path) as file:
            for name, tensor in file.tensors.items():
                if is_output(name, without):
                    found[tensor.offset] = tensor.raw.tobytes()
        self._write(path, {offset: bytes(len(values)) for offset, values in found.items()})
        answer = self._llama.ask(path, TEXT)
        self._write(path, found)
        assert answer.loads, answer.words
        assert answer.logits is not None, answer.words
        return answer.logits

    @staticmethod
    def _write(path: Path, values: dict[int, bytes]) -> None:
        with path.open("r+b") as file:
            for offset, content in values.items():
                file.seek(offset)
                file.write(content)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two models compute the same, up to the order of sums."""
    return bool(np.abs(a - b).max() <= 1e-3 * np.abs(a).max())


def refused(error: PlanError, path: Path) -> bool:
    """Whether an error says which layer is the matter, and which ranges are not."""
    text = str(error)
    ranges = "ranges that fit: [" in text or "cannot have other layers" in text
    return "layer" in text and path.name in text and ranges


def moves(name: str, llama: LlamaWorker, folder: Path, few: bool) -> dict[str, int]:
    """Leave out and repeat pieces of a model; how many were refused, warned of, and equal."""
    model = tiny_models()[name]
    path, whole, result = folder / "model.gguf", folder / "whole.gguf", folder / "result.gguf"
    model.write(path)
    shutil.copyfile(path, whole)
    logits, count = Logits(llama), dict.fromkeys(("refused", "warned", "equal", "loaded"), 0)
    expected, n = logits.of(whole), count_of(model)
    differs = matters = False
    for a, b in pieces(model, few):
        for is_copy in (False, True):
            try:
                warnings = build(path, [(0, b), (a, n)] if is_copy else [(0, a), (b, n)], result)
            except PlanError as error:
                if not refused(error, path):
                    raise
                count["refused"] += 1
                continue
            if is_copy:
                pairs = [(expected, logits.of(result, range(a, b))), (expected, logits.of(result, range(b, b + b - a)))]
            else:
                pairs = [(logits.of(whole, range(a, b)), logits.of(result))]
                matters = matters or not same(expected, pairs[0][1])
            equal = all(same(*pair) for pair in pairs)
            differs = differs or not equal
            if model.architecture in NO_STACK:
                count["loaded"] += 1
            elif equal:
                count["equal"] += 1
            else:
                assert any("but would get" in line for line in warnings), (a, b, is_copy)
                count["warned"] += 1
    assert matters or count["refused"]
    assert differs == (model.architecture in NO_STACK or count["warned"] > 0)
    return count


@pytest.mark.parametrize("name", [name for name in SAMPLE if name in RUNNING])
def test_layers_keep_what_they_are(name: str, llama: LlamaWorker, folder: Path):
    """Some of them."""
    assert sum(moves(name, llama, folder, few=True).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNING)
def test_all_layers_keep_what_they_are(name: str, llama: LlamaWorker, folder: Path):
    """Each layer, and each period, left out and repeated."""
    assert sum(moves(name, llama, folder, few=False).values())
