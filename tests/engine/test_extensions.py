"""What recipes can say beyond mergekit's: methods by filter, grafts, exclusions, layouts of other files, matrices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import GgufmergeError, PlanError, RecipeError
from tests.engine.conftest import raw, weights
from tests.engine.test_quantize import write_imatrix
from tests.tiny import write_tiny_llama

Build = Callable[..., Path]

TWO = "models:\n  - {model: a.q8.gguf}\n  - {model: b.q8.gguf}\nparameters: {weight: 0.5}\n"


def test_a_filter_chooses_the_method(family: Path, build: Build) -> None:
    """Attention by linear, which the base takes no part in, the rest by task arithmetic on the base."""
    recipe = "merge_method:\n  - {filter: self_attn, value: linear}\n  - {value: task_arithmetic}\n"
    out = weights(build(recipe + "base_model: base.q8.gguf\n" + TWO, out_type="F32"))
    a, b, base = (weights(family / f"{m}.q8.gguf") for m in ("a", "b", "base"))
    for name, merged in out.items():
        if ".attn_" in name and "norm" not in name:
            expected = ggufmerge.merge([a[name], b[name]], "linear", {"weight": 0.5})
        else:
            expected = ggufmerge.merge([a[name], b[name]], "task_arithmetic", {"weight": 0.5}, base=base[name])
        np.testing.assert_array_equal(merged, expected, err_msg=name)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("[{filter: mlp, value: linear}]", "needs a last value without a filter"),
        ("[{filter: mlp, value: liner}, {value: linear}]", 'unknown merge_method "liner"'),
        ("[{filter: mpl, value: linear}, {value: task_arithmetic}]", 'filter "mpl" of merge_method matches no tensor'),
    ],
)
def test_methods_by_filter_are_checked(build: Build, value: str, complaint: str) -> None:
    """Every tensor has a method, and every filter has tensors."""
    with pytest.raises(RecipeError, match=complaint):
        build(f"merge_method: {value}\nbase_model: base.q8.gguf\n" + TWO)


def test_a_parameter_of_any_of_the_methods_is_known(build: Build) -> None:
    """Density belongs to one of the two; a parameter that looks like one of them is an error."""
    methods = "merge_method: [{filter: mlp, value: ties}, {value: linear}]\nbase_model: base.q8.gguf\n"
    build(methods + TWO.replace("0.5}\n", "0.5, density: 0.5}\n"))
    with pytest.raises(RecipeError, match='no parameter "densty"'):
        build(methods + TWO.replace("0.5}\n", "0.5, densty: 0.5}\n"))


def test_a_graft_is_taken_byte_for_byte_whatever_the_type(family: Path, build: Build) -> None:
    """In the type that its model has; the rest is written as asked."""
    recipe = "merge_method: linear\ngraft:\n  - {model: c.q8.gguf, tensors: [embed_tokens, output_norm.weight]}\n"
    out = build(recipe + TWO, out_type="F16")
    grafted = {"token_embd.weight", "output_norm.weight"}
    assert all(raw(out)[n] == raw(family / "c.q8.gguf")[n] for n in grafted)
    file = ggufmerge.open(out)
    assert file.tensors["token_embd.weight"].type == "Q8_0"
    assert file.tensors["output.weight"].type == "F16"
    assert file.metadata["general.base_model.count"] == 3


def test_a_graft_that_fits_nowhere_is_refused(family: Path, build: Build, tmp_path: Path) -> None:
    """No such tensor in the result, or another shape in the model."""
    recipe = "merge_method: linear\ngraft: [{model: GRAFT, tensors: [FILTER]}]\n" + TWO
    with pytest.raises(RecipeError, match=r'graft\.yaml:2:\d+: the filter "nope" of graft matches no tensor'):
        build(recipe.replace("GRAFT", "c.q8.gguf").replace("FILTER", "nope"), "graft.gguf")
    write_tiny_llama(tmp_path / "wide.gguf", ff=256)
    with pytest.raises(PlanError, match="has another shape"):
        build(recipe.replace("GRAFT", str(tmp_path / "wide.gguf")).replace("FILTER", "ffn_up"))


def test_excluded_tensors_are_the_first_models(family: Path, build: Build) -> None:
    """They keep their bytes; everything else is merged."""
    out, a = raw(build("merge_method: linear\nexclude: [lm_head, norm]\n" + TWO)), raw(family / "a.q8.gguf")
    same = {n for n in out if out[n] == a[n]}
    assert same == {n for n in out if "norm" in n or n == "output.weight"}
    with pytest.raises(RecipeError, match='filter "nope" of exclude matches no tensor'):
        build("merge_method: linear\nexclude: nope\n" + TWO)


def test_like_takes_the_layout_of_another_file(build: Build, tmp_path: Path) -> None:
    """Types tensor by tensor; it cannot be combined with out_type."""
    write_tiny_llama(tmp_path / "mixed.gguf", type="Q5_0", types={"*attn_v*": "Q8_0", "token_embd.weight": "F16"})
    recipe = f"merge_method: linear\nlike: {tmp_path / 'mixed.gguf'}\n" + TWO
    like, out = ggufmerge.open(tmp_path / "mixed.gguf"), ggufmerge.open(build(recipe))
    assert {n: t.type for n, t in out.tensors.items()} == {n: t.type for n, t in like.tensors.items()}
    with pytest.raises(RecipeError, match='either "like" or "out_type"'):
        build(recipe + "out_type: Q8_0\n")


def test_importance_matrices_of_the_parents_add_up(tmp_path: Path) -> None:
    """A merge is quantized with the sum of what was collected for its models; the keys name the files."""
    names = []
    for i, name in enumerate(("a", "b")):
        source = write_tiny_llama(tmp_path / f"{name}.gguf", embed=256, ff=256, tune=(i, 0.02))
        rng = np.random.default_rng(i)
        entries = {n: rng.gamma(1.0, size=256).astype(np.float32) for n in source if n.endswith("attn_q.weight")}
        names.append(write_imatrix(tmp_path / f"{name}.dat", entries).name)
    recipe = f"imatrix: [{', '.join(names)}]\nout_type: Q4_K_S\nmerge_method: linear\n"
    recipe += "models: [{model: a.gguf}, {model: b.gguf}]\nparameters: {weight: 1}\n"
    (tmp_path / "r.yaml").write_text(recipe)
    report = ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    out = ggufmerge.open(tmp_path / "out.gguf")
    assert out.metadata["quantize.imatrix.file"] == "a.dat + b.dat"
    assert any("has no entry for" in w for w in report.warnings)
    matrix = ggufmerge.load_imatrix(tmp_path / "a.dat").combine([ggufmerge.load_imatrix(tmp_path / "b.dat")])
    name = "blk.0.attn_q.weight"
    sources = [weights(tmp_path / f"{n}.gguf")[name] for n in ("a", "b")]
    importance = matrix.get(name, 256)
    assert importance is not None
    merged = ggufmerge.merge(sources, "linear", {"weight": 1})
    assert bytes(out.tensors[name].raw) == ggufmerge.quantize(merged, out.tensors[name].type, importance[0]).tobytes()


def test_tensor_types_override_the_mixture(build: Build) -> None:
    """By regular expression, with or without out_type; one that matches nothing is an error."""
    recipe = "merge_method: linear\ntensor_types: {ffn_down: F16}\n" + TWO
    for options in ({}, {"out_type": "Q5_0"}):
        types = {n: t.type for n, t in ggufmerge.open(build(recipe, overwrite=True, **options)).tensors.items()}
        assert types["blk.0.ffn_down.weight"] == "F16"
        assert types["blk.0.ffn_up.weight"] == options.get("out_type", "Q8_0")
    with pytest.raises(GgufmergeError, match="ffn_dwn"):
        build(recipe.replace("ffn_down", "ffn_dwn"), "other.gguf")
