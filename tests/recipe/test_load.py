"""From text to a checked recipe: what loads, what is a warning, and what is refused, each with its place."""

from __future__ import annotations

import ast
import codecs
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import ggufmerge
from ggufmerge.errors import RecipeError
from ggufmerge.methods import NAMES, method
from ggufmerge.recipe import ModelReference, Recipe, load_recipe
from ggufmerge.recipe.settings import Rule, Setting
from tests.systems import needs_pipes

SLERP = """\
slices:
  - sources:
      - model: OpenPipe/mistral-ft-optimized-1218
        layer_range: [0, 32]
      - model: mlabonne/NeuralHermes-2.5-Mistral-7B
        layer_range: [0, 32]
merge_method: slerp
base_model: OpenPipe/mistral-ft-optimized-1218
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
"""
DARE_TIES = """\
models:
  - model: base.gguf
    # no parameters are needed for the base
  - model: a.gguf
    parameters:
      density: 0.5
      weight: 0.4
  - model: b.gguf
    parameters:
      density: 0.5
      weight: 0.3
merge_method: dare_ties
base_model: base.gguf
parameters:
  int_methods: TIES
  normalize: true
dtype: bfloat16
"""
LINEAR = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
TIES = "merge_method: ties\nbase_model: base\nmodels: [{model: a, parameters: {weight: 1}}]\n"


