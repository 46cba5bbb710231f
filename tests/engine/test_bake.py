"""Baking LoRA adapters: the result computes what llama.cpp computes with the adapters, and says what rounding kept."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

import ggufmerge
from ggufmerge.engine.bake import plan_bake, total_survival
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation import LlamaModel, perplexity
from ggufmerge.files import open_gguf
from ggufmerge.planning.planner import make_plan
from ggufmerge.recipe import load_recipe
from ggufmerge.recipe.reference import AdapterReference
from ggufmerge.running.run import BuildReport, run
from tests.formats.test_peft import DOWN, halves, write_peft
from tests.models import smollm2
from tests.tiny import write_tiny_llama, write_tiny_lora

ADAPTERS = pathlib.Path(__file__).parents[2] / "recipes" / "demo" / "adapters"
TEXTS = ADAPTERS.parent / "texts"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One base in several types, and two adapters for it."""
    folder = tmp_path_factory.mktemp("bake")
    weights = write_tiny_llama(folder / "base-F32.gguf", embed=256, ff=256, layers=1)
    for kind in ("Q4_K", "Q6_K", "Q8_0"):
        write_tiny_llama(folder / f"base-{kind}.gguf", embed=256, ff=256, layers=1, type=kind)
    write_tiny_lora(folder / "a.gguf", weights, strength=0.03)
    write_tiny_lora(folder / "b.gguf", weights, targets=("*attn_q.weight", "*ffn_up.weight"), strength=0.03, seed=1)
    return folder


def bake(folder: pathlib.Path, base: str, *adapters: str, threads: int = 2, **options: str) -> BuildReport:
    """Bakes into out.gguf beside the base."""
    references = [
        AdapterReference(str(folder / a.partition("=")[0]), float(a.partition("=")[2] or 1)) for a in adapters
    ]
    plan, opened = plan_bake(folder / base, references, **options)  # type: ignore[arg-type]
    return run(plan, opened, folder / "out.gguf", overwrite=True, threads=threads, measure=True)


def values(path: pathlib.Path, name: str) -> NDArray[np.float32]:
    with open_gguf(path) as file:
        return file.tensors[name].dequantize()


def raw(path: pathlib.Path) -> dict[str, NDArray[np.uint8]]:
    with open_gguf(path) as file:
        return {name: tensor.raw.copy() for name, tensor in file.tensors.items()}


