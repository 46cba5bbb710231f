"""Files of one model in several layouts are one model: experts that have a tensor each, parts on top of each other."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numba import config

import ggufmerge
from ggufmerge.engine.worries import worries_of
from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.evaluation import LlamaModel
from ggufmerge.planning.opened import Opened
from ggufmerge.planning.planner import make_plan
from ggufmerge.recipe import load_recipe
from tests.tiny import fused, split_experts, write_tiny_deepseek, write_tiny_llama, write_tiny_lora

SIZES: dict[str, Any] = {"layers": 1, "embed": 256, "ff": 256, "experts": 4}
STACK = "blk.0.ffn_gate_exps.weight"
BOTH = "merge_method: linear\nmodels: [{model: %s}, {model: %s}]\nparameters: {weight: 1}\n"


def fused_attention(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Q, K and V in one tensor, experts as they are: architecture llama has them in no other layout."""
    kept = {name: values for name, values in weights.items() if "_exps" in name}
    return {**{name: values for name, values in fused(weights).items() if "_exps" not in name}, **kept}


def merged(folder: Path, first: str, second: str, name: str = "out.gguf") -> Path:
    (folder / "r.yaml").write_text(BOTH % (first, second))
    ggufmerge.build(folder / "r.yaml", folder / name, overwrite=True)
    return folder / name


def blocks(path: Path) -> dict[str, tuple[str, bytes]]:
    with ggufmerge.open(path) as file:
        return {name: (str(tensor.type), tensor.raw.tobytes()) for name, tensor in file.tensors.items()}


def logits(path: Path) -> np.ndarray:
    """What llama.cpp computes with a file."""
    with LlamaModel(path) as model:
        return model.logits([5, 6, 7, 300])


@pytest.mark.parametrize("pair", [("old", "old2"), ("old", "new2"), ("new", "old2")], ids=" ".join)
def test_old_files_of_experts_merge_as_new_ones_do(tmp_path: Path, pair: tuple[str, str]) -> None:
    """With each other and with new files, in any order: the same bytes, in a file that llama.cpp reads."""
    for name, tune in (("", None), ("2", (1, 0.02))):
        for layout, how in (("old", split_experts), ("new", None)):
            write_tiny_llama(tmp_path / f"{layout}{name}.gguf", type="Q4_0", tune=tune, layout=how, **SIZES)
    wanted = blocks(merged(tmp_path, "new.gguf", "new2.gguf", "wanted.gguf"))
    got = merged(tmp_path, *(f"{name}.gguf" for name in pair))
    assert blocks(got) == wanted
    assert list(blocks(got)) == list(wanted)


def test_llama_cpp_reads_what_is_made_of_old_files_of_experts(tmp_path: Path) -> None:
    """It refuses the files themselves; a copy computes what the new file of the model does."""
    for name, how in (("old", split_experts), ("new", None)):
        write_tiny_llama(tmp_path / f"{name}.gguf", type="Q8_0", layout=how, **SIZES)
    with pytest.raises(GgufmergeError, match=r"an old layout; write it anew with ggufmerge quantize .*old\.gguf NEW"):
        logits(tmp_path / "old.gguf")
    ggufmerge.quantize_file(tmp_path / "old.gguf", tmp_path / "copy.gguf", "COPY")
    assert blocks(tmp_path / "copy.gguf") == blocks(tmp_path / "new.gguf")
    np.testing.assert_array_equal(logits(tmp_path / "copy.gguf"), logits(tmp_path / "new.gguf"))


def test_old_files_of_experts_are_quantized_as_new_ones_are(tmp_path: Path) -> None:
    """To the same types and bytes, and the user is told what was done."""
    for name, how in (("old", split_experts), ("new", None)):
        write_tiny_llama(tmp_path / f"{name}.gguf", layout=how, **SIZES)
        report = ggufmerge.quantize_file(tmp_path / f"{name}.gguf", tmp_path / f"{name}.q.gguf", "Q4_K_M")
        told = [line for line in report.warnings if "each of the 4 experts of a layer has tensors of its own" in line]
        assert len(told) == (name == "old")
    assert blocks(tmp_path / "old.q.gguf") == blocks(tmp_path / "new.q.gguf")


