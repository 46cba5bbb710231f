"""Hugging Face checkpoints beside GGUF files: they count as the GGUF file that llama.cpp's converter makes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import ggufmerge
from ggufmerge.engine import make_plan
from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation import LlamaModel
from ggufmerge.places.opening import open_source
from ggufmerge.recipe import ModelReference, load_recipe
from ggufmerge.sources import Source
from ggufmerge.types import TensorType
from tests import ggml
from tests.engine.conftest import build_report, raw
from tests.engine.test_mergekit_recipes import GOLDENS, TOKENS, read_safetensors, write_gguf
from tests.systems import needs_pipes
from tests.tiny import write_tiny_llama, write_tiny_lora

TEXT = "the history of the wind and that which was in it"
HEADS = {"q_proj": 4, "k_proj": 2}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


def write_checkpoint(
    folder: Path,
    weights: Mapping[str, np.ndarray],
    *,
    dtype: str = "F32",
    config: Mapping[str, Any] | None = None,
    shards: int = 1,
) -> None:
    """The weights of a GGUF model of architecture llama as Hugging Face has them."""
    tensors = {}
    for name, values in weights.items():
        own = hf_name(name)
        for part, heads in HEADS.items():
            if f".{part}." in own:  # llama.cpp has pairs side by side, Hugging Face one half behind the other
                values = values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        tensors[own] = values
    write_folder(folder, tensors, config or LLAMA, dtype=dtype, shards=shards)


def write_folder(
    folder: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], *, dtype: str = "F32", shards: int = 1
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    names = ["model.safetensors"] if shards == 1 else [f"model-{i}.safetensors" for i in range(shards)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(safetensors(dict(list(tensors.items())[i::shards]), dtype))
    if shards > 1:
        places = {own: names[i % shards] for i, own in enumerate(tensors)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def safetensors(tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> bytes:
    """A file of float tensors: length of the header, the header in JSON, the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        stored = ggml.quantize(values.reshape(1, -1).astype(np.float32), TensorType.parse(dtype)).tobytes()
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [len(data), len(data) + len(stored)]}
        data += stored
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def hf_name(name: str) -> str:
    """What Hugging Face calls a tensor of llama."""
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        **{f"attn_{x[0]}": f"self_attn.{x}_proj" for x in "qkv"},
        "attn_output": "self_attn.o_proj",
        **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
    }
    pieces = name.split(".")
    return (
        f"model.layers.{pieces[1]}.{parts[pieces[2]]}.{pieces[3]}"
        if pieces[0] == "blk"
        else f"{names[pieces[0]]}.weight"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base (.f32.gguf and the checkpoints base and base-bf16), and two tunes of it in Q8_0."""
    folder = tmp_path_factory.mktemp("checkpoints")
    weights = write_tiny_llama(folder / "base.f32.gguf")
    write_checkpoint(folder / "base", weights)
    write_tiny_llama(folder / "base.bf16.gguf", type="BF16")
    write_checkpoint(folder / "base-bf16", weights, dtype="BF16", shards=3)
    for number, name in enumerate(("a", "b"), 1):
        write_tiny_llama(folder / f"{name}.gguf", type="Q8_0", tune=(number, 0.02))
    write_tiny_lora(folder / "adapter.gguf", weights)
    return folder


def opened(path: Path) -> Source:
    return open_source(ModelReference(str(path)))


def values(source: Source) -> dict[str, np.ndarray]:
    """Every tensor as a merge reads it."""
    found = {}
    for name, tensor in source.tensors.items():
        reader = source.open_tensor(name)
        out = np.empty((reader.rows, reader.n), np.float32)
        reader.read(0, out)
        found[name] = out.reshape(tensor.shape)
    return found


WEIGHT, RANGE = "parameters: {weight: 1}", "layer_range: [0, 1]"
TIES = """
merge_method: ties
base_model: {base}
models:
  - {{model: a.gguf, parameters: {{weight: 0.5, density: 0.5}}}}
  - {{model: b.gguf, parameters: {{weight: 0.5, density: 0.5}}}}
out_type: Q8_0
"""
LINEAR = """
merge_method: linear
models:
  - {{model: {0}, parameters: {{weight: 0.3}}}}
  - {{model: {1}, parameters: {{weight: 0.7}}}}
"""


@pytest.fixture
def build(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(recipe: str, name: str = "out.gguf", **options: object) -> Path:
        build_report(folder, recipe, tmp_path / name, **options)
        return tmp_path / name

    return run


@pytest.mark.parametrize(("checkpoint", "file"), [("base", "base.f32.gguf"), ("base-bf16", "base.bf16.gguf")])
def test_a_checkpoint_is_the_gguf_file_made_of_it(folder: Path, checkpoint: str, file: str) -> None:
    """Names, shapes and values are the same, in rows of any chunk; vectors count as F32."""
    found, expected = opened(folder / checkpoint), opened(folder / file)
    wanted = values(expected)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, got in values(found).items():
        if checkpoint == "base" or got.ndim == 2:
            np.testing.assert_array_equal(got, wanted[name], name)
        assert found.tensors[name].shape == expected.tensors[name].shape
        assert found.tensors[name].type == expected.tensors[name].type
    name = "blk.1.attn_q.weight"
    out = np.empty((5, 64), np.float32)
    found.open_tensor(name).read(3, out)
    np.testing.assert_array_equal(out, wanted[name][3:8])


def test_a_merge_with_a_checkpoint_as_base_is_the_one_with_its_gguf_file(build: Callable[..., Path]) -> None:
    """A base in full precision serves quantized tunes: every byte of every tensor is the same."""
    mixed, plain = build(TIES.format(base="base")), build(TIES.format(base="base.f32.gguf"), "plain.gguf")
    assert sorted(raw(mixed).items()) == sorted(raw(plain).items())


def test_the_place_of_a_checkpoint_in_a_recipe_plays_no_part(build: Callable[..., Path]) -> None:
    """As first model it takes part as any other, but types and metadata are those of the first GGUF file."""
    mixed, plain = (
        build(LINEAR.format("base", "a.gguf")),
        build(LINEAR.format("base.f32.gguf", "a.gguf") + "out_type: Q8_0", "plain.gguf"),
    )
    assert sorted(raw(mixed).items()) == sorted(raw(plain).items())
    with ggufmerge.open(mixed) as file:
        assert len(file.metadata["tokenizer.ggml.tokens"]) == 320


@pytest.mark.parametrize("name", ["chat", "tied"])
def test_llama_cpp_computes_what_transformers_computes(tmp_path: Path, name: str) -> None:
    """A checkpoint that takes all of a merge: its result in llama.cpp has the logits that transformers computed."""
    checkpoint = read_safetensors(GOLDENS / "models" / f"{name}.safetensors")
    config = {**LLAMA, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 4}
    write_folder(tmp_path / name, checkpoint, {**config, "tie_word_embeddings": name == "tied"})
    write_gguf(
        tmp_path / "donor.gguf", read_safetensors(GOLDENS / "models" / "base.safetensors"), TOKENS["models/base"]
    )
    models = f"[{{model: donor.gguf, parameters: {{weight: 0}}}}, {{model: {name}, parameters: {{weight: 1}}}}]"
    build_report(tmp_path, f"{{merge_method: linear, models: {models}}}", tmp_path / "out.gguf")
    with np.load(GOLDENS / "logits.npz") as golden, LlamaModel(tmp_path / "out.gguf", context=64, threads=1) as model:
        expected = golden[f"models/{name}"]
        assert np.linalg.norm(model.logits(golden["prompt"]) - expected) < 0.01 * np.linalg.norm(expected)


def test_slices_of_checkpoints_are_copied(folder: Path, build: Callable[..., Path]) -> None:
    """Layers of a checkpoint keep their type and bytes, their rows in GGUF's order."""
    slices = "[{sources: [{model: a.gguf, layer_range: [0, 1]}]}, {sources: [{model: base-bf16, layer_range: [0, 2]}]}]"
    out = build(f"{{merge_method: passthrough, slices: {slices}}}")
    expected = raw(folder / "base.bf16.gguf")
    assert raw(out)["blk.2.attn_k.weight"] == expected["blk.1.attn_k.weight"]
    with LlamaModel(out) as model:
        assert np.isfinite(model.logits(model.tokenize(TEXT))).all()


def test_adapters_apply_to_checkpoints(build: Callable[..., Path]) -> None:
    """base+adapter.gguf is the same for both forms of the base."""
    mixed, plain = (
        build(LINEAR.format("a.gguf", f"{base}+adapter.gguf"), f"{base}.gguf") for base in ("base", "base.f32.gguf")
    )
    assert sorted(raw(mixed).items()) == sorted(raw(plain).items())


def test_constants_come_from_the_gguf_file(tmp_path: Path, folder: Path) -> None:
    """Frequencies of rotary embeddings are in no checkpoint; the result has those of the first GGUF file."""
    place = tmp_path / "constants"
    place.mkdir()
    with ggufmerge.open(folder / "a.gguf") as file:
        editor = ggufmerge.files.MetadataEditor(file.metadata)
        tensors = [*file.tensors.values()]
        freqs = ggufmerge.files.TensorInfo("rope_freqs.weight", (8,), TensorType.F32)
        with ggufmerge.files.GGUFWriter(place / "a.gguf", editor, [*tensors, freqs]) as writer:
            for tensor in tensors:
                writer.write(tensor.name, 0, tensor.raw)
            writer.write("rope_freqs.weight", 0, np.full(8, 2, np.float32))
            writer.commit()
    base = folder / "base"
    arithmetic = f"{{merge_method: task_arithmetic, base_model: '{base}', models: [{{model: a.gguf}}], {WEIGHT}}}"
    slices = f"[{{sources: [{{model: '{base}', {RANGE}}}]}}, {{sources: [{{model: a.gguf, {RANGE}}}]}}]"
    stack = f"{{merge_method: passthrough, slices: {slices}}}"
    for number, text in enumerate((arithmetic, stack)):
        build_report(place, text, tmp_path / f"{number}.gguf")
        assert raw(tmp_path / f"{number}.gguf")["rope_freqs.weight"] == np.full(8, 2, np.float32).tobytes()


def test_the_plan_warns_that_tokens_are_only_counted(folder: Path) -> None:
    """And of hyper-parameters that differ, as for GGUF files."""
    (folder / "warn.yaml").write_text(LINEAR.format("a.gguf", "base"))
    plan, files = make_plan(load_recipe(folder / "warn.yaml"))
    files.close()
    assert [w for w in plan.warnings if "base: its tokenizer is not read" in w]
    assert not [w for w in plan.warnings if "differs from" in w]


def test_gemma_norms_are_stored_plus_one(tmp_path: Path) -> None:
    """Gemma 3 checkpoints become what the converter makes of them: norms + 1, nested names, tied heads, no vision."""
    rng = np.random.default_rng(0)
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48, "num_attention_heads": 2},
    }
    own = {
        "language_model.model.embed_tokens.weight": rng.standard_normal((40, 32)),
        "language_model.model.norm.weight": rng.standard_normal(32),
        "language_model.model.layers.0.self_attn.q_norm.weight": rng.standard_normal(16),
        "language_model.model.layers.0.self_attn.q_proj.weight": rng.standard_normal((32, 32)),
        "language_model.model.layers.0.pre_feedforward_layernorm.weight": rng.standard_normal(32),
        "vision_tower.vision_model.head.weight": rng.standard_normal((4, 4)),
        "multi_modal_projector.mm_soft_emb_norm.weight": rng.standard_normal(4),
    }
    own = {name: x.astype(np.float32) for name, x in own.items()}
    write_folder(tmp_path / "gemma", own, config)
    source = opened(tmp_path / "gemma")
    found, text = values(source), {n.removeprefix("language_model.model."): x for n, x in own.items()}
    assert source.file.architecture == "gemma3"
    assert found.keys() == {
        "token_embd.weight",
        "output_norm.weight",
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_q.weight",
        "blk.0.ffn_norm.weight",
    }
    np.testing.assert_array_equal(found["output_norm.weight"], text["norm.weight"] + np.float32(1))
    np.testing.assert_array_equal(
        found["blk.0.attn_q_norm.weight"], text["layers.0.self_attn.q_norm.weight"] + np.float32(1)
    )
    np.testing.assert_array_equal(found["blk.0.attn_q.weight"], text["layers.0.self_attn.q_proj.weight"])