def complaints(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(text)
    lines = str(caught.value).split("\n")
    assert tuple(lines) == caught.value.lines
    assert all(line.startswith("recipe:") for line in lines[:20])
    return lines


def value(number: object) -> Setting:
    return Setting((Rule(None, number),))


def test_slerp_tutorial_recipe():
    """Slices, filters and gradients as mergekit's users write them."""
    recipe = load_recipe(SLERP)
    assert recipe.warnings == ()
    [(sources, base, parameters)] = recipe.output_slices()
    assert [(str(s.model), s.layer_range) for s in sources] == [
        ("OpenPipe/mistral-ft-optimized-1218", (0, 32)),
        ("mlabonne/NeuralHermes-2.5-Mistral-7B", (0, 32)),
    ]
    assert base == sources[0].model
    assert parameters == {}
    assert recipe.parameters["t"].rules == (
        Rule("self_attn", (0.0, 0.5, 0.3, 0.7, 1.0)),
        Rule("mlp", (1.0, 0.5, 0.7, 0.3, 0.0)),
        Rule(None, 0.5),
    )
    assert recipe.dtype == "bfloat16"


def test_dare_ties_tutorial_recipe():
    """A word that no version of mergekit reads is a warning with its place, the rest loads."""
    recipe = load_recipe(DARE_TIES)
    assert recipe.warnings == ('recipe:15:3: "int_methods" has no effect: no version of mergekit reads it',)
    assert recipe.parameters == {"normalize": value(True)}
    assert [m.parameters for m in recipe.models] == [
        {},
        {"density": value(0.5), "weight": value(0.4)},
        {"density": value(0.5), "weight": value(0.3)},
    ]


def test_everything_together():
    """Each key of the language, once."""
    recipe = load_recipe(
        """
        merge_method: linear
        name: Mine
        models:
          - model: {model: a+b.gguf, lora: [{path: x.gguf, strength: 0.5}]}
            parameters: {weight: 1}
          - model: c.gguf+y.gguf=2
            parameters: {weight: [0, 1e-1]}
        parameters: {normalize: 0}
        dtype: torch.float16
        out_dtype: fp32
        out_type: q4_k_m
        tensor_types: {"ffn_.*": q6_k}
        imatrix: [m.gguf, n.gguf]
        seed: 18446744073709551615
        metadata: {general.name: N, n: 3, x: 0.5, yes.no: true, tags: [a, b]}
        """
    )
    assert [str(m.model) for m in recipe.models] == ["a+b.gguf+x.gguf=0.5", "c.gguf+y.gguf=2.0"]
    assert recipe.models[1].parameters == {"weight": value((0.0, 0.1))}
    assert recipe.parameters == {"normalize": value(False)}
    assert (recipe.dtype, recipe.out_dtype, recipe.out_type) == ("float16", "float32", "q4_k_m")
    assert recipe.tensor_types == {"ffn_.*": "q6_k"}
    assert recipe.imatrix == ("m.gguf", "n.gguf")
    assert recipe.seed == 2**64 - 1
    assert recipe.metadata == {"general.name": "N", "n": 3, "x": 0.5, "yes.no": True, "tags": ["a", "b"]}
    assert recipe.warnings == ()


def test_every_slice_may_have_its_own_base():
    """Then the recipe needs none of its own."""
    recipe = load_recipe(
        "merge_method: ties\nslices:\n"
        "  - {base_model: b, parameters: {weight: 1}, sources: [{model: a, layer_range: [0, 2]}, "
        "{model: b, layer_range: [0, 2]}]}\n"
    )
    [(_, base, parameters)] = recipe.output_slices()
    assert base == ModelReference("b")
    assert parameters == {"weight": value(1.0)}


def test_methods_by_filter():
    """Not in mergekit: the first filter that matches a tensor of the result names its method."""
    recipe = load_recipe(
        TIES.replace("ties", "[{filter: attn, value: slerp}, {filter: mlp, value: ties}, {value: linear}]")
    )
    assert recipe.methods == ("slerp", "ties", "linear")
    names = ("blk.0.attn_q.weight", "blk.0.ffn_down.weight", "token_embd.weight")
    assert [recipe.method_for(name, "llama") for name in names] == ["slerp", "ties", "linear"]


def test_a_parameter_may_belong_to_any_of_the_methods():
    """It gets the type that its method gives it; one that none of them reads has no effect."""
    text = TIES.replace("ties", "[{filter: attn, value: slerp}, {value: ties}]")
    recipe = load_recipe(text + "parameters: {t: 1, density: 1}\n")
    assert recipe.parameters == {"t": value(1.0), "density": value(1.0)}
    recipe = load_recipe(text + "parameters: {gamma: 1}\n")
    assert recipe.parameters == {}
    assert recipe.warnings == ('recipe:4:14: "gamma" has no effect in slerp and ties, which do not read it',)


def test_grafts_and_exclusions():
    """Not in mergekit: tensors taken from one model as they are, and tensors left as the base has them."""
    recipe = load_recipe(
        LINEAR + "exclude: lm_head\ngraft: [{model: c+l=2, tensors: [mlp, token_embd]}]\nlike: d.gguf\n"
    )
    assert recipe.exclude == ("lm_head",)
    assert [(str(g.model), g.tensors) for g in recipe.graft] == [("c+l=2.0", ["mlp", "token_embd"])]
    assert recipe.like == "d.gguf"


def test_models_are_one_slice():
    """Of all layers, with the recipe's base and no parameters of its own."""
    recipe = load_recipe(LINEAR)
    assert recipe.output_slices() == [(list(recipe.models), None, {})]


@pytest.mark.parametrize("empty", ["parameters:", "parameters: {}", "parameters: null"])
def test_empty_parameters_are_none(empty):
    """`parameters:` with nothing but a comment below it is common in published recipes."""
    assert load_recipe(f"merge_method: linear\nmodels: [{{model: a}}]\n{empty}\n").parameters == {}


def test_values_get_the_type_of_their_parameter():
    """As in mergekit: 1 is a weight, "0.5" too, and 1.0 is a switch that is on."""
    recipe = load_recipe(TIES + 'parameters: {weight: "0.5", density: 1, normalize: 1.0, rescale: [0, true]}\n')
    got = {name: setting.rules[0].value for name, setting in recipe.parameters.items()}
    assert got == {"weight": 0.5, "density": 1.0, "normalize": True, "rescale": (False, True)}
    assert [type(v) for v in got.values()] == [float, float, bool, tuple]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (LINEAR + "mergemethod: x\n", 'recipe:3:1: unknown key "mergemethod": did you mean "merge_method"?'),
        (LINEAR + "base_modle: x\n", 'recipe:3:1: unknown key "base_modle": did you mean "base_model"?'),
        (LINEAR + "merge-method: x\n", 'did you mean "merge_method"?'),
        (LINEAR + "sede: 1\n", 'unknown key "sede": did you mean "seed"?'),
        (LINEAR + "wieght: 1\n", 'a parameter of the method belongs under parameters: did you mean "weight"?'),
        (
            "merge_method: linear\nmodels: [{model: a}]\nweight: 2\n",
            'unknown key "weight": a parameter of the method belongs under parameters:',
        ),
        (
            "merge_method: linear\nmodels: [{model: a, weight: 2}]\n",
            'recipe:2:21: unknown key "weight": a parameter of the method belongs under parameters:',
        ),
        (LINEAR + "modules: {}\n", "a GGUF file holds one module"),
        (LINEAR.replace("model: a", "model: a, revision: v2"), 'unknown key "revision": a file has no revisions'),
        (LINEAR.replace("model: a", "model: a, lora: b"), 'write "model: FILE.gguf+ADAPTER.gguf"'),
        (LINEAR + "gate_mode: hidden\nexperts: [{source_model: a}]\n", "this is a recipe of mergekit-moe"),
        ("base_model: a\ngate_mode: hidden\nexperts: [{source_model: a}]\n", "this is a recipe of mergekit-moe"),
        ("genome: {models: [a]}\ntasks: []\n", "this is a configuration of mergekit-evolve"),
        (LINEAR + "tokenizer: {tokens: {a: {sorce: b}}}\n", 'unknown key "sorce": did you mean "source"?'),
        (LINEAR + "tokenizer: {tokens: {a: {source: {kind: one}}}}\n", 'is zero or model_token, not "one"'),
        (LINEAR + "tokenizer: {tokens: {a: {source: {kind: zero, model: b}}}}\n", 'unknown key "model" of a token'),
        (LINEAR + "tokenizer: {tokens: {a: {source: {kind: model_token, model: b}}}}\n", 'either a "token" or'),
        (LINEAR + "tokenizer: {pad_to_multiple_of: 0}\n", "greater than or equal to 1"),
        (LINEAR + "tokenizer_source: base\ntokenizer: {}\n", 'either "tokenizer" or "tokenizer_source"'),
        (LINEAR + "chat_template: chatlm\n", '"chatlm" is not a template: write auto, alpaca'),
        (LINEAR + "dtype: q4_k_m\n", "'bfloat16'; for Q4_K_M write \"out_type: Q4_K_M\""),
        (LINEAR + "dtype: int8\n", "\"int8\" is not a valid dtype; it is one of 'float32'"),
        (LINEAR + "out_type: Q4_KM\n", 'unknown type "Q4_KM": did you mean "Q4_K_M"?'),
        (LINEAR + "tensor_types: {ffn: Q4_KK}\n", "unknown tensor type"),
        (LINEAR + 'tensor_types: {"(": Q4_K}\n', "not a regular expression"),
        (LINEAR + "seed: -1\n", '"seed" should be greater than or equal to 0, not -1'),
        (LINEAR + "seed: 18446744073709551616\n", '"seed" should be less than'),
        (LINEAR + "seed: true\n", '"seed" should be a valid integer'),
        (LINEAR + "name: 3\n", '"name" is a text, not 3; write it in quotes'),
        (LINEAR + "metadata: {a: {b: 1}}\n", "recipe:3:12: metadata is a text, a number"),
        (LINEAR + "metadata: {a: 99999999999999999999}\n", "does not fit in 64 bits"),
        (LINEAR + "slices: []\n", '"slices" needs at least one entry'),
        (LINEAR + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n", 'either "models" or "slices"'),
        ("merge_method: linear\nbase_model: a\n", "base_model alone makes no merge: add models:"),
        ("models: [{model: a}]\n", 'recipe:1:1: the key "merge_method" is missing; it is one of linear'),
        ("merge_method: linear\nmodels: [{parameters: {}}]\n", 'recipe:2:10: the key "model" is missing'),
        ("merge_method: linear\nmodels: [a]\n", 'an entry of "models" has keys: write "- model: a"'),
        (
            "merge_method: linear\nmodels: {model: a}\n",
            '"models" is a list: below it, write a line such as "- model: a"',
        ),
        ("merge_method: linear\nmodels: [{model: 5}]\n", "recipe:2:11: a model is a path such as model.gguf, not 5"),
        (
            "merge_method: dare-ties\nmodels: [{model: a}]\n",
            'recipe:1:1: unknown merge_method "dare-ties": did you mean',
        ),
        ("merge_method: ties\nmodels: [{model: a}]\n", 'add "base_model: FILE.gguf"'),
        ("merge_method: linear\nslices: [{sources: []}]\n", '"sources" needs at least one entry'),
        (
            "merge_method: linear\nslices: [{sources: [{model: a}]}]\n",
            'recipe:2:21: the key "layer_range" is missing',
        ),
        *(
            (
                f"merge_method: linear\nslices: [{{sources: [{{model: a, layer_range: {r}}}]}}]\n",
                "recipe:2:32: layer_range is",
            )
            for r in ("[0]", "[0, 1, 2]", "[0, x]", "[-1, 2]", "[0, true]", "8", "[0, 1.5]")
        ),
        (LINEAR + "graft: {model: a, tensors: [b]}\n", '"graft" is a list, not'),
        (LINEAR + "graft: [{model: a}]\n", 'recipe:3:9: the key "tensors" is missing'),
        (LINEAR + "graft: [{model: a, tensors: []}]\n", '"tensors" needs at least one entry'),
        (LINEAR + "graft: [{model: a, tensors: [b], tensor: c}]\n", 'did you mean "tensors"?'),
        (LINEAR + "like: a.gguf\nout_type: Q8_0\n", 'either "like" or "out_type"'),
        (LINEAR.replace("linear", "[{filter: mlp, value: linear}]"), "needs a last value without a filter"),
        (LINEAR.replace("linear", "[linear, ties]"), "merge_method is a word, or a list of mappings"),
        (LINEAR.replace("linear", "[{value: linnear}]"), 'did you mean "linear"?'),
        ("[]\n", "a recipe is a mapping"),
        ("just a text\nof two lines\n", "this is not a recipe"),
    ],
)
def test_keys_and_values_that_are_refused(text, complaint):
    """One line, which says where and what to write instead."""
    lines = complaints(text)
    assert len(lines) == 1
    assert complaint in lines[0]


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ("{densty: 0.5}", 'ties has no parameter "densty": did you mean "density"?'),
        ("{lamda: 0.5}", 'ties has no parameter "lamda": did you mean "lambda"?'),
        ("{density: 1.5}", '"density" is 0 to 1, not 1.5'),
        ("{density: [0.5, -1]}", '"density" is 0 to 1, not -1'),
        ("{density: [{filter: mlp, value: 2}, {value: 1}]}", '"density" is 0 to 1, not 2'),
        ("{weight: much}", '"weight" is a number, not "much"'),
        ("{weight: true}", '"weight" is a number, not True'),
        ("{weight: null}", '"weight" is a number, not None'),
        ("{weight: .nan}", '"weight" is a finite number'),
        ("{weight: 1e999}", '"weight" is a finite number'),
        ("{weight: " + "9" * 400 + "}", '"weight" is a number'),
        ("{weight: []}", "a gradient needs at least one value"),
        ("{normalize: maybe}", '"normalize" is true or false, not "maybe"'),
        ("{normalize: 2}", '"normalize" is true or false, not 2'),
    ],
)
def test_parameters_that_are_refused(parameters, complaint):
    """With the place of the parameter, and its range."""
    lines = complaints(TIES + f"parameters: {parameters}\n")
    assert len(lines) == 1
    assert lines[0].startswith("recipe:4:14: ")
    assert complaint in lines[0]


