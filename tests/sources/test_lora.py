"""LoRA adapters: what they add to a tensor, to float32 rounding, and which files are refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import ggufmerge
from ggufmerge.errors import PlanError
from ggufmerge.files import open_gguf
from ggufmerge.places.opening import open_source
from ggufmerge.recipe import ModelReference
from ggufmerge.sources import Source, lora
from tests.tiny import write_tiny_llama, write_tiny_lora

EVERY = ("*attn_q.weight", "*ffn_down*.weight", "token_embd.weight", "output.weight")
DENSE = ["blk.0.attn_q.weight", "blk.1.ffn_down.weight", "token_embd.weight", "output.weight"]
EXPERTS = ["blk.0.ffn_down_exps.weight", "blk.0.attn_q.weight"]

Q, EMBED = "blk.0.attn_q.weight", "token_embd.weight"

Values = NDArray[np.float32]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bases and adapters for them, in a folder whose name has a blank and letters beyond ASCII."""
    folder = tmp_path_factory.mktemp("Modelle ü 模型")
    dense = write_tiny_llama(folder / "dense.gguf", layers=2)
    experts = write_tiny_llama(folder / "experts.gguf", layers=1, experts=3)
    write_tiny_lora(folder / "lora.gguf", dense, targets=EVERY, rank=5, alpha=16)
    write_tiny_lora(folder / "other.gguf", dense, targets=EVERY, rank=3, alpha=4, seed=1)
    write_tiny_lora(folder / "plain.gguf", dense, targets=EVERY, rank=32, alpha=8, type="F16")
    write_tiny_lora(folder / "quantized.gguf", dense, targets=EVERY, rank=32, alpha=8, type="Q8_0")
    write_tiny_lora(folder / "moe.gguf", experts, targets=EVERY, rank=4)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an adapter for arch llama with these metadata and tensors (array, or array and type)."""

    def write(tensors: dict[str, Any], **metadata: Any) -> Path:
        path = tmp_path / "adapter.gguf"
        writer = gguf.GGUFWriter(path, metadata.pop("arch", "llama"))
        known = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
        for key, value in (known | {k.replace("_", "."): v for k, v in metadata.items()}).items():
            if value is not None:
                kind = gguf.GGUFValueType.get_type(value)
                writer.add_key_value(key, value, kind, gguf.GGUFValueType.INT32 if isinstance(value, list) else None)
        for name, values in tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def halves(
    name: str, a: tuple[int, ...], b: tuple[int, ...], dtype: Any = np.float32, *, ones: bool = False
) -> dict[str, Any]:
    make = np.ones if ones else np.zeros
    return {f"{name}.lora_a": make(a, dtype), f"{name}.lora_b": make(b, dtype)}


def opened(folder: Path, text: str) -> Source:
    return open_source(ModelReference.parse(text), folder)


def read(source: Source, name: str, step: int | None = None) -> Values:
    """A whole tensor, float32 [rows, n], read `step` rows at a time."""
    tensor = source.open_tensor(name)
    out = np.empty((tensor.rows, tensor.n), np.float32)
    for start in range(0, tensor.rows, step or tensor.rows):
        tensor.read(start, out[start : start + (step or tensor.rows)])
    return out


def change(path: Path, name: str) -> NDArray[np.float64]:
    """alpha / rank * B @ A in float64, [rows, n], from the file as gguf-py reads it."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    scale = alpha / b.shape[-1] if alpha else 1.0
    product = a @ b.T if name == "token_embd.weight" else b @ a
    return scale * product.reshape(-1, product.shape[-1])


def assert_equal_to_rounding(got: Values, base: Values, delta: NDArray[np.float64], rank: int) -> None:
    """One rounding of the sum, and of the change itself a rounding per rank."""
    exact = base.astype(np.float64) + delta
    eps = np.finfo(np.float32).eps
    size = np.abs(delta).max()
    assert (np.abs(got - exact) <= eps * (np.abs(exact) + rank * size)).all()
    assert (got != base).mean() > 0.9