@pytest.mark.parametrize("theta", [10**400, "x", float("nan"), -1, None])
def test_numbers_that_nobody_can_use_are_left_out(tmp_path: Path, theta: Any) -> None:
    """Of hyper-parameters that are only compared; transformers 5 keeps some in a mapping of their own."""
    weights = write_tiny_llama(tmp_path / "x.gguf")
    key = "llama.rope.freq_base"
    write_checkpoint(tmp_path / "m", weights, config={**LLAMA, "rope_theta": theta, "rope_parameters": "x"})
    assert key not in opened(tmp_path / "m").metadata
    write_checkpoint(tmp_path / "m", weights, config={**LLAMA, "rope_parameters": {"rope_theta": 5e5}})
    assert opened(tmp_path / "m").metadata[key] == 5e5


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_qwen_rows_stay_in_place(tmp_path: Path, architecture: str) -> None:
    """Their queries and keys are not permuted; biases are vectors."""
    own = {
        "model.layers.0.self_attn.q_proj.weight": np.arange(64 * 64, dtype=np.float32).reshape(64, 64),
        "model.layers.0.self_attn.q_proj.bias": np.arange(64, dtype=np.float32),
    }
    write_folder(tmp_path / "qwen", own, {**LLAMA, "architectures": [architecture]})
    found = values(opened(tmp_path / "qwen"))
    np.testing.assert_array_equal(found["blk.0.attn_q.weight"], own["model.layers.0.self_attn.q_proj.weight"])
    np.testing.assert_array_equal(found["blk.0.attn_q.bias"], own["model.layers.0.self_attn.q_proj.bias"])


