"""Structure and layouts: layers keep what they are wherever slices move them, and models of one family merge though not
all of them have the same parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufmerge
from tests.architecture_models import TinyModel, tiny_models, without_effect
from tests.cases.conftest import Build, Run, metadata, raw, weights
from tests.llama_worker import LlamaWorker
from tests.tiny import write_tiny_llama
from tests.tiny_t5 import write_tiny_t5

TOKENS = [1, 5, 9, 33, 7, 100, 64, 2, 17, 80, 31, 45]  # more than the tiny models' window


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaWorker]:
    with LlamaWorker() as worker:
        yield worker


def logits(llama: LlamaWorker, path: str) -> np.ndarray:
    answer = llama.ask(Path(path).resolve(), TOKENS)
    assert answer.logits is not None, answer.words
    return answer.logits


def stack(*ranges: tuple[int, int], model: str = "a.gguf") -> str:
    listed = "".join(f"- sources: [{{model: {model}, layer_range: [{start}, {stop}]}}]\n" for start, stop in ranges)
    return f"merge_method: passthrough\nslices:\n{listed}"


@pytest.mark.parametrize(
    "name",
    ["qwen35", "qwen3next", "qwen35moe-mtp", "gemma2", "gemma3", "gpt-oss", "cohere2", "cohere2moe-mtp", "minicpm"],
)
@pytest.mark.parametrize("removed", [(2,), (4, 5, 6)])
def test_layers_that_add_nothing_can_be_taken_out_or_repeated(
    folder: Path, build: Build, llama: LlamaWorker, name: str, removed: tuple[int, ...]
) -> None:
    """28: ikawrakow/ik_llama.cpp#1746, layers of Qwen 3.5 duplicated and deleted, every 4th of which is unlike the
    others. llama.cpp computes the same afterwards: all layers behind are of the kind that they were.
    """
    model = tiny_models()[name]
    model.write(folder / "a.gguf", change=without_effect(*removed))
    wanted = logits(llama, "a.gguf")
    first, last = removed[0], removed[-1] + 1
    build(stack((0, first), (last, model.layers)), "less")
    build(stack((0, last), (first, model.layers)), "more")
    for result in ("less.gguf", "more.gguf"):
        np.testing.assert_allclose(logits(llama, result), wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "ranges", "missing"),
    [
        ("qwen35", ((3, 4), (7, 8)), "linear attention"),
        ("qwen3next", ((0, 3), (4, 7)), "full attention"),
        ("jamba", ((0, 1), (2, 4)), "recurrent attention"),
        ("nemotron_h", ((0, 1), (3, 4)), "full attention"),
        ("gemma2", ((1, 2), (3, 4)), "sliding attention"),
        ("gemma3", ((5, 6), (11, 12)), "sliding attention"),
        ("granite_swa", ((0, 1), (2, 3)), "sliding attention"),
        ("llama4", ((0, 2),), "full attention"),
    ],
)
def test_a_stack_of_one_kind_of_layers_where_llama_cpp_needs_two_is_refused(
    folder: Path, refused: Callable[[str], list[str]], name: str, ranges: tuple[tuple[int, int], ...], missing: str
) -> None:
    """28: llama.cpp keeps a memory for each kind, and ends with an assertion where one stays empty."""
    tiny_models()[name].write(folder / "a.gguf")
    [line] = refused(stack(*ranges))
    assert f"but would get no layer with {missing} beside it there: llama.cpp runs {name} only with a layer" in line


def test_all_layers_of_one_kind_are_fine_where_llama_cpp_needs_no_other(
    folder: Path, build: Build, llama: LlamaWorker
) -> None:
    """28: Gemma with nothing but sliding attention runs."""
    tiny_models()["gemma2"].write(folder / "a.gguf")
    build(stack((0, 1), (2, 3)))
    assert np.isfinite(logits(llama, "out.gguf")).all()


def _deep(model: TinyModel, layers: int) -> TinyModel:
    """The model with more layers: those behind its own are as its last one."""
    last = f"blk.{model.layers - 1}."
    own = {name.removeprefix(last): shape for name, shape in model.tensors.items() if name.startswith(last)}
    more = {f"blk.{i}.{name}": shape for i in range(model.layers, layers) for name, shape in own.items()}
    counted = {**model.metadata, f"{model.architecture}.block_count": layers}
    return TinyModel(model.name, model.architecture, counted, {**model.tensors, **more}, {}, model.runs)


@pytest.mark.parametrize(
    ("name", "layers", "ranges", "why"),
    [
        ("gemma3", 62, ((0, 60),), "the attention scale of Gemma 3 27B"),
        ("gemma2", 42, ((0, 42), (38, 42)), "the attention scale of Gemma 2 27B"),
        ("exaone4", 64, ((0, 62),), "exaone4 has sliding attention in models of 64 layers only"),
        ("exaone4", 32, ((0, 32), (0, 32)), "no layer with sliding attention"),
        ("deepseek2", 28, ((0, 27),), "one matrix of queries"),
        ("baichuan", 32, ((0, 32), (28, 32)), "neither RoPE nor ALiBi"),
        ("hrm_text", 6, ((0, 1),), "its layers are run in cycles"),
        ("gemma4", 12, ((0, 10),), "per_layer_token_embd"),
        ("llama4", 12, ((0, 3), (2, 12)), "llama4 has experts in every 2nd layer"),
        ("rwkv7", 12, ((1, 12),), "the first layer of rwkv7 is like no other"),
        ("deepseek2", 12, ((0, 6), (1, 12)), "deepseek2 has no experts in its first layers"),
    ],
)
def test_layers_that_cannot_stay_what_they_are_are_refused(
    folder: Path, refused: Callable[[str], list[str]], name: str, layers: int, ranges: Any, why: str
) -> None:
    """28: whatever llama.cpp decides by the place of a layer or by the number of all, and no metadata can say."""
    model = tiny_models()[name]
    _deep(model, layers).write(folder / "a.gguf") if layers != model.layers else model.write(folder / "a.gguf")
    [line] = refused(stack(*ranges))
    assert why in line


def test_a_scale_that_follows_from_the_number_of_layers_is_written(
    folder: Path, build: Build, llama: LlamaWorker
) -> None:
    """28: MiniCPM scales what a layer adds by the number of layers unless the file says how."""
    model = tiny_models()["minicpm"]
    model.write(folder / "a.gguf", metadata={"minicpm.residual_scale": None}, change=without_effect(3))
    [line] = build(stack((0, 4), (3, 12)))
    assert "minicpm.residual_scale becomes 0.404145" in line
    np.testing.assert_allclose(logits(llama, "out.gguf"), logits(llama, "a.gguf"), atol=2e-4)


ONTO = "merge_method: task_arithmetic\nbase_model: {}.gguf\nmodels: [{{model: {}.gguf}}]\nparameters: {{weight: 1}}\n"
FEW = "no layers that predict further tokens (MTP); the result has those of"
NEXTN = "glm4moe.nextn_predict_layers"


@pytest.fixture
def glm(folder: Path) -> Path:
    """with.gguf has an MTP layer; without.gguf, full.gguf and with2.gguf are tunes of it. full.gguf still counts the
    layer that it has no tensors of, as some converters do.
    """
    model = tiny_models()["glm4moe-mtp"]
    last = model.layers - 1

    def dropped(name: str, values: np.ndarray) -> np.ndarray | None:
        return None if name.startswith(f"blk.{last}.") else values

    model.write(folder / "with.gguf")
    model.write(folder / "with2.gguf", tune=0.2)
    model.write(folder / "full.gguf", tune=0.1, change=dropped)
    fewer = {"glm4moe.block_count": last, NEXTN: 0}
    model.write(folder / "without.gguf", tune=0.1, change=dropped, metadata=fewer)
    return folder


@pytest.mark.parametrize(
    ("base", "tune"),
    [("with", "without"), ("with", "full"), ("without", "with2"), ("full", "with"), ("without", "full")],
)
def test_a_tune_that_was_saved_without_its_mtp_layer(
    glm: Path, build: Build, llama: LlamaWorker, base: str, tune: str
) -> None:
    """30: axolotl-ai-cloud/axolotl#3030, GLM 4.5. The common layers are merged, the MTP layer is that of the model that
    has one, the result computes what the tune computes, and no advice is given that would break it.
    """
    told = build(ONTO.format(base, tune))
    np.testing.assert_allclose(logits(llama, "out.gguf"), logits(llama, f"{tune}.gguf"), atol=2e-5)
    own = [name for name in (base, tune) if name.startswith("with") and name != "without"]
    mtp = {name: data for name, data in raw("out.gguf").items() if name.startswith("blk.12.")}
    assert bool(mtp) == bool(own)
    if own:
        assert mtp == {name: data for name, data in raw(f"{own[0]}.gguf").items() if name in mtp}
        lacking = next(name for name in (base, tune) if name not in own)
        assert f"{lacking}.gguf: {FEW} {own[0]}.gguf as they are" in told
    assert not [line for line in told if "write metadata" in line or "differs" in line]


@pytest.mark.parametrize(
    ("base", "tune", "stop"),
    [("with", "without", 12), ("without", "with", 12), ("with", "with2", 12), ("with", "with2", 13)],
)
def test_slices_count_the_mtp_layers_that_they_have(
    glm: Path, build: Build, llama: LlamaWorker, base: str, tune: str, stop: int
) -> None:
    """30: llama.cpp would take the last ordinary layer for one of them, or compute a layer too many."""
    sources = ", ".join(f"{{model: {name}.gguf, layer_range: [0, {stop}]}}" for name in (base, tune))
    head = f"merge_method: task_arithmetic\nbase_model: {base}.gguf\nparameters: {{weight: 1}}\n"
    build(f"{head}slices: [{{sources: [{sources}]}}]\n")
    assert (metadata("out.gguf", NEXTN)[0] or 0) == stop - 12
    np.testing.assert_allclose(logits(llama, "out.gguf"), logits(llama, f"{tune}.gguf"), atol=2e-5)


@pytest.mark.parametrize(
    ("base", "more", "giver"),
    [
        ("with", "exclude: [nextn]\n", "with"),
        ("without", "exclude: [nextn]\n", "with"),
        ("with", "graft: [{model: with2.gguf, tensors: [model.layers.12]}]\n", "with2"),
        ("without", "graft: [{model: with2.gguf, tensors: [nextn]}]\n", "with2"),
    ],
)
def test_exclude_and_graft_mean_the_mtp_layer_too(glm: Path, build: Build, base: str, more: str, giver: str) -> None:
    """30: one of the models has it, whichever stands first; it is whole in the result."""
    other = "without" if base == "with" else "with"
    told = build(ONTO.format(base, other) + more)
    name = "blk.12.nextn.eh_proj.weight"
    assert raw("out.gguf")[name] == raw(f"{giver}.gguf")[name]
    assert raw("out.gguf").keys() == raw("with.gguf").keys()
    assert not [line for line in told if "matches no tensor" in line]


@pytest.mark.parametrize(("one", "other"), [("with", "without"), ("without", "full"), ("plain", "seeing")])
def test_models_that_can_be_merged_have_one_letter(glm: Path, run: Run, build: Build, one: str, other: str) -> None:
    """30 and 34: `models` keeps to what `build` does where one model has an MTP layer or vision alone."""
    write_tiny_llama(glm / "plain.gguf", **SHAPE)
    write_tiny_llama(glm / "seeing.gguf", tune=(1, 0.02), extra=SENSES, **SHAPE)
    for path in glm.glob("*.gguf"):
        if path.stem not in (one, other):
            path.unlink()
    code, out, _ = run("models", ".")
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines() if ".gguf" in line][:2] == ["A", "A"]
    build(ONTO.format(one, other))


def test_metadata_of_a_recipe_that_make_layers_another_kind_are_told(glm: Path, build: Build) -> None:
    """30: what the recipe sets is written, and named where llama.cpp will not take it."""
    told = build(f"{ONTO.format('with', 'with2')}metadata: {{{NEXTN}: 0}}\n")
    [line] = [line for line in told if line.startswith(f"metadata: sets {NEXTN}: layer 12 of the result")]
    assert "(MTP), but would get an ordinary place there" in line
    assert metadata("out.gguf", NEXTN) == [0]
    tiny_models()["gemma2"].write(glm / "a.gguf")
    [line] = build(f"{stack((0, 12))}metadata: {{gemma2.attention.sliding_window_pattern: 3}}\n", "g")
    assert "would get sliding attention there" in line


def test_models_without_layers_of_that_kind_are_not_told_of_them(folder: Path, build: Build) -> None:
    """30: a count of 0 and no count are the same."""
    model = tiny_models()["glm4moe"]
    model.write(folder / "a.gguf", metadata={NEXTN: 0})
    model.write(folder / "b.gguf", tune=0.1)
    assert build(ONTO.format("a", "b")) == []


def test_a_gradient_runs_over_both_stacks_of_t5(folder: Path, build: Build) -> None:
    """32: arcee-ai/mergekit#14. Encoder and decoder have layers of their own."""
    for number, name in enumerate("ab", 1):
        write_tiny_t5(folder / f"{name}.gguf", tune=(number, 0.5))
    build("merge_method: slerp\nbase_model: a.gguf\nmodels: [{model: b.gguf}]\nparameters: {t: [1, 0]}\n")
    a, b, out = raw("a.gguf"), raw("b.gguf"), raw("out.gguf")
    for name in (name for name in out if ".blk." in name):
        layer = int(re.findall(r"blk\.(\d+)", name)[0])
        assert (out[name] == b[name], out[name] == a[name]) == (layer == 0, layer == 2), name
    build(stack((0, 2)), "cut")
    assert metadata("cut.gguf", "t5.block_count", "t5.decoder_block_count") == [2, 2]
    assert raw("cut.gguf").keys() == {name for name in a if "blk.2." not in name}