def test_a_whole_number_has_no_gradient():
    """There is nothing between two of them."""
    text = "merge_method: karcher\nmodels: [{model: a}]\nparameters: {max_iter: [1, 10]}\n"
    assert complaints(text) == ['recipe:3:14: "max_iter" is a whole number, which has no gradient']


def test_a_shared_parameter_of_one_model_is_refused():
    """mergekit ignores a `t` that is written under a model, so without another one there is none."""
    [line] = complaints(
        "merge_method: slerp\nbase_model: b\nmodels:\n  - {model: a, parameters: {t: 0.5}}\n",
    )
    assert line == (
        'recipe:4:29: "t" of slerp is one value for all models and is not read here: move it to "parameters:"'
    )


def test_of_very_many_problems_the_first_are_reported():
    """Twenty, and how many more there are."""
    lines = complaints(LINEAR + "".join(f"base_model{i:03}: 1\n" for i in range(1000)))
    assert len(lines) == 21
    assert [line.split(":")[1] for line in lines[:20]] == [str(i) for i in range(3, 23)]
    assert lines[20] == "and 980 more"


def test_expressions_that_nothing_can_follow_are_refused():
    """Each at its place; the time that they may take together is bounded."""
    [line] = complaints(LINEAR + r"tensor_types: {'(a)\1': Q8_0}")
    assert line.startswith('recipe:3:16: "(a)\\1" is a regular expression with a reference back')
    lines = complaints(LINEAR + "tensor_types:\n" + "".join(f"  (a{{0,30}}){{0,60}}{i}: Q8_0\n" for i in range(2000)))
    assert lines[-1] == "and 1980 more"


