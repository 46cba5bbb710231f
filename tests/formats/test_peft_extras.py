"""What PEFT adapters hold beside low-rank halves: whole modules, rows of tokens, copies, halves for vision towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from ggufmerge.engine.bake import plan_bake
from ggufmerge.errors import GgufmergeError
from ggufmerge.files import open_gguf
from ggufmerge.places.opening import open_source
from ggufmerge.recipe import ModelReference
from ggufmerge.running.run import BuildReport, run
from ggufmerge.sources import Source
from tests.formats.test_peft import (
    ALPHA,
    DOWN,
    HEADS,
    LAYER,
    RANK,
    K,
    Q,
    assert_close,
    halves,
    permuted,
    product,
    write_peft,
)
from tests.tiny import write_tiny_llama

Floats = NDArray[Any]
MODEL = "base_model.model.model."
EMBED, HEAD = "token_embd.weight", "output.weight"
EMBED_TOKENS, LM_HEAD = f"{MODEL}embed_tokens", "base_model.model.lm_head"
GOOD = halves(DOWN, 64, 128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    for kind in ("F32", "Q8_0", "Q4_0"):
        write_tiny_llama(folder / f"untied-{kind}.gguf", layers=1, type=kind)
        write_tiny_llama(folder / f"tied-{kind}.gguf", layers=1, type=kind, tied=True)
    return folder


def random(*shape: int, seed: int = 7) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) / np.float32(8)


def opened(base: Path, adapter: Path, strength: float = 1) -> Source:
    return open_source(
        ModelReference.parse({"model": str(base), "lora": [{"path": str(adapter), "strength": strength}]})
    )


def read(source: Source, name: str) -> NDArray[np.float32]:
    tensor = source.open_tensor(name)
    out = np.empty((tensor.rows, tensor.n), np.float32)
    for start in range(0, tensor.rows, 50):
        tensor.read(start, out[start : start + 50])
    return out


def values(path: Path, name: str) -> NDArray[np.float32]:
    with open_gguf(path) as file:
        return file.tensors[name].dequantize().reshape(-1, file.tensors[name].n)


def bake(base: Path, adapter: Path, out: Path, **options: Any) -> BuildReport:
    plan, sources = plan_bake(base, [adapter], **options)
    with sources:
        return run(plan, sources, out, overwrite=True, measure=True)


@pytest.mark.parametrize(("module", "name", "shape"), [
    (EMBED_TOKENS, EMBED, (320, 64)),
    (LM_HEAD, HEAD, (320, 64)),
    (f"{LAYER}mlp.down_proj", "blk.0.ffn_down.weight", (64, 128)),
    (f"{LAYER}input_layernorm", "blk.0.attn_norm.weight", (64,)),
    (f"{MODEL}norm", "output_norm.weight", (64,)),
])  # fmt: skip
@pytest.mark.parametrize("saved", ["", ".modules_to_save", ".modules_to_save.default"])
def test_a_whole_module_takes_the_place_of_the_bases(
    folder: Path, tmp_path: Path, module: str, name: str, shape: tuple[int, ...], saved: str
) -> None:
    """Under all names that PEFT has given it; other tensors are as they were."""
    new = random(*shape)
    adapter = write_peft(
        tmp_path / "a", halves(Q, 64, 64) | {f"{module}{saved}.weight": new}, modules_to_save=[module.split(".")[-1]]
    )
    source = opened(folder / "untied-F32.gguf", adapter)
    np.testing.assert_array_equal(read(source, name), new.reshape(-1, shape[-1]))
    np.testing.assert_array_equal(
        read(source, "blk.0.ffn_up.weight"), values(folder / "untied-F32.gguf", "blk.0.ffn_up.weight")
    )


def test_rows_of_whole_q_and_k_are_permuted(folder: Path, tmp_path: Path) -> None:
    """As llama.cpp's converter does with those of models."""
    new = {f"{Q}.weight": random(64, 64), f"{K}.weight": random(32, 64)}
    source = opened(folder / "untied-F32.gguf", write_peft(tmp_path / "a", new, modules_to_save=["q_proj", "k_proj"]))
    for module, part in ((Q, "attn_q"), (K, "attn_k")):
        np.testing.assert_array_equal(
            read(source, f"blk.0.{part}.weight"), permuted(new[f"{module}.weight"], HEADS[part])
        )


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_read_as_it_is(folder: Path, tmp_path: Path, dtype: str) -> None:
    """Matrices and vectors."""
    for module, name, shape in ((LM_HEAD, HEAD, (320, 64)), (f"{MODEL}norm", "output_norm.weight", (64,))):
        new = random(*shape)
        cut = new.astype(np.float16) if dtype == "F16" else (new.view(np.uint32) >> 16).astype(np.uint16)
        wanted = cut.astype(np.float32) if dtype == "F16" else (cut.astype(np.uint32) << 16).view(np.float32)
        tensors = GOOD | {f"{module}.weight": cut if dtype == "F16" else ("BF16", cut)}
        source = opened(
            folder / "untied-F32.gguf", write_peft(tmp_path / "a", tensors, modules_to_save=[module.split(".")[-1]])
        )
        np.testing.assert_array_equal(read(source, name), wanted.reshape(-1, shape[-1]))


