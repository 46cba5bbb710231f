"""Types are chosen as llama-quantize chooses them; goldens come from llama.cpp itself (vendor/llama.cpp/README.md)."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import pytest

from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.quants.mixture import (
    Rule,
    decide_types,
    fallback_type,
    guess_file_type,
    needs_imatrix,
    parse_tensor_type,
    plan_types,
    require_imatrix,
    types_like,
)
from ggufmerge.types import FileType, TensorType
from tests.mock_models import MockModel, MockTensor, mock_models

VENDOR = pathlib.Path(__file__).parents[2] / "vendor" / "llama.cpp"
MODELS = mock_models()
WRITABLE = [f for f in FileType if f is not FileType.NVFP4]


@functools.cache
def goldens(name: str) -> Any:
    return json.loads((VENDOR / name).read_text(encoding="utf-8"))


def expected(golden: Mapping[str, Any], letters: str, model: MockModel) -> dict[str, str]:
    return {name: golden["letters"][letter] for name, letter in zip(model.tensors, letters.rstrip("!"), strict=True)}


def chosen(model: MockModel, *args: Any, **options: Any) -> dict[str, str]:
    return {name: str(d.type) for name, d in decide_types(model, *args, **options).items()}


def smollm2() -> MockModel:
    golden = goldens("smollm2/types.json")
    tensors = {name: MockTensor(tuple(shape), TensorType[t]) for name, (t, *shape) in golden["tensors"].items()}
    return MockModel(golden["metadata"], tensors)


def golden_plans() -> list[Any]:
    return [pytest.param("mock_models.json", name, id=name) for name in MODELS] + [
        pytest.param("smollm2/types.json", None, id="SmolLM2")
    ]


def plans_of(file: str, name: str | None) -> tuple[MockModel, dict[str, str]]:
    golden = goldens(file)
    return (MODELS[name], golden["plans"][name]) if name else (smollm2(), golden["plans"])


@pytest.mark.parametrize(("file", "name"), golden_plans())
def test_every_tensor_gets_the_type_that_llama_quantize_gives_it(file: str, name: str | None) -> None:
    """For every file type, with and without an importance matrix."""
    model, plans = plans_of(file, name)
    golden = goldens(file)
    for ftype in WRITABLE:
        if ftype.name not in plans:
            continue
        without = plans[ftype.name]
        assert chosen(model, ftype) == expected(golden, without, model), ftype
        with_imatrix = plans.get(f"{ftype.name}+imatrix", without)
        assert chosen(model, ftype, {"any"}) == expected(golden, with_imatrix, model), f"{ftype} with imatrix"


@pytest.mark.parametrize(("file", "name"), golden_plans())
def test_an_importance_matrix_is_demanded_where_llama_quantize_demands_it(file: str, name: str | None) -> None:
    model, plans = plans_of(file, name)
    for ftype in WRITABLE:
        if plans.get(ftype.name, "").endswith("!"):
            with pytest.raises(PlanError, match="cannot be written without an importance matrix"):
                plan_types(model, ftype)
            plan_types(model, ftype, set(model.tensors))
        elif ftype.name in plans:
            plan_types(model, ftype)


@pytest.mark.parametrize(("file", "name"), golden_plans())
def test_what_llama_quantize_refuses_is_refused(file: str, name: str | None) -> None:
    """It has no fallback for Q1_0, and refuses rows that are no multiple of 128."""
    model, plans = plans_of(file, name)
    for ftype in WRITABLE:
        if ftype.name not in plans:
            assert ftype is FileType.Q1_0
            with pytest.raises(PlanError, match="there is no fallback; choose another type"):
                decide_types(model, ftype)


@pytest.mark.parametrize(
    "case", goldens("mock_models.json")["options"], ids=lambda case: f"{case[0]}-{case[1]}-{'-'.join(case[2])}"
)
def test_options_mean_what_they_mean_to_llama_quantize(case: Any) -> None:
    name, ftype, options, letters = case
    dense = MODELS["dense"]
    backwards = MockModel(dense.metadata, dict(reversed(dense.tensors.items())))
    model = backwards if name == "backwards" else MODELS[name]
    assert chosen(model, ftype, **options) == expected(goldens("mock_models.json"), letters, model)


# Row lengths that are not n_embd, from the models' published configurations: tensor name part -> values in a row.
WIDTHS: dict[str, dict[str, int]] = {
    "deepseek-v3.1": {"attn_q_b": 1536, "attn_k_b": 128, "attn_output": 16384, "_exps": 2048, "_shexp": 2048},
    "gemma-3-4b-it": {"attn_output": 2048},
    "glm-4.6v": {"attn_output": 12288, "_exps": 1408, "_shexp": 1408},
    "gpt-oss-120b": {"attn_output": 4096},
    "meta-llama-3.1-70b-instruct": {},
    "nvidia-nemotron-3-nano-30b-a3b": {"attn_output": 4096, "ssm_out": 4096, "_exps": 1856, "_shexp": 3712},
    "qwen3-0.6b": {"attn_output": 2048},
    "qwen3-14b": {},
    "qwen3-coder-next": {"attn_output": 4096, "ssm_out": 4096, "_exps": 512, "_shexp": 512},
    "qwen3.5-397b-a17b": {"attn_output": 8192, "ssm_out": 8192, "_exps": 1024, "_shexp": 1024},
    "qwen3.6-27b": {"attn_output": 6144, "ssm_out": 6144},
    "step-3.5-flash": {"attn_output": 8192, "_exps": 1280, "_shexp": 1280},
}


@pytest.mark.parametrize("name", WIDTHS)
def test_real_models_get_the_types_of_llama_cpps_own_snapshots(name: str) -> None:
    header, sections = read_snapshot(VENDOR / "snapshots" / f"{name}.schema")
    model = model_of_snapshot(name, header, sections)
    for ftype, (default, deviating) in sections.items():
        if FileType.parse(ftype) is FileType.NVFP4:
            continue
        found = {n: t for n, t in chosen(model, ftype).items() if t.upper() != default.upper()}
        assert found == {n: t.upper() for n, t in deviating.items()}, ftype


def read_snapshot(path: pathlib.Path) -> tuple[dict[str, int], dict[str, tuple[str, dict[str, str]]]]:
    """(dimensions, file type -> (default type, the tensors that get another type))."""
    text = path.read_text(encoding="utf-8")
    header = {key: int(value) for key, value in re.findall(r"(n_\w+)=(\d+)", text.split("[")[0])}
    sections: dict[str, tuple[str, dict[str, str]]] = {}
    for part in re.split(r"^\[", text, flags=re.MULTILINE)[1:]:
        title, *lines = part.split("\n")
        ftype, default = title.split("] ")
        sections[ftype] = default, dict(line.split(" ") for line in lines if line)
    return header, sections


def model_of_snapshot(
    name: str, header: Mapping[str, int], sections: Mapping[str, tuple[str, dict[str, str]]]
) -> MockModel:
    """The tensors a snapshot speaks of. MXFP4_MOE names every matrix; what only other file types name is a stack."""
    matrices = set(sections["MXFP4_MOE"][1])
    stacks = {n for _, tensors in sections.values() for n in tensors} - matrices
    # a stack that no file type treats differently in some layers stands there all the same
    for kind in ("gate", "up"):
        if any(f"ffn_{kind}_exps" in n for n in stacks):
            stacks |= {n.replace("ffn_down", f"ffn_{kind}") for n in stacks if "ffn_down_exps" in n}
    arch = "llama" if "llama" in name else "other"
    metadata = {
        "general.architecture": arch,
        f"{arch}.block_count": header["n_layer"],
        f"{arch}.attention.head_count": header["n_head"],
        f"{arch}.attention.head_count_kv": header["n_head_kv"],
        f"{arch}.expert_count": header.get("n_expert", 0),
    }

    def width(tensor: str) -> int:
        is_inner = "ffn_down" in tensor or "ffn" not in tensor
        inner = (n for part, n in WIDTHS[name].items() if part in tensor and is_inner)
        return next(inner, header["n_ff"] if "ffn_down.weight" in tensor else header["n_embd"])

    shapes = {n: (2, width(n)) for n in matrices} | {n: (2, 2, width(n)) for n in stacks}
    return MockModel(metadata, {n: MockTensor(shape, TensorType.F32) for n, shape in shapes.items()})


def small(arch: str = "llama", experts: int = 0, **shapes: tuple[int, ...]) -> MockModel:
    """A model of four layers; keyword `attn_q` becomes the tensor blk.0.attn_q.weight, F16."""
    metadata = {"general.architecture": arch, f"{arch}.block_count": 4, f"{arch}.expert_count": experts}
    tensors = {f"blk.0.{name}.weight": MockTensor(shape, TensorType.F16) for name, shape in shapes.items()}
    return MockModel(metadata, tensors)


def with_tensors(model: MockModel, **types: str) -> MockModel:
    tensors = {
        f"blk.0.{n}.weight": MockTensor(model.tensors[f"blk.0.{n}.weight"].shape, TensorType[t])
        for n, t in types.items()
    }
    return dataclasses.replace(model, tensors=tensors)


def test_a_decision_says_what_was_wanted_and_why_it_became_something_else() -> None:
    decision = decide_types(small(attn_q=(2, 576)), "Q4_K_M")["blk.0.attn_q.weight"]
    assert (decision.type, decision.wanted, decision.rule) == ("Q5_0", "Q4_K", Rule.FALLBACK)
    assert "rows of 576 values do not fill blocks of 256, so a weight takes" in decision.reason


def test_each_rule_names_itself() -> None:
    model = small(attn_q=(2, 256), attn_v=(2, 256), ffn_gate_inp=(2, 256), attn_k=(2, 256))
    decisions = decide_types(model, "Q3_K_L", tensor_types=[("attn_k", "Q8_0")])
    assert [d.rule for d in decisions.values()] == [Rule.DEFAULT, Rule.MIXTURE, Rule.KEPT, Rule.OVERRIDE]
    assert [d.reason for d in decisions.values()] == [
        "default of Q3_K_L", "attention values", "expert router", 'tensor type "attn_k"',
    ]  # fmt: skip


def test_the_order_of_the_result_is_the_order_of_the_model() -> None:
    model = MODELS["mixtral"]
    backwards = MockModel(model.metadata, dict(reversed(model.tensors.items())))
    assert list(plan_types(backwards, "Q4_K_M")) == list(backwards.tensors)
    assert plan_types(backwards, "Q4_K_M") == plan_types(model, "Q4_K_M")


def test_glm5_next_keeps_eight_bits_and_its_small_weights() -> None:
    """By the text of llama-quant.cpp; the prebuilt library the goldens come from does not know this architecture."""
    model = small("glm5-next", attn_q_a=(2, 256), attn_kv_a_mqa=(2, 256), ssm_in=(2, 256))
    assert list(chosen(model, "Q2_K").values()) == ["Q8_0", "F16", "Q2_K"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ftype": "Q4_K_X"}, 'unknown type "Q4_K_X": did you mean "Q4_K_S"'),
        ({"ftype": "NVFP4"}, "NVFP4 files can be read but not written"),
        ({"tensor_types": [("attn_q", "Q9_0")]}, 'unknown tensor type "Q9_0"'),
        ({"tensor_types": [("attn_q", "I32")]}, "I32 is not a type for weights"),
        ({"output_tensor_type": "Q8_K"}, "Q8_K is not a type for weights"),
        ({"tensor_types": [("attn_(q", "Q8_0")]}, r'tensor type "attn_\(q" is not a regular expression'),
        ({"tensor_types": [("atn_q", "Q8_0")]}, 'tensor type "atn_q" applies to no tensor'),
        (
            {"ftype": "F16", "tensor_types": [("attn_q", "Q8_0")]},
            'tensor type "attn_q" applies to no tensor .* F16 file',
        ),
        ({"output_tensor_type": "Q8_0"}, "--output-tensor-type applies to no tensor"),
        ({"leave_output_tensor": True}, "this model has no output.weight, its token embeddings are the output"),
        ({"tensor_types": [("attn_q", "NVFP4")]}, "NVFP4 needs rows of a multiple of 64 values, these have 96"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_with_the_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GgufmergeError, match=message):
        plan_types(small(attn_q=(2, 96)), **{"ftype": "Q4_K_M", **options})


def test_a_demanded_type_that_does_not_fit_is_refused_with_one_that_does() -> None:
    """llama-quantize has no fallback for these two options: it would write rows that are cut off."""
    model = MODELS["576-wide"]
    with pytest.raises(PlanError, match=r"token_embedding_type=Q6_K does not fit token_embd.weight.* Q8_0 would fit"):
        plan_types(model, "Q4_K_M", token_embedding_type="Q6_K")


def test_an_expert_outside_the_counted_layers_is_refused() -> None:
    model = small(experts=8, ffn_down_exps=(8, 2, 256))
    stray = MockModel(model.metadata, {"blk.4.ffn_down_exps.weight": MockTensor((8, 2, 256), TensorType.F16)})
    with pytest.raises(PlanError, match=r"blk\.4\.ffn_down_exps\.weight .* 4 layers"):
        plan_types(stray, "Q4_K_M")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r'lack "general\.architecture"'),
        ({"general.architecture": "llama"}, r'lack "llama\.block_count"'),
        ({"general.architecture": "llama", "llama.block_count": "many"}, "is 'many', not a whole number"),
        ({"general.architecture": "llama", "llama.block_count": 2, "llama.expert_count": 8.5}, "is 8.5, not a whole"),
    ],
)
def test_metadata_that_do_not_describe_the_layers_are_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_types(MockModel(metadata, {}), "Q4_K_M")


def test_patterns_are_searched_in_order_and_in_any_case() -> None:
    model = small(attn_q=(2, 256), attn_k=(2, 256))
    overrides = [("ATTN_Q", "Q8_0"), (r"attn_\D", "Q5_0")]
    assert list(chosen(model, "Q4_K_M", tensor_types=overrides).values()) == ["Q8_0", "Q5_0"]


def test_the_missing_importance_matrix_is_reported_by_tensor() -> None:
    model = small(attn_q=(2, 256), attn_k=(2, 256), attn_output=(2, 256))
    decisions = decide_types(model, "IQ2_XXS")
    with pytest.raises(PlanError, match=r"IQ2_XXS cannot .* blk\.0\.attn_k\.weight, .*: give one with --imatrix"):
        require_imatrix(decisions, None)
    with pytest.raises(PlanError, match=r"missing for blk\.0\.attn_k\.weight: use an importance matrix that was"):
        require_imatrix(decisions, {"blk.0.attn_q.weight", "blk.0.attn_output.weight"})
    require_imatrix(decisions, None, names=[])


def test_tensors_that_are_copied_need_no_importance_matrix() -> None:
    """As in llama-quantize: a tensor that has the type already is not quantized anew."""
    model = with_tensors(small(attn_q=(2, 256), attn_k=(2, 256)), attn_q="IQ2_XS", attn_k="F16")
    assert plan_types(model, "IQ2_XS", {"blk.0.attn_k.weight"})["blk.0.attn_q.weight"] == "IQ2_XS"


def test_q2_k_needs_an_importance_matrix_in_q2_k_s_files_only() -> None:
    assert needs_imatrix("blk.0.attn_q.weight", TensorType.Q2_K, FileType.Q2_K_S)
    assert not needs_imatrix("blk.0.attn_q.weight", TensorType.Q2_K, FileType.Q2_K)
    assert not needs_imatrix("token_embd.weight", TensorType.Q2_K, FileType.Q2_K_S)


def test_like_gives_each_tensor_the_type_it_has_in_the_other_file() -> None:
    model = MODELS["dense"]
    types = plan_types(model, "Q5_K_M")
    other = MockModel(model.metadata, {n: MockTensor(t.shape, types[n]) for n, t in model.tensors.items()})
    decisions = types_like(model, other)
    assert {n: d.type for n, d in decisions.items()} == types
    assert {d.rule for d in decisions.values()} == {Rule.LIKE}


def test_like_says_which_tensors_the_other_file_lacks_or_cannot_lend_its_type() -> None:
    """They get what the other's file type would give them."""
    model = small(attn_q=(2, 256), attn_k=(2, 576), attn_v=(2, 256))
    other = with_tensors(small(attn_q=(2, 256), attn_k=(2, 256)), attn_q="Q6_K", attn_k="Q4_K")
    other = dataclasses.replace(other, metadata={"general.file_type": FileType.Q3_K_L.id})
    q, k, v = types_like(model, other).values()
    assert (q.type, q.rule) == ("Q6_K", Rule.LIKE)
    assert (k.type, k.wanted, k.rule) == ("Q4_0", "Q4_K", Rule.FALLBACK)
    assert "576 values in a row" in k.reason
    assert (v.type, v.rule) == ("Q5_K", Rule.FALLBACK)
    assert v.reason.startswith("the file to follow lacks it")