@needs_pipes
def test_a_pipe_is_no_recipe(tmp_path):
    """It is refused before anybody waits for its writer."""
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="cannot read the recipe: this is not a regular file"):
        load_recipe(tmp_path / "recipe.yaml")


def test_all_problems_are_reported_at_once_in_the_order_of_the_text():
    """Wrong keys, values, methods' parameters and missing bases in one go."""
    lines = complaints(
        "merge_methods: x\n"
        "merge_method: ties\n"
        "models:\n"
        "  - {model: a, wieght: 1, parameters: {densty: 1}}\n"
        "  - {model: a, parameters: {weight: [1, {value: 2}], density: 7}}\n"
    )
    places = ["1:1", "2:1", "4:16", "4:40", "5:29", "5:54"]
    assert [line.split(": ")[0] for line in lines] == [f"recipe:{place}" for place in places]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (LINEAR + "parameters: {int8_mask: 1.0}\n", 'recipe:3:14: "int8_mask" has no effect'),
        (LINEAR + "allow_negative_weights: true\n", 'recipe:3:1: "allow_negative_weights" has no effect: nobody reads'),
        (LINEAR + "license: apache-2.0\n", '"license" has no effect: nobody reads it; remove it'),
        (LINEAR + "description: a b\n", '"description" has no effect'),
        (LINEAR + "random_seed: 2\n", '"random_seed" has no effect here: write "seed" at the top level'),
        (LINEAR + "parameters: {random_seed: 2}\n", '"random_seed" has no effect here: write "seed" at the top level'),
        (LINEAR + "parameters: {dtype: bfloat16}\n", '"dtype" has no effect here: it belongs at the top level'),
        (LINEAR + "parameters: {smooth: false}\n", '"smooth" has no effect: no method reads it; remove it'),
        (LINEAR + "parameters: {t: 0.5}\n", '"t" has no effect in linear, which does not read it'),
        (LINEAR + "tokens: {}\n", '"tokens" has no effect here: it belongs under tokenizer:'),
        (LINEAR + "tokenizer: {tokens: }\n", '"tokens" has no effect: nothing stands below it'),
        (LINEAR + "pad_to_multiple_of: 8\n", '"pad_to_multiple_of" has no effect here: it belongs under tokenizer:'),
        (LINEAR + "weight: 2\n", '"weight" has no effect here: a parameter of the method belongs under parameters:'),
        (LINEAR + "normalize: true\n", '"normalize" has no effect here: a parameter of the method belongs under'),
        (LINEAR + "density: 0.5\n", '"density" has no effect: nobody reads it'),
        (LINEAR + "override_architecture: x\n", '"override_architecture" has no effect: it names a class of'),
        (LINEAR.replace("model: a", "model: a, glorious_base: 1"), 'recipe:2:21: "glorious_base" has no effect'),
        (LINEAR + "dtype: float64\n", "recipe:3:1: llama.cpp runs no models of float64, so float32 is taken"),
        (LINEAR + "tokenizer_source: model:b\n", 'recipe:3:1: the prefix "model:" has no effect: write b'),
        (LINEAR + "tokenizer: {source: 'model:b'}\n", 'the prefix "model:" has no effect: write b'),
        (
            TIES.replace("weight: 1", "weight: 1, normalize: true"),
            '"normalize" of ties is one value for all models and is not read here: move it to "parameters:"',
        ),
        (
            "merge_method: linear\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n  merge_method: slerp\n",
            'recipe:4:3: "merge_method" has no effect here: it belongs at the top level',
        ),
        (LINEAR + "parameters: {embed_slerp: true}\n", '"embed_slerp" has no effect'),
        (TIES.replace("model: a", "model: base"), 'recipe:3:37: "weight" has no effect on the base model'),
        (
            TIES.replace("ties", "task_arithmetic") + "parameters: {density: 1}\n",
            '"density" has no effect in task_arithm',
        ),
        (
            TIES + "parameters: {density: [{value: 1}, {filter: mlp, value: 0}]}\n",
            'the filter "mlp" of "density" has no',
        ),
        (
            TIES + "parameters: {density: [{value: 1}, {value: 0}]}\n",
            'a second value without a filter of "density" has',
        ),
        (
            TIES + "parameters: {density: [{filter: mlp, value: 1}, {filter: mlp, value: 0}]}\n",
            "an earlier one takes all its tensors",
        ),
        (
            LINEAR.replace("linear", "[{value: linear}, {value: karcher}]"),
            "recipe:1:1: a second value without a filter of",
        ),
    ],
)
def test_words_without_effect_are_warnings(text, warning):
    """What mergekit accepts and nobody reads is named, not refused."""
    [line] = load_recipe(text).warnings
    assert warning in line
    assert line.startswith("recipe:")