def test_biases_of_llama_are_permuted_with_their_rows(tmp_path: Path) -> None:
    """A bias that counts the rows of its matrix ends up in the order of the rows."""
    rows = np.repeat(np.arange(64, dtype=np.float32)[:, None], 64, axis=1)
    own = {"model.layers.0.self_attn.q_proj.weight": rows, "model.layers.0.self_attn.q_proj.bias": rows[:, 0]}
    write_folder(tmp_path / "llama", own, LLAMA)
    found = values(opened(tmp_path / "llama"))
    np.testing.assert_array_equal(found["blk.0.attn_q.bias"], found["blk.0.attn_q.weight"][:, 0])
    assert (found["blk.0.attn_q.bias"][:4] == [0, 8, 1, 9]).all()


@needs_pipes
def test_a_readme_that_is_a_pipe_states_no_licence(tmp_path: Path) -> None:
    """Nor does anybody wait for it."""
    write_checkpoint(tmp_path / "m", write_tiny_llama(tmp_path / "x.gguf"))
    os.mkfifo(tmp_path / "m" / "README.md")
    assert "general.license" not in opened(tmp_path / "m").metadata


def test_the_licence_of_the_model_card_counts(tmp_path: Path, folder: Path) -> None:
    """It stands in the front matter of README.md."""
    write_checkpoint(tmp_path / "m", write_tiny_llama(tmp_path / "x.gguf"))
    (tmp_path / "m" / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: mit\n")
    assert opened(tmp_path / "m").metadata["general.license"] == "apache-2.0"
    assert "general.license" not in opened(folder / "base").metadata


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (f"{{merge_method: linear, models: [{{model: base}}, {{model: base-bf16}}], {WEIGHT}}}", "gives weights only"),
        (
            f"{{merge_method: linear, models: [{{model: a.gguf}}, {{model: base}}], tokenizer_source: base, {WEIGHT}}}",
            "tokenizer of a Hugging Face checkpoint is not read",
        ),
    ],
)
def test_what_needs_a_tokenizer_needs_a_gguf_file(build: Callable[..., Path], recipe: str, message: str) -> None:
    """The message says what to do instead."""
    with pytest.raises(GgufmergeError, match=f"(?s){message}.*convert_hf_to_gguf"):
        build(recipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM is not read"),
        ({"architectures": []}, "None is not read"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantized checkpoint \(gptq\)"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers|layers cannot be"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"hidden_size": 10**400}, "hidden_size is missing or no number"),
        ({"num_hidden_layers": 1}, '"model.layers.1.input_layernorm.weight" has no place'),
        ({"num_attention_heads": 3}, "64 rows, which its 3 heads cannot share"),
    ],
)
def test_configurations_that_are_not_supported_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """In one line that names the file or folder."""
    write_checkpoint(tmp_path / "m", write_tiny_llama(tmp_path / "x.gguf"), config={**LLAMA, **change})
    with pytest.raises(GgufmergeError, match=message) as caught:
        opened(tmp_path / "m")
    assert str(tmp_path / "m") in str(caught.value)


