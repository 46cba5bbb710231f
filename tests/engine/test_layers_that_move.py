"""What becomes of layers that slices put in another place; the law over all architectures is in tests/architectures."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import PlanError
from ggufmerge.planning.planner import plan_document
from ggufmerge.recipe import load_recipe
from tests.architecture_models import tiny_models
from tests.formats.test_checkpoint import write_folder
from tests.quants.test_imatrix import write_gguf as write_imatrix


def planned(folder: Path, *ranges: tuple[int, int], more: str = "") -> tuple[dict[str, Any], list[str]]:
    """The changes to the metadata and the warnings of the plan for slices of m.gguf."""
    lines = [f"  - sources: [{{model: m.gguf, layer_range: [{start}, {stop}]}}]" for start, stop in ranges]
    (folder / "r.yaml").write_text("merge_method: passthrough\nslices:\n" + "\n".join(lines) + "\n" + more)
    plan, opened = plan_document(load_recipe(folder / "r.yaml"))
    opened.close()
    return dict(plan.metadata), list(plan.warnings)


def test_a_window_is_written_layer_by_layer_where_the_period_does_not_fit(tmp_path: Path) -> None:
    """Gemma 2 has full attention in every 2nd layer; after layer 4 comes layer 4 again."""
    tiny_models()["gemma2"].write(tmp_path / "m.gguf")
    metadata, warnings = planned(tmp_path, (0, 5), (4, 12))
    sliding = [True, False] * 2 + [True] + [True, False] * 4
    assert metadata["gemma2.attention.sliding_window_pattern"] == sliding
    [line] = [line for line in warnings if "sliding_window_pattern" in line]
    assert "older than llama.cpp v0.5.0 may not read that" in line


def test_where_the_period_fits_nothing_is_written(tmp_path: Path) -> None:
    """An even number of layers lies between."""
    tiny_models()["gemma2"].write(tmp_path / "m.gguf")
    metadata, warnings = planned(tmp_path, (0, 6), (4, 12))
    assert "gemma2.attention.sliding_window_pattern" not in metadata
    assert not [line for line in warnings if "gemma2" in line]


def test_what_no_metadata_can_say_is_refused_with_ranges_that_fit(tmp_path: Path) -> None:
    """SmolLM3 has no RoPE in every 4th layer, which is fixed in llama.cpp."""
    tiny_models()["smollm3"].write(tmp_path / "m.gguf")
    with pytest.raises(PlanError, match=r"r\.yaml:4:5: layer 7 .* is layer 4 of m\.gguf.* \[3, 12\]") as caught:
        planned(tmp_path, (0, 7), (4, 12))
    assert "every 4th layer" in str(caught.value)
    planned(tmp_path, (0, 7), (3, 12))


def test_counts_go_with_the_layers_they_count(tmp_path: Path) -> None:
    """Dense layers in front, and at the end one that predicts further tokens."""
    model = tiny_models()["glm4moe-mtp"]
    model.write(tmp_path / "m.gguf")
    assert model.metadata["glm4moe.leading_dense_block_count"] == 2
    metadata, _ = planned(tmp_path, (1, 13))
    assert metadata["glm4moe.leading_dense_block_count"] == 1
    assert "glm4moe.nextn_predict_layers" not in metadata
    metadata, _ = planned(tmp_path, (0, 12))
    assert metadata["glm4moe.nextn_predict_layers"] == 0
    with pytest.raises(PlanError, match="MTP"):
        planned(tmp_path, (0, 13), (5, 12))


def test_what_the_recipe_sets_is_not_set_otherwise(tmp_path: Path) -> None:
    """Then the layers are what the user says, with a warning."""
    tiny_models()["gemma2"].write(tmp_path / "m.gguf")
    more = "metadata: {gemma2.attention.sliding_window_pattern: 2}\n"
    metadata, warnings = planned(tmp_path, (0, 5), (4, 12), more=more)
    assert metadata["gemma2.attention.sliding_window_pattern"] == 2
    assert [line for line in warnings if "with sliding attention, but would get full attention there" in line]


def test_what_follows_from_the_number_of_layers_is_kept_or_refused(tmp_path: Path) -> None:
    """MiniCPM's residual scale can be written, the attention scale of Gemma 3 cannot."""
    model = tiny_models()["minicpm"]
    model.write(tmp_path / "m.gguf", metadata={"minicpm.residual_scale": None})
    metadata, _ = planned(tmp_path, (0, 6))
    assert metadata["minicpm.residual_scale"] == pytest.approx(1.4 / 12**0.5, abs=1e-6)
    model = tiny_models()["gemma3"]
    deep = {
        f"blk.{i}.{name[6:]}": s for i in range(62) for name, s in model.tensors.items() if name.startswith("blk.0.")
    }
    outside = {name: shape for name, shape in model.tensors.items() if not name.startswith("blk.")}
    metadata = {**model.metadata, "gemma3.block_count": 62}
    type(model)("27b", "gemma3", metadata, {**outside, **deep}, {}, True).write(tmp_path / "m.gguf")
    with pytest.raises(PlanError, match=r"attention scale of Gemma 3 27B.* by the number of layers, 62"):
        planned(tmp_path, (0, 60))