def test_warnings_stand_in_the_order_of_the_text():
    """However they were found."""
    text = LINEAR + "int_methods: x\nparameters: {int8_mask: true}\nresidual_weight: 1\n"
    assert [line.split(":")[1] for line in load_recipe(text).warnings] == ["3", "4", "5"]


def test_metadata_may_hold_any_key():
    """Words that mean nothing elsewhere in a recipe are names like any other there."""
    assert load_recipe(LINEAR + "metadata: {int8_mask: x}\n").metadata == {"int8_mask": "x"}


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_every_method_loads(name):
    """At the top level, with its default or a value that its type allows."""
    for parameter in method(name).parameters:
        allowed = parameter.choices[0] if parameter.choices else True if parameter.type is bool else 1
        text = f"merge_method: {name}\nbase_model: b\nmodels: [{{model: a}}]\n"
        text += f"parameters: {{{parameter.name}: {allowed}}}\n"
        assert type(load_recipe(text).parameters[parameter.name].rules[0].value) is parameter.type


def test_path_or_text(tmp_path):
    """A recipe knows its folder, its file's name and its text, without a byte order mark and Windows' line breaks."""
    folder = tmp_path / "rezepte ü"
    folder.mkdir()
    path = folder / "my recipe.yaml"
    path.write_bytes(codecs.BOM_UTF8 + LINEAR.replace("\n", "\r\n").encode())
    recipe = load_recipe(path)
    assert (recipe.text, recipe.origin, Path(recipe.folder)) == (LINEAR, "my recipe.yaml", folder)
    recipe = load_recipe(LINEAR)
    assert (recipe.text, recipe.origin, recipe.folder) == (LINEAR, "recipe", ".")