def test_like_never_mixes_numbers_and_indices() -> None:
    model = with_tensors(small(ffn_gate_tid2eid=(2, 256)), ffn_gate_tid2eid="I32")
    other = with_tensors(model, ffn_gate_tid2eid="F16")
    (decision,) = types_like(model, other).values()
    assert (decision.type, decision.rule) == ("I32", Rule.FALLBACK)


@pytest.mark.parametrize("case", goldens("mock_models.json")["guesses"], ids=lambda case: "-".join(case[0]))
def test_the_file_type_is_guessed_as_llama_cpp_guesses_it(case: Any) -> None:
    """Except that files of MXFP4, which llama.cpp takes for F32 ones, get their own."""
    names, guess = case
    types = {f"blk.{i}.attn_q.weight": TensorType[name] for i, name in enumerate(names)}
    assert guess_file_type(types) == ("MXFP4_MOE" if names == ["MXFP4"] else guess)


def test_norms_have_no_say_in_the_file_type() -> None:
    types = {f"blk.{i}.attn_norm.weight": TensorType.F32 for i in range(3)} | {"blk.0.attn_q.weight": TensorType.Q6_K}
    assert guess_file_type(types) is FileType.Q6_K


def test_a_file_whose_types_are_kept_keeps_its_file_type() -> None:
    model = small(attn_q=(2, 256))
    declared = dataclasses.replace(model, metadata={"general.file_type": FileType.Q4_K_S.id})
    assert guess_file_type({"blk.0.attn_q.weight": TensorType.F16}, declared) is FileType.Q4_K_S
    assert guess_file_type({"blk.0.attn_q.weight": TensorType.Q8_0}, declared) is FileType.Q8_0
    assert guess_file_type({"blk.0.attn_q.weight": TensorType.F16}, model) is FileType.F16


def test_a_tensor_type_option_is_a_pattern_and_a_type() -> None:
    assert parse_tensor_type("ffn_down=q6_k") == ("ffn_down", TensorType.Q6_K)
    assert parse_tensor_type(r"blk\.(?=1)=F16") == (r"blk\.(?=1)", TensorType.F16)


@pytest.mark.parametrize("text", ["ffn_down", "=Q8_0", "ffn_down=", "ffn_down=Q8", "(=Q8_0"])
def test_a_malformed_tensor_type_option_is_refused(text: str) -> None:
    with pytest.raises(GgufmergeError, match=r"write it as NAME=TYPE|unknown tensor type|not a regular expression"):
        parse_tensor_type(text)


def test_fallbacks_end_at_f16() -> None:
    assert fallback_type(TensorType.Q6_K, 96) == "Q8_0"
    assert fallback_type(TensorType.Q6_K, 100) == "F16"
    assert fallback_type(TensorType.Q8_0, 100) == "F16"
    assert fallback_type(TensorType.Q8_0, 96) == "Q8_0"
