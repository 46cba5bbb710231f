"""A tiny model of each architecture goes through the program, and llama.cpp loads and computes what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.architectures.names import architectures
from tests.architecture_models import TOKENS, TinyModel, each, tiny_models
from tests.llama_worker import LlamaWorker

TEXT = [(i * 37 + 5) % TOKENS for i in range(12)]
# architectures in gguf's table of names without a tiny model, and why
WITHOUT = {
    "clip": "only sees and hears, beside a model",
    "gptj": "llama.cpp has its names and no more",
}
# models that load, and do not compute logits alone
SILENT = {
    "chameleon": "llama.cpp hides the logits of its pictures, more than a tiny vocabulary has",
    "dflash": "drafts for another model",
    "eagle3": "drafts for another model",
    "gemma4-assistant": "drafts for another model",
    "plm": "its graph needs widths that no tiny model has",
    "t5": "its decoder needs what an encoder has read",
}
# quantized as llama-quantize does it they load, but llama.cpp cannot multiply by norms that are matrices then
NO_PRODUCTS = ("qwen4exp", "wavtokenizer-dec")


@pytest.fixture
def model(request: pytest.FixtureRequest) -> TinyModel:
    """The model that a test names."""
    return tiny_models()[request.param]


def checked(llama: LlamaWorker, path: Path, model: TinyModel) -> np.ndarray | None:
    """The logits of a file of the model that llama.cpp loads; None of those that compute none."""
    answer = llama.ask(path, None if model.name in SILENT else TEXT)
    assert answer.loads, answer.words
    if model.name in SILENT:
        return None
    assert answer.logits is not None, answer.words
    assert np.isfinite(answer.logits).all()
    assert answer.logits.any()
    return answer.logits


def built(folder: Path, method: str, models: Sequence[str], more: str = "") -> Path:
    """What a recipe of some models of a folder makes."""
    listed = ", ".join(f"{{model: {name}, parameters: {{weight: 0.5}}}}" for name in models)
    if method in ("passthrough", "slerp"):
        listed = ", ".join(f"{{model: {name}}}" for name in models)
    (folder / "recipe.yaml").write_text(f"{{merge_method: {method}, models: [{listed}]{more}}}", encoding="utf-8")
    ggufmerge.build(folder / "recipe.yaml", folder / f"{method}.gguf")
    return folder / f"{method}.gguf"


def test_every_architecture_has_a_model_or_a_reason():
    """Of those that llama.cpp knows."""
    assert {model.architecture for model in tiny_models().values()} | WITHOUT.keys() == set(architectures())
    assert not WITHOUT.keys() & {model.architecture for model in tiny_models().values()}


def test_models_compute_or_have_a_reason():
    """As llama.cpp said when they were made; t5 did, in two steps."""
    assert {name for name, model in tiny_models().items() if not model.runs} == SILENT.keys() - {"t5"}


@pytest.mark.parametrize("model", each(), indirect=True)
def test_it_loads_and_computes(model: TinyModel, llama: LlamaWorker, folder: Path):
    """As it is written."""
    checked(llama, model.write(folder / "a.gguf"), model)


@pytest.mark.parametrize("model", each(), indirect=True)
@pytest.mark.parametrize(("method", "times"), [("linear", 2), ("passthrough", 1)])
def test_merged_with_itself_it_is_itself(model: TinyModel, method: str, times: int, folder: Path):
    """Byte for byte, with the same settings."""
    model.write(folder / "a.gguf")
    result = built(folder, method, ["a.gguf"] * times)
    with ggufmerge.open(folder / "a.gguf") as old, ggufmerge.open(result) as new:
        assert set(new.tensors) == set(old.tensors)
        for name, tensor in old.tensors.items():
            assert new.tensors[name].type == tensor.type
            assert new.tensors[name].shape == tensor.shape
            assert np.array_equal(new.tensors[name].raw, tensor.raw), name
        for key in old.metadata:
            if not key.startswith("general."):
                assert new.metadata.raw(key) == old.metadata.raw(key), key


@pytest.mark.parametrize("model", each(), indirect=True)
@pytest.mark.parametrize(
    ("method", "more"),
    [("linear", ""), ("slerp", ", base_model: a.gguf, parameters: {t: 0.5}"), ("ties", ", base_model: a.gguf")],
)
def test_merged_with_a_tune_it_computes_something_else(
    model: TinyModel, method: str, more: str, llama: LlamaWorker, folder: Path
):
    """And loads; nothing is left that was not merged."""
    before = checked(llama, model.write(folder / "a.gguf"), model)
    model.write(folder / "b.gguf", tune=0.3)
    after = checked(llama, built(folder, method, ["a.gguf", "b.gguf"], more), model)
    if before is not None and after is not None:
        assert before.shape == after.shape
        assert not np.allclose(before, after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", each(), indirect=True)
def test_quantized_it_loads_and_computes(model: TinyModel, llama: LlamaWorker, folder: Path):
    """Rows too narrow for the type have another, as in llama-quantize."""
    model.write(folder / "a.gguf")
    ggufmerge.quantize_file(folder / "a.gguf", folder / "q.gguf", "Q4_K_M")
    if model.name in NO_PRODUCTS:
        assert llama.ask(folder / "q.gguf").loads
    else:
        checked(llama, folder / "q.gguf", model)
    with ggufmerge.open(folder / "q.gguf") as file:
        assert any(tensor.type.name != "F32" for tensor in file.tensors.values())