def test_a_quantized_adapter_of_t5(folder: Path, run: Run) -> None:
    """32: ggml-org/llama.cpp#8974, whose own exporter refuses it; both stacks are changed."""
    from gguf import GGUFWriter

    from ggufmerge.types import TensorType
    from tests.tiny import _add_tensor, _by_ggml

    base = write_tiny_t5(folder / "a.gguf")
    writer, random, changes = GGUFWriter(folder / "lora.gguf", "t5"), np.random.default_rng(0), {}
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 64.0)
    for name in ("enc.blk.0.attn_q.weight", "dec.blk.1.cross_attn_v.weight"):
        halves = [random.standard_normal(shape, np.float32) / 20 for shape in ((32, 64), (64, 32))]
        for half, values in zip("ab", halves, strict=True):
            _add_tensor(writer, f"{name}.lora_{half}", values, TensorType.Q8_0, _by_ggml)
        changes[name] = 2 * halves[1] @ halves[0]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    code, _, err = run("bake", "a.gguf", "lora.gguf", "-o", "out.gguf")
    assert (code, err) == (0, "")
    out = weights("out.gguf")
    for name, values in base.items():
        np.testing.assert_allclose(out[name], values + changes.get(name, 0), atol=2e-3 if name in changes else 0)


def test_gradients_that_begin_at_zero_over_an_embedding_model(folder: Path, build: Build) -> None:
    """33: arcee-ai/mergekit#284, DARE-TIES of BERT models: nothing of the tune in the first layer, all in the last."""
    model = tiny_models()["bert"]
    model.write(folder / "a.gguf")
    model.write(folder / "b.gguf", tune=0.5)
    head = "merge_method: dare_ties\nbase_model: a.gguf\nmodels:\n- model: b.gguf\n"
    build(f"{head}  parameters: {{density: [0, 1], weight: [0, 1]}}\n")
    a, b, out = weights("a.gguf"), weights("b.gguf"), weights("out.gguf")
    last = model.layers - 1
    for name in (name for name in out if out[name].ndim > 1 and re.match(rf"blk\.(0|{last})\.", name)):
        np.testing.assert_allclose(out[name], (b if f".{last}." in name else a)[name], atol=1e-6)