def test_utf16_is_read(tmp_path):
    """The encoding that `>` writes in Windows PowerShell."""
    path = tmp_path / "recipe.yaml"
    path.write_bytes((LINEAR + "name: Grüße\n").encode("utf-16"))
    assert load_recipe(str(path)).name == "Grüße"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file, not a recipe"),
        (b"merge_method: linear\nname: \xe9t\xe9\n", "r.yaml:2: not UTF-8 text; save the recipe as UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8 text"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b"# " + b"x" * (1 << 20), "more than 1 MiB"),
        (b"", "r.yaml: the recipe is empty"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, data, complaint):
    """A model, a picture, another encoding, too much or nothing: one line that says so."""
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert complaint in str(caught.value).split("\n")[0]


@pytest.mark.parametrize("path", ["absent.yaml", ".", "a\0b", "x" * 5000])
def test_paths_that_cannot_be_read(tmp_path, path, monkeypatch):
    """A missing file, a folder, an impossible name: one line."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"cannot read the recipe|no such file|a folder, not a recipe") as caught:
        load_recipe(path)
    assert len(str(caught.value).splitlines()) == 1


WORDS = """
    merge_method models slices sources model parameters base_model t weight density filter value lora path strength
    layer_range dtype out_type tensor_types imatrix seed metadata name tokenizer tokenizer_source chat_template x