@pytest.mark.parametrize("adapter", ["lora", "plain", "quantized"])
@pytest.mark.parametrize("name", DENSE)
def test_change_is_the_product_of_the_halves(folder: Path, adapter: str, name: str) -> None:
    """Matrices, the flipped embedding and the output head; halves in F32, F16 and Q8_0."""
    base = read(opened(folder, "dense.gguf"), name)
    got = read(opened(folder, f"dense.gguf+{adapter}.gguf"), name)
    assert_equal_to_rounding(got, base, change(folder / f"{adapter}.gguf", name), 32)


@pytest.mark.parametrize("name", EXPERTS)
def test_stacks_of_experts(folder: Path, name: str) -> None:
    """Each expert has its own pair of halves."""
    base = read(opened(folder, "experts.gguf"), name)
    got = read(opened(folder, "experts.gguf+moe.gguf"), name)
    assert_equal_to_rounding(got, base, change(folder / "moe.gguf", name), 4)


@pytest.mark.parametrize("strength", [-1.0, 0.37, 2.0])
def test_strength_scales_the_change(folder: Path, strength: float) -> None:
    """Also backwards and beyond 1."""
    base = read(opened(folder, "dense.gguf"), DENSE[0])
    got = read(opened(folder, f"dense.gguf+lora.gguf={strength}"), DENSE[0])
    assert_equal_to_rounding(got, base, strength * change(folder / "lora.gguf", DENSE[0]), 5)


def test_adapters_add_up(folder: Path) -> None:
    """In the order of the reference, each with its strength."""
    base = read(opened(folder, "dense.gguf"), DENSE[2])
    got = read(opened(folder, "dense.gguf+lora.gguf=0.5+other.gguf"), DENSE[2])
    delta = 0.5 * change(folder / "lora.gguf", DENSE[2]) + change(folder / "other.gguf", DENSE[2])
    assert_equal_to_rounding(got, base, delta, 8)


def test_without_alpha_the_product_is_not_scaled(folder: Path, write: Write) -> None:
    """llama.cpp's rule for alpha 0 and for a file that does not name one."""
    a, b = np.ones((2, 64), np.float32), np.ones((64, 2), np.float32)
    halves = {"blk.0.attn_q.weight.lora_a": a, "blk.0.attn_q.weight.lora_b": b}
    base = read(opened(folder, "dense.gguf"), DENSE[0])
    for alpha in (0.0, None):
        path = write(halves, adapter_lora_alpha=alpha)
        np.testing.assert_array_equal(read(opened(folder, f"dense.gguf+{path}"), DENSE[0]), base + np.float32(2))


@pytest.mark.parametrize(
    ("text", "names"),
    [("dense.gguf+lora.gguf+other.gguf=0.3", DENSE), ("experts.gguf+moe.gguf", EXPERTS)],
)
def test_bits_do_not_depend_on_chunks(folder: Path, text: str, names: list[str]) -> None:
    """Rows may be cut anywhere, also across experts."""
    for name in names:
        source = opened(folder, text)
        whole = read(source, name).tobytes()
        assert all(read(source, name, step).tobytes() == whole for step in (1, 7, 50))


def test_threads_read_at_once(folder: Path) -> None:
    """One reader serves many threads, whichever expert each is at."""
    source = opened(folder, "experts.gguf+moe.gguf")
    whole = read(source, EXPERTS[0])
    tensor = source.open_tensor(EXPERTS[0])

    def rows(start: int) -> bool:
        out = np.empty((8, tensor.n), np.float32)
        tensor.read(start, out)
        return out.tobytes() == whole[start : start + 8].tobytes()

    starts = np.random.default_rng(0).integers(0, tensor.rows - 8, 64).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(rows, starts))


def test_tensors_without_a_change_are_the_base(folder: Path) -> None:
    """To the bit, and said to be unchanged, so that they can be copied."""
    source = opened(folder, "dense.gguf+lora.gguf")
    assert not source.changed_by_adapter("blk.0.attn_k.weight")
    assert source.changed_by_adapter(DENSE[0])
    np.testing.assert_array_equal(
        read(source, "blk.0.attn_k.weight"), read(opened(folder, "dense.gguf"), "blk.0.attn_k.weight")
    )