SENSES = {"v.blk.0.attn_q.weight": np.full((32, 32), 2, np.float32), "mm.0.weight": np.full((4, 32), 3, np.float32)}
SHAPE: dict[str, Any] = {"layers": 2, "embed": 32, "ff": 64, "heads": 2, "kv_heads": 1}


@pytest.mark.parametrize("more", ["graft: [{model: seeing.gguf, tensors: [v.*, mm.*]}]\n", "exclude: [mm., v.blk]\n"])
def test_vision_that_the_base_lacks_can_be_grafted_or_left_out(folder: Path, build: Build, more: str) -> None:
    """34: qaribhaider/ollama-to-lmstudio-symlinks#17. Ollama's gemma3 has vision in the file, the tune has not."""
    plain = write_tiny_llama(folder / "plain.gguf", **SHAPE)
    write_tiny_llama(folder / "seeing.gguf", tune=(1, 0.02), extra=SENSES, **SHAPE)
    told = build(ONTO.format("plain", "seeing") + more)
    out = weights("out.gguf")
    if more.startswith("graft"):
        [line] = told
        assert line.startswith("the result has 2 tensors of vision or sound")
        assert all((out[name] == values).all() for name, values in SENSES.items())
    else:
        [line] = told
        assert line.startswith(
            "seeing.gguf: 2 excluded tensors (v.blk.0.attn_q.weight, mm.0.weight) are not in the result"
        )
        assert out.keys() == plain.keys()


