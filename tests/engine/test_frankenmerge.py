"""Stacks of quantized layers run in llama.cpp, and compute what a model with these layers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.evaluation import LlamaModel, generate
from tests.engine.conftest import raw
from tests.models import smollm2
from tests.tiny import write_tiny_llama

PROMPT = [1, 260, 300, 271, 2, 310, 265, 299]
SHAPE = {"embed": 256, "ff": 256, "layers": 3}  # rows of whole super-blocks
# the layers of `STACK` as (model, layer)
ORIGIN = [("left", 0), ("left", 1), ("right", 0), ("right", 1), ("right", 2), ("left", 1), ("left", 2)]
STACK = """
merge_method: passthrough
slices:
  - sources: [{model: left.gguf, layer_range: [0, 2]}]
  - sources: [{model: right.gguf, layer_range: [0, 3]}]
  - sources: [{model: left.gguf, layer_range: [1, 3]}]
"""


@pytest.fixture(scope="module", params=["Q4_K", "Q8_0"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models of three layers, left and right, and `stacked`, a model of the layers in `ORIGIN`."""
    folder = tmp_path_factory.mktemp("pair")
    models = {
        "left": write_tiny_llama(folder / "left.gguf", type=request.param, **SHAPE),
        "right": write_tiny_llama(folder / "right.gguf", type=request.param, tune=(1, 0.3), **SHAPE),
    }
    layers = {
        f"blk.{i}.{name.split('.', 2)[2]}": values
        for i, (model, layer) in enumerate(ORIGIN)
        for name, values in models[model].items()
        if name.startswith(f"blk.{layer}.")
    }
    whole = SHAPE | {"layers": len(ORIGIN)}
    write_tiny_llama(folder / "stacked.gguf", type=request.param, replace=layers, **whole)
    return folder


def build(folder: Path, recipe: str, output: Path) -> Path:
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    ggufmerge.build(folder / "recipe.yaml", output)
    return output


def logits(model: Path) -> np.ndarray:
    with LlamaModel(model, context=64, threads=1) as opened:
        return opened.logits(PROMPT)


def test_every_block_of_a_stack_is_a_block_of_its_source(pair: Path, tmp_path: Path) -> None:
    """Repeated layers too are copied byte for byte."""
    out = raw(build(pair, STACK, tmp_path / "out.gguf"))
    assert out == raw(pair / "stacked.gguf")
    assert (
        out["blk.1.ffn_down.weight"] == out["blk.5.ffn_down.weight"] == raw(pair / "left.gguf")["blk.1.ffn_down.weight"]
    )


def test_a_stack_computes_in_llama_cpp_what_a_model_written_with_its_layers_computes(
    pair: Path, tmp_path: Path
) -> None:
    """To the bit: the metadata tells llama.cpp to run all layers, in order."""
    found = logits(build(pair, STACK, tmp_path / "out.gguf"))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, logits(pair / "stacked.gguf"))


def test_repeated_layers_that_add_nothing_change_nothing(pair: Path, tmp_path: Path) -> None:
    """Where attention output and ffn_down are scaled by zero, the residual stream passes through."""
    recipe = """
merge_method: passthrough
slices:
  - sources: [{model: left.gguf, layer_range: [0, 3]}]
  - sources:
      - model: left.gguf
        layer_range: [1, 3]
        parameters: {scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0.0}, {value: 1.0}]}
"""
    out = build(pair, recipe, tmp_path / "out.gguf")
    with ggufmerge.open(out) as file:
        assert file.metadata["llama.block_count"] == 5
        assert not file.tensors["blk.4.ffn_down.weight"].dequantize().any()
    np.testing.assert_array_equal(logits(out), logits(pair / "left.gguf"))


def test_a_gradient_merge_of_quantized_models_runs_between_its_ends(pair: Path, tmp_path: Path) -> None:
    """Slerp from left to right over the layers: llama.cpp computes something of both models and equal to neither."""
    recipe = """
merge_method: slerp
base_model: left.gguf
models: [{model: left.gguf}, {model: right.gguf}]
parameters: {t: [{filter: self_attn, value: [0, 1]}, {filter: mlp, value: [1, 0]}, {value: 0.5}]}
"""
    left, right, found = (
        logits(m) for m in (pair / "left.gguf", pair / "right.gguf", build(pair, recipe, tmp_path / "o"))
    )
    assert np.isfinite(found).all()
    apart = np.linalg.norm(left - right)
    for end in (left, right):
        assert 0.1 * apart < np.linalg.norm(found - end) < apart


@pytest.mark.slow
def test_a_stack_of_a_real_model_speaks(tmp_path: Path) -> None:
    """SmolLM2 with layers 12 to 17 twice, 36 in all, still goes on with the alphabet; where the second time has no
    effect, it says what SmolLM2 says."""
    model = smollm2().as_posix()
    silent = "parameters: {scale: [{filter: o_proj, value: 0}, {filter: down_proj, value: 0}, {value: 1}]}"
    said = {}
    for name, parameters in (("twice", "parameters: {}"), ("silent", silent)):
        recipe = f"""
merge_method: passthrough
slices:
  - sources: [{{model: "{model}", layer_range: [0, 18]}}]
  - sources: [{{model: "{model}", layer_range: [12, 18], {parameters}}}]
  - sources: [{{model: "{model}", layer_range: [18, 30]}}]
"""
        out = build(tmp_path, recipe, tmp_path / f"{name}.gguf")
        with ggufmerge.open(out) as file:
            assert file.metadata["llama.block_count"] == 36
        with LlamaModel(out, context=64) as opened:
            said[name] = generate(opened, "A, B, C, D, E,", max_tokens=12)
    with LlamaModel(smollm2(), context=64) as opened:
        original = generate(opened, "A, B, C, D, E,", max_tokens=12)
    assert said["silent"] == original
    assert said["twice"].startswith(" F, G,")
