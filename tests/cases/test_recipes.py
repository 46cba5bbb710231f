"""Recipes as published: they merge, and words that mergekit never reads have no effect on a single byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cases.conftest import Build, Run, raw, weights
from tests.tiny import write_tiny_llama, write_tiny_lora

SHAPE = {"layers": 4, "embed": 32, "ff": 64, "heads": 2, "kv_heads": 1, "tokenizer": "bpe"}
Q = "blk.{}.attn_q.weight"


@pytest.fixture
def models(folder: Path) -> Path:
    """base.gguf, three tunes a, b, c and two adapters of the base."""
    base = write_tiny_llama(folder / "base.gguf", **SHAPE)
    for number, name in enumerate("abc", 1):
        write_tiny_llama(folder / f"{name}.gguf", tune=(number, 0.05), **SHAPE)
    for seed in (0, 1):
        write_tiny_lora(folder / f"lora{seed}.gguf", base, seed=seed, targets=("*attn_q.weight",))
    return folder


SLERP = """
slices:
  - sources:
      - {model: a.gguf, layer_range: [0, 4]}
      - {model: b.gguf, layer_range: [0, 4]}
merge_method: slerp
base_model: a.gguf
parameters:
  t:
    - {filter: self_attn, value: [0.75, 0.25]}
    - {filter: mlp, value: [0.25, 0.75]}
    - value: 0.5
"""
STOCK = "merge_method: model_stock\nbase_model: base.gguf\nmodels:\n- model: a.gguf\n- model: b.gguf\n"
ARITHMETIC = (
    "merge_method: task_arithmetic\nbase_model: base.gguf\nmodels: [{model: a.gguf, parameters: {weight: 0.5}}]\n"
)
ENDS = """
merge_method: linear
parameters: {weight: 1}
slices:
- sources:
  - {model: a.gguf, layer_range: [0, 1], parameters: {weight: 1}}
  - {model: b.gguf, layer_range: [0, 1], parameters: {weight: 0}}
