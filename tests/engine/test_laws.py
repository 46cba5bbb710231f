"""What holds for every merge: it is the method's arithmetic, its borders are exact, and nothing else plays a part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from tests.engine.conftest import build_report, raw, weights

Build = Callable[..., Path]

TIES = """
merge_method: ties
base_model: base.{k}.gguf
models:
  - {{model: a.{k}.gguf, parameters: {{weight: 0.5, density: 0.3}}}}
  - {{model: b.{k}.gguf, parameters: {{weight: 0.3, density: 0.6}}}}
  - {{model: c.{k}.gguf, parameters: {{weight: -0.2, density: 1}}}}
"""
DARE = """
merge_method: dare_ties
base_model: base.{k}.gguf
models:
  - {{model: a.{k}.gguf, parameters: {{weight: 0.5, density: 0.3}}}}
  - {{model: b.{k}.gguf, parameters: {{weight: 0.3, density: 0.6}}}}
seed: 7
"""
SLERP = """
merge_method: slerp
base_model: a.{k}.gguf
models: [{{model: a.{k}.gguf}}, {{model: b.{k}.gguf}}]
parameters: {{t: [0, 0.4, 1]}}
"""
LINEAR = """
merge_method: linear
models:
  - {{model: a.{k}.gguf, parameters: {{weight: 2}}}}
  - {{model: b.{k}.gguf, parameters: {{weight: 1}}}}
