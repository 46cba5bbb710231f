"""Output slices: frankenmerges copy layers byte for byte, layers are renumbered, metadata follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import PlanError
from tests.engine.conftest import raw, weights
from tests.tiny import write_tiny_llama

Build = Callable[..., Path]

STACK = """
merge_method: passthrough
slices:
  - sources: [{model: a.q8.gguf, layer_range: [0, 2]}]
  - sources: [{model: b.q8.gguf, layer_range: [0, 1]}]
  - sources: [{model: a.q8.gguf, layer_range: [1, 2]}]
"""


def test_a_stack_repeats_layers_byte_for_byte(family: Path, build: Build) -> None:
    """Four layers out of two models: a0 a1 b0 a1; embeddings from the first slice, head from the last."""
    out, a, b = raw(build(STACK)), raw(family / "a.q8.gguf"), raw(family / "b.q8.gguf")
    origin = [(a, 0), (a, 1), (b, 0), (a, 1)]
    for name, data in out.items():
        if name.startswith("blk."):
            layer, rest = name.removeprefix("blk.").split(".", 1)
            source, number = origin[int(layer)]
            assert data == source[f"blk.{number}.{rest}"], name
        else:
            assert data == a[name], name
    assert len(out) == len(a) + 2 * (len(a) - 3) // 2


def test_block_count_and_arrays_per_layer_follow_the_layers(tmp_path: Path) -> None:
    """A value per layer is taken along with its layer."""
    per_layer = {"llama.attention.head_count_kv": [2, 4], "llama.feed_forward_length": [128, 128]}
    write_tiny_llama(tmp_path / "a.gguf", kv_heads=2, metadata=per_layer)
    recipe = "{merge_method: passthrough, slices: [{sources: [{model: a.gguf, layer_range: [0, 2]}]},"
    recipe += "{sources: [{model: a.gguf, layer_range: [0, 1]}]}]}"
    (tmp_path / "r.yaml").write_text(recipe)
    ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    metadata = ggufmerge.open(tmp_path / "out.gguf").metadata
    assert metadata["llama.block_count"] == 3
    assert list(metadata["llama.attention.head_count_kv"]) == [2, 4, 2]


def test_a_gradient_runs_over_the_layers_of_its_slice(family: Path, build: Build) -> None:
    """t = [0, 1] in two slices: 0 and 1 in the first; a slice of one layer has t = 1, what is outside layers t = 0."""
    recipe = """
merge_method: slerp
base_model: a.f32.gguf
parameters: {t: [0, 1]}
slices:
  - sources: [{model: a.f32.gguf, layer_range: [0, 2]}, {model: b.f32.gguf, layer_range: [0, 2]}]
  - sources: [{model: a.f32.gguf, layer_range: [0, 1]}, {model: b.f32.gguf, layer_range: [1, 2]}]
