"""Scales that stand beside weights: NVFP4 and BitNet files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufmerge
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation import LlamaModel
from ggufmerge.files import MetadataEditor, TensorInfo
from ggufmerge.files.writer import GGUFWriter
from ggufmerge.running.run import run
from ggufmerge.types import TensorType
from tests import ggml
from tests.engine.conftest import build_report, raw, weights
from tests.tiny import write_tiny_llama, write_tiny_lora

TEXT = "the history of the wind and that which was in it"
NVFP4 = TensorType.NVFP4
SCALED = ("attn_q", "ffn_down", "ffn_up", "output")
SCALED_STACKS = ("ffn_down_exps", "ffn_up_exps")
Q, SCALE = "blk.0.attn_q.weight", "blk.0.attn_q.scale"


def write_scaled(
    path: Path, *, factor: float = 1.0, names: tuple[str, ...] = SCALED, **options: Any
) -> dict[str, np.ndarray]:
    """A model of which some weights are stored in NVFP4, divided by scales that stand beside them; returns the weights
    that it computes with.
    """
    write_tiny_llama(path, **options)
    with ggufmerge.open(path) as file:
        metadata, plain = MetadataEditor(file.metadata), {n: t.dequantize() for n, t in file.tensors.items()}
    effective: dict[str, np.ndarray] = {}
    stored: dict[str, tuple[np.ndarray, TensorType]] = {}
    for name, values in plain.items():
        stem = name.removesuffix(".weight")
        if stem.split(".")[-1] not in names:
            effective[name] = values
            stored[name] = values, TensorType.F32
            continue
        matrices = values.reshape(-1, *values.shape[-2:])
        scales = np.abs(matrices).max(axis=(1, 2)) * np.float32(factor / 1000)
        units = (matrices / scales[:, None, None]).reshape(values.shape)
        back = fp4(units)
        effective[name] = (back.reshape(matrices.shape) * scales[:, None, None]).reshape(values.shape)
        stored[name] = units, TensorType.NVFP4
        stored[f"{stem}.scale"] = scales, TensorType.F32
        stored[f"{stem}.input_scale"] = np.ones_like(scales), TensorType.F32
    infos = [TensorInfo(name, values.shape, kind) for name, (values, kind) in stored.items()]
    with GGUFWriter(path, metadata, infos, overwrite=True) as writer:
        for name, (values, kind) in stored.items():
            writer.write(name, 0, ggml.quantize(values.reshape(-1, values.shape[-1]), kind))
        writer.commit()
    return effective


def fp4(values: np.ndarray) -> np.ndarray:
    """What is left of values in NVFP4."""
    n = values.shape[-1]
    return ggml.dequantize(ggml.quantize(values.reshape(-1, n), NVFP4), NVFP4, n).reshape(values.shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a and b with scales, plain without; each with the same weights as a .f32 file."""
    folder = tmp_path_factory.mktemp("scaled")
    for name, tune, factor in (("a", None, 1.0), ("b", (1, 0.3), 2.5)):
        effective = write_scaled(folder / f"{name}.gguf", factor=factor, tune=tune)
        write_tiny_llama(folder / f"{name}.f32.gguf", replace=effective)
    return folder