def test_layers_of_two_kinds_that_become_one_are_told(tmp_path: Path) -> None:
    """A slice may put a sliding layer on a full one; the first decides what becomes of both."""
    tiny_models()["gemma2"].write(tmp_path / "a.gguf")
    tiny_models()["gemma2"].write(tmp_path / "b.gguf", seed=1)
    (tmp_path / "r.yaml").write_text(
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n  - sources:\n"
        "      - {model: a.gguf, layer_range: [0, 6]}\n      - {model: b.gguf, layer_range: [1, 7]}\n"
    )
    report = ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    wanted = "layer 1 of b.gguf, with full attention, is merged into layer 0 of a.gguf, with sliding attention"
    assert [line for line in report.warnings if wanted in line]


def test_layers_whose_kind_comes_from_another_model_are_told(tmp_path: Path) -> None:
    """A base whose file says nothing of a window gets that of its tune, and is not told to stay without."""
    model = tiny_models()["gemma3"]
    model.write(tmp_path / "base.gguf", metadata={"gemma3.attention.sliding_window": None})
    model.write(tmp_path / "tune.gguf", tune=0.1)
    models = [{"model": str(tmp_path / f"{name}.gguf"), "parameters": {"weight": 1}} for name in ("base", "tune")]
    plan, opened = plan_document(load_recipe({"merge_method": "linear", "models": models}))
    opened.close()
    assert plan.taken["gemma3.attention.sliding_window"] == 1
    [line] = [line for line in plan.warnings if "full attention" in line]
    assert "base.gguf, with full attention, gets sliding attention by what is taken from other models" in line


def test_grafts_into_a_layer_of_another_kind_are_told(tmp_path: Path) -> None:
    """A graft goes by the numbers of the result, whose layers slices have moved."""
    tiny_models()["gemma2"].write(tmp_path / "m.gguf")
    graft = "graft: [{model: m.gguf, tensors: [blk.5., blk.3.ffn_up, token_embd]}]\n"
    _, warnings = planned(tmp_path, (0, 5), (4, 12), more=graft)
    wanted = (
        "layer 5 of m.gguf, with full attention, into layer 5 of the result, which is layer 4 of m.gguf, with sliding"
    )
    assert [line for line in warnings if wanted in line]
    assert sum("graft" in line for line in warnings) == 1
    _, warnings = planned(tmp_path, (0, 6), (4, 12), more=graft)
    assert not [line for line in warnings if "graft" in line]


@pytest.mark.parametrize(("measured", "told"), [(12, True), (13, False)])
def test_an_importance_matrix_of_other_layers_is_told(tmp_path: Path, measured: int, told: bool) -> None:
    """It goes by the numbers of the result, which one of the model that layers were taken from does not know."""
    tiny_models()["gemma2"].write(tmp_path / "m.gguf")
    entries = {f"blk.{layer}.ffn_up.weight": (np.ones((1, 64)), [8]) for layer in range(measured)}
    write_imatrix(tmp_path / "m.imatrix", entries)
    _, warnings = planned(tmp_path, (0, 5), (4, 12), more="imatrix: m.imatrix\n")
    wanted = "importance matrix is of a model of 12 layers, .*: layer 5 is layer 4 of m.gguf"
    assert any(re.search(wanted, line) for line in warnings) is told
    _, warnings = planned(tmp_path, (0, 12), more="imatrix: m.imatrix\n")
    assert not [line for line in warnings if "importance matrix" in line]


def test_the_layers_of_a_checkpoint_are_those_of_the_model_that_gives_the_metadata(tmp_path: Path) -> None:
    """Its configuration is not read for them: here that a window is there at all."""
    model = tiny_models()["gemma3"]
    model.write(tmp_path / "m.gguf")
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 12,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 12).mapping
    own = {
        name: found
        for found, (_, name) in names.items()
        if found.startswith(("model.embed", "model.norm", "model.layers"))
    }
    weights = {
        f"{own[name.removesuffix('.weight')]}.weight": np.ones(shape, np.float32)
        for name, shape in model.tensors.items()
        if name.removesuffix(".weight") in own
    }
    assert len(weights) == len(model.tensors)
    write_folder(tmp_path / "hf", weights, config)
    ranges = [("m.gguf", 0, 6), ("hf", 6, 12)]
    lines = [f"  - sources: [{{model: {name}, layer_range: [{a}, {b}]}}]" for name, a, b in ranges]
    (tmp_path / "r.yaml").write_text("merge_method: passthrough\nslices:\n" + "\n".join(lines) + "\n")
    plan, opened = plan_document(load_recipe(tmp_path / "r.yaml"))
    opened.close()
    assert "gemma3.attention.sliding_window_pattern" not in plan.metadata