- sources: [{model: a.gguf, layer_range: [1, 3]}]
- sources: [{model: b.gguf, layer_range: [1, 4]}]
tokenizer_source: a.gguf
"""


@pytest.mark.parametrize(
    ("plain", "old", "new", "words"),
    [
        pytest.param(  # 03: beberik/Nyxene-v2-11B and Undi95's OmniMix, slerps of 11B stacks
            SLERP, "    - value: 0.5", "    - {filter: modelnorm, value: 0.9}\n    - value: 0.5", ["modelnorm"]
        ),
        pytest.param(  # 04: the card of mergekit-community/MN-Hekate-Pyrtania-12B
            STOCK,
            "- model: b.gguf",
            "- {model: b.gguf, parameters: {weight: [{filter: mlp, value: [0.1, 1]}, {value: 1}], density: 0.3}}",
            ["weight", "density"],
        ),
        pytest.param(  # 06: an evolutionary merge of Llama-VARCO-8B and Llama-3.1-Storm-8B
            ARITHMETIC, "merge_method", "allow_negative_weights: true\nmerge_method", ["allow_negative_weights"]
        ),
        pytest.param(  # 08: abacusai/TheProfessor-155b and wolfram/miquliz-120b
            ENDS, "tokenizer_source: a.gguf", "tokenizer_source: model:a.gguf", ["model:"]
        ),
        pytest.param(ARITHMETIC, "models:", "parameters: {normalize: false, int8_mask: 1.0}\nmodels:", ["int8_mask"]),
        pytest.param(ARITHMETIC, "models:", "parameters: {normalize: false, threshold: 2}\nmodels:", ["threshold"]),
    ],
)  # fmt: skip
def test_words_that_mergekit_never_reads_change_nothing(
    models: Path, build: Build, plain: str, old: str, new: str, words: list[str]
) -> None:
    """The result is that of the recipe without them, byte for byte, and a warning with the line names each of them."""
    build(plain, "plain")
    assert plain.count(old) == 1
    told = [line for line in build(plain.replace(old, new)) if "no effect" in line]
    assert raw("out.gguf") == raw("plain.gguf")
    assert all(any(f'"{word}"' in line for line in told) for word in words)
    assert all(line.startswith("out.yaml:") for line in told)


def test_a_model_three_times_with_weights_for_one_of_them_is_that_model(models: Path, build: Build) -> None:
    """02: a linear self-merge of pythia-70m-deduped, up to the rounding of the type it asks for."""
    text = "merge_method: linear\nslices:\n- sources:\n"
    text += "".join(f"  - {{model: a.gguf, layer_range: [0, 4], parameters: {{weight: {w}}}}}\n" for w in (0, 1, 0))
    build(f"{text}parameters: {{int8_mask: 1.0, normalize: 1.0}}\ndtype: bfloat16\n")
    one, out = weights("a.gguf"), weights("out.gguf")
    assert one.keys() == out.keys()
    assert all(np.allclose(out[name], one[name], rtol=2**-8) for name in one)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 07: openaccess-ai-collective/DPOpenHermes-11B, a stack of two revisions of one repository
        ("slices: [{sources: [{model: a.gguf, revision: main, layer_range: [0, 4]}]}]\nmerge_method: passthrough\n",
         'unknown key "revision": a file has no revisions, and another revision is another model: name its file'),
        ("models: [{model: {model: {path: a.gguf, revision: step-200}}}]\nmerge_method: passthrough\n",
         'revision "step-200": a file has no revisions, and another revision is another model: name its file'),
        # 10: the card of an 8 x Sonya-7B mixture
        ("base_model: base.gguf\ngate_mode: hidden\ndtype: bfloat16\nexperts:\n- {source_model: a.gguf, "
         "positive_prompts: [code]}\n", "this is a recipe of mergekit-moe, which makes a mixture of experts"),
        ("base_model: base.gguf\nshared_experts:\n- {source_model: a.gguf, residual_scale: 0.1}\n",
         "this is a recipe of mergekit-moe"),
        ("genome:\n  models: [a.gguf, b.gguf]\n  merge_method: ties\n", "this is a configuration of mergekit-evolve"),
        ("layer_slices:\n- {model: a.gguf, start: 0, end: 2}\nembedding_source: a.gguf\n",
         "this is a configuration of bakllama, which mergekit once had: write each of its layer_slices as one of"),
        # 14: every LazyMergekit recipe still has the names of the Hub
        ("models: [{model: mistralai/Mistral-7B-v0.1}, {model: b.gguf}]\nmerge_method: linear\n",
         "mistralai/Mistral-7B-v0.1: no such file; this looks like a Hugging Face repository: write hf:OWNER/"),
        ("models: [{model: “a.gguf”}, {model: b.gguf}]\nmerge_method: linear\n",
         '“a.gguf”: no such file; the quotes are part of the name: write "a.gguf"'),
    ],
)  # fmt: skip
def test_what_is_no_recipe_for_these_files_is_told_in_one_line(
    models: Path, refused: Callable[[str], list[str]], text: str, expected: str
) -> None:
    """With its place and what to do instead; the words of another tool are not corrected one by one."""
    [line] = refused(text)
    assert line.startswith("r.yaml:")
    assert expected in line


AVERAGE = "merge_method: linear\nmodels:\n- model: a.gguf\n- model: b.gguf\nparameters: {weight: 1}\n"


@pytest.mark.parametrize(
    ("before", "after", "remark"),
    [
        ("```yaml\n", "```\n", "out.yaml:1:1: a code fence"),
        ('MODEL_NAME = "M-7B"\nyaml_config = """\n', '"""\n', "out.yaml:2:1: a code fence"),
        ("yaml_config = f'''\n", "'''\n", "out.yaml:1:1: a code fence"),
    ],
)
def test_a_recipe_may_be_pasted_as_it_stands_on_a_page(
    models: Path, build: Build, before: str, after: str, remark: str
) -> None:
    """14: the code blocks of cards, and the cell of the LazyMergekit notebook."""
    build(AVERAGE, "plain")
    [line] = build(before + AVERAGE + after)
    assert line.startswith(remark)
    assert raw("out.gguf") == raw("plain.gguf")


def test_no_break_spaces_are_spaces(models: Path, build: Build) -> None:
    """Pages have them in front of lines; YAML takes them for letters."""
    build(AVERAGE, "plain")
    [line] = build(AVERAGE.replace("\n- ", "\n\u00a0 - "))
    assert line == "out.yaml:3:1: no-break spaces, as pages have them, are taken for plain ones"
    assert raw("out.gguf") == raw("plain.gguf")


def test_adapters_in_every_reference(models: Path, build: Build, run: Run) -> None:
    """11: a model_stock of FreedomIntelligence/HuatuoGPT-o1-8B. Tensors that no adapter changes are the base's, and
    nothing is said of differences that they do not have.
    """
    reference = "merge_method: model_stock\nbase_model: base.gguf+lora0.gguf\nmodels:\n"
    reference += "- model: base.gguf+lora0.gguf+lora1.gguf\n- model: base.gguf+lora0.gguf+lora1.gguf=0.5\n"
    (models / "r.yaml").write_text(reference)
    code, out, err = run("build", "r.yaml", "-o", "out.gguf")
    assert (code, err) == (0, "")
    assert "note:" not in out
    base, made = raw("base.gguf"), raw("out.gguf")
    assert {name for name in base if base[name] != made[name]} == {Q.format(i) for i in range(4)}


def test_an_empty_last_slice_gives_the_head(models: Path, build: Build) -> None:
    """12: arcee-ai/mergekit#308, the average of two models but the head of a third."""
    text = "merge_method: linear\nparameters: {weight: 1}\nslices:\n- sources:\n"
    text += "".join(f"  - {{model: {name}.gguf, layer_range: [0, 4]}}\n" for name in "ab")
    assert build(f"{text}- sources: [{{model: c.gguf, layer_range: [4, 4]}}]\n") == []
    a, b, c, out = (weights(f"{name}.gguf") for name in ("a", "b", "c", "out"))
    for name in ("output.weight", "output_norm.weight"):
        np.testing.assert_array_equal(out[name], c[name])
    for name in ("token_embd.weight", Q.format(3)):
        np.testing.assert_allclose(out[name], (a[name] + b[name]) / 2, atol=1e-6)