"""
KEYS = st.sampled_from(WORDS.split())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["slerp", "ties", "linear", "a.gguf", "a+b=2", "Q8_0", "float16", "union", "mlp"]),
)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
RECIPES = st.fixed_dictionaries(
    {"merge_method": st.one_of(st.sampled_from(NAMES), DATA)},
    optional={
        "models": st.one_of(
            st.lists(st.fixed_dictionaries({"model": DATA}, optional={"parameters": DATA}), max_size=3), DATA
        ),
        "slices": DATA,
        "base_model": DATA,
        "parameters": st.one_of(st.dictionaries(KEYS, DATA, max_size=3), DATA),
        "metadata": DATA,
        "tensor_types": DATA,
        "seed": DATA,
    },
)


@given(st.one_of(DATA, RECIPES))
def test_any_data_is_a_recipe_or_refused(data):
    """Whatever nests in whatever: RecipeError with one place per line, or a recipe."""
    text = "# data\n" + yaml.safe_dump(data, allow_unicode=True)
    try:
        lines = [f"recipe:{load_recipe(text).merge_method}"]
    except RecipeError as error:
        lines = str(error).split("\n")
    assert all(line.startswith("recipe:") for line in lines)


MAPPING = {"merge_method": "linear", "models": [{"model": "a.gguf"}, {"model": "b.gguf", "parameters": {"weight": 1}}]}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": -1}, 'seed: "seed" should be'),
        ({"models": [{"model": "a"}, {"model": "b", "parameters": {"weight": "x"}}]}, "models[1].parameters.weight: "),
        ({"models": [{"modl": "a"}]}, 'models[0]: the key "model" is missing'),
        ({"out type": 1}, '["out type"]: unknown key "out type"'),
        ({"merge_method": "lin"}, 'merge_method: unknown merge_method "lin"'),
        ({"base_model": 5}, "base_model: "),
    ],
)
def test_complaints_about_a_mapping_name_its_keys(change: dict[str, Any], line: str) -> None:
    """A Python program has no lines; what it gave has this place. Changes of a recipe are told in the same way."""
    with pytest.raises(RecipeError) as error:
        load_recipe(MAPPING | change)
    assert [found for found in error.value.lines if found.startswith(line)]
    with pytest.raises(RecipeError) as error:
        load_recipe(MAPPING).with_changes(**change)
    assert [found for found in error.value.lines if found.startswith(line)]


def test_changes_of_a_file_name_the_file_and_the_keys(tmp_path: Path) -> None:
    """Its lines are not those of the changed recipe; of several documents, the number says which one is meant."""
    path = tmp_path / "r.yaml"
    path.write_text(LINEAR)
    with pytest.raises(RecipeError, match=r"^r\.yaml \(changed\): seed: "):
        load_recipe(path).with_changes(name="x").with_changes(seed=-1)
    path.write_text(f"name: one\n{LINEAR}---\n{LINEAR.replace('model: a', 'model: one')}")
    with pytest.raises(RecipeError, match=r"^r\.yaml \(changed\), document 2: seed: "):
        load_recipe(path).with_changes(seed=-1)


def test_a_recipe_is_made_in_one_go() -> None:
    """Nothing but its own constructor writes to what a recipe hides, and checking one leaves its parts as they were."""
    package = Path(ggufmerge.__file__).parent
    writes = [
        path.name
        for room in ("recipe", "engine", "cli")
        for path in (package / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute) and re.match("_[a-z]", target.attr) and "recipe" in ast.unparse(target)
    ]
    assert writes == ["recipe.py"]
    written = Setting((Rule(None, "0.5"),))
    by_hand = Recipe(merge_method="linear", models=[{"model": "a", "parameters": {"weight": "0.5"}}])
    assert load_recipe(by_hand).models[0].parameters == {"weight": Setting((Rule(None, 0.5),))}
    assert by_hand.models[0].parameters == {"weight": written}
    assert by_hand.with_changes(seed=3).seed == 3
    assert by_hand.seed == 0
