"""Extracting LoRA adapters: a low-rank change comes back, and llama.cpp loads what was written."""

from __future__ import annotations

import pathlib
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from ggufmerge.engine import extract as module
from ggufmerge.engine.bake import plan_bake
from ggufmerge.engine.extract import ExtractReport, extract, plan_extract
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation import LlamaModel
from ggufmerge.files import open_gguf
from ggufmerge.running.run import run
from tests.engine.test_bake import ADAPTERS, kl_divergence
from tests.models import smollm2
from tests.tiny import write_tiny_llama, write_tiny_lora

ALL = ("*attn_*.weight", "*ffn_*.weight", "output.weight")
Floats = NDArray[Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A base, a tune whose every matrix changed by rank 16, one that changed in all directions, a model of experts."""
    folder = tmp_path_factory.mktemp("extract")
    weights = write_tiny_llama(folder / "base.gguf")
    write_tiny_llama(folder / "base-Q8_0.gguf", type="Q8_0")
    deltas = write_tiny_lora(folder / "lora.gguf", weights, targets=ALL, rank=16, alpha=32, strength=0.02)
    write_tiny_llama(folder / "tune.gguf", replace={n: weights[n] + d for n, d in deltas.items()})
    write_tiny_llama(folder / "full.gguf", tune=(1, 0.05))
    experts = write_tiny_llama(folder / "experts.gguf", layers=1, experts=3)
    deltas = write_tiny_lora(folder / "lora3.gguf", experts, targets=("*_exps.weight",), rank=4)
    changed = {n: experts[n] + d for n, d in deltas.items()}
    write_tiny_llama(folder / "experts-tune.gguf", layers=1, experts=3, replace=changed)
    return folder


def run_extract(folder: pathlib.Path, tune: str, base: str, **options: Any) -> ExtractReport:
    """Extracts into out.gguf beside the models."""
    threads = options.pop("threads", 2)
    plan, sources = plan_extract(folder / tune, folder / base, **options)
    return extract(plan, sources, folder / "out.gguf", overwrite=True, threads=threads)


def changes(adapter: pathlib.Path) -> dict[str, NDArray[np.float64]]:
    """alpha / rank * B @ A of each tensor in float64, from the file as gguf-py reads it."""
    reader = gguf.GGUFReader(adapter)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    found = {}
    for name in (n.removesuffix(".lora_a") for n in tensors if n.endswith(".lora_a")):
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        found[name] = alpha / b.shape[-1] * (a @ b.T if name == "token_embd.weight" else b @ a)
    return found


def differences(tune: pathlib.Path, base: pathlib.Path) -> dict[str, NDArray[np.float64]]:
    with open_gguf(tune) as new, open_gguf(base) as old:
        return {n: t.dequantize().astype(np.float64) - old.tensors[n].dequantize() for n, t in new.tensors.items()}


def relative(x: Floats, y: Floats) -> float:
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def test_a_tune_of_that_rank_comes_back(folder: pathlib.Path) -> None:
    """Every matrix within 1 %: here to the float32 rounding of the tune's weights."""
    report = run_extract(folder, "tune.gguf", "base.gguf", rank=16)
    wanted, got = changes(folder / "lora.gguf"), changes(folder / "out.gguf")
    assert set(got) == set(wanted) == set(report.tensors)
    assert max(relative(got[name], wanted[name]) for name in wanted) < 1e-4
    assert all(found.share > 0.999999 for found in report.tensors.values())
    assert all(found.relative_change == pytest.approx(0.02, rel=0.1) for found in report.tensors.values())


def test_llama_cpp_loads_the_adapter(folder: pathlib.Path) -> None:
    """And computes with base and adapter what it computes with the tune."""
    run_extract(folder, "tune.gguf", "base.gguf", rank=16)
    tokens = np.random.default_rng(0).integers(3, 300, 40)
    with (
        LlamaModel(folder / "base.gguf", context=64, threads=1, adapters=[(folder / "out.gguf", 1.0)]) as adapted,
        LlamaModel(folder / "base.gguf", context=64, threads=1) as base,
        LlamaModel(folder / "tune.gguf", context=64, threads=1) as tune,
    ):
        wanted = tune.logits(tokens)
        assert kl_divergence(adapted.logits(tokens), wanted) < 1e-8
        assert kl_divergence(base.logits(tokens), wanted) > 1e-5


@pytest.mark.parametrize(("kind", "error"), [("F16", 1e-3), ("BF16", 1e-2)])
def test_half_precision_adds_its_rounding_only(folder: pathlib.Path, kind: str, error: float) -> None:
    """A relative error of 2^-11 or 2^-8 in each factor."""
    run_extract(folder, "tune.gguf", "base.gguf", rank=16, out_type=kind)
    wanted, got = changes(folder / "lora.gguf"), changes(folder / "out.gguf")
    assert max(relative(got[name], wanted[name]) for name in wanted) < error
    with open_gguf(folder / "out.gguf") as file:
        assert {str(t.type) for t in file.tensors.values()} == {kind}


def test_a_change_of_full_rank_is_cut_to_its_best_part(folder: pathlib.Path) -> None:
    """As good as the singular value decomposition of NumPy, and said to be that good."""
    report = run_extract(folder, "full.gguf", "base.gguf", rank=8)
    wanted = differences(folder / "full.gguf", folder / "base.gguf")
    for name, got in changes(folder / "out.gguf").items():
        values = np.linalg.svd(wanted[name], compute_uv=False)
        best = (values[:8] ** 2).sum() / (values**2).sum()
        assert report.tensors[name].share == pytest.approx(best, rel=0.01)
        assert 1 - relative(got, wanted[name]) ** 2 == pytest.approx(report.tensors[name].share, abs=1e-4)


def test_each_expert_has_its_own_halves(folder: pathlib.Path) -> None:
    """A stack of matrices gives stacks of halves; nothing else changed, so nothing else is written."""
    run_extract(folder, "experts-tune.gguf", "experts.gguf", rank=4)
    wanted, got = changes(folder / "lora3.gguf"), changes(folder / "out.gguf")
    assert set(got) == set(wanted)
    assert max(relative(got[name], wanted[name]) for name in wanted) < 1e-4


def test_the_embedding_is_taken_on_request_and_stored_flipped(folder: pathlib.Path) -> None:
    """Without the request it is left out, and said to be."""
    plan, _ = plan_extract(folder / "full.gguf", folder / "base.gguf")
    assert "token_embd.weight" in plan.left_out
    assert any("--embeddings" in warning for warning in plan.warnings)
    run_extract(folder, "full.gguf", "base.gguf", rank=64, embeddings=True)
    wanted = differences(folder / "full.gguf", folder / "base.gguf")["token_embd.weight"]
    assert relative(changes(folder / "out.gguf")["token_embd.weight"], wanted) < 1e-4
    plan, opened = plan_bake(folder / "base.gguf", [folder / "out.gguf"])
    run(plan, opened, folder / "baked.gguf", overwrite=True)
    got = differences(folder / "baked.gguf", folder / "base.gguf")["token_embd.weight"]
    assert relative(got, wanted) < 1e-4


def test_a_rank_above_a_tensors_sides_is_cut(folder: pathlib.Path) -> None:
    """Its scale alpha / rank would be wrong then, and is made up for in its factor."""
    run_extract(folder, "full.gguf", "base.gguf", rank=100, include=["attn_k", "ffn_down"])
    wanted = differences(folder / "full.gguf", folder / "base.gguf")
    with open_gguf(folder / "out.gguf") as file:
        assert file.tensors["blk.0.attn_k.weight.lora_a"].shape == (32, 64)
        assert file.tensors["blk.0.ffn_down.weight.lora_a"].shape == (64, 128)
    for name, got in changes(folder / "out.gguf").items():
        assert relative(got, wanted[name]) < 1e-4


def test_models_with_adapters_are_sources(folder: pathlib.Path) -> None:
    """What an adapter at half its strength adds to a quantized base is known exactly, and comes back."""
    tune = f"{folder / 'base-Q8_0.gguf'}+{folder / 'lora.gguf'}=0.5"
    plan, sources = plan_extract(tune, folder / "base-Q8_0.gguf", rank=16)
    extract(plan, sources, folder / "out.gguf", overwrite=True)
    wanted, got = changes(folder / "lora.gguf"), changes(folder / "out.gguf")
    assert max(relative(got[name], 0.5 * wanted[name]) for name in wanted) < 1e-4


def test_threads_do_not_matter(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes from one thread and from four."""
    run_extract(folder, "full.gguf", "base.gguf", rank=4, threads=1)
    data = (folder / "out.gguf").read_bytes()
    run_extract(folder, "full.gguf", "base.gguf", rank=4, threads=4)
    assert (folder / "out.gguf").read_bytes() == data


def test_filters_choose_tensors(folder: pathlib.Path) -> None:
    """Those of recipes: parts of names in GGUF's or Hugging Face's vocabulary, or globs."""
    plan, _ = plan_extract(folder / "full.gguf", folder / "base.gguf", include=["self_attn"], exclude=["blk.1.*"])
    names = {f"blk.0.attn_{part}.weight" for part in ("q", "k", "v", "output")}
    assert {pair.name for pair in plan.pairs} == names


def test_what_has_the_same_weights_is_not_written(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The same bytes, or another type that holds the same values; the vectors of norms cannot be written."""
    plan, _ = plan_extract(folder / "tune.gguf", folder / "base.gguf")
    assert plan.unchanged == 6  # five norms and the embedding
    assert not plan.left_out
    with open_gguf(folder / "base-Q8_0.gguf") as file:
        stored = {name: t.dequantize() for name, t in file.tensors.items()}
    deltas = {"blk.0.attn_q.weight": stored["blk.0.attn_q.weight"] + 1}
    write_tiny_llama(tmp_path / "wide.gguf", replace=stored | deltas)
    plan, _ = plan_extract(tmp_path / "wide.gguf", folder / "base-Q8_0.gguf")
    assert [pair.name for pair in plan.pairs] == ["blk.0.attn_q.weight"]


def test_changed_vectors_are_reported(folder: pathlib.Path) -> None:
    """An adapter has no place for them."""
    plan, _ = plan_extract(folder / "full.gguf", folder / "base.gguf")
    assert plan.left_out["blk.0.attn_norm.weight"] == "not a matrix"
    assert any("attn_norm" in warning and "not a matrix" in warning for warning in plan.warnings)


def test_quantized_models_get_a_warning(folder: pathlib.Path) -> None:
    """Their difference is mostly the rounding of both."""
    plan, _ = plan_extract(folder / "tune.gguf", folder / "base-Q8_0.gguf")
    assert any("rounding of quantized weights (Q8_0)" in warning for warning in plan.warnings)


def test_a_tied_head_gets_a_warning(tmp_path: pathlib.Path) -> None:
    """llama.cpp multiplies with the embedding in two directions and an adapter has one."""
    write_tiny_llama(tmp_path / "base.gguf", layers=1, tied=True)
    write_tiny_llama(tmp_path / "tune.gguf", layers=1, tied=True, tune=(1, 0.1))
    plan, _ = plan_extract(tmp_path / "tune.gguf", tmp_path / "base.gguf", embeddings=True)
    assert any("tied" in warning for warning in plan.warnings)


def test_an_added_token_leaves_the_head_out(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A tune with a larger vocabulary has another shape of head; its layers are taken."""
    write_tiny_llama(tmp_path / "tune.gguf", vocab=352, tune=(1, 0.1))
    plan, _ = plan_extract(tmp_path / "tune.gguf", folder / "base.gguf")
    assert "shape [352, 64]" in plan.left_out["output.weight"]
    assert "blk.0.attn_q.weight" in {pair.name for pair in plan.pairs}


@pytest.mark.parametrize(
    ("tune", "options", "complaint"),
    [
        ("base.gguf", {}, "it is the same model"),
        ("tune.gguf", {"rank": 0}, "rank"),
        ("tune.gguf", {"out_type": "Q8_0"}, "F32, F16 or BF16"),
        ("tune.gguf", {"include": ["attn_w"]}, 'the filter "attn_w" matches no tensor'),
        ("tune.gguf", {"include": ["attn_norm"]}, "differs"),
        ("missing.gguf", {}, "no such file"),
    ],
)
def test_refused(folder: pathlib.Path, tune: str, options: dict[str, Any], complaint: str) -> None:
    """One line that says why."""
    with pytest.raises(GgufmergeError, match=complaint) as caught:
        plan_extract(folder / tune, folder / "base.gguf", **options)
    assert "\n" not in str(caught.value)


def test_a_model_of_other_layers_is_no_tune(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Layers of one number are then other layers."""
    write_tiny_llama(tmp_path / "stack.gguf", layers=3)
    with pytest.raises(GgufmergeError, match=r"stack\.gguf has 3 layers and .*base\.gguf 2, .* with --base"):
        plan_extract(tmp_path / "stack.gguf", folder / "base.gguf")


def test_what_only_the_tune_has_is_told(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Biases, say; but not what is computed."""
    extra = {"blk.0.attn_q.bias": np.ones(64), "rope_freqs.weight": np.ones(8)}
    write_tiny_llama(tmp_path / "biased.gguf", tune=(1, 0.05), extra=extra)
    plan, sources = plan_extract(tmp_path / "biased.gguf", folder / "base.gguf")
    for source in sources:
        source.close()
    [line] = [line for line in plan.warnings if "an adapter cannot add that" in line]
    assert "has no blk.0.attn_q.bias that" in line


def test_models_of_another_architecture_are_refused_and_closed(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So their files can be deleted, also on Windows."""
    opened = []
    real = module.open_source
    monkeypatch.setattr(module, "open_source", lambda reference: opened.append(real(reference)) or opened[-1])
    write_tiny_llama(tmp_path / "other.gguf", metadata={"general.architecture": "qwen2"})
    with pytest.raises(GgufmergeError, match="different architectures"):
        plan_extract(tmp_path / "other.gguf", folder / "base.gguf")
    for source in opened:
        with pytest.raises(ValueError, match="closed"):
            _ = source.tensors["output.weight"].raw


@pytest.mark.slow
def test_a_real_tune_of_rank_4_comes_back(tmp_path: pathlib.Path) -> None:
    """SmolLM2 with an adapter baked in and taken out again: every tensor within 1 %, and llama.cpp loads it."""
    adapter = ADAPTERS / "smollm2-135m-kjv-lora-r4.gguf"
    plan, opened = plan_bake(smollm2(), [adapter], out_type="F32")
    run(plan, opened, tmp_path / "tune.gguf")
    planned, sources = plan_extract(tmp_path / "tune.gguf", smollm2(), rank=4)
    extract(planned, sources, tmp_path / "out.gguf")
    wanted, got = changes(adapter), changes(tmp_path / "out.gguf")
    assert set(got) == set(wanted)
    assert max(relative(got[name], wanted[name]) for name in wanted) < 0.01
    plan, opened = plan_quantize(smollm2(), "F32")  # with Q4_1 llama.cpp would round activations to 8 bits
    run(plan, opened, tmp_path / "base.gguf")
    with LlamaModel(tmp_path / "base.gguf", adapters=[(tmp_path / "out.gguf", 1.0)]) as ours:
        tokens = ours.tokenize("In the beginning God created the heaven and the earth.")
        logits = ours.logits(tokens)
    with LlamaModel(tmp_path / "base.gguf", adapters=[(adapter, 1.0)]) as theirs:
        assert kl_divergence(logits, theirs.logits(tokens)) < 1e-5