def test_different_layers_of_two_models_are_averaged_with_a_gradient_of_the_slice(models: Path, build: Build) -> None:
    """15: adriansterr/fine-tuning-for-absa, its layer-specific linear merge."""
    text = "merge_method: linear\nslices:\n- sources:\n"
    text += "  - {model: a.gguf, layer_range: [0, 2], parameters: {weight: [1, 0]}}\n"
    build(f"{text}  - {{model: b.gguf, layer_range: [2, 4], parameters: {{weight: [0, 1]}}}}\n")
    a, b, out = weights("a.gguf"), weights("b.gguf"), weights("out.gguf")
    np.testing.assert_array_equal(out[Q.format(0)], a[Q.format(0)])
    np.testing.assert_array_equal(out[Q.format(1)], b[Q.format(3)])
    assert Q.format(2) not in out


def test_q_and_k_of_repeated_layers_are_scaled_and_nothing_else_is(models: Path, build: Build) -> None:
    """16: arcee-ai/mergekit#198, with YAML anchors and a quantized model."""
    write_tiny_llama(models / "q4.gguf", type="Q4_0", **SHAPE)
    text = "merge_method: passthrough\nslices:\n- sources: [{model: q4.gguf, layer_range: [0, 2]}]\n- sources:\n"
    text += "  - &repeated\n    model: q4.gguf\n    layer_range: [1, 3]\n    parameters:\n      scale:\n"
    text += "      - {filter: q_proj, value: &s 0.7071}\n      - {filter: k_proj, value: *s}\n      - value: 1\n"
    build(f"{text}- sources: [*repeated]\n")
    source, out, old, new = weights("q4.gguf"), weights("out.gguf"), raw("q4.gguf"), raw("out.gguf")
    for layer, origin in enumerate((0, 1, 1, 2, 1, 2)):
        for name in old:
            if name.startswith(f"blk.{origin}."):
                own = name.replace(f"blk.{origin}.", f"blk.{layer}.")
                if layer > 1 and ("attn_q" in name or "attn_k" in name):
                    along = np.vdot(out[own], source[name]) / np.vdot(source[name], source[name])
                    assert along == pytest.approx(0.7071, rel=0.02)
                else:
                    assert new[own] == old[name]


def test_the_stages_of_a_recipe_are_models_of_its_last_one(models: Path, build: Build) -> None:
    """09: Retreatcost's KansenSakura, two named averages and a stack of their layers in one file."""
    text = ""
    for name, other in (("first", "b"), ("second", "c")):
        text += f"merge_method: nuslerp\nname: {name}\nmodels:\n- {{model: a.gguf, parameters: {{weight: 0.5}}}}\n"
        text += f"- {{model: {other}.gguf, parameters: {{weight: 0.5}}}}\n---\n"
    text += "merge_method: passthrough\nslices:\n- sources: [{model: first, layer_range: [0, 3]}]\n"
    build(f"{text}- sources: [{{model: second, layer_range: [1, 4]}}]\n")
    build(text.split("---\n")[0].replace("name: first\n", ""), "first-alone")
    build(text.split("---\n")[1].replace("name: second\n", ""), "second-alone")
    out, first, second = raw("out.gguf"), raw("first-alone.gguf"), raw("second-alone.gguf")
    for layer in range(6):
        stage, origin = (first, layer) if layer < 3 else (second, layer - 2)
        assert out[Q.format(layer)] == stage[Q.format(origin)]
