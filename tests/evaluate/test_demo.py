"""The recipes and adapters of the demo do what its README says."""

from __future__ import annotations

import functools
import pathlib
import shutil

import numpy as np
import pytest

import ggufmerge
from ggufmerge.evaluate import LlamaModel, perplexity
from tests.models import smollm2

DEMO = pathlib.Path(__file__).parents[2] / "recipes" / "demo"
SUBJECTS = {"scripture": "kjv", "french": "fr", "python": "py"}
pytestmark = pytest.mark.slow


def adapter(subject: str) -> pathlib.Path:
    return DEMO / "adapters" / f"smollm2-135m-{SUBJECTS[subject]}-lora-r4.gguf"


def nll(model: LlamaModel, subject: str) -> float:
    return perplexity(model, (DEMO / "texts" / f"{subject}.txt").read_text(encoding="utf-8"), limit=512).nll


@functools.cache
def base_nll(subject: str) -> float:
    with LlamaModel(smollm2()) as model:
        return nll(model, subject)


def build(recipe: str, folder: pathlib.Path) -> pathlib.Path:
    """What a recipe of the demo makes, with the base model where scripts/demo puts it."""
    shutil.copytree(DEMO, folder / "demo", ignore=shutil.ignore_patterns("base.gguf"))
    shutil.copy(smollm2(), folder / "demo" / "base.gguf")
    ggufmerge.build(ggufmerge.load_recipe(folder / "demo" / f"{recipe}.yaml"), folder / "merge.gguf")
    return folder / "merge.gguf"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_each_adapter_knows_its_subject(subject: str) -> None:
    """An adapter applied by llama.cpp predicts its own text better than the base does."""
    with LlamaModel(smollm2(), adapters=[(adapter(subject), 1.0)]) as model:
        assert nll(model, subject) < base_nll(subject) - 0.05


@pytest.mark.parametrize("recipe", ["ties", "dare_ties", "task_arithmetic", "linear", "slerp"])
def test_each_merge_is_better_than_its_base(recipe: str, tmp_path: pathlib.Path) -> None:
    """What a recipe of the demo makes predicts every text better than the base does."""
    with LlamaModel(build(recipe, tmp_path)) as model:
        for subject in SUBJECTS:
            assert nll(model, subject) < base_nll(subject), subject


def test_a_linear_merge_is_what_llama_cpp_computes_with_adapters(tmp_path: pathlib.Path) -> None:
    """The mean of three adapted models predicts what the base with three adapters at a third predicts."""
    thirds = [(adapter(subject), 1 / 3) for subject in SUBJECTS]
    with LlamaModel(build("linear", tmp_path)) as merged, LlamaModel(smollm2(), adapters=thirds) as adapted:
        tokens = merged.tokenize((DEMO / "texts" / "scripture.txt").read_text(encoding="utf-8"))[:128]
        ours, theirs = merged.logits(tokens), adapted.logits(tokens)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.9
