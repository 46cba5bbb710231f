"""Models of two stacks of layers, an encoder and a decoder (T5): gradients, filters, slices."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import PlanError
from ggufmerge.evaluation.libllama import Batch, library
from ggufmerge.evaluation.llama import LlamaModel
from tests.engine.conftest import build_report, raw, weights
from tests.tiny_t5 import write_tiny_t5

TOKENS = (5, 270, 300, 301, 2)


def logits(path: Path) -> np.ndarray:
    """float32 [vocabulary] of llama.cpp: TOKENS are encoded, then the decoder says what comes first."""
    with LlamaModel(path, threads=1) as model:
        lib, ids = library(), np.array(TOKENS, np.int32)
        lib.llama_encode.restype, lib.llama_encode.argtypes = ctypes.c_int32, [ctypes.c_void_p, Batch]
        assert lib.llama_encode(model._context, Batch(ids.size, ids.ctypes.data, None, None, None, None, None)) == 0
        return model.extend([0])


def merged(folder: Path, t: str) -> dict[str, np.ndarray]:
    """The weights of a SLERP from a to b: a where t is 0, b where it is 1."""
    recipe = f"merge_method: slerp\nbase_model: a.gguf\nmodels: [{{model: b.gguf}}]\nparameters: {{t: {t}}}\n"
    build_report(folder, recipe, folder / "out.gguf")
    return weights(folder / "out.gguf")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder with a.gguf and b.gguf, of three layers in each stack."""
    for number, name in enumerate("ab", 1):
        write_tiny_t5(tmp_path / f"{name}.gguf", tune=(number, 0.5))
    return tmp_path


def who(values: np.ndarray, a: np.ndarray, b: np.ndarray) -> str:
    """Which of two models a tensor is of; "ab" when it is of both."""
    return "".join(name for name, own in (("a", a), ("b", b)) if np.array_equal(values, own)) or "ab"


@pytest.mark.parametrize(("encoder", "decoder"), [(3, 3), (5, 3)])
def test_gradients_go_over_the_layers_of_each_stack(tmp_path: Path, encoder: int, decoder: int) -> None:
    """From the first to the last of its own layers, also where the stacks have not as many; what is outside of them
    takes the first value.
    """
    for number, name in enumerate("ab", 1):
        write_tiny_t5(tmp_path / f"{name}.gguf", encoder=encoder, decoder=decoder, tune=(number, 0.5))
    out = merged(tmp_path, "[0, 1]")
    a, b = weights(tmp_path / "a.gguf"), weights(tmp_path / "b.gguf")
    assert out.keys() == a.keys()
    for name, values in out.items():
        match = re.match(r"(enc|dec)\.blk\.(\d+)\.", name)
        layer, last = (int(match[2]), {"enc": encoder, "dec": decoder}[match[1]] - 1) if match else (0, 1)
        own = "a" if layer == 0 else "b" if layer == last else "ab"
        assert who(values, a[name], b[name]) == own, name
    assert np.isfinite(logits(tmp_path / "out.gguf")).all()


def test_filters_reach_one_stack_or_one_part_by_the_names_of_the_checkpoint(pair: Path) -> None:
    """The attention of the decoder to the encoder, and one layer of the encoder."""
    words = "[{filter: EncDecAttention, value: 1}, {filter: encoder.block.1.layer.0, value: 1}, {value: 0}]"
    out, a, b = merged(pair, words), weights(pair / "a.gguf"), weights(pair / "b.gguf")
    for name, values in out.items():
        is_meant = name.startswith("enc.blk.1.attn_") or ("cross_attn_" in name and "norm" not in name)
        assert who(values, a[name], b[name]) == ("b" if is_meant else "a"), name


STACK = """
merge_method: passthrough
slices:
  - sources: [{model: a.gguf, layer_range: [1, 3]}]
  - sources: [{model: b.gguf, layer_range: [0, 2]}]
"""


