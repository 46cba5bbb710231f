"""PEFT adapters: what they add to a tensor is what PEFT and llama.cpp's converter say, and which are refused."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import ggufmerge
from ggufmerge.errors import GgufmergeError
from ggufmerge.places.opening import open_source
from ggufmerge.recipe import ModelReference
from ggufmerge.sources import Source
from tests.systems import needs_pipes
from tests.tiny import write_tiny_llama, write_tiny_lora

LAYER = "base_model.model.model.layers.0."
Q, K, DOWN = LAYER + "self_attn.q_proj", LAYER + "self_attn.k_proj", LAYER + "mlp.down_proj"
HEADS = {"attn_q": 4, "attn_k": 2}  # of a tiny llama
RANK, ALPHA = 4, 6

Floats = NDArray[Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    write_tiny_llama(path, layers=1)
    return path


def halves(module: str, rows: int, n: int, rank: int = RANK, seed: int = 0) -> dict[str, Floats]:
    random = np.random.default_rng([seed, len(module)])
    return {
        f"{module}.lora_A.weight": random.standard_normal((rank, n), np.float32),
        f"{module}.lora_B.weight": random.standard_normal((rows, rank), np.float32),
    }


def write_safetensors(path: Path, tensors: Mapping[str, Floats | tuple[str, Floats]]) -> None:
    """Arrays, or (dtype, uint16 array) for what NumPy has no type for."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, item in tensors.items():
        dtype, values = (
            item if isinstance(item, tuple) else ({"f4": "F32", "f2": "F16", "i8": "I64"}[item.dtype.str[1:]], item)
        )
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + values.nbytes],
        }
        data += values.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_peft(folder: Path, tensors: Mapping[str, Any], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    known: dict[str, Any] = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "bias": "none",
        "modules_to_save": None,
    }
    set_limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    (folder / "adapter_config.json").write_text(json.dumps(known | config))
    sys.set_int_max_str_digits(set_limit)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def opened(base: Path, *adapters: Path) -> Source:
    return open_source(ModelReference.parse({"model": str(base), "lora": [str(a) for a in adapters]}))


def change(base: Path, adapter: Path, name: str) -> NDArray[np.float64]:
    """What an adapter adds to a tensor of the base."""
    source = opened(base, adapter)
    tensor = source.open_tensor(name)
    with_it, without = np.empty((2, tensor.rows, tensor.n), np.float32)
    tensor.read(0, with_it)
    tensor.dequantize(0, without)
    return with_it.astype(np.float64) - without


def product(tensors: Mapping[str, Floats], module: str) -> NDArray[np.float64]:
    """B @ A, [rows, n] in Hugging Face's order, float64."""
    a, b = (tensors[f"{module}.lora_{half}.weight"].astype(np.float64) for half in "AB")
    return b @ a


