"""Whole recipes against mergekit: the same text and the same weights give the same model.

`vendor/recipes` holds tiny Llama checkpoints, recipes, and the checkpoints that mergekit-yaml made of them. The tests
convert checkpoints to F32 GGUF files as llama.cpp's converter does, and build the recipes as mergekit got them.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import PlanError
from ggufmerge.evaluation import LlamaModel
from tests.engine.conftest import weights

GOLDENS = Path(__file__).parents[2] / "vendor" / "recipes"
TOKENS: dict[str, list[str]] = json.loads((GOLDENS / "tokens.json").read_text(encoding="utf-8"))
RECIPES = sorted(path.stem for path in GOLDENS.glob("*.yaml"))
HEADS, KV_HEADS = 4, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes and, under the names they use, their models."""
    place = tmp_path_factory.mktemp("recipes")
    for path in (GOLDENS / "models").glob("*.safetensors"):
        write_gguf(place / f"{path.stem}.gguf", read_safetensors(path), TOKENS[f"models/{path.stem}"])
    for path in GOLDENS.glob("*.yaml"):
        (place / path.name).write_bytes(path.read_bytes())
    return place


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    """The name of a recipe."""
    return str(request.param)


@pytest.fixture(scope="module")
def built(folder: Path, recipe: str) -> Path:
    """The file that was built of the recipe."""
    path = folder / f"{recipe}.out.gguf"
    ggufmerge.build(folder / f"{recipe}.yaml", path, threads=1)
    return path


def test_a_recipe_gives_the_weights_that_mergekit_gives(built: Path, recipe: str) -> None:
    """Every tensor that mergekit wrote and no other, to 1e-5 of its largest value."""
    expected = gguf_tensors(read_safetensors(GOLDENS / "results" / f"{recipe}.safetensors"))
    found = weights(built)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=1e-5 * np.abs(tensor).max(), err_msg=name)


def test_metadata_describes_the_layers_and_tokens_of_the_result(built: Path, recipe: str) -> None:
    """block_count is the number of layers; the tokens are those of mergekit's tokenizer, one for each row."""
    with ggufmerge.open(built) as file:
        layers = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
        assert file.metadata["llama.block_count"] == len(layers)
        assert list(file.metadata["tokenizer.ggml.tokens"]) == TOKENS[f"results/{recipe}"]
        assert file.tensors["token_embd.weight"].shape[0] == len(TOKENS[f"results/{recipe}"])


def test_llama_cpp_computes_with_the_result_what_transformers_computes(built: Path, recipe: str) -> None:
    """The built file in llama.cpp and mergekit's checkpoint in transformers give the same logits, but for the rounding
    of keys and values to float16: 0.2 % at most, where a wrong order of rows makes 40 %."""
    with np.load(GOLDENS / "logits.npz") as golden, LlamaModel(built, context=64, threads=1) as model:
        expected = golden[f"results/{recipe}"]
        found = model.logits(golden["prompt"])
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


def test_all_sources_of_the_last_slice_take_part_in_the_output_head(folder: Path) -> None:
    """Other than in mergekit, which takes as many as the first slice has. A model may stand in a slice twice."""
    (folder / "last.yaml").write_text(
        """
merge_method: linear
parameters: {weight: 1}
slices:
  - sources: [{model: chat.gguf, layer_range: [0, 1]}]
  - sources:
      - {model: chat.gguf, layer_range: [1, 2]}
      - {model: chat.gguf, layer_range: [2, 3]}
      - {model: code.gguf, layer_range: [1, 2]}
""",
        encoding="utf-8",
    )
    ggufmerge.build(folder / "last.yaml", folder / "last.out.gguf", threads=1)
    out, chat, code = (weights(folder / name) for name in ("last.out.gguf", "chat.gguf", "code.gguf"))
    part = "ffn_up.weight"
    layers = (chat[f"blk.1.{part}"], chat[f"blk.2.{part}"], code[f"blk.1.{part}"])
    np.testing.assert_allclose(
        out["output.weight"], (2 * chat["output.weight"] + code["output.weight"]) / 3, rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(out[f"blk.1.{part}"], sum(layers) / 3, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(out["token_embd.weight"], chat["token_embd.weight"])


@pytest.mark.parametrize("method", ["ties", "nuslerp"])
def test_a_slice_without_the_base_that_its_method_would_use_is_refused(folder: Path, method: str) -> None:
    """As by mergekit: it is not merged as if there were no base_model."""
    sources = "[{model: chat.gguf, layer_range: [0, 2]}, {model: code.gguf, layer_range: [0, 2]}]"
    recipe = f"{{merge_method: {method}, base_model: base.gguf, parameters: {{weight: 0.5}}, "
    recipe += f"slices: [{{sources: {sources}}}]}}"
    (folder / "lacking.yaml").write_text(recipe, encoding="utf-8")
    with pytest.raises(PlanError, match=r"base\.gguf is not among the sources"):
        ggufmerge.build(folder / "lacking.yaml", folder / "lacking.gguf")
    assert not (folder / "lacking.gguf").exists()


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """float32 tensors by name. The format: length of the header, JSON header with offsets, data."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32"
        begin, end = entry["data_offsets"]
        found[name] = np.frombuffer(data[start + begin : start + end], "<f4").reshape(entry["shape"])
    return found


def gguf_tensors(checkpoint: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A Hugging Face checkpoint under GGUF's names and with the rows of queries and keys in GGUF's order."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 32)
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}
    found = {}
    for name, tensor in checkpoint.items():
        stem = name.removesuffix(".weight")
        for part, count in heads.items():
            if stem.endswith(part):
                # Hugging Face rotates the first half of a head against the second, llama.cpp pairs of neighbours
                tensor = tensor.reshape(count, 2, -1, tensor.shape[-1]).swapaxes(1, 2).reshape(tensor.shape)
        found[f"{names.get_name(stem)}.weight"] = tensor
    return found


def write_gguf(path: Path, checkpoint: dict[str, np.ndarray], tokens: list[str]) -> None:
    """The checkpoint as an F32 file. Tokens in angle brackets are control tokens."""
    tensors = gguf_tensors(checkpoint)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(sum(name.endswith("attn_q.weight") for name in tensors))
    writer.add_context_length(64)
    writer.add_embedding_length(tensors["output_norm.weight"].size)
    writer.add_feed_forward_length(len(tensors["blk.0.ffn_up.weight"]))
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(tensors["output_norm.weight"].size // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.NORMAL}
    writer.add_token_types([kinds[token.startswith("<")] for token in tokens])
    writer.add_token_merges(["t h"])
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