def test_strength_zero_changes_nothing(folder: Path) -> None:
    """So its tensors can be copied byte for byte."""
    source = opened(folder, "dense.gguf+lora.gguf=0")
    assert not any(map(source.changed_by_adapter, source.tensors))
    assert read(source, DENSE[0]).tobytes() == read(opened(folder, "dense.gguf"), DENSE[0]).tobytes()


@pytest.mark.parametrize(
    ("name", "shape", "what"),
    [
        ("rope_freqs.weight", (8,), "computed, not trained"),
        ("rope_factors_long.weight", (8,), "computed, not trained"),
        ("rope_factors_short.weight", (8,), "computed, not trained"),
        ("blk.0.rope_freqs.weight", (8,), "computed, not trained"),
        ("blk.0.attn_norm.weight", (64,), "tensors for norms"),
        ("v.blk.0.attn_q.weight", (32, 32), "sees or hears"),
        ("v.blk.0.attn_q.weight.lora_a", (2, 32), "sees or hears"),
        ("mm.0.weight.lora_b", (32, 2), "sees or hears"),
    ],
)
def test_harmless_extras_are_left_out_with_a_warning(
    folder: Path, write: Write, name: str, shape: tuple[int, ...], what: str
) -> None:
    """Converters have let them through; the halves beside them count."""
    path = write(halves(DENSE[0], (2, 64), (64, 2), ones=True) | {name: np.ones(shape, np.float32)})
    source = opened(folder, f"dense.gguf+{path}")
    assert {n for n in source.tensors if source.changed_by_adapter(n)} == {DENSE[0]}
    [warning] = source.warnings
    assert f"{path}: {name} left out" in warning
    assert what in warning


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.0.ffn_up.weight", "blk.0.attn_norm.weight"])
def test_a_copy_of_a_weight_is_left_out(folder: Path, write: Write, name: str) -> None:
    """It says nothing that the base does not; other values are refused, as llama.cpp refuses them."""
    own = ggufmerge.open(folder / "dense.gguf").tensors[name].dequantize()
    good = halves(DENSE[0], (2, 64), (64, 2), ones=True)
    assert opened(folder, f"dense.gguf+{write(good | {name: own})}").changed_by_adapter(DENSE[0])
    if not name.endswith("_norm.weight"):
        with pytest.raises(PlanError, match="is not part of a LoRA adapter"):
            opened(folder, f"dense.gguf+{write(good | {name: own + 1})}")