@pytest.fixture
def build(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(recipe: str, name: str = "out.gguf", **options: object) -> Path:
        build_report(folder, recipe, tmp_path / name, **options)
        return tmp_path / name

    return run


LINEAR = """
merge_method: linear
models:
  - {{model: {0}, parameters: {{weight: 0.3}}}}
  - {{model: {1}, parameters: {{weight: 0.7}}}}
"""


def test_merging_scaled_weights_is_merging_what_they_stand_for(build: Callable[..., Path]) -> None:
    """The file with scales gives the result that the same weights in full precision give, to the bit."""
    scaled = build(LINEAR.format("a.gguf", "b.gguf") + "out_type: F32")
    plain = build(LINEAR.format("a.f32.gguf", "b.f32.gguf") + "out_type: F32", "plain.gguf")
    assert raw(scaled) == raw(plain)


def test_models_with_and_without_scales_go_together(build: Callable[..., Path]) -> None:
    """Whether a model has scales plays no part in whether it fits."""
    mixed = build(LINEAR.format("a.gguf", "b.f32.gguf") + "out_type: Q8_0")
    plain = build(LINEAR.format("a.f32.gguf", "b.f32.gguf") + "out_type: Q8_0", "plain.gguf")
    assert raw(mixed) == raw(plain)


def test_copied_tensors_keep_their_scales(build: Callable[..., Path], folder: Path) -> None:
    """A model alone, which keeps its types, keeps all bytes and the order of its tensors."""
    out = build("{merge_method: passthrough, models: [{model: a.gguf}]}")
    assert list(raw(out).items()) == list(raw(folder / "a.gguf").items())


def test_what_is_copied_brings_the_scale_of_its_own_model(build: Callable[..., Path], folder: Path) -> None:
    """In a stack of layers each has the scale of the layer it comes from."""
    slices = "[{sources: [{model: a.gguf, layer_range: [0, 2]}]}, {sources: [{model: b.gguf, layer_range: [0, 1]}]}]"
    out = raw(build(f"{{merge_method: passthrough, slices: {slices}}}"))
    assert out["blk.2.attn_q.scale"] == raw(folder / "b.gguf")[SCALE] != raw(folder / "a.gguf")[SCALE]


def test_nvfp4_results_are_written_in_units_of_a_scale(tmp_path: Path) -> None:
    """The first model's scale is the result's. The error is NVFP4's own, also for weights so small that NVFP4 without
    a scale has hardly a step for them.
    """
    small = {Q: np.random.default_rng(0).standard_normal((64, 64), np.float32) / 500}
    for name, tune in (("a", None), ("b", (1, 0.3))):
        write_scaled(tmp_path / f"{name}.gguf", tune=tune, replace=small)
    for name, out_type in (("fp4", ""), ("f32", "out_type: F32")):
        build_report(tmp_path, LINEAR.format("a.gguf", "b.gguf") + out_type, tmp_path / f"{name}.gguf")
    stored, wanted = weights(tmp_path / "fp4.gguf"), weights(tmp_path / "f32.gguf")
    assert np.array_equal(stored[SCALE], weights(tmp_path / "a.gguf")[SCALE])
    for name in (Q, "blk.1.ffn_down.weight", "output.weight"):
        assert distance(stored[name] * stored[name.replace(".weight", ".scale")], wanted[name]) < 0.12
    assert distance(fp4(wanted[Q]), wanted[Q]) > 0.2


def distance(x: np.ndarray, wanted: np.ndarray) -> float:
    """Relative RMS difference."""
    return float(np.linalg.norm(x - wanted) / np.linalg.norm(wanted))


def test_blocks_that_a_merge_leaves_keep_their_bytes(build: Callable[..., Path], folder: Path) -> None:
    """Also with scales: a TIES merge that takes nothing of the other model gives the base back."""
    recipe = """
merge_method: ties
base_model: a.gguf
models: [{model: b.gguf, parameters: {weight: 1, density: 0.01}}]
"""
    out, base = raw(build(recipe)), raw(folder / "a.gguf")
    block = NVFP4.block_bytes
    blocks = [np.frombuffer(x[Q], np.uint8).reshape(-1, block) for x in (out, base)]
    assert 0.5 < (blocks[0] == blocks[1]).all(axis=1).mean() < 1


def test_experts_have_a_scale_each(tmp_path: Path) -> None:
    """In a stack, each matrix is read with its own scale, however it is cut into chunks."""
    for name, tune in (("a", None), ("b", (1, 0.3))):
        effective = write_scaled(tmp_path / f"{name}.gguf", names=SCALED_STACKS, experts=4, tune=tune)
        write_tiny_llama(tmp_path / f"{name}.f32.gguf", replace=effective, experts=4)
    results = []
    for files, chunk in (
        (("a.f32.gguf", "b.f32.gguf"), 1 << 18),
        (("a.gguf", "b.gguf"), 1 << 18),
        (("a.gguf", "b.gguf"), 1024),
    ):
        build_report(
            tmp_path, LINEAR.format(*files) + "out_type: F32", tmp_path / "out.gguf", chunk=chunk, overwrite=True
        )
        results.append(raw(tmp_path / "out.gguf"))
    assert results[0] == results[1] == results[2]
    build_report(tmp_path, LINEAR.format("a.gguf", "b.gguf"), tmp_path / "fp4.gguf")
    stored, wanted = weights(tmp_path / "fp4.gguf"), weights(tmp_path / "out.gguf")
    name = "blk.1.ffn_down_exps.weight"
    got = stored[name] * stored["blk.1.ffn_down_exps.scale"][:, None, None]
    assert distance(got, wanted[name]) < 0.12


def test_adapters_change_what_a_scaled_weight_stands_for(
    tmp_path: Path, folder: Path, build: Callable[..., Path]
) -> None:
    """As in llama.cpp, the adapter's change comes on top of the scaled weight."""
    adapter = tmp_path / "adapter.gguf"
    write_tiny_lora(adapter, weights(folder / "a.f32.gguf"), targets=("*attn_q.weight",))
    out = [
        raw(
            build(
                f"{{merge_method: passthrough, out_type: F32, models: [{{model: '{m}.gguf+{adapter}'}}]}}", f"{m}.gguf"
            )
        )
        for m in ("a", "a.f32")
    ]
    assert out[0] == out[1]


def test_quantize_folds_scales(tmp_path: Path, folder: Path) -> None:
    """A file in another type stands for the same weights, without side tensors."""
    plan, opened = plan_quantize(folder / "a.gguf", "F32")
    run(plan, opened, tmp_path / "out.gguf")
    assert raw(tmp_path / "out.gguf") == raw(folder / "a.f32.gguf")


def test_scales_without_their_weight_are_refused(tmp_path: Path) -> None:
    """Nobody can say what such a scale is a scale of."""
    for name in ("a", "b"):
        write_scaled(tmp_path / f"{name}.gguf")
        data = (tmp_path / f"{name}.gguf").read_bytes()
        (tmp_path / f"{name}.gguf").write_bytes(data.replace(b"blk.0.attn_q.scale", b"blk.0.attn_x.scale"))
    with pytest.raises(GgufmergeError, match=r"blk\.0\.attn_x\.scale: a scale whose weight goes by another name"):
        build_report(tmp_path, LINEAR.format("a.gguf", "b.gguf"), tmp_path / "out.gguf")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_scales_that_are_no_factors_are_refused(tmp_path: Path, folder: Path, value: float) -> None:
    """Zero, NaN and infinity are damage, and nothing is written."""
    with ggufmerge.open(folder / "a.gguf") as file:
        offset = file.tensors[SCALE].offset
    data = bytearray((folder / "a.gguf").read_bytes())
    data[offset : offset + 4] = np.float32(value).tobytes()
    (tmp_path / "damaged.gguf").write_bytes(data)
    with pytest.raises(GgufmergeError, match=r"damaged\.gguf: blk\.0\.attn_q\.scale holds zero, NaN or infinity"):
        build_report(folder, LINEAR.format(tmp_path / "damaged.gguf", "b.gguf"), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("out_type", ["", "out_type: Q8_0"])
def test_llama_cpp_computes_with_the_result(build: Callable[..., Path], out_type: str) -> None:
    """llama.cpp loads results with and without scales, and predicts as the merge in full precision does."""
    logits = []
    for recipe, name in (
        (LINEAR.format("a.gguf", "b.gguf") + out_type, "a.gguf"),
        (LINEAR.format("a.f32.gguf", "b.f32.gguf") + "out_type: F32", "b.gguf"),
    ):
        with LlamaModel(build(recipe, name)) as model:
            logits.append(model.logits(model.tokenize(TEXT)))
    correlation = np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1]
    assert correlation > (0.999 if out_type else 0.95)


def test_adapters_are_baked_into_scaled_weights(tmp_path: Path) -> None:
    """With the default rounding, too: it is for uniform grids, and the file's other tensors have those."""
    from ggufmerge.engine.bake import plan_bake

    effective = write_scaled(tmp_path / "base.gguf", names=("attn_q",))
    deltas = write_tiny_lora(tmp_path / "lora.gguf", effective, targets=("*attn_q.weight",))
    plan, opened = plan_bake(tmp_path / "base.gguf", [tmp_path / "lora.gguf"], out_type="F32")
    with opened:
        run(plan, opened, tmp_path / "wide.gguf")
    np.testing.assert_allclose(weights(tmp_path / "wide.gguf")[Q], effective[Q] + deltas[Q], atol=1e-5)
    plan, opened = plan_bake(tmp_path / "base.gguf", [tmp_path / "lora.gguf"])
    with opened:
        report = run(plan, opened, tmp_path / "out.gguf", measure=True)
    assert {t.name: str(t.type) for t in plan.tensors}[Q] == "NVFP4"
    assert report.survival[Q].energy > 0