"""


@pytest.mark.parametrize(
    ("recipe", "method", "models", "parameters"),
    [
        (TIES, "ties", "abc", {"weight": [0.5, 0.3, -0.2], "density": [0.3, 0.6, 1]}),
        (LINEAR, "linear", "ab", {"weight": [2, 1]}),
    ],
)
def test_a_build_computes_what_merge_computes_on_the_dequantized_weights(
    family: Path, build: Build, recipe: str, method: str, models: str, parameters: dict[str, list[float]]
) -> None:
    """In F32, tensor by tensor and bit by bit, from quantized sources as from others."""
    out = weights(build(recipe.format(k="q8"), out_type="F32"))
    sources = [weights(family / f"{m}.q8.gguf") for m in models]
    base = weights(family / "base.q8.gguf")
    for name, merged in out.items():
        needs_base = {} if method == "linear" else {"base": base[name]}
        expected = ggufmerge.merge([s[name] for s in sources], method, parameters, **needs_base)
        np.testing.assert_array_equal(merged, expected, err_msg=name)


@pytest.mark.parametrize("recipe", [TIES, DARE, SLERP, LINEAR], ids=["ties", "dare_ties", "slerp", "linear"])
def test_threads_and_chunk_size_do_not_change_a_byte(family: Path, tmp_path: Path, recipe: str) -> None:
    """One thread or several, one row at a time or whole tensors: the same file."""
    results = []
    for i, (threads, chunk) in enumerate([(1, 1 << 18), (2, 1 << 18), (2, 1), (3, 700)]):
        out = tmp_path / f"same{i}.gguf"
        build_report(family, recipe.format(k="q8") + "name: same\n", out, threads=threads, chunk=chunk)
        results.append(out.read_bytes())
    assert len(set(results)) == 1


def test_seeds_change_random_masks_and_nothing_else_does(family: Path, tmp_path: Path) -> None:
    """Two builds agree; another seed differs; a renamed copy of the sources gives the same weights."""
    recipe = DARE.format(k="f32")
    first = raw(_built(family, recipe, tmp_path / "1.gguf"))
    assert raw(_built(family, recipe, tmp_path / "2.gguf")) == first
    assert raw(_built(family, recipe.replace("seed: 7", "seed: 8"), tmp_path / "3.gguf")) != first
    for name in ("base", "a", "b"):
        (tmp_path / f"x{name}.gguf").write_bytes((family / f"{name}.f32.gguf").read_bytes())
    elsewhere = recipe
    for name in ("base", "a", "b"):
        elsewhere = elsewhere.replace(f"{name}.f32.gguf", str(tmp_path / f"x{name}.gguf"))
    assert raw(_built(family, elsewhere, tmp_path / "4.gguf")) == first


def test_masks_of_a_tensor_do_not_depend_on_the_order_of_the_models(family: Path, tmp_path: Path) -> None:
    """Swapping two models with their weights merges the same elements (up to the order of the additions)."""
    one = weights(_built(family, DARE.format(k="f32"), tmp_path / "1.gguf"))
    lines = DARE.format(k="f32").splitlines()
    lines[4], lines[5] = lines[5], lines[4]
    other = weights(_built(family, "\n".join(lines) + "\n", tmp_path / "2.gguf"))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-7)


def _built(family: Path, recipe: str, output: Path) -> Path:
    build_report(family, recipe, output)
    return output


BORDERS = {
    "slerp t=0": ("a", "{merge_method: slerp, base_model: A, models: [{model: A}, {model: B}], parameters: {t: 0}}"),
    "slerp t=1": ("b", "{merge_method: slerp, base_model: A, models: [{model: A}, {model: B}], parameters: {t: 1}}"),
    "linear, one weight": (
        "b",
        "{merge_method: linear, models: [{model: A, parameters: {weight: 0}}, {model: B, parameters: {weight: 3}}]}",
    ),
    "passthrough": ("a", "{merge_method: passthrough, models: [{model: A}]}"),
    "task arithmetic, weight 1": (
        "b",
        "{merge_method: task_arithmetic, base_model: A, models: [{model: B, parameters: {weight: 1}}]}",
    ),
    "ties, one model": ("b", "{merge_method: ties, base_model: A, models: [{model: B, parameters: {weight: 0.3}}]}"),
    "lambda 0": (
        "a",
        "{merge_method: task_arithmetic, base_model: A, models: [{model: B}], parameters: {weight: 1, lambda: 0}}",
    ),
    "dare, density 1, weight 1": (
        "b",
        "{merge_method: dare_linear, base_model: A, models: [{model: B}], parameters: {weight: 1, density: 1}}",
    ),
}


@pytest.mark.parametrize("case", BORDERS)
def test_borders_give_a_model_back_byte_for_byte(family: Path, build: Build, case: str) -> None:
    """t = 0, t = 1, weight 1, lambda 0: no tensor is requantized."""
    which, text = BORDERS[case]
    recipe = text.replace("A", "a.q8.gguf").replace("B", "b.q8.gguf") + "\n"
    assert raw(build(recipe)) == raw(family / f"{which}.q8.gguf")


def test_dare_at_density_one_is_task_arithmetic(family: Path, tmp_path: Path) -> None:
    """Nothing is dropped and nothing rescaled."""
    text = "{merge_method: METHOD, base_model: base.q8.gguf, models: [{model: a.q8.gguf}, {model: b.q8.gguf}],"
    text += " parameters: {weight: 0.4}}\n"
    results = [
        raw(_built(family, text.replace("METHOD", method), tmp_path / f"{method}.gguf"))
        for method in ("task_arithmetic", "dare_linear")
    ]
    assert results[0] == results[1]


def test_only_tensors_with_another_type_are_requantized(family: Path, build: Build) -> None:
    """A single model written as Q8_0 keeps the bytes of what is Q8_0 already."""
    out = build("{merge_method: passthrough, models: [{model: a.q8.gguf}]}\n", out_type="Q8_0")
    assert raw(out) == raw(family / "a.q8.gguf")


def test_negative_weights_remove_a_skill(family: Path, build: Build) -> None:
    """base - 0.5 * (a - base)."""
    text = "{merge_method: task_arithmetic, base_model: base.f32.gguf, models: [{model: a.f32.gguf}],"
    out = weights(build(text + " parameters: {weight: -0.5}}\n"))
    base, a = weights(family / "base.f32.gguf"), weights(family / "a.f32.gguf")
    for name in out:
        np.testing.assert_allclose(out[name], base[name] - 0.5 * (a[name] - base[name]), rtol=1e-5, atol=1e-6)


def test_an_adapter_is_applied_while_its_base_streams(family: Path, build: Build) -> None:
    """base+adapter=0.5 is the base plus half the adapter's change, and other tensors are copied."""
    out = build("{merge_method: passthrough, models: [{model: base.f32.gguf+adapter.gguf=0.5}]}\n")
    full = build("{merge_method: passthrough, models: [{model: base.f32.gguf+adapter.gguf}]}\n", "full.gguf")
    base, half, whole = weights(family / "base.f32.gguf"), weights(out), weights(full)
    changed = {n for n in base if not np.array_equal(base[n], half[n])}
    assert changed == {n for n in base if n.endswith("attn_q.weight") or n == "token_embd.weight"}
    for name in changed:
        np.testing.assert_allclose(half[name] - base[name], (whole[name] - base[name]) / 2, rtol=1e-3, atol=1e-6)


def test_experts_are_merged_one_by_one(tmp_path: Path) -> None:
    """In a mixture, TIES trims each expert by itself: as if it were a tensor of its own."""
    from tests.tiny import write_tiny_llama

    for name, tune in (("base", None), ("a", (1, 0.02)), ("b", (2, 0.02))):
        write_tiny_llama(tmp_path / f"{name}.gguf", experts=4, tune=tune)
    recipe = "{merge_method: ties, base_model: base.gguf, models: [{model: a.gguf}, {model: b.gguf}],"
    (tmp_path / "r.yaml").write_text(recipe + " parameters: {weight: 0.5, density: 0.2}}\n")
    ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    out, base, a, b = (weights(tmp_path / f"{n}.gguf") for n in ("out", "base", "a", "b"))
    name = "blk.1.ffn_down_exps.weight"
    for e in range(4):
        parameters = {"weight": [0.5, 0.5], "density": [0.2, 0.2]}
        expected = ggufmerge.merge([a[name][e], b[name][e]], "ties", parameters, base=base[name][e])
        np.testing.assert_array_equal(out[name][e], expected)
