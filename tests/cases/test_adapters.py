"""Adapters: what was trained is in the result, what was not is left out, and what has no effect is told."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.cases.conftest import Run, raw, weights
from tests.formats.test_peft import Q, halves, write_peft
from tests.tiny import write_tiny_llama, write_tiny_lora

EMBED = "base_model.model.model.embed_tokens"
HALVES = {"blk.0.attn_q.weight.lora_a": (4, 64), "blk.0.attn_q.weight.lora_b": (64, 4)}


def write_adapter(path: Path, alpha: float | None = 8.0, zero: str = "", **more: np.ndarray) -> Path:
    """An adapter of attn_q of a tiny llama. zero: the halves that are all zero, as "a" or "ab"."""
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for name, shape in HALVES.items():
        factor = 0 if name[-1] in zero else 0.1
        writer.add_tensor(name, (factor * random.standard_normal(shape)).astype(np.float32))
    for name, values in more.items():
        writer.add_tensor(name.replace("__", "."), values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def base(folder: Path) -> Path:
    write_tiny_llama(folder / "base.gguf")
    return folder / "base.gguf"


@pytest.mark.parametrize("table", ["rope_freqs", "rope_factors_long", "rope_factors_short"])
def test_tables_of_the_rotation_in_an_adapter_are_left_out(base: Path, run: Run, table: str) -> None:
    """35: ggml-org/llama.cpp#9114, Llama 3.1. They are computed and not trained; the rest is baked as without them."""
    write_adapter(Path("plain.gguf"))
    write_adapter(Path("with.gguf"), **{f"{table}__weight": np.ones(8)})
    for name in ("plain", "with"):
        code, _, err = run("bake", "base.gguf", f"{name}.gguf", "-o", f"out-{name}.gguf")
        assert (code, bool(err)) == (0, name == "with")
    assert err.startswith(
        f"warning: with.gguf: {table}.weight left out: tables of rotary embeddings, which are computed"
    )
    assert raw("out-with.gguf") == raw("out-plain.gguf")


def test_a_tensor_that_nobody_knows_is_no_harmless_extra(base: Path, run: Run) -> None:
    """35: a name that is none of those is refused with the name."""
    write_adapter(Path("odd.gguf"), foo__weight=np.ones(8))
    code, _, err = run("bake", "base.gguf", "odd.gguf", "-o", "out.gguf")
    assert code == 1
    assert 'tensor "foo.weight" is not part of a LoRA adapter' in err


@pytest.mark.parametrize("tying", [False, True])
def test_an_adapter_of_the_embedding_leaves_a_tied_head_alone(folder: Path, run: Run, tying: bool) -> None:
    """37: huggingface/peft#2018. PEFT trains the embedding and not the head, unless it was told to keep them tied."""
    write_tiny_llama(folder / "tied.gguf", tied=True)
    embedding = {
        f"{EMBED}.lora_embedding_A": np.random.default_rng(0).standard_normal((4, 320)).astype(np.float32),
        f"{EMBED}.lora_embedding_B": np.random.default_rng(1).standard_normal((64, 4)).astype(np.float32),
    }
    write_peft(folder / "adapter", embedding, **({"ensure_weight_tying": True} if tying else {}))
    assert run("bake", "tied.gguf", "adapter", "-o", "out.gguf")[0] == 0
    old, new = weights("tied.gguf"), weights("out.gguf")
    change = (embedding[f"{EMBED}.lora_embedding_B"] @ embedding[f"{EMBED}.lora_embedding_A"]).T * 6 / 4
    np.testing.assert_allclose(new["token_embd.weight"], old["token_embd.weight"] + change, atol=1e-5)
    assert ("output.weight" in new) is not tying
    if not tying:
        np.testing.assert_array_equal(new["output.weight"], old["token_embd.weight"])


def test_a_whole_embedding_that_peft_saved_is_taken(folder: Path, run: Run) -> None:
    """38: ggml-org/llama.cpp#11554 and huggingface/peft#2898, modules_to_save, which would need the base of full
    precision elsewhere.
    """
    write_tiny_llama(folder / "base.gguf")
    own = np.random.default_rng(2).standard_normal((320, 64)).astype(np.float32)
    saved = {**halves(Q, 64, 64), f"{EMBED}.modules_to_save.weight": own}
    write_peft(folder / "adapter", saved, modules_to_save=["embed_tokens"])
    assert run("bake", "base.gguf", "adapter", "-o", "out.gguf")[0] == 0
    old, new = weights("base.gguf"), weights("out.gguf")
    np.testing.assert_array_equal(new["token_embd.weight"], own)
    assert {name for name in old if not np.array_equal(old[name], new[name])} == {
        "token_embd.weight",
        "blk.0.attn_q.weight",
    }


@pytest.mark.parametrize(
    ("zero", "strength", "why"),
    [
        ("b", "", "all its B halves are zero, as before training; use one that was trained"),
        ("a", "", "all its A or B halves are zero"),
        ("", "=0", "its strength is 0; give it another strength"),
    ],
)
def test_an_adapter_that_changes_nothing_is_refused(base: Path, run: Run, zero: str, strength: str, why: str) -> None:
    """39: unslothai/unsloth#869, an adapter that seems to have no effect."""
    write_adapter(Path("lora.gguf"), zero=zero)
    code, _, err = run("bake", "base.gguf", f"lora.gguf{strength}", "-o", "out.gguf")
    assert code == 1
    assert f"lora.gguf: the adapter changes nothing: {why}" in err
    assert not Path("out.gguf").exists()


@pytest.mark.parametrize(("alpha", "scale"), [(8.0, 2.0), (0.0, 1.0), (None, 1.0), (1.0, 0.25)])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_the_scale_of_an_adapter_is_llama_cpps(
    folder: Path, run: Run, alpha: float | None, scale: float, kind: str
) -> None:
    """41: ggml-org/llama.cpp#9002. alpha over rank; without alpha, or with 0, the product as it is."""
    from tests.tiny import write_tiny_llama as write

    write(folder / "base.gguf", type=kind)
    write_adapter(folder / "lora.gguf", alpha=alpha)
    assert run("bake", "base.gguf", "lora.gguf", "-o", "out.gguf", "--type", "F32")[0] == 0
    a, b = (weights("lora.gguf")[name] for name in HALVES)
    name = "blk.0.attn_q.weight"
    np.testing.assert_allclose(weights("out.gguf")[name], weights("base.gguf")[name] + scale * b @ a, atol=1e-6)


def test_an_adapter_is_extracted_from_a_tune_with_more_tokens(base: Path, run: Run) -> None:
    """42: arcee-ai/mergekit#328. What has a row for each token is left out with a warning, the rest is exact."""
    adapted = write_tiny_lora("lora.gguf", weights("base.gguf"))
    assert run("bake", "base.gguf", "lora.gguf", "-o", "same.gguf")[0] == 0
    tune = {name: values for name, values in weights("same.gguf").items() if name in adapted}
    write_tiny_llama("tune.gguf", vocab=322, replace=tune)
    code, _, err = run("extract-lora", "tune.gguf", "--base", "base.gguf", "-o", "out.gguf", "--rank", "4")
    assert code == 0
    assert "output.weight" in err
    assert run("bake", "base.gguf", "out.gguf", "-o", "again.gguf")[0] == 0
    again = weights("again.gguf")
    for name, values in tune.items():
        np.testing.assert_allclose(again[name], values, atol=2e-3)