def test_numbers_of_layers_that_only_the_second_model_lists_go_with_them(tmp_path: Path) -> None:
    """Where the first one states none, as for heads with keys, its layers have what llama.cpp takes for it."""
    model = tiny_models()["lfm2"]
    heads = list(model.metadata["lfm2.attention.head_count"])
    model.write(tmp_path / "m.gguf")
    newer = {"lfm2.attention.head_count": 2, "lfm2.attention.head_count_kv": heads}  # as converters write it today
    model.write(tmp_path / "n.gguf", metadata=newer)
    for one, other in (("m", "n"), ("n", "m")):
        slices = [
            {"sources": [{"model": str(tmp_path / f"{one}.gguf"), "layer_range": [0, 6]}]},
            {"sources": [{"model": str(tmp_path / f"{other}.gguf"), "layer_range": [4, 12]}]},
        ]
        plan, opened = plan_document(load_recipe({"merge_method": "passthrough", "slices": slices}))
        opened.close()
        assert plan.metadata["lfm2.attention.head_count_kv"] == heads[:6] + heads[4:]


@pytest.mark.parametrize("wider", ["llama.feed_forward_length", "llama.embedding_length"])
@pytest.mark.parametrize("whole", [False, True])
def test_layers_of_another_size_are_refused(tmp_path: Path, wider: str, whole: bool) -> None:
    """No metadata can say of one model that its layers are of two sizes, and llama.cpp would not load it."""
    model = tiny_models()["llama"]
    old = model.metadata[wider]
    shapes = {n: tuple(2 * old if size == old else size for size in shape) for n, shape in model.tensors.items()}
    model.write(tmp_path / "m.gguf")
    dataclasses.replace(model, tensors=shapes).write(tmp_path / "wide.gguf", metadata={wider: 2 * old})
    slices = [
        {"sources": [{"model": str(tmp_path / "m.gguf"), "layer_range": [0, 0 if whole else 6]}]},
        {"sources": [{"model": str(tmp_path / "wide.gguf"), "layer_range": [0 if whole else 6, 12]}]},
    ]
    with pytest.raises(PlanError, match=r"slices\[1\]: blk\.\*\.\S+ is \[.*\] in .*wide\.gguf and \[.*\] in .*m\.gguf"):
        plan_document(load_recipe({"merge_method": "passthrough", "slices": slices}))


def test_layers_may_have_sizes_of_their_own_where_llama_cpp_reads_them(tmp_path: Path) -> None:
    """Then those of all layers are listed."""
    model = tiny_models()["deci"]
    key = "deci.feed_forward_length"
    old = model.metadata[key]
    shapes = {n: tuple(2 * old if size == old else size for size in shape) for n, shape in model.tensors.items()}
    model.write(tmp_path / "m.gguf")
    dataclasses.replace(model, tensors=shapes).write(tmp_path / "wide.gguf", metadata={key: 2 * old})
    slices = [
        {"sources": [{"model": str(tmp_path / "m.gguf"), "layer_range": [0, 6]}]},
        {"sources": [{"model": str(tmp_path / "wide.gguf"), "layer_range": [6, 12]}]},
    ]
    plan, opened = plan_document(load_recipe({"merge_method": "passthrough", "slices": slices}))
    opened.close()
    assert plan.metadata[key] == [old] * 6 + [2 * old] * 6


@pytest.mark.parametrize("listed_first", [False, True])
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gemma3", "gemma3.attention.sliding_window_pattern", ([True] * 5 + [False]) * 2),
        ("gemma3", "gemma3.attention.sliding_window_pattern", 6),
        ("qwen3next", "qwen3next.attention.recurrent_layers", ([True] * 3 + [False]) * 3),
        ("qwen3next", "qwen3next.full_attention_interval", 4),
    ],
)
def test_kinds_of_layers_that_are_the_same_in_other_words_are_no_difference(
    tmp_path: Path, name: str, key: str, value: object, listed_first: bool
) -> None:
    """Converters of some years write a list, a period or neither."""
    model = tiny_models()[name]
    for file, given in (("a", value if listed_first else None), ("b", None if listed_first else value)):
        model.write(tmp_path / f"{file}.gguf", metadata={key: given})
    models = [{"model": str(tmp_path / f"{file}.gguf"), "parameters": {"weight": 1}} for file in "ab"]
    plan, opened = plan_document(load_recipe({"merge_method": "linear", "models": models}))
    opened.close()
    assert not [line for line in plan.warnings if key in line]
    other = {key: [False, True] * 6 if isinstance(value, list) else 3}
    model.write(tmp_path / "b.gguf", metadata=other)
    plan, opened = plan_document(load_recipe({"merge_method": "linear", "models": models}))
    opened.close()
    assert [line for line in plan.warnings if key in line]