def test_norms_of_gemma_get_their_one(tmp_path: Path) -> None:
    """Files of Gemma hold 1 + w."""
    writer = gguf.GGUFWriter(tmp_path / "gemma.gguf", "gemma2")
    writer.add_uint32("gemma2.block_count", 1)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.add_tensor("blk.0.ffn_down.weight", np.ones((64, 128), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    new = random(64)
    adapter = write_peft(tmp_path / "a", GOOD | {f"{MODEL}norm.weight": new}, modules_to_save=["norm"])
    np.testing.assert_array_equal(read(opened(tmp_path / "gemma.gguf", adapter), "output_norm.weight")[0], new + 1)


@pytest.mark.parametrize("strength", [0.0, 0.5, -1.0, 2.0])
def test_strength_goes_from_the_bases_module_to_the_trained_one(folder: Path, tmp_path: Path, strength: float) -> None:
    """base + strength * (trained - base), also beyond both ends."""
    base, new = values(folder / "untied-Q8_0.gguf", HEAD), random(320, 64)
    adapter = write_peft(tmp_path / "a", GOOD | {f"{LM_HEAD}.weight": new}, modules_to_save=["lm_head"])
    got = read(opened(folder / "untied-Q8_0.gguf", adapter, strength), HEAD)
    np.testing.assert_allclose(got, base + np.float32(strength) * (new - base), rtol=0, atol=1e-6)


def test_a_whole_module_is_quantized_from_its_own_values(folder: Path, tmp_path: Path) -> None:
    """In the type of the base, to the nearest; it is no change of the base's blocks, so nothing of one is measured."""
    new = random(320, 64)
    adapter = write_peft(tmp_path / "a", GOOD | {f"{LM_HEAD}.weight": new}, modules_to_save=["lm_head"])
    report = bake(folder / "untied-Q8_0.gguf", adapter, tmp_path / "out.gguf")
    with open_gguf(tmp_path / "out.gguf") as file:
        assert file.tensors[HEAD].type == "Q8_0"
    assert 0 < report.errors[HEAD] < 0.01
    assert set(report.survival) == {"blk.0.ffn_down.weight"}
    np.testing.assert_allclose(values(tmp_path / "out.gguf", HEAD), new, rtol=0, atol=0.005)


def test_a_tied_model_parts_where_one_was_trained_whole(folder: Path, tmp_path: Path) -> None:
    """The other one is the base's; with ensure_weight_tying the model stays tied."""
    base, new = values(folder / "tied-F32.gguf", EMBED), random(320, 64)
    for module, name, other in ((EMBED_TOKENS, EMBED, HEAD), (LM_HEAD, HEAD, EMBED)):
        tensors = GOOD | {f"{module}.weight": new}
        source = opened(
            folder / "tied-F32.gguf", write_peft(tmp_path / "a", tensors, modules_to_save=[module.split(".")[-1]])
        )
        np.testing.assert_array_equal(read(source, name), new)
        np.testing.assert_array_equal(read(source, other), base)
    both = GOOD | {f"{EMBED_TOKENS}.weight": new, f"{LM_HEAD}.weight": new}
    tied = write_peft(tmp_path / "b", both, modules_to_save=["model.embed_tokens"], ensure_weight_tying=True)
    source = opened(folder / "tied-F32.gguf", tied)
    assert HEAD not in source.tensors
    np.testing.assert_array_equal(read(source, EMBED), new)


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("tied", ["tied", "untied"])
def test_copies_of_frozen_weights_are_left_out(folder: Path, tmp_path: Path, kind: str, tied: str) -> None:
    """As PEFT saves them beside halves, or whole without having trained them; the base may be quantized since."""
    weights = values(folder / f"{tied}-F32.gguf", EMBED)
    head = weights if tied == "tied" else values(folder / "untied-F32.gguf", HEAD)
    copies = {
        f"{EMBED_TOKENS}.base_layer.weight": weights,
        f"{EMBED_TOKENS}.weight": weights.astype(np.float16),
        f"{LM_HEAD}.weight": head,
        f"{LM_HEAD}.original_module.weight": head,
        f"{LAYER}input_layernorm.weight": values(folder / f"{tied}-F32.gguf", "blk.0.attn_norm.weight")[0],
    }
    source = opened(folder / f"{tied}-{kind}.gguf", write_peft(tmp_path / "a", GOOD | copies))
    assert {n for n in source.tensors if source.changed_by_adapter(n)} == {"blk.0.ffn_down.weight"}
    assert not source.replaced
    assert (HEAD in source.tensors) == (tied == "untied")
    [warning] = source.warnings
    assert "4 more left out: copies of weights that were not trained" in warning


def test_other_values_that_were_not_trained_are_loaded_as_peft_loads_them(folder: Path, tmp_path: Path) -> None:
    """Into the one matrix, where the head is tied, whichever name they have."""
    new = random(320, 64)
    for module in (EMBED_TOKENS, LM_HEAD):
        source = opened(folder / "tied-Q8_0.gguf", write_peft(tmp_path / "a", GOOD | {f"{module}.weight": new}))
        assert HEAD not in source.tensors
        np.testing.assert_array_equal(read(source, EMBED), new)
    source = opened(folder / "untied-Q8_0.gguf", write_peft(tmp_path / "a", GOOD | {f"{LM_HEAD}.weight": new}))
    np.testing.assert_array_equal(read(source, HEAD), new)
    np.testing.assert_array_equal(read(source, EMBED), values(folder / "untied-Q8_0.gguf", EMBED))


def test_rows_of_trained_tokens_take_the_place_of_the_bases(folder: Path, tmp_path: Path) -> None:
    """In the order of the configuration; a tied head has them, too, as in training. Other blocks keep their bytes."""
    numbers, new = [200, 5, 7], random(3, 64)
    tensors = GOOD | {f"{EMBED_TOKENS}.token_adapter.trainable_tokens_delta": new}
    adapter = write_peft(tmp_path / "a", tensors, trainable_token_indices=numbers)
    for kind in ("tied", "untied"):
        wanted = values(folder / f"{kind}-Q4_0.gguf", EMBED)
        wanted[numbers] = new
        source = opened(folder / f"{kind}-Q4_0.gguf", adapter)
        np.testing.assert_array_equal(read(source, EMBED), wanted)
        assert (HEAD in source.tensors) == (kind == "untied")
    assert not source.changed_by_adapter(HEAD)
    bake(folder / "tied-Q4_0.gguf", adapter, tmp_path / "out.gguf")
    with open_gguf(tmp_path / "out.gguf") as ours, open_gguf(folder / "tied-Q4_0.gguf") as base:
        a, b = (file.tensors[EMBED].raw_rows(0, 320) for file in (ours, base))
        assert sorted(numbers) == np.flatnonzero((a != b).any(axis=1)).tolist()


def test_rows_for_embedding_and_head(folder: Path, tmp_path: Path) -> None:
    """Different tokens for each: a tied model parts. At half the strength a row is half way."""
    embed, head = random(2, 64), random(2, 64, seed=8)
    tensors = GOOD | {
        f"{EMBED_TOKENS}.token_adapter.trainable_tokens_delta": embed,
        f"{LM_HEAD}.token_adapter.trainable_tokens_delta": head,
    }
    adapter = write_peft(tmp_path / "a", tensors, trainable_token_indices={"embed_tokens": [5, 7], "lm_head": [9, 7]})
    base = values(folder / "tied-F32.gguf", EMBED)
    for name, numbers, new in ((EMBED, [5, 7], embed), (HEAD, [9, 7], head)):
        wanted = base.copy()
        wanted[numbers] += np.float32(0.5) * (new - wanted[numbers])
        np.testing.assert_allclose(read(opened(folder / "tied-F32.gguf", adapter, 0.5), name), wanted, atol=1e-7)


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        ({f"{EMBED_TOKENS}.weight": random(323, 64)}, {"modules_to_save": ["embed_tokens"]}),
        ({f"{LM_HEAD}.weight": random(323, 64)}, {}),
        ({f"{EMBED_TOKENS}.base_layer.weight": random(323, 64)}, {}),
        (halves(LM_HEAD, 323, 64), {}),
        (
            {
                f"{EMBED_TOKENS}.lora_embedding_A": random(RANK, 323),
                f"{EMBED_TOKENS}.lora_embedding_B": random(64, RANK),
            },
            {},
        ),
        (
            {f"{EMBED_TOKENS}.token_adapter.trainable_tokens_delta": random(1, 64)},
            {"trainable_token_indices": [322]},
        ),
    ],
)
@pytest.mark.parametrize("base", ["tied", "untied"])
def test_more_tokens_than_the_base_has(folder: Path, tmp_path: Path, base: str, tensors: Any, config: Any) -> None:
    """The line says why it does not fit, and what to do: the tokenizer must come with them."""
    with pytest.raises(GgufmergeError, match=r"for 323 tokens, but .* has 320: tokens were added") as caught:
        opened(folder / f"{base}-F32.gguf", write_peft(tmp_path / "a", GOOD | tensors, **config))
    assert "merge the adapter with PEFT" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "rows", "complaint"),
    [
        (None, 2, "does not list the tokens"),
        ([5, -1], 2, "does not list the tokens"),
        ([5, True], 2, "does not list the tokens"),
        ({"lm_head": [5, 7]}, 2, "does not list the tokens"),
        ([5], 2, "for 1 tokens, which do not fit"),
        ([5, 5], 2, "do not fit"),
    ],
)
def test_rows_that_do_not_fit_their_tokens(
    folder: Path, tmp_path: Path, numbers: Any, rows: int, complaint: str
) -> None:
    """One line that says what is wrong."""
    tensors = GOOD | {f"{EMBED_TOKENS}.token_adapter.trainable_tokens_delta": random(rows, 64)}
    with pytest.raises(GgufmergeError, match=complaint) as caught:
        opened(folder / "tied-F32.gguf", write_peft(tmp_path / "a", tensors, trainable_token_indices=numbers))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tower",
    [
        "base_model.model.visual.blocks.0.attn.qkv",
        "base_model.model.model.visual.merger.mlp.0",
        "base_model.model.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj",
        "base_model.model.vision_model.transformer.layers.0.self_attn.q_proj",
        "base_model.model.multi_modal_projector.linear_1",
        "base_model.model.model.audio_tower.layers.0.fc1",
    ],
)
def test_halves_for_what_sees_or_hears_are_left_out(folder: Path, tmp_path: Path, tower: str) -> None:
    """The language model's halves beside them are applied."""
    wrapped = {name.replace("model.layers", "model.language_model.layers"): x for name, x in GOOD.items()}
    adapter = write_peft(tmp_path / "a", wrapped | halves(tower, 48, 32))
    source = opened(folder / "untied-F32.gguf", adapter)
    base = values(folder / "untied-F32.gguf", "blk.0.ffn_down.weight")
    assert_close(read(source, "blk.0.ffn_down.weight") - base, ALPHA / RANK * product(GOOD, DOWN))
    [warning] = source.warnings
    assert "and 1 more left out: tensors of the part of a multi-modal model that sees or hears" in warning