ONLY_ONE = {"blk.0.attn_q_norm.weight": np.ones(16, np.float32), "some_table.weight": np.ones((4, 32), np.float32)}
UNREAD = "llama.cpp v0.5.0 knows no some_table.weight, blk.0.attn_q_norm.weight of llama"


@pytest.mark.parametrize("first", ["plain", "more"])
def test_what_only_one_model_has_is_excluded_or_grafted(
    folder: Path, build: Build, refused: Callable[[str], list[str]], first: str
) -> None:
    """34: whichever model it is. The way that the error names leads there."""
    plain = write_tiny_llama(folder / "plain.gguf", **SHAPE)
    write_tiny_llama(folder / "more.gguf", tune=(1, 0.02), extra=ONLY_ONE, **SHAPE)
    recipe = ONTO.format(first, "more" if first == "plain" else "plain")
    [line] = refused(recipe)
    assert "plain.gguf lacks tensors that the other models have (some_table.weight, blk.0.attn_q_norm.weight)" in line
    word = line.rpartition("exclude: ")[2]
    assert word == "some_table.weight"
    told = build(f"{recipe}exclude: [{word}, q_norm]\n", "excluded")
    assert weights("excluded.gguf").keys() == (plain.keys() if first == "plain" else plain.keys() | ONLY_ONE.keys())
    assert ("excluded tensors" in told[0]) == (first == "plain")
    assert told[0].startswith(UNREAD) == (first == "more")
    [line] = build(f"{recipe}graft: [{{model: more.gguf, tensors: [{word}, q_norm]}}]\n", "grafted")
    assert line.startswith(UNREAD)
    assert all((weights("grafted.gguf")[name] == values).all() for name, values in ONLY_ONE.items())