"""
    out, a, b = (weights(p) for p in (build(recipe), family / "a.f32.gguf", family / "b.f32.gguf"))
    for name, expected in {
        "blk.0.ffn_up.weight": a["blk.0.ffn_up.weight"],
        "blk.1.ffn_up.weight": b["blk.1.ffn_up.weight"],
        "blk.2.ffn_up.weight": b["blk.1.ffn_up.weight"],
        "token_embd.weight": a["token_embd.weight"],
        "output.weight": a["output.weight"],
    }.items():
        np.testing.assert_array_equal(out[name], expected, err_msg=name)


@pytest.mark.parametrize(
    ("ranges", "complaint"),
    [
        (("[0, 3]", "[0, 3]"), "reaches past its 2 layers"),
        (("[1, 1]", "[1, 1]"), "is empty; only the first and the last"),
        (("[1, 0]", "[1, 0]"), "is empty"),
        (("[0, 2]", "[0, 1]"), "different numbers of layers"),
    ],
)
def test_ranges_that_do_not_exist_are_refused(build: Build, ranges: tuple[str, str], complaint: str) -> None:
    """With the slice, the model and its number of layers."""
    recipe = "{merge_method: slerp, base_model: a.q8.gguf, parameters: {t: 0.5}, slices: [{sources: ["
    recipe += f"{{model: a.q8.gguf, layer_range: {ranges[0]}}}, {{model: b.q8.gguf, layer_range: {ranges[1]}}}]}}]}}\n"
    with pytest.raises(PlanError, match=complaint) as caught:
        build(recipe)
    assert "slice 1" in str(caught.value)


def test_a_slice_without_layers_gives_the_embeddings_or_the_head(family: Path, build: Build) -> None:
    """mergekit's author advises it for an average with the head of one model; in between it would give nothing."""
    both = "{sources: [{model: a.f32.gguf, layer_range: [0, 2]}, {model: b.f32.gguf, layer_range: [0, 2]}]}"
    alone = "{sources: [{model: b.f32.gguf, layer_range: [%d, %d]}]}"
    recipe = "merge_method: linear\nparameters: {weight: 1}\nslices:\n- %s\n- %s\n"
    a, b = (weights(family / name) for name in ("a.f32.gguf", "b.f32.gguf"))
    for first, last, donated in (
        (both, alone % (2, 2), {"output.weight", "output_norm.weight"}),
        (alone % (0, 0), both, {"token_embd.weight"}),
    ):
        out = weights(build(recipe % (first, last), name=f"{len(donated)}.gguf"))
        assert out.keys() == a.keys()
        for name, values in out.items():
            wanted = b[name] if name in donated else (a[name] + b[name]) / 2
            np.testing.assert_allclose(values, wanted, atol=1e-6, err_msg=name)
    with pytest.raises(PlanError, match=r"none\.yaml:5:3: slice 2: layer_range \[1, 1\] is empty; only the first and"):
        build((recipe + "- %s\n") % (both, alone % (1, 1), both), name="none.gguf")
    with pytest.raises(PlanError, match="all slices are empty"):
        build(recipe % (alone % (0, 0), alone % (2, 2)), name="none.gguf")


def test_lists_that_are_as_long_by_chance_stay_as_they_are(tmp_path: Path) -> None:
    """Only what llama.cpp reads layer by layer follows the layers; the plan warns of lists that nobody knows."""
    own = {
        "llama.rope.dimension_sections": [16, 24, 24, 0],
        "llama.attention.head_count_kv": [2, 2, 1, 1],
        "llama.unheard_of": [1, 2, 3, 4],
    }
    write_tiny_llama(tmp_path / "m.gguf", layers=4, metadata=own)
    slices = "[{sources: [{model: m.gguf, layer_range: [2, 4]}]}, {sources: [{model: m.gguf, layer_range: [0, 2]}]}]"
    (tmp_path / "r.yaml").write_text(f"{{merge_method: passthrough, slices: {slices}}}\n")
    report = ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    with ggufmerge.open(tmp_path / "out.gguf") as out:
        assert list(out.metadata["llama.rope.dimension_sections"]) == [16, 24, 24, 0]
        assert list(out.metadata["llama.attention.head_count_kv"]) == [1, 1, 2, 2]
        assert list(out.metadata["llama.unheard_of"]) == [1, 2, 3, 4]
    assert [w for w in report.warnings if "llama.unheard_of" in w]
    assert not [w for w in report.warnings if "rope" in w]


def test_layers_bring_the_values_of_their_own_model(tmp_path: Path) -> None:
    """Also where the first model has one number for all of its layers."""
    write_tiny_llama(tmp_path / "a.gguf", metadata={"llama.feed_forward_length": 128})
    write_tiny_llama(tmp_path / "b.gguf", metadata={"llama.feed_forward_length": [64, 32]})
    slices = "[{sources: [{model: a.gguf, layer_range: [0, 1]}]}, {sources: [{model: b.gguf, layer_range: [0, 2]}]}]"
    (tmp_path / "r.yaml").write_text(f"{{merge_method: passthrough, slices: {slices}}}\n")
    ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    with ggufmerge.open(tmp_path / "out.gguf") as out:
        assert list(out.metadata["llama.feed_forward_length"]) == [128, 64, 32]


def test_lists_with_too_few_values_are_refused(tmp_path: Path) -> None:
    """Before anything is built."""
    write_tiny_llama(tmp_path / "m.gguf", metadata={"llama.attention.head_count": [4]})
    (tmp_path / "r.yaml").write_text(
        "{merge_method: passthrough, slices: [{sources: [{model: m.gguf, layer_range: [1, 2]}]}]}\n"
    )
    with pytest.raises(PlanError, match="head_count has 1 values, too few for layer 1"):
        ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
