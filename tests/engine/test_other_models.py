"""Models of images and the like, which other programs keep in GGUF files: merged, where nothing needs layers."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import PlanError
from ggufmerge.places.inventory import described

SHAPES = {"img_in.weight": (64, 32), "double_blocks.0.img_attn.qkv.weight": (96, 64), "final_layer.linear.bias": (64,)}


def write_image_model(path: Path, seed: int) -> dict[str, np.ndarray]:
    """As the converter of ComfyUI-GGUF writes Flux: an architecture, and nothing that llama.cpp counts."""
    writer, random = gguf.GGUFWriter(path, "flux"), np.random.default_rng(seed)
    writer.add_quantization_version(2)
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        write_image_model(tmp_path / f"{name}.gguf", seed)
    return tmp_path


def test_models_of_images_are_merged(folder: Path) -> None:
    """Each tensor as in any other model; the result says no more about itself than its sources do."""
    text = "merge_method: linear\nmodels: [{model: a.gguf}, {model: b.gguf}]\nparameters: {weight: 1}\n"
    (folder / "r.yaml").write_text(text)
    ggufmerge.build(folder / "r.yaml", folder / "out.gguf")
    with ggufmerge.open(folder / "out.gguf") as out:
        a, b = (write_image_model(folder / "again.gguf", seed) for seed in (0, 1))
        for name, tensor in out.tensors.items():
            np.testing.assert_allclose(tensor.dequantize().reshape(SHAPES[name]), (a[name] + b[name]) / 2, rtol=1e-6)
        assert out.tensors.keys() == SHAPES.keys()
        assert not [key for key in out.metadata if key.startswith("flux.")]


def test_models_that_can_be_merged_are_of_one_family(folder: Path) -> None:
    """What is said of them keeps to what is done with them."""
    one, other = (described(name, folder / name) for name in ("a.gguf", "b.gguf"))
    assert one.family == other.family != ""


def test_their_types_are_not_chosen_layer_by_layer(folder: Path) -> None:
    """The rules are those of llama.cpp for language models; the message does not call the file damaged."""
    with pytest.raises(PlanError, match="flux is no language model, so types cannot be chosen layer by layer: use the"):
        ggufmerge.quantize_file(folder / "a.gguf", folder / "q.gguf", "Q8_0")


def test_a_language_model_without_its_count_of_layers_is_damaged(folder: Path) -> None:
    """It has layers."""
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "r.yaml").write_text("merge_method: passthrough\nmodels: [{model: m.gguf}]\n")
    with pytest.raises(ggufmerge.GgufmergeError, match=r"llama\.block_count.* is missing"):
        ggufmerge.build(folder / "r.yaml", folder / "out.gguf")