def test_an_adapter_of_nothing_else_changes_no_tensor(folder: Path, tmp_path: Path) -> None:
    """And the line says what it has instead."""
    adapter = write_peft(tmp_path / "a", halves("base_model.model.visual.blocks.0.attn.qkv", 48, 32))
    with pytest.raises(GgufmergeError, match=r"changes no tensor: it has only tensors of the part .* sees or hears"):
        opened(folder / "untied-F32.gguf", adapter)


def test_whole_modules_and_rows_tell_one_model_from_another(folder: Path, tmp_path: Path) -> None:
    """Random masks and interrupted builds go by fingerprints."""
    seen = set()
    for number, new in enumerate((random(320, 64), random(320, 64, seed=8))):
        tensors = GOOD | {f"{LM_HEAD}.weight": new}
        adapter = write_peft(tmp_path / f"a{number}", tensors, modules_to_save=["lm_head"])
        seen.add(opened(folder / "tied-F32.gguf", adapter).fingerprint())
        rows = GOOD | {f"{EMBED_TOKENS}.token_adapter.trainable_tokens_delta": new[:1]}
        adapter = write_peft(tmp_path / f"b{number}", rows, trainable_token_indices=[5])
        seen.add(opened(folder / "tied-F32.gguf", adapter).fingerprint())
    assert len(seen) == 4