def _no_config(m: Path) -> None:
    (m / "config.json").unlink()


def _bad_config(m: Path) -> None:
    (m / "config.json").write_text("[" * 100_000)


def _no_weights(m: Path) -> None:
    (m / "model.safetensors").unlink()


def _pickle_only(m: Path) -> None:
    (m / "model.safetensors").rename(m / "pytorch_model.bin")


def _shard_missing(m: Path) -> None:
    (m / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-9.safetensors"}}')


def _shard_elsewhere(m: Path) -> None:
    (m / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../secret.safetensors"}}')


def _cut(m: Path) -> None:
    data = (m / "model.safetensors").read_bytes()
    (m / "model.safetensors").write_bytes(data[:-100])


def _float8(m: Path) -> None:
    data = (m / "model.safetensors").read_bytes()
    (m / "model.safetensors").write_bytes(data.replace(b'"F32"', b'"F8 "', 1))


def _empty(m: Path) -> None:
    (m / "model.safetensors").write_bytes(safetensors({}))


def _twice(m: Path) -> None:
    (m / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model.safetensors", "y": "b.safetensors"}}')
    (m / "b.safetensors").write_bytes((m / "model.safetensors").read_bytes())


def _config(text: str) -> Callable[[Path], None]:
    return lambda m: (m / "config.json").write_bytes(text.encode("latin-1")) and None


def _index(text: str) -> Callable[[Path], None]:
    return lambda m: (m / "model.safetensors.index.json").write_text(text) and None


def _pipe(name: str) -> Callable[[Path], None]:
    def damage(m: Path) -> None:
        (m / name).unlink()
        os.mkfifo(m / name)

    return damage


_WRONG_SHARDS = (
    {},
    [],
    "model.safetensors",
    {"a": 1},
    {"a": None},
    {"a": ["model.safetensors"]},
    {"a": "x" * 300 + ".safetensors"},
    {"a": "../model.safetensors"},
    {"a": "/model.safetensors"},
    {"a": ""},
)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_config, "a folder without config.json"),
        (_bad_config, "not the JSON"),
        *((_config(text), "not the JSON") for text in ("[" * 100_000, "[]", "\xff", '{"a": 1, "a": 2}', '{"a":' * 999)),
        *((_index(text), "not the JSON") for text in ("[" * 100_000, "[]", '{"weight_map": {"a": 1, "a": 1}}')),
        *((_index(json.dumps({"weight_map": shards})), "does not name") for shards in _WRONG_SHARDS),
        pytest.param(_pipe("config.json"), "a folder without config.json", marks=needs_pipes),
        pytest.param(_pipe("model.safetensors"), "has neither", marks=needs_pipes),
        (_no_weights, "has neither"),
        (_pickle_only, "safe_serialization"),
        (_shard_missing, "lacks model-9.safetensors"),
        (_shard_elsewhere, "does not name the safetensors files in its folder"),
        (_cut, "ends before the data"),
        (_float8, "not a matrix or vector of F32, F16, BF16"),
        (_empty, "holds no tensors"),
        (_twice, "appears twice"),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    """In one line that names the file or folder and says what to do."""
    write_checkpoint(tmp_path / "m", write_tiny_llama(tmp_path / "x.gguf"))
    damage(tmp_path / "m")
    with pytest.raises(GgufmergeError, match=message) as caught:
        opened(tmp_path / "m")
    assert str(tmp_path / "m") in str(caught.value)


def test_names_are_those_of_ggufs_tables() -> None:
    """The tests' own names for llama are the ones that the converter knows."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name in ("token_embd.weight", "output.weight", "blk.0.attn_k.weight", "blk.0.ffn_norm.weight"):
        assert names.get_name(hf_name(name), (".weight",)) == name
