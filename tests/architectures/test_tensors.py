"""Which tensors llama.cpp reads and needs, held against llama.cpp itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.architectures.tensors import lacking, unread
from tests.architecture_models import tiny_models
from tests.llama_worker import LlamaWorker
from tests.tiny import write_tiny_llama

RECIPE = "merge_method: passthrough\nmodels: [{model: m.gguf}]\n"


def test_models_that_llama_cpp_loads_have_what_it_needs_and_nothing_else() -> None:
    """All of its architectures."""
    for model in tiny_models().values():
        assert unread(model.architecture, model.tensors) == [], model.name
        if model.architecture == "hrm_text":
            continue  # its block_count counts how often layers are run
        main = model.layers - model.metadata.get(f"{model.architecture}.nextn_predict_layers", 0)
        assert lacking(model.architecture, model.tensors, main) == [], model.name


def test_what_every_layer_needs_is_missed() -> None:
    """Each tensor that is known to be needed, in any of the layers."""
    model = tiny_models()["qwen3"]
    for name in ("blk.3.attn_norm.weight", "blk.11.ffn_down.weight", "token_embd.weight"):
        assert lacking("qwen3", [n for n in model.tensors if n != name], model.layers) == [name]


@pytest.mark.parametrize("name", ["blk.1.attn_norm.weight", "output_norm.weight"])
def test_a_file_that_llama_cpp_would_not_load_is_told(tmp_path: Path, name: str) -> None:
    """A tensor that is missing from the only model is missing from the result."""
    model = tiny_models()["llama"]
    model.write(tmp_path / "m.gguf", change=lambda own, values: None if own == name else values)
    (tmp_path / "r.yaml").write_text(RECIPE)
    report = ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    assert [line for line in report.warnings if f"the result lacks {name}, without which" in line]
    with LlamaWorker() as worker:
        assert not worker.ask(tmp_path / "out.gguf").loads


@pytest.mark.parametrize("name", ["v.patch_embd.weight", "blk.0.attn_surprise.weight"])
def test_a_tensor_that_llama_cpp_does_not_know_is_told(tmp_path: Path, name: str) -> None:
    """It is kept, for programs that know it, but llama.cpp refuses the file."""
    write_tiny_llama(tmp_path / "m.gguf", extra={name: np.ones((4, 32), np.float32)})
    (tmp_path / "r.yaml").write_text(RECIPE)
    report = ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    [line] = [line for line in report.warnings if name in line]
    assert "llama.cpp v0.5.0" in line
    with LlamaWorker() as worker:
        assert not worker.ask(tmp_path / "out.gguf").loads


def test_of_an_architecture_that_llama_cpp_does_not_know_nothing_is_said() -> None:
    """Nobody knows what it needs."""
    assert unread("flux", ["double_blocks.0.img_attn.qkv.weight"]) == lacking("flux", [], 3) == []