def test_a_word_that_no_model_has_is_still_a_slip(folder: Path, refused: Callable[[str], list[str]]) -> None:
    """34: `exclude` is not a place where anything goes."""
    write_tiny_llama(folder / "plain.gguf", **SHAPE)
    write_tiny_llama(folder / "more.gguf", tune=(1, 0.02), extra=ONLY_ONE, **SHAPE)
    [line] = refused(ONTO.format("more", "plain") + "exclude: [some_tabel, some_table, q_norm]\n")
    assert 'the filter "some_tabel" of exclude matches no tensor' in line


def test_all_commands_agree_about_models_of_images(folder: Path, run: Run) -> None:
    """48: city96/ComfyUI-GGUF#44. They get one letter, are merged, and `quantize` says why it does not take them."""
    from tests.engine.test_other_models import write_image_model

    for number, name in enumerate(("one", "two")):
        write_image_model(folder / f"{name}.gguf", number)
    code, out, _ = run("models", ".")
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines() if ".gguf" in line][:2] == ["A", "A"]
    assert run("merge", "one.gguf", "two.gguf", "-o", "out.gguf")[0] == 0
    assert ggufmerge.open("out.gguf").architecture == "flux"
    code, _, err = run("quantize", "one.gguf", "Q8_0")
    assert code == 1
    assert "flux is no language model" in err


def test_a_stack_of_mamba_layers(folder: Path, build: Build, llama: LlamaWorker) -> None:
    """All layers of Mamba are of one kind, so any stack of them runs."""
    tiny_models()["mamba"].write(folder / "a.gguf", change=without_effect(3))
    assert build(stack((0, 4), (3, 12))) == []
    np.testing.assert_allclose(logits(llama, "out.gguf"), logits(llama, "a.gguf"), atol=2e-5)
