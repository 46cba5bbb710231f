"""Filters of recipes over models: their words are those of the models' architecture, wherever a filter stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.engine.extract import plan_extract
from ggufmerge.errors import RecipeError
from ggufmerge.planning.explain import explain
from tests.tiny import write_tiny_llama

# a norm that no Llama has, and that Hugging Face calls post_attention_layernorm in Gemma; Llama's is ffn_norm
OTHER = "blk.0.post_attention_norm.weight"
MEANT = ["blk.0.ffn_norm.weight", "blk.1.ffn_norm.weight"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate("ab", 1):
        extra = {OTHER: np.full(64, number, np.float32)}
        write_tiny_llama(tmp_path / f"{name}.gguf", tune=(number, 0.1), extra=extra)
    return tmp_path


def planned(folder: Path, recipe: str) -> dict[str, ggufmerge.planning.plan.PlannedTensor]:
    (folder / "r.yaml").write_text(recipe)
    return {tensor.name: tensor for tensor in ggufmerge.plan(folder / "r.yaml").tensors}


MODELS = "base_model: a.gguf\nmodels: [{model: b.gguf}]\n"
WORD = "post_attention_layernorm"


def test_parameters(folder: Path) -> None:
    """Only the tensors that are meant are of the second model."""
    tensors = planned(
        folder, f"merge_method: slerp\n{MODELS}parameters: {{t: [{{filter: {WORD}, value: 1}}, {{value: 0}}]}}\n"
    )
    assert [name for name, tensor in tensors.items() if tensor.inputs[0].source == 1] == MEANT


def test_methods(folder: Path) -> None:
    """Only the tensors that are meant are merged by it."""
    methods = f"merge_method: [{{filter: {WORD}, value: slerp}}, {{value: linear}}]\n"
    tensors = planned(folder, f"{methods}{MODELS}parameters: {{t: 0.5, weight: 1}}\n")
    assert [name for name, tensor in tensors.items() if tensor.method == "slerp"] == MEANT


def test_exclude_and_graft(folder: Path) -> None:
    """Only the tensors that are meant are left out, and taken from elsewhere."""
    slerp = f"merge_method: slerp\n{MODELS}parameters: {{t: 0.5}}\n"
    left = planned(folder, f"{slerp}exclude: {WORD}\n")
    assert [name for name, tensor in left.items() if tensor.action != "merge"] == MEANT
    taken = planned(folder, f"{slerp}graft: [{{model: b.gguf, tensors: [{WORD}]}}]\n")
    assert [name for name, tensor in taken.items() if tensor.action != "merge"] == MEANT


def test_explain(folder: Path) -> None:
    """Tells of the tensors that are meant."""
    (folder / "r.yaml").write_text(f"merge_method: slerp\n{MODELS}parameters: {{t: 0.5}}\n")
    assert [found.tensor for found in explain(folder / "r.yaml", WORD)] == MEANT


def test_extract(folder: Path) -> None:
    """An adapter changes the tensors that `include` means."""
    plan, sources = plan_extract(folder / "b.gguf", folder / "a.gguf", rank=1, include=("mlp",))
    for source in sources:
        source.close()
    assert {pair.name.split(".")[2] for pair in plan.pairs} == {"ffn_gate", "ffn_up", "ffn_down"}
    assert not [name for name in plan.left_out if "ffn_" in name and "norm" not in name]


def test_of_an_architecture_that_is_not_known_it_is_said_so(folder: Path) -> None:
    """Where names of Hugging Face are used, which then mean what they mean anywhere; not where GGUF's are."""
    for name in "ab":
        data = (folder / f"{name}.gguf").read_bytes()
        (folder / f"{name}.gguf").write_bytes(
            data.replace(b"llama.", b"novel.").replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0novel", 1)
        )
    recipe = f"merge_method: slerp\n{MODELS}parameters: {{t: [{{filter: WORD, value: 1}}, {{value: 0}}]}}\n"
    tensors = planned(folder, recipe.replace("WORD", WORD))
    assert [name for name, tensor in tensors.items() if tensor.inputs[0].source == 1] == sorted([*MEANT, OTHER])
    [warning] = ggufmerge.plan(folder / "r.yaml").warnings
    assert (
        f"architecture 'novel' is new to ggufmerge, so filters by Hugging Face's names, such as \"{WORD}\"" in warning
    )
    planned(folder, recipe.replace("WORD", "ffn_norm"))
    assert ggufmerge.plan(folder / "r.yaml").warnings == ()


def test_one_expert_cannot_be_meant(tmp_path: Path) -> None:
    """GGUF keeps all of a layer in one tensor; the error says so, and how to mean them all."""
    for number, name in enumerate("ab", 1):
        write_tiny_llama(tmp_path / f"{name}.gguf", experts=4, tune=(number, 0.1))
    recipe = f"merge_method: slerp\n{MODELS}parameters: {{t: [{{filter: WORD, value: 1}}, {{value: 0}}]}}\n"
    every = planned(tmp_path, recipe.replace("WORD", "block_sparse_moe.experts"))
    chosen = [name for name, tensor in every.items() if tensor.inputs[0].source == 1]
    assert chosen == [n for n in every if "_exps." in n]
    with pytest.raises(RecipeError, match=r"block_sparse_moe\.experts\.3\.w1.* all experts of a layer in one tensor"):
        planned(tmp_path, recipe.replace("WORD", "block_sparse_moe.experts.3.w1"))