@pytest.mark.parametrize(
    ("tensors", "reference", "why"),
    [
        ({Q: (1, 0)}, "{}", "all its B halves are zero, as before training"),
        ({EMBED: (0, 1)}, "{}", "all its B halves are zero, as before training"),
        ({Q: (0, 1)}, "{}", "all its A or B halves are zero, as before training"),
        ({Q: (1, 1)}, "{}=0", "its strength is 0"),
    ],
)
def test_an_adapter_that_changes_nothing_says_why(
    folder: Path, write: Write, tensors: Any, reference: str, why: str
) -> None:
    """Its tensors can be copied. Of embeddings the half that begins as zero is the other one."""
    values = {}
    for name, factors in tensors.items():
        shapes = ((320, 2), (64, 2)) if name == EMBED else ((2, 64), (64, 2))
        for half, shape, factor in zip("ab", shapes, factors, strict=True):
            values[f"{name}.lora_{half}"] = np.full(shape, factor, np.float32)
    path = write(values)
    source = opened(folder, f"dense.gguf+{reference.format(path)}")
    assert not any(map(source.changed_by_adapter, source.tensors))
    assert source.warnings == [f"{path}: the adapter changes nothing: {why}"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "complaint"),
    [
        (halves(Q, (2, 64), (64, 2)), {"arch": "qwen2"}, "an adapter for architecture 'qwen2'"),
        (halves(Q, (2, 64), (64, 2)), {"general_type": "model"}, "not a LoRA adapter"),
        (halves(Q, (2, 64), (64, 2)), {"adapter_type": "dora"}, "not a LoRA adapter"),
        (halves(Q, (2, 64), (64, 2)), {"adapter_lora_alpha": float("nan")}, "no finite number"),
        (halves(Q, (2, 64), (64, 2)), {"adapter_lora_alpha": "16"}, "no finite number"),
        ({f"{Q}.lora_a": np.zeros((2, 64), np.float32)}, {}, "has no counterpart"),
        ({f"{Q}.lora_b": np.zeros((64, 2), np.float32)}, {}, "has no counterpart"),
        ({f"{Q}.lora_c": np.zeros((2, 64), np.float32)}, {}, "is not part of a LoRA adapter"),
        ({Q: np.zeros((2, 64), np.float32)}, {}, "is not part of a LoRA adapter"),
        ({}, {}, "changes no tensor"),
        ({"blk.0.attn_norm.weight": np.ones(64, np.float32)}, {}, "changes no tensor"),
        (halves("blk.9.attn_q.weight", (2, 64), (64, 2)), {}, "does not have"),
        (halves(Q, (2, 64), (64, 3)), {}, "do not fit"),
        (halves(Q, (2, 32), (64, 2)), {}, "do not fit"),
        (halves(Q, (2, 64), (32, 2)), {}, "do not fit"),
        (halves(Q, (1, 2, 64), (1, 64, 2)), {}, "do not fit"),
        (halves(Q, (64,), (64,)), {}, "do not fit"),
        (halves("blk.0.attn_norm.weight", (64,), (64,)), {}, "do not fit"),
        (halves(EMBED, (2, 64), (320, 2)), {}, "do not fit"),
        (halves(Q, (2, 64), (64, 2), np.int32), {}, "holds I32 numbers"),
    ],
)
def test_refused(folder: Path, write: Write, tensors: Any, metadata: Any, complaint: str) -> None:
    """One line that names the adapter."""
    path = write(tensors, **metadata)
    with pytest.raises(PlanError, match=complaint) as caught:
        opened(folder, f"dense.gguf+{path}")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_rank_of_zero_is_refused(folder: Path, write: Write) -> None:
    """It has no scale: alpha / 0."""
    with pytest.raises(PlanError):
        opened(folder, f"dense.gguf+{write(halves(Q, (0, 64), (64, 0)))}")


def test_an_activated_lora_is_refused(folder: Path, tmp_path: Path) -> None:
    """It works only after its invocation tokens, which a merge cannot express."""
    path = tmp_path / "alora.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_array("adapter.alora.invocation_tokens", [1, 2])
    for name, values in halves(Q, (2, 64), (64, 2)).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(PlanError, match="activated LoRA"):
        opened(folder, f"dense.gguf+{path}")


def test_a_refused_adapter_is_closed(folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it can be deleted, also on Windows."""
    files = []
    monkeypatch.setattr(lora, "open_gguf", lambda path: files.append(open_gguf(path)) or files[-1])
    path = write(halves(Q, (2, 64), (64, 3)))
    with open_gguf(folder / "dense.gguf") as base, pytest.raises(PlanError):
        lora.LoraAdapter(path, base)
    with pytest.raises(ValueError, match="closed"):
        _ = files[0].tensors[f"{Q}.lora_a"].raw


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    """Reading a few rows of a large embedding takes the small factor and those rows, not the vocabulary's factor."""
    weights = write_tiny_llama(tmp_path / "base.gguf", layers=0, vocab=20_000)
    write_tiny_lora(tmp_path / "lora.gguf", weights, targets=(EMBED,), rank=32)
    source = opened(tmp_path, "base.gguf+lora.gguf")
    out = np.empty((4, 64), np.float32)
    source.open_tensor(EMBED).read(0, out)  # compiles the kernels
    tracemalloc.start()
    source.open_tensor(EMBED).read(8_000, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000 * 32 * 4 / 20