def test_a_slice_takes_the_same_layers_of_both_stacks(pair: Path) -> None:
    """Both are counted anew; the relative positions, which layer 0 has for all, stay there once in each stack."""
    build_report(pair, STACK, pair / "out.gguf")
    out, a, b = raw(pair / "out.gguf"), raw(pair / "a.gguf"), raw(pair / "b.gguf")
    origin = [(a, 1), (a, 2), (b, 0), (b, 1)]
    for name, data in out.items():
        if ".blk." in name and "attn_rel_b" not in name:
            stack, _, layer, rest = name.split(".", 3)
            source, number = origin[int(layer)]
            assert data == source[f"{stack}.blk.{number}.{rest}"], name
        else:
            assert data == (b if "output" in name else a)[name], name
    assert [name for name in out if "attn_rel_b" in name] == [
        f"{stack}.blk.0.attn_rel_b.weight" for stack in ("dec", "enc")
    ]
    with ggufmerge.open(pair / "out.gguf") as file:
        assert file.metadata["t5.block_count"] == file.metadata["t5.decoder_block_count"] == 4
    assert np.isfinite(logits(pair / "out.gguf")).all()


def test_the_plan_says_that_the_positions_stay(pair: Path) -> None:
    """Though layer 0 is left out: in what `plan` tells of the tensor."""
    (pair / "r.yaml").write_text(STACK)
    plan = ggufmerge.plan(pair / "r.yaml")
    decisions = {t.name: t.decisions for t in plan.tensors}
    assert any("holds for all layers" in line for line in decisions["enc.blk.0.attn_rel_b.weight"])


def test_all_layers_as_a_slice_are_the_model(pair: Path) -> None:
    """Byte for byte, and llama.cpp computes the same."""
    recipe = "merge_method: passthrough\nslices: [{sources: [{model: a.gguf, layer_range: [0, 3]}]}]\n"
    build_report(pair, recipe, pair / "out.gguf")
    assert raw(pair / "out.gguf") == raw(pair / "a.gguf")
    np.testing.assert_array_equal(logits(pair / "out.gguf"), logits(pair / "a.gguf"))


def test_positions_that_each_layer_has_move_with_it(tmp_path: Path) -> None:
    """As in UMT5."""
    for number, name in enumerate("ab", 1):
        write_tiny_t5(tmp_path / f"{name}.gguf", own_positions=True, tune=(number, 0.5))
    build_report(tmp_path, STACK, tmp_path / "out.gguf")
    out, a, b = raw(tmp_path / "out.gguf"), raw(tmp_path / "a.gguf"), raw(tmp_path / "b.gguf")
    for stack in ("enc", "dec"):
        found = [out[f"{stack}.blk.{i}.attn_rel_b.weight"] for i in range(4)]
        origin = [(a, 1), (a, 2), (b, 0), (b, 1)]
        assert found == [source[f"{stack}.blk.{i}.attn_rel_b.weight"] for source, i in origin]


def test_an_encoder_alone_is_one_stack(tmp_path: Path) -> None:
    """With slices as any other model, and no decoder_block_count."""
    for number, name in enumerate("ab", 1):
        write_tiny_t5(tmp_path / f"{name}.gguf", decoder=None, tune=(number, 0.5))
    build_report(tmp_path, STACK, tmp_path / "out.gguf")
    with ggufmerge.open(tmp_path / "out.gguf") as file:
        assert file.metadata["t5encoder.block_count"] == 4
        assert "t5encoder.decoder_block_count" not in file.metadata
    with LlamaModel(tmp_path / "out.gguf", threads=1):
        pass  # llama.cpp finds all tensors of four layers


def test_a_range_of_layers_cannot_mean_two_stacks_of_different_depth(tmp_path: Path) -> None:
    """Refused, with what to do."""
    for name in "ab":
        write_tiny_t5(tmp_path / f"{name}.gguf", encoder=3, decoder=2)
    (tmp_path / "r.yaml").write_text(STACK)
    with pytest.raises(
        PlanError, match=r"r\.yaml:4:5: slice 1: the encoder of a.gguf has 3 layers and its decoder 2, so"
    ):
        ggufmerge.plan(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("stated", "shown"), [(5, "decoder_block_count is u32 5"), (None, "without t5.decoder_block_count")]
)
def test_a_decoder_has_as_many_layers_as_the_metadata_say(tmp_path: Path, stated: int | None, shown: str) -> None:
    """As llama.cpp asks; without a number, as many as the encoder."""
    for name in "ab":
        write_tiny_t5(tmp_path / f"{name}.gguf", encoder=3, decoder=2, metadata={"t5.decoder_block_count": stated})
    recipe = "merge_method: linear\nmodels: [{model: a.gguf}, {model: b.gguf}]\nparameters: {weight: 1}\n"
    (tmp_path / "r.yaml").write_text(recipe)
    with pytest.raises(PlanError, match=f"{shown}.* 2 layers of a decoder"):
        ggufmerge.plan(tmp_path / "r.yaml")