def permuted(w: Floats, heads: int) -> Floats:
    """What `LlamaModel.permute` of llama.cpp's converter makes of the weights of Q or K."""
    return w.reshape(heads, 2, len(w) // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def assert_close(got: Floats, wanted: Floats) -> None:
    """Up to the rounding of a float32 sum of weights and change."""
    np.testing.assert_allclose(got, wanted, rtol=0, atol=4e-6 * max(1.0, float(np.abs(wanted).max())))


def test_change_is_alpha_over_rank_times_the_product(base: Path, tmp_path: Path) -> None:
    """In a tensor that the converter only renames."""
    tensors = halves(DOWN, 64, 128)
    got = change(base, write_peft(tmp_path / "a", tensors), "blk.0.ffn_down.weight")
    assert_close(got, ALPHA / RANK * product(tensors, DOWN))


@pytest.mark.parametrize(("module", "part", "rows"), [(Q, "attn_q", 64), (K, "attn_k", 32)])
def test_rows_of_q_and_k_are_permuted_as_in_the_converter(
    base: Path, tmp_path: Path, module: str, part: str, rows: int
) -> None:
    """Whole weights changed in Hugging Face's order and then converted are the converted base changed here."""
    tensors = halves(module, rows, 64)
    got = change(base, write_peft(tmp_path / "a", tensors), f"blk.0.{part}.weight")
    assert_close(got, ALPHA / RANK * permuted(product(tensors, module), HEADS[part]))


def test_it_changes_what_its_converted_form_changes(base: Path, tmp_path: Path) -> None:
    """To the bit: an adapter in GGUF form, and the same with its rows put back into PEFT's order."""
    weights = {name: t.dequantize() for name, t in ggufmerge.open(base).tensors.items()}
    write_tiny_lora(
        tmp_path / "lora.gguf", weights, targets=("*attn_q.weight", "*attn_k.weight"), rank=RANK, alpha=ALPHA
    )
    reader = {t.name: np.array(t.data) for t in gguf.GGUFReader(tmp_path / "lora.gguf").tensors}
    tensors = {}
    for module, part in ((Q, "attn_q"), (K, "attn_k")):
        b = reader[f"blk.0.{part}.weight.lora_b"]
        order = np.argsort(permuted(np.arange(len(b))[:, None], HEADS[part]).ravel())
        tensors[f"{module}.lora_A.weight"] = reader[f"blk.0.{part}.weight.lora_a"]
        tensors[f"{module}.lora_B.weight"] = b[order]
    folder = write_peft(tmp_path / "peft", tensors)
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight"):
        np.testing.assert_array_equal(change(base, folder, name), change(base, tmp_path / "lora.gguf", name))


def test_architectures_that_rename_only_are_not_permuted(tmp_path: Path) -> None:
    """Qwen's Q and K stay in Hugging Face's order."""
    writer = gguf.GGUFWriter(tmp_path / "qwen.gguf", "qwen2")
    writer.add_uint32("qwen2.block_count", 1)
    writer.add_uint32("qwen2.attention.head_count", 4)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = halves(Q, 64, 64)
    got = change(tmp_path / "qwen.gguf", write_peft(tmp_path / "a", tensors), "blk.0.attn_q.weight")
    assert_close(got, ALPHA / RANK * product(tensors, Q))


def test_embeddings(base: Path, tmp_path: Path) -> None:
    """PEFT keeps A [rank, vocabulary] and B [width, rank]; the change is (B @ A) transposed."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((RANK, 320), np.float32), random.standard_normal((64, RANK), np.float32)
    module = "base_model.model.model.embed_tokens"
    folder = write_peft(tmp_path / "a", {f"{module}.lora_embedding_A": a, f"{module}.lora_embedding_B": b})
    assert_close(change(base, folder, "token_embd.weight"), ALPHA / RANK * (b.astype(np.float64) @ a).T)


def test_half_precision(base: Path, tmp_path: Path) -> None:
    """F16 and BF16 are read as they are."""
    tensors = halves(DOWN, 64, 128)
    half = {name: x.astype(np.float16) for name, x in tensors.items()}
    assert_close(
        change(base, write_peft(tmp_path / "f16", half), "blk.0.ffn_down.weight"),
        ALPHA / RANK * product({name: x.astype(np.float32) for name, x in half.items()}, DOWN),
    )
    upper = {name: (x.view(np.uint32) >> 16).astype(np.uint16) for name, x in tensors.items()}
    cut = {name: (x.astype(np.uint32) << 16).view(np.float32) for name, x in upper.items()}
    assert_close(
        change(
            base, write_peft(tmp_path / "bf16", {n: ("BF16", x) for n, x in upper.items()}), "blk.0.ffn_down.weight"
        ),
        ALPHA / RANK * product(cut, DOWN),
    )


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"use_rslora": True}, ALPHA / RANK**0.5),
        ({"lora_alpha": 0.5}, 0.5 / RANK),
        ({"lora_alpha": 0}, 0.0),
        ({"alpha_pattern": {"down_proj": 10}}, 10 / RANK),
        ({"alpha_pattern": {"own_proj": 10, r"layers\.\d+\.mlp\.down_proj": 3}}, 3 / RANK),
        ({"r": 99, "rank_pattern": {"mlp.down_proj": RANK}}, ALPHA / RANK),
        ({"rank_pattern": {"q_proj": 99}}, ALPHA / RANK),
    ],
)
def test_scales(base: Path, tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    """Rank-stabilized LoRA; patterns mean the end of a module's name, from a dot on."""
    tensors = halves(DOWN, 64, 128)
    got = change(base, write_peft(tmp_path / "a", tensors, **config), "blk.0.ffn_down.weight")
    assert_close(got, scale * product(tensors, DOWN))


def test_a_weights_file_can_be_named_instead_of_its_folder(base: Path, tmp_path: Path) -> None:
    """The configuration lies beside it; other names of modules are those of wrapped models."""
    tensors = halves(DOWN, 64, 128)
    folder = write_peft(tmp_path / "a", tensors)
    wanted = change(base, folder, "blk.0.ffn_down.weight")
    np.testing.assert_array_equal(change(base, folder / "adapter_model.safetensors", "blk.0.ffn_down.weight"), wanted)
    wrapped = {name.replace("model.layers", "model.language_model.layers"): x for name, x in tensors.items()}
    np.testing.assert_array_equal(change(base, write_peft(tmp_path / "b", wrapped), "blk.0.ffn_down.weight"), wanted)


def test_chunks_do_not_matter(base: Path, tmp_path: Path) -> None:
    """Rows may be read anywhere, also permuted ones."""
    tensor = opened(base, write_peft(tmp_path / "a", halves(Q, 64, 64))).open_tensor("blk.0.attn_q.weight")
    whole, parts = np.empty((2, 64, 64), np.float32)
    tensor.read(0, whole)
    for start in range(0, 64, 7):
        tensor.read(start, parts[start : start + 7])
    assert parts.tobytes() == whole.tobytes()


def test_the_configuration_counts_as_input(base: Path, tmp_path: Path) -> None:
    """A change of alpha is another model; both files are inputs."""
    first = opened(base, write_peft(tmp_path / "a", halves(DOWN, 64, 128)))
    second = opened(base, write_peft(tmp_path / "b", halves(DOWN, 64, 128), lora_alpha=7))
    assert first.fingerprint() != second.fingerprint()
    assert {path.name for path in first.files()} == {"base.gguf", "adapter_config.json", "adapter_model.safetensors"}


GOOD = halves(DOWN, 64, 128)


@pytest.mark.parametrize(
    ("tensors", "config", "complaint"),
    [
        (GOOD, {"use_dora": True}, "DoRA"),
        (GOOD | {f"{DOWN}.lora_magnitude_vector": np.ones((1, 64), np.float32)}, {}, "part of DoRA"),
        (GOOD, {"bias": "lora_only"}, "biases"),
        (GOOD, {"lora_bias": True}, "biases"),
        (GOOD, {"modules_to_save": ["lm_head"]}, '"lm_head" was trained whole, but .* does not hold it'),
        (GOOD, {"peft_type": "IA3"}, "IA3 adapter"),
        (GOOD, {"alora_invocation_tokens": [1]}, "activated LoRA"),
        (GOOD, {"init_lora_weights": "pissa_niter_4"}, "changed the base too"),
        (GOOD, {"layer_replication": [[0, 1]]}, "structure"),
        (GOOD, {"kasa_config": {"beta": 1e-4}}, "KaSA cut parts off the base's weights"),
        (GOOD, {"arrow_config": {"top_k": 3}}, "chooses among several adapters"),
        (GOOD, {"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
        (GOOD, {"lora_alpha": "16"}, "lora_alpha is not a number"),
        (GOOD, {"r": None}, "r is not a number"),
        (GOOD, {"r": 10**400}, "401 digits is too large"),
        (GOOD, {"r": 10**5000}, "5001 digits is too large"),
        (GOOD, {"lora_alpha": float("inf")}, "Infinity is not a number"),
        (GOOD, {"modules_to_save": True}, "modules_to_save is not a list of names"),
        (GOOD, {"modules_to_save": [1]}, "modules_to_save is not a list of names"),
        (GOOD, {"rank_pattern": {r"(a)\1": 1}}, "reference back"),
        (halves(DOWN, 64, 128, rank=0), {"r": 0}, "rank 0 and no values"),
        (
            GOOD
            | {
                f"{DOWN.replace('model.layers', 'model.language_model.layers')}.lora_A.weight": GOOD[
                    f"{DOWN}.lora_A.weight"
                ]
            },
            {},
            "twice",
        ),
        (GOOD, {"alpha_pattern": {"q": "x"}}, "alpha_pattern is not a mapping"),
        (GOOD, {"alpha_pattern": {"(": 1}}, "not a regular expression"),
        (GOOD, {"r": 8}, "has rank 4, but adapter_config.json says 8"),
        (GOOD | {LAYER + "input_layernorm.weight": np.ones(32, np.float32)}, {}, r"shape \[32\], but .* has \[64\]"),
        (GOOD | {LAYER + "self_attn.q_proj.bias": np.ones(64, np.float32)}, {}, "has no blk.0.attn_q.bias"),
        (GOOD | {f"{DOWN}.lora_B.bias": np.ones(64, np.float32)}, {}, "not half of"),
        (GOOD | {"base_model.model.score.weight": np.ones((2, 64), np.float32)}, {}, "no tensor of its own"),
        (GOOD | {f"{Q}.lora_A.weight": np.ones((RANK, 64), np.int64)}, {}, "not half of"),
        ({f"{DOWN}.lora_A.weight": GOOD[f"{DOWN}.lora_A.weight"]}, {}, "no counterpart"),
        (halves(DOWN, 64, 64), {}, "do not fit"),
        (halves(Q, 60, 64), {}, "cannot share evenly"),
        (halves(LAYER.replace("0", "7") + "mlp.up_proj", 128, 64), {}, "no tensor of its own"),
        (halves(LAYER + "block_sparse_moe.experts.0.w1", 128, 64), {}, "no tensor of its own"),
        ({}, {}, "changes no tensor"),
    ],
)
def test_refused(base: Path, tmp_path: Path, tensors: Any, config: dict[str, Any], complaint: str) -> None:
    """One line that says why."""
    folder = write_peft(tmp_path / "a", tensors, **config)
    with pytest.raises(GgufmergeError, match=complaint) as caught:
        opened(base, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("adapter_config.json", b"{", "not JSON"),
        ("adapter_config.json", b"[]", "not a mapping"),
        ("adapter_config.json", None, "is missing"),
        ("adapter_model.safetensors", None, "is missing"),
        ("adapter_model.safetensors", b"", "not a safetensors file"),
        ("adapter_model.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "not a safetensors file"),
        ("adapter_model.safetensors", struct.pack("<Q", 2) + b"{]", "not JSON"),
        ("adapter_model.safetensors", struct.pack("<Q", 2) + b"[]", "not a mapping"),
        ("adapter_model.safetensors", struct.pack("<Q", 7) + b'{"a":1}', "not known"),
    ],
)
def test_damaged_files_are_refused(base: Path, tmp_path: Path, name: str, data: bytes | None, complaint: str) -> None:
    """The line names the file."""
    folder = write_peft(tmp_path / "a", GOOD)
    (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
    with pytest.raises(GgufmergeError, match=complaint) as caught:
        opened(base, folder)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 1 << 40]},
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [0]},
        {"dtype": 7, "shape": [2, 2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [0, 2**63 - 1], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [0, 2**70], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [True, 4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": {"0": 2}, "data_offsets": [0, 16]},
        [1],
        None,
    ],
)
def test_headers_that_lie_are_refused(base: Path, tmp_path: Path, entry: dict[str, Any]) -> None:
    """Before anything is read through them."""
    folder = write_peft(tmp_path / "a", GOOD)
    text = json.dumps({f"{DOWN}.lora_A.weight": entry}).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(GgufmergeError, match=r"adapter_model\.safetensors: .*download it again"):
        opened(base, folder)


@pytest.mark.parametrize("pattern", ["(.+)+!", "(.*)*(.*)*x", "([a-z]+)+$!"])
def test_patterns_that_would_take_for_ever(base: Path, tmp_path: Path, pattern: str) -> None:
    """They match what they match, in the time that all others take."""
    folder = write_peft(tmp_path / "a", GOOD, rank_pattern={pattern: 99}, alpha_pattern={pattern: 99})
    assert opened(base, folder).tensors


@pytest.mark.parametrize(
    "header", [b'{"' + b"a" * 1000 + b'":{}}', b"[" * 5000, b'{"a":1,"a":2}', b'{"a":NaN}', b"{\xff}"]
)
def test_headers_that_cannot_be_read(base: Path, tmp_path: Path, header: bytes) -> None:
    """One line each; a name of many letters would only be there to be matched slowly."""
    folder = write_peft(tmp_path / "a", GOOD)
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(GgufmergeError, match=r"adapter_model\.safetensors: .*download it again"):
        opened(base, folder)


@needs_pipes
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_pipes_are_refused(base: Path, tmp_path: Path, name: str) -> None:
    """Instead of waiting for somebody to write into them."""
    folder = write_peft(tmp_path / "a", GOOD)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(GgufmergeError, match=name):
        opened(base, folder)


def test_a_pickled_adapter_is_refused_with_advice(base: Path, tmp_path: Path) -> None:
    """adapter_model.bin is a program as much as data; PEFT can save the other form."""
    folder = write_peft(tmp_path / "a", GOOD)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(GgufmergeError, match="safe_serialization"):
        opened(base, folder)


def test_an_architecture_with_a_layout_of_its_own_is_refused(tmp_path: Path) -> None:
    """Its converter rearranges more than names and rows of Q and K."""
    writer = gguf.GGUFWriter(tmp_path / "falcon.gguf", "falcon")
    writer.add_tensor("blk.0.ffn_down.weight", np.zeros((64, 128), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufmergeError, match="convert_lora_to_gguf"):
        opened(tmp_path / "falcon.gguf", write_peft(tmp_path / "a", GOOD))
