"""Models of images and the like, which other programs keep in GGUF files: merged, where nothing needs layers."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import PlanError
from ggufmerge.places.inventory import described
from ggufmerge.sinks import OllamaSink
from tests.tiny import write_tiny_llama

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


SENSES = {"v.blk.0.attn_q.weight": np.full((32, 32), 2, np.float32), "mm.0.weight": np.full((4, 32), 3, np.float32)}
BOTH = "merge_method: linear\nmodels: [{model: %s.gguf}, {model: %s.gguf}]\nparameters: {weight: 1}\n"


def test_vision_in_the_file_of_the_model_stays_with_the_model_that_has_it(tmp_path: Path) -> None:
    """As Ollama keeps it: taken from the model that the result takes after, else left out with a warning."""
    plain = write_tiny_llama(tmp_path / "plain.gguf")
    seeing = write_tiny_llama(tmp_path / "seeing.gguf", tune=(1, 0.02), extra=SENSES)
    for first, second in (("seeing", "plain"), ("plain", "seeing")):
        (tmp_path / "r.yaml").write_text(BOTH % (first, second))
        report = ggufmerge.build(tmp_path / "r.yaml", tmp_path / f"{first}.out.gguf")
        with ggufmerge.open(tmp_path / f"{first}.out.gguf") as out:
            got = {name: tensor.dequantize() for name, tensor in out.tensors.items()}
        if first == "seeing":
            assert got.keys() == plain.keys() | SENSES.keys()
            for name, values in SENSES.items():
                np.testing.assert_array_equal(got[name], values)
            [line] = report.warnings
            assert "llama.cpp v0.5.0 does not load a language model that has them" in line
        else:
            assert got.keys() == plain.keys()
            assert [line for line in report.warnings if "seeing.gguf: 2 tensors of vision or sound (v.blk.0" in line]
        name = "blk.0.ffn_up.weight"
        np.testing.assert_allclose(got[name], (plain[name] + seeing[name]) / 2, atol=1e-6)


NAMED = (("glm4", "glm4"), ("glmocr", "glmocr"))


def test_a_model_in_ollamas_own_layout_is_named(tmp_path: Path) -> None:
    """gpt-oss is gptoss there; another architecture is just another one."""
    for name, architecture in (("hub", "gpt-oss"), ("ollama", "gptoss"), ("other", "qwen3"), *NAMED):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", architecture)
        writer.add_block_count(1)
        writer.add_tensor("blk.0.attn_q.weight", np.zeros((32, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    for first, second, told in (
        (
            "ollama",
            "hub",
            r"'gptoss' is how Ollama calls 'gpt-oss': make hub\.gguf the base, or without a base the first",
        ),
        ("hub", "other", "only fine-tunes of one base"),
        (
            "glm4",
            "glmocr",
            r"'glmocr' is how Ollama calls 'glm4', and its files have other tensors: take both from Hug",
        ),
    ):
        (tmp_path / "r.yaml").write_text(BOTH % (first, second))
        with pytest.raises(PlanError, match=told):
            ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")


def test_experts_that_an_importance_matrix_never_saw_are_told(tmp_path: Path) -> None:
    """They are quantized as without one, which llama-quantize does, too, and nobody would know."""
    weights = write_tiny_llama(tmp_path / "m.gguf", embed=256, ff=256, experts=4)
    writer = gguf.GGUFWriter(tmp_path / "imatrix.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in weights.items():
        if values.ndim > 1 and name.startswith("blk."):
            count = values.shape[0] if values.ndim == 3 else 1
            counts = np.full((count, 1), 7, np.float32)
            counts[1 : 3 if "gate_exps" in name else 1] = 0
            writer.add_tensor(f"{name}.in_sum2", np.ones((count, values.shape[-1]), np.float32))
            writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    matrix = [tmp_path / "imatrix.gguf"]
    report = ggufmerge.quantize_file(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q4_K_M", imatrix=matrix)
    [line] = [line for line in report.warnings if "experts" in line]
    assert "never saw 2 of the experts of blk.0.ffn_gate_exps.weight, and some of 1 more: they are quantized" in line


def test_a_gradient_without_layers_is_told(folder: Path) -> None:
    """Nothing says where a tensor of an image model stands, so all get one value."""
    text = "merge_method: linear\nmodels: [{model: a.gguf, parameters: {weight: [0, 1]}}, {model: b.gguf}]\n"
    (folder / "r.yaml").write_text(text + "parameters: {weight: 1}\n")
    report = ggufmerge.build(folder / "r.yaml", folder / "out.gguf")
    [line] = report.warnings
    assert "no tensor is in a layer: all get the first value of this gradient of weight" in line


def test_ollama_is_not_given_a_model_of_images(folder: Path) -> None:
    """It could not run it; so nothing is written for it either."""
    (folder / "r.yaml").write_text("merge_method: passthrough\nmodels: [{model: a.gguf}]\n")
    ggufmerge.build(folder / "r.yaml", folder / "out.gguf", sinks=[OllamaSink(folder / "out.gguf")])
    assert not list(folder.glob("*Modelfile*"))
    assert "no language model" in ggufmerge.inspect(folder / "a.gguf")["layout"]