def test_old_files_of_experts_are_seen_as_the_same_kind_of_model(tmp_path: Path) -> None:
    """`models` gives both one family, `inspect` says what is special, `diff` finds no difference."""
    for name, how in (("old", split_experts), ("new", None)):
        write_tiny_llama(tmp_path / f"{name}.gguf", layout=how, **SIZES)
    found = {model.path.name: model for model in ggufmerge.models(tmp_path) if model.path.parent == tmp_path}
    assert found["old.gguf"].family == found["new.gguf"].family
    assert "an old layout" in ggufmerge.inspect(tmp_path / "old.gguf")["layout"]
    assert ggufmerge.inspect(tmp_path / "new.gguf")["layout"] is None
    assert ggufmerge.compare(tmp_path / "old.gguf", tmp_path / "new.gguf").identical


def test_experts_of_several_types_are_written_in_the_widest(tmp_path: Path) -> None:
    """An expert that has it already keeps its blocks, the others are rounded anew; nothing is written in F32."""
    write_tiny_llama(tmp_path / "old.gguf", layout=split_experts, type="Q4_0", types={"*ffn_down.2.*": "Q8_0"}, **SIZES)
    report = ggufmerge.quantize_file(tmp_path / "old.gguf", tmp_path / "copy.gguf", "COPY")
    got = blocks(tmp_path / "copy.gguf")
    assert {name: got[name][0] for name in got if "_exps" in name} == {
        STACK: "Q4_0",
        "blk.0.ffn_up_exps.weight": "Q4_0",
        "blk.0.ffn_down_exps.weight": "Q8_0",
    }
    assert [line for line in report.warnings if "experts of several types (Q4_0, Q8_0), of which the widest" in line]
    single = blocks(tmp_path / "old.gguf")["blk.0.ffn_down.2.weight"][1]
    whole = got["blk.0.ffn_down_exps.weight"][1]
    assert whole[2 * len(single) : 3 * len(single)] == single


def test_adapters_name_experts_as_they_were_or_as_they_are(tmp_path: Path) -> None:
    """A change of the stack, or of single experts, for a file of either layout."""
    weights = write_tiny_llama(tmp_path / "new.gguf", **SIZES)
    write_tiny_llama(tmp_path / "old.gguf", layout=split_experts, **SIZES)
    delta = write_tiny_lora(tmp_path / "stack.gguf", weights, targets=[STACK])[STACK]
    single = {f"blk.0.ffn_gate.{e}.weight": weights[STACK][e] for e in (0, 2)}
    singles = write_tiny_lora(tmp_path / "single.gguf", single, targets=["*"])
    some = np.zeros_like(delta)
    some[0], some[2] = singles["blk.0.ffn_gate.0.weight"], singles["blk.0.ffn_gate.2.weight"]
    for model in ("new", "old"):
        for adapter, change in (("stack", delta), ("single", some)):
            out = tmp_path / f"{model}.{adapter}.gguf"
            ggufmerge.bake(tmp_path / f"{model}.gguf", [tmp_path / f"{adapter}.gguf"], out)
            with ggufmerge.open(out) as file:
                np.testing.assert_allclose(file.tensors[STACK].dequantize(), weights[STACK] + change, atol=1e-5)


def test_an_adapter_for_an_expert_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """It was made for another model; so was one whose halves have other shapes."""
    weights = write_tiny_llama(tmp_path / "new.gguf", **SIZES)
    for name, values, told in (
        ("blk.0.ffn_gate.4.weight", weights[STACK][0], "does not have"),
        ("blk.0.ffn_gate.1.weight", weights[STACK][0][:32], r"do not fit the base's \[256, 256\]"),
    ):
        write_tiny_lora(tmp_path / "lora.gguf", {name: values}, targets=["*"])
        with pytest.raises(PlanError, match=told):
            ggufmerge.bake(tmp_path / "new.gguf", [tmp_path / "lora.gguf"], tmp_path / "out.gguf")