def kl_divergence(ours: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Mean over tokens of KL(reference || ours), in nats; logits are [tokens, vocabulary]."""
    p, q = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64), 1)[:, None] for x in (reference, ours))
    return float((np.exp(p) * (p - q)).sum(1).mean())


def test_the_result_computes_what_llama_cpp_computes_with_the_adapters(folder: pathlib.Path) -> None:
    """Two adapters at their strengths, written in F32."""
    bake(folder, "base-F32.gguf", "a.gguf=0.8", "b.gguf=-0.5")
    tokens = np.random.default_rng(0).integers(3, 300, 40)
    adapters = [(folder / "a.gguf", 0.8), (folder / "b.gguf", -0.5)]
    with (
        LlamaModel(folder / "base-F32.gguf", context=64, threads=1, adapters=adapters) as adapted,
        LlamaModel(folder / "base-F32.gguf", context=64, threads=1) as base,
        LlamaModel(folder / "out.gguf", context=64, threads=1) as baked,
    ):
        wanted = adapted.logits(tokens)
        assert kl_divergence(baked.logits(tokens), wanted) < 1e-8
        assert kl_divergence(base.logits(tokens), wanted) > 1e-4


def test_a_quantized_base_is_baked_as_its_values_are(folder: pathlib.Path) -> None:
    """Written in F32: what the base's blocks stand for, plus the change, and nothing else."""
    bake(folder, "base-Q4_K.gguf", "a.gguf=0.8", out_type="F32")
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_down.weight"):
        a, b = (values(folder / "a.gguf", f"{name}.lora_{half}").astype(np.float64) for half in "ab")
        wanted = values(folder / "base-Q4_K.gguf", name) + 0.8 * 8 / 4 * b @ a
        np.testing.assert_allclose(values(folder / "out.gguf", name), wanted, rtol=0, atol=1e-7)
    untouched = "blk.0.attn_k.weight"
    np.testing.assert_array_equal(values(folder / "out.gguf", untouched), values(folder / "base-Q4_K.gguf", untouched))


def test_tensors_that_no_adapter_touches_are_copied(folder: pathlib.Path) -> None:
    """Byte for byte; the others keep the base's type unless another is asked for."""
    bake(folder, "base-Q4_K.gguf", "a.gguf")
    with open_gguf(folder / "base-Q4_K.gguf") as base, open_gguf(folder / "out.gguf") as out:
        differing = {name for name, t in base.tensors.items() if t.raw.tobytes() != out.tensors[name].raw.tobytes()}
        assert differing <= {"blk.0.attn_q.weight", "blk.0.ffn_down.weight"}
        assert {name: t.type for name, t in out.tensors.items()} == {name: t.type for name, t in base.tensors.items()}


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
def test_survival_is_the_projection_of_what_happened_onto_the_change(
    folder: pathlib.Path, kind: str, rounding: str
) -> None:
    """<written - base, change> / <change, change>, over all tensors and for each."""
    report = bake(folder, f"base-{kind}.gguf", "a.gguf", rounding=rounding)
    top = bottom = 0.0
    for name, survival in report.survival.items():
        base = values(folder / f"base-{kind}.gguf", name).astype(np.float64)
        _, opened = plan_bake(folder / f"base-{kind}.gguf", [str(folder / "a.gguf")])
        rows = np.empty(base.shape, np.float32)
        opened.sources[0].open_tensor(name).read(0, rows)
        change = rows - base
        kept = float(((values(folder / "out.gguf", name) - base) * change).sum())
        energy = float((change * change).sum())
        assert survival.share == pytest.approx(kept / energy, rel=1e-9)
        top, bottom = top + kept, bottom + energy
    assert set(report.survival) == {"blk.0.attn_q.weight", "blk.0.ffn_down.weight"}
    assert total_survival(report.survival).share == pytest.approx(top / bottom, rel=1e-9)


def share(folder: pathlib.Path, **options: str) -> float:
    return total_survival(bake(folder, "base-Q4_K.gguf", "a.gguf", **options).survival).share


def test_rounded_to_the_nearest_small_changes_survive_in_fine_types_only(folder: pathlib.Path) -> None:
    """A change of 3 % is less than a step of Q4_K's grid, on which the base's weights lie already."""
    assert share(folder, rounding="nearest") < 0.2
    assert 0.8 < share(folder, out_type="Q6_K") < 1
    assert share(folder, out_type="F32") == pytest.approx(1, abs=1e-6)


def test_rounded_stochastically_small_changes_survive_in_every_type(folder: pathlib.Path) -> None:
    """As a whole: each weight is on one side or the other of its place."""
    assert share(folder) == pytest.approx(1, abs=0.1)
    with open_gguf(folder / "out.gguf") as file:
        assert file.tensors["blk.0.attn_q.weight"].type == "Q4_K"
        assert file.metadata["ggufmerge.rounding"] == "stochastic where nearest loses the change"
        assert "ggufmerge.options" not in file.metadata


def test_what_is_measured_does_not_depend_on_threads(folder: pathlib.Path) -> None:
    """Nor do the bytes."""
    first = bake(folder, "base-Q4_K.gguf", "a.gguf", threads=1)
    data = (folder / "out.gguf").read_bytes()
    assert bake(folder, "base-Q4_K.gguf", "a.gguf", threads=3).survival == first.survival
    assert (folder / "out.gguf").read_bytes() == data


def test_opposite_strengths_cancel(folder: pathlib.Path) -> None:
    """A change that comes to nothing is nothing lost."""
    report = bake(folder, "base-F32.gguf", "a.gguf=1", "a.gguf=-1")
    for name, survival in report.survival.items():
        np.testing.assert_allclose(values(folder / "out.gguf", name), values(folder / "base-F32.gguf", name), atol=1e-7)
        assert survival.share == pytest.approx(1)


@pytest.fixture(scope="module")
def untrained(folder: pathlib.Path) -> str:
    """An adapter whose B halves are zero."""
    base = {"blk.0.attn_q.weight": values(folder / "base-F32.gguf", "blk.0.attn_q.weight")}
    write_tiny_lora(folder / "untrained.gguf", base, rows=-256)
    return "untrained.gguf"


def test_baking_adapters_that_change_nothing_is_an_error(folder: pathlib.Path, untrained: str) -> None:
    """Nothing is written, and nobody reads that all of nothing survived."""
    for adapter, why in ((untrained, "all its B halves are zero"), ("a.gguf=0", "its strength is 0")):
        with pytest.raises(GgufmergeError, match=f"{adapter[:6]}.*the adapter changes nothing: {why}"):
            bake(folder, "base-Q8_0.gguf", adapter)
    with pytest.raises(GgufmergeError, match="untrained") as caught:
        bake(folder, "base-Q8_0.gguf", untrained, "a.gguf=0")
    assert len(caught.value.lines) == 2


def test_beside_others_an_adapter_that_changes_nothing_is_a_warning(folder: pathlib.Path, untrained: str) -> None:
    """The result is that of the others."""
    report = bake(folder, "base-Q8_0.gguf", "a.gguf", untrained)
    assert any("the adapter changes nothing" in line for line in report.warnings)
    bytes_of = {name: t.tobytes() for name, t in raw(folder / "out.gguf").items()}
    bake(folder, "base-Q8_0.gguf", "a.gguf")
    assert {name: t.tobytes() for name, t in raw(folder / "out.gguf").items()} == bytes_of


def test_in_a_recipe_an_adapter_that_changes_nothing_is_a_warning(folder: pathlib.Path, untrained: str) -> None:
    """The merge may still be what is wanted."""
    base = folder / "base-Q8_0.gguf"
    text = f"merge_method: passthrough\nmodels: [{{model: {{model: {base}, lora: {folder / untrained}}}}}]\n"
    plan, opened = make_plan(load_recipe(text))
    opened.close()
    assert [line for line in plan.warnings if "all its B halves are zero" in line]
    assert {tensor.action for tensor in plan.tensors} == {"copy"}


def test_a_result_can_be_built_again_from_its_metadata(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the recipe that baking is short for."""
    bake(folder, "base-Q8_0.gguf", "a.gguf=0.5", out_type="Q6_K")
    with open_gguf(folder / "out.gguf") as file:
        recipe = file.metadata["ggufmerge.recipe"]
        assert file.metadata["general.base_model.count"] == 2
    ggufmerge.build(ggufmerge.load_recipe(recipe), folder / "again.gguf", overwrite=True)
    assert (folder / "again.gguf").read_bytes() == (folder / "out.gguf").read_bytes()


def test_paths_that_look_like_references(tmp_path: pathlib.Path) -> None:
    """A plus sign or an equals sign in a path means nothing."""
    weights = write_tiny_llama(tmp_path / "a+b.gguf", layers=1)
    write_tiny_lora(tmp_path / "c=2", weights)
    plan, opened = plan_bake(tmp_path / "a+b.gguf", [AdapterReference(str(tmp_path / "c=2"), 0.5)])
    assert [a.strength for a in opened.sources[0].adapters] == [0.5]
    run(plan, opened, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").exists()


def test_peft_adapters_are_baked_too(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A folder that PEFT saved stands where a GGUF adapter may stand."""
    tensors = halves(DOWN, 256, 256)
    plan, opened = plan_bake(folder / "base-F32.gguf", [write_peft(tmp_path / "peft", tensors)])
    run(plan, opened, tmp_path / "out.gguf")
    a, b = (tensors[f"{DOWN}.lora_{half}.weight"].astype(np.float64) for half in "AB")
    wanted = values(folder / "base-F32.gguf", "blk.0.ffn_down.weight") + 6 / 4 * b @ a
    np.testing.assert_allclose(values(tmp_path / "out.gguf", "blk.0.ffn_down.weight"), wanted, rtol=0, atol=1e-5)


def test_without_adapters_there_is_nothing_to_bake(folder: pathlib.Path) -> None:
    """That is `quantize`'s work."""
    with pytest.raises(GgufmergeError, match="at least one adapter"):
        plan_bake(folder / "base-F32.gguf", [])


def test_ties_over_adapters_is_ties_over_their_exact_changes(folder: pathlib.Path) -> None:
    """Models that are a quantized base with adapters have exactly known task vectors: no quantization noise enters.

    (base + change) - base in float32 loses the bits of the change below those of the weight: 6e-8 of the weight's size.
    """
    recipe = {
        "merge_method": "ties",
        "base_model": str(folder / "base-Q4_K.gguf"),
        "parameters": {"density": 0.5, "weight": 1.0},
        "models": [
            {"model": {"model": str(folder / "base-Q4_K.gguf"), "lora": str(folder / x)}} for x in ("a.gguf", "b.gguf")
        ],
        "out_type": "F32",
    }
    ggufmerge.build(ggufmerge.load_recipe(yaml.safe_dump(recipe)), folder / "ties.gguf", overwrite=True)
    name = "blk.0.attn_q.weight"
    base = values(folder / "base-Q4_K.gguf", name)
    exact = []
    for adapter in ("a.gguf", "b.gguf"):
        a, b = (values(folder / adapter, f"{name}.lora_{half}").astype(np.float64) for half in "ab")
        exact.append((8 / 4 * b @ a).astype(np.float32))
    zero = np.zeros_like(base)
    wanted = ggufmerge.merge(exact, "ties", {"density": 0.5, "weight": [1.0, 1.0]}, base=zero)
    got = values(folder / "ties.gguf", name).astype(np.float64) - base
    close = np.abs(got - wanted) <= 4e-7 * (np.abs(base) + np.abs(wanted))
    assert close.mean() > 0.9999  # a value at the threshold or a tie of signs may fall to the other side
    assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """SmolLM2 with its Q4_1 weights written in F32: the same numbers, with which llama.cpp computes in float32."""
    folder = tmp_path_factory.mktemp("real")
    plan, opened = plan_quantize(smollm2(), "F32")
    run(plan, opened, folder / "base-F32.gguf")
    return folder


def adapter(subject: str) -> pathlib.Path:
    return ADAPTERS / f"smollm2-135m-{subject}-lora-r4.gguf"


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["kjv", "fr", "py"])
def test_a_real_model_baked_in_f32_is_the_model_with_its_adapter(real: pathlib.Path, subject: str) -> None:
    """Mean KL divergence to llama.cpp applying the adapter at run time below 1e-4, far below that to the base.

    The weights are Q4_1 in one and F32 in the other; with Q4_1 llama.cpp rounds activations to 8 bits, which is the
    larger part of the difference to the file that users have, so that one is compared in F32.
    """
    plan, opened = plan_bake(smollm2(), [adapter(subject)], out_type="F32")
    run(plan, opened, real / "baked.gguf", overwrite=True)
    with (
        LlamaModel(real / "baked.gguf") as baked,
        LlamaModel(real / "base-F32.gguf", adapters=[(adapter(subject), 1.0)]) as adapted,
        LlamaModel(real / "base-F32.gguf") as base,
    ):
        tokens = base.tokenize((TEXTS / "scripture.txt").read_text(encoding="utf-8"))[:256]
        wanted = adapted.logits(tokens)
        distance = kl_divergence(baked.logits(tokens), wanted)
        assert distance < 1e-4
        assert kl_divergence(base.logits(tokens), wanted) > 100 * distance


@pytest.mark.slow
def test_q4_k_m_with_an_adapter_becomes_q4_k_m(real: pathlib.Path) -> None:
    """In one step, all tensors in the types they had; it predicts text nearly as with the adapter at run time."""
    plan, opened = plan_quantize(smollm2(), "Q4_K_M")
    run(plan, opened, real / "base.gguf", overwrite=True)
    shares, losses = {}, {}
    text = (TEXTS / "scripture.txt").read_text(encoding="utf-8")
    for rounding in ("nearest", "stochastic"):
        plan, opened = plan_bake(real / "base.gguf", [adapter("kjv")], out_type="Q4_K_M", rounding=rounding)
        report = run(plan, opened, real / "baked.gguf", overwrite=True, measure=True)
        shares[rounding] = total_survival(report.survival).share
        with LlamaModel(real / "baked.gguf") as model:
            losses[rounding] = perplexity(model, text, limit=1024).nll
    with open_gguf(real / "base.gguf") as base, open_gguf(real / "baked.gguf") as baked:
        assert {n: t.type for n, t in baked.tensors.items()} == {n: t.type for n, t in base.tensors.items()}
    assert shares["nearest"] < 0.1
    assert shares["stochastic"] > 0.9
    with LlamaModel(real / "base.gguf") as base_model:
        before = perplexity(base_model, text, limit=1024).nll
    with LlamaModel(real / "base.gguf", adapters=[(adapter("kjv"), 1.0)]) as adapted:
        after = perplexity(adapted, text, limit=1024).nll
    assert before - losses["stochastic"] > 0.85 * (before - after)
    assert before - losses["nearest"] < 0.4 * (before - after)