def test_an_importance_matrix_fits_files_of_either_layout(tmp_path: Path) -> None:
    """Called by stacks or by single experts, it gives the same blocks."""
    weights = write_tiny_llama(tmp_path / "new.gguf", **SIZES)
    write_tiny_llama(tmp_path / "old.gguf", layout=split_experts, **SIZES)
    rng = np.random.default_rng(0)
    for matrix, layout in (("stacked", dict), ("single", split_experts)):
        writer = gguf.GGUFWriter(tmp_path / f"{matrix}.gguf", "")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", ["a.txt"])
        writer.add_uint32("imatrix.chunk_count", 1)
        writer.add_uint32("imatrix.chunk_size", 512)
        rng = np.random.default_rng(0)
        sums = {
            name: rng.random((values.shape[0] if values.ndim == 3 else 1, values.shape[-1]), np.float32)
            for name, values in weights.items()
            if values.ndim > 1 and name.startswith("blk.")
        }
        for name, values in layout(sums).items():
            writer.add_tensor(f"{name}.in_sum2", values.reshape(-1, values.shape[-1]))
            writer.add_tensor(f"{name}.counts", np.full((values.size // values.shape[-1], 1), 7, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    got = []
    for model in ("new", "old"):
        for matrix in ("stacked", "single"):
            out = tmp_path / f"{model}.{matrix}.q.gguf"
            report = ggufmerge.quantize_file(
                tmp_path / f"{model}.gguf", out, "IQ3_XXS", imatrix=[tmp_path / f"{matrix}.gguf"]
            )
            assert not [line for line in report.warnings if "importance matrix" in line]
            got.append(blocks(out))
    assert all(other == got[0] for other in got)


def test_missing_experts_are_refused_in_one_line(tmp_path: Path) -> None:
    """Before anything is written, by whatever reads the model."""

    def holed(weights: Any) -> Any:
        return {name: w for name, w in split_experts(weights).items() if name != "blk.0.ffn_up.1.weight"}

    write_tiny_llama(tmp_path / "old.gguf", layout=holed, **SIZES)
    with pytest.raises(PlanError, match=r"lacks blk\.0\.ffn_up\.1\.weight, one of 4 experts") as error:
        ggufmerge.quantize_file(tmp_path / "old.gguf", tmp_path / "out.gguf", "Q8_0")
    assert len(error.value.lines) == 1
    assert "lacks blk.0.ffn_up.1.weight" in ggufmerge.inspect(tmp_path / "old.gguf")["layout"]


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="interpreted kernels allocate by themselves")
def test_stacking_takes_no_memory(tmp_path: Path) -> None:
    """Experts are stacked row by row as they are copied."""
    sizes = {**SIZES, "ff": 4096}
    write_tiny_llama(tmp_path / "old.gguf", layout=split_experts, **sizes)
    ggufmerge.quantize_file(tmp_path / "old.gguf", tmp_path / "warm.gguf", "COPY", threads=1)
    tracemalloc.start()
    try:
        ggufmerge.quantize_file(tmp_path / "old.gguf", tmp_path / "out.gguf", "COPY", threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000  # a stack has 17 MB


@pytest.mark.parametrize("pair", [("fused", "apart2"), ("apart", "fused2")], ids=" ".join)
def test_q_k_and_v_on_top_of_each_other_are_taken_apart(tmp_path: Path, pair: tuple[str, str]) -> None:
    """Where another model has them apart: the merge is that of two such models, and llama.cpp reads it."""
    sizes = {**SIZES, "experts": 0}
    biases = {f"blk.0.attn_{x}.bias": np.arange(n, dtype=np.float32) for x, n in (("q", 256), ("k", 128), ("v", 128))}
    whole = {"blk.0.attn_qkv.bias": np.concatenate(list(biases.values()))}
    for name, tune in (("", None), ("2", (1, 0.02))):
        write_tiny_llama(tmp_path / f"apart{name}.gguf", type="Q4_0", tune=tune, extra=biases, **sizes)
        write_tiny_llama(tmp_path / f"fused{name}.gguf", type="Q4_0", tune=tune, layout=fused, extra=whole, **sizes)
    got = merged(tmp_path, *(f"{name}.gguf" for name in pair))
    assert blocks(got) == blocks(merged(tmp_path, "apart.gguf", "apart2.gguf", "wanted.gguf"))
    assert np.isfinite(logits(got)).all()
    assert ggufmerge.compare(tmp_path / "fused.gguf", tmp_path / "apart.gguf").identical


def test_a_layout_that_all_models_share_stays(tmp_path: Path) -> None:
    """Nothing is taken apart for its own sake."""
    for name, tune in (("a", None), ("b", (1, 0.02))):
        write_tiny_llama(tmp_path / f"{name}.gguf", tune=tune, layout=fused, **{**SIZES, "experts": 0})
    assert "blk.0.attn_qkv.weight" in blocks(merged(tmp_path, "a.gguf", "b.gguf"))


def test_what_is_taken_apart_is_copied_and_told(tmp_path: Path) -> None:
    """Blocks of the model whose weights are taken keep their bytes; a layer may stand beside any other."""
    sizes = {**SIZES, "experts": 0, "layers": 2}
    write_tiny_llama(tmp_path / "apart.gguf", type="Q4_0", **{**sizes, "layers": 1})
    write_tiny_llama(tmp_path / "fused.gguf", type="Q4_0", layout=fused, **sizes)
    write_tiny_llama(tmp_path / "wanted.gguf", type="Q4_0", **sizes)
    (tmp_path / "r.yaml").write_text(
        "merge_method: linear\nslices:\n- sources: [{model: fused.gguf, layer_range: [1, 2], parameters: {weight: 1}},"
        " {model: apart.gguf, layer_range: [0, 1], parameters: {weight: 0}}]\n"
    )
    report = ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    assert [line for line in report.warnings if "fused.gguf: blk.0.attn_qkv.weight and 1 more taken apart" in line]
    wanted = blocks(tmp_path / "wanted.gguf")
    for part in ("attn_q", "attn_k", "attn_v", "ffn_up"):
        assert blocks(tmp_path / "out.gguf")[f"blk.0.{part}.weight"] == wanted[f"blk.1.{part}.weight"]


def test_adapters_for_what_is_taken_apart_change_the_parts(tmp_path: Path) -> None:
    """The change of the whole is cut as the whole is."""
    sizes = {**SIZES, "experts": 0}
    weights = write_tiny_llama(tmp_path / "apart.gguf", **sizes)
    write_tiny_llama(tmp_path / "fused.gguf", layout=fused, **sizes)
    whole = "blk.0.attn_qkv.weight"
    delta = write_tiny_lora(tmp_path / "lora.gguf", fused(weights), targets=[whole])[whole]
    out = merged(tmp_path, "fused.gguf+lora.gguf", "apart.gguf")
    with ggufmerge.open(out) as file:
        for part, start, stop in (("attn_q", 0, 256), ("attn_k", 256, 384), ("attn_v", 384, 512)):
            name = f"blk.0.{part}.weight"
            wanted = weights[name] + delta[start:stop] / 2
            np.testing.assert_allclose(file.tensors[name].dequantize(), wanted, atol=1e-5)


def write(path: Path, architecture: str, stored: dict[str, np.ndarray]) -> None:
    """A model of an architecture that may be stored in two ways; not one that runs."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_array("tokenizer.ggml.tokens", ["a"])
    for name, values in stored.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gate_and_up_of_experts_are_taken_apart_expert_by_expert(tmp_path: Path) -> None:
    """In a stack, each matrix has the rows of its gate before those of its up."""
    rng = np.random.default_rng(0)
    weights = {f"blk.0.ffn_{x}_exps.weight": rng.random((3, 32, 64), np.float32) for x in ("gate", "up", "down")}
    write(tmp_path / "apart.gguf", "deepseek2", weights)
    write(tmp_path / "fused.gguf", "deepseek2", fused(weights))
    assert "blk.0.ffn_gate_up_exps.weight" in blocks(tmp_path / "fused.gguf")
    got = merged(tmp_path, "fused.gguf", "apart.gguf")
    with ggufmerge.open(got) as file:
        assert file.tensors.keys() == weights.keys()
        for name, values in weights.items():
            np.testing.assert_allclose(file.tensors[name].dequantize(), values, atol=1e-6)


def test_ollamas_names_of_an_architecture_become_those_of_the_first_model(tmp_path: Path) -> None:
    """Its gptoss has the tensors of gpt-oss under other names; all that is named after the architecture follows."""
    rng = np.random.default_rng(0)
    named = {  # by Ollama -> by llama.cpp
        "token_embd.weight": "token_embd.weight",
        "blk.0.attn_norm.weight": "blk.0.attn_norm.weight",
        "blk.0.attn_sinks": "blk.0.attn_sinks.weight",
        "blk.0.attn_out.weight": "blk.0.attn_output.weight",
        "blk.0.ffn_norm.weight": "blk.0.post_attention_norm.weight",
    }
    shapes = {"blk.0.attn_sinks": (8,), "blk.0.attn_norm.weight": (64,), "blk.0.ffn_norm.weight": (64,)}
    weights = {name: rng.random(shapes.get(name, (1, 64)), np.float32) for name in named}
    other = {new: 3 * weights[old] for old, new in named.items()}
    write(tmp_path / "ollama.gguf", "gptoss", weights)
    write(tmp_path / "hub.gguf", "gpt-oss", other)
    got = merged(tmp_path, "hub.gguf", "ollama.gguf")
    with ggufmerge.open(got) as file:
        assert file.architecture == "gpt-oss"
        assert not [key for key in file.metadata if key.startswith("gptoss")]
        assert list(file.tensors) == list(named.values())
        for old, new in named.items():
            np.testing.assert_allclose(file.tensors[new].dequantize(), 2 * weights[old], rtol=1e-6)


def test_models_that_ollama_alone_has_merge_with_each_other(tmp_path: Path) -> None:
    """Two of one spelling stay as they are."""
    for name in "ab":
        write(tmp_path / f"{name}.gguf", "gptoss", {"blk.0.attn_out.weight": np.ones((64, 64), np.float32)})
    assert list(blocks(merged(tmp_path, "a.gguf", "b.gguf"))) == ["blk.0.attn_out.weight"]


def test_attention_of_before_and_after_it_was_split_is_one_model(tmp_path: Path) -> None:
    """llama.cpp computes the same with both; a merge of the two has the layout of the first, and its very weights."""
    for name, joined in (("old", True), ("new", False)):
        write_tiny_deepseek(tmp_path / f"{name}.gguf", joined=joined)
        write_tiny_deepseek(tmp_path / f"{name}2.gguf", joined=joined, tune=(1, 0.02))
    np.testing.assert_allclose(logits(tmp_path / "old.gguf"), logits(tmp_path / "new.gguf"), atol=0.02)
    for first, second in (("old", "new2"), ("new", "old2")):
        got = merged(tmp_path, f"{first}.gguf", f"{second}.gguf")
        wanted = merged(tmp_path, f"{first}.gguf", f"{first}2.gguf", "wanted.gguf")
        assert blocks(got) == blocks(wanted)
        np.testing.assert_array_equal(logits(got), logits(wanted))
        assert ggufmerge.compare(tmp_path / f"{first}2.gguf", tmp_path / f"{second}.gguf").identical


@pytest.mark.parametrize("first", ["old", "new"])
def test_blocks_of_attention_in_the_other_layout_are_read_as_what_they_say(tmp_path: Path, first: str) -> None:
    """Values are those of the blocks; what nothing is transposed of keeps its blocks."""
    second = {"old": "new", "new": "old"}[first]
    write_tiny_deepseek(tmp_path / "first.gguf", joined=first == "old", seed=1)
    write_tiny_deepseek(tmp_path / "second.gguf", joined=second == "old", type="Q8_0")
    ggufmerge.quantize_file(tmp_path / "second.gguf", tmp_path / "values.gguf", "F32")
    got = []
    for name in ("second", "values"):
        (tmp_path / "r.yaml").write_text(
            "merge_method: linear\nmodels: [{model: first.gguf, parameters: {weight: 0}},"
            f" {{model: {name}.gguf, parameters: {{weight: 1}}}}]\nout_type: F32\n"
        )
        report = ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf", overwrite=True)
        assert [line for line in report.warnings if "as in the first model" in line]
        got.append(blocks(tmp_path / "out.gguf"))
    assert got[0] == got[1]


def test_adapters_for_attention_in_the_other_layout_are_refused(tmp_path: Path) -> None:
    """Their changes are not transposed; the reason is the layout, and the message says what to do."""
    write_tiny_deepseek(tmp_path / "new.gguf")
    weights = write_tiny_deepseek(tmp_path / "old.gguf", joined=True)
    write_tiny_lora(tmp_path / "lora.gguf", weights, targets=["*attn_kv_b.weight"], architecture="deepseek2")
    told = r"old\.gguf\+lora\.gguf and new\.gguf are stored in two layouts.* bake adapters first, or instead of"
    with pytest.raises(PlanError, match=told):
        merged(tmp_path, "new.gguf", "old.gguf+lora.gguf")


def test_a_plan_over_several_layouts_can_be_opened_again(tmp_path: Path) -> None:
    """In another process, say: its files are brought to one layout there, too."""
    write_tiny_llama(tmp_path / "apart.gguf", layers=1)
    write_tiny_llama(tmp_path / "fused.gguf", layers=1, layout=fused)
    (tmp_path / "r.yaml").write_text(BOTH % ("apart.gguf", "fused.gguf"))
    plan, opened = make_plan(load_recipe(tmp_path / "r.yaml"))
    with opened, Opened.from_plan(plan) as again:
        assert list(again.sources[1].tensors) == list(opened.sources[1].tensors)


def test_models_in_other_layouts_are_of_one_family(tmp_path: Path) -> None:
    """`models` says that they can be merged, so they can."""
    for experts in (0, 3):
        write_tiny_llama(tmp_path / f"apart{experts}.gguf", layers=1, experts=experts)
        write_tiny_llama(tmp_path / f"fused{experts}.gguf", layers=1, experts=experts, layout=fused_attention)
        write_tiny_llama(tmp_path / f"old{experts}.gguf", layers=1, experts=experts, layout=split_experts)
    write_tiny_deepseek(tmp_path / "joined.gguf", joined=True)
    write_tiny_deepseek(tmp_path / "split.gguf")
    found = ggufmerge.models(tmp_path)
    groups = [sorted(m.path.stem for m in group if m.path) for group in ggufmerge.families(found)]
    here = [group for group in groups if {"apart0", "apart3", "split"} & set(group)]
    assert sorted(here) == [["apart0", "fused0", "old0"], ["apart3", "fused3", "old3"], ["joined", "split"]]


def test_weights_that_are_made_as_they_are_read_count_as_what_the_file_has(tmp_path: Path) -> None:
    """Nobody is told that a Q8_0 file is in F32, because its attention is transposed."""
    write_tiny_deepseek(tmp_path / "old.gguf", joined=True, type="Q8_0")
    write_tiny_deepseek(tmp_path / "new.gguf", tune=(1, 0.02), type="Q8_0")
    (tmp_path / "r.yaml").write_text(BOTH % ("old.gguf", "new.gguf"))
    plan, opened = make_plan(load_recipe(tmp_path / "r.yaml"))
    with opened:
        assert not [line for line in worries_of(plan, opened) if "F32" in line]


@pytest.mark.parametrize("first", ["hub", "ollama"])
def test_tensors_that_ollama_calls_otherwise_get_the_names_of_the_first_model(tmp_path: Path, first: str) -> None:
    """Also where both call the architecture the same, and in layers that the first model does not have."""
    own = {"hub": "token_embd_norm.weight", "ollama": "output_norm.weight"}
    for number, (name, norm) in enumerate(own.items()):
        write(tmp_path / f"{name}.gguf", "lfm2", {norm: np.full(64, number + 1, np.float32)})
    second = "ollama" if first == "hub" else "hub"
    with ggufmerge.open(merged(tmp_path, f"{first}.gguf", f"{second}.gguf")) as file:
        assert list(file.tensors) == [own[first]]
        np.testing.assert_array_equal(file.tensors[own[first]].dequantize(), np.full(64, 1.5, np.float32))
    assert len({model.family for model in ggufmerge.models(tmp_path) if model.path and model.path.stem in own}) == 1


@pytest.mark.parametrize("tune", ["fused", "apart"])
def test_an_adapter_is_extracted_for_the_tensors_of_the_base(tmp_path: Path, tune: str) -> None:
    """Whatever layout the tune has, so that the adapter fits the base."""
    sizes = {**SIZES, "experts": 0}
    write_tiny_llama(tmp_path / "base.gguf", **sizes)
    write_tiny_llama(tmp_path / "fused.gguf", tune=(1, 0.02), layout=fused, **sizes)
    write_tiny_llama(tmp_path / "apart.gguf", tune=(1, 0.02), **sizes)
    ggufmerge.extract_lora(tmp_path / f"{tune}.gguf", tmp_path / "base.gguf", tmp_path / "lora.gguf", rank=4)
    assert "blk.0.attn_q.weight.lora_a" in blocks(tmp_path / "lora.gguf")
    ggufmerge.bake(tmp_path / "base.gguf", [tmp_path / "lora.gguf"], tmp_path / "again.gguf")
