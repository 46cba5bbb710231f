"""What `import ggufmerge` offers: public names and no others, short descriptions, one kind of error."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import in_python
from tests.tiny import write_tiny_llama, write_tiny_lora

RECIPE = {
    "merge_method": "linear",
    "models": [{"model": "a.gguf"}, {"model": "b.gguf"}],
    "parameters": {"weight": [0.25, np.float32(0.5)]},
}


ADAPTED = {"blk.0.attn_q.weight", "blk.0.ffn_down.weight"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a base, two tunes of it, an adapter."""
    monkeypatch.chdir(tmp_path)
    weights = write_tiny_llama("base.gguf", layers=1)
    write_tiny_llama("a.gguf", layers=1, tune=(1, 0.05))
    write_tiny_llama("b.gguf", layers=1, tune=(2, 0.05))
    write_tiny_lora("lora.gguf", weights)
    return tmp_path


def test_only_public_names_are_listed() -> None:
    """And every one of them is there; functions and classes say what they do."""
    assert dir(ggufmerge) == ggufmerge.__all__
    for name in dir(ggufmerge):
        value = getattr(ggufmerge, name)
        assert not name.startswith("_") or name == "__version__"
        assert isinstance(value, str) or len(value.__doc__.splitlines()[0]) > 20


def test_importing_loads_nothing_heavy() -> None:
    """Not even when the names are listed."""
    script = (
        "import sys, ggufmerge; dir(ggufmerge); print([m for m in ('numba', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_functions_can_be_sent_to_other_processes() -> None:
    """As `multiprocessing` does it."""
    assert pickle.loads(pickle.dumps(ggufmerge.quantize)) is ggufmerge.quantize


def test_every_command_can_be_called(folder: Path) -> None:
    """What commands do, with files in and files out."""
    assert ggufmerge.plan(RECIPE).count("merge") == 12
    assert ggufmerge.build(RECIPE, "linear.gguf", out_type="Q8_0").file_type == "Q8_0"
    assert ggufmerge.quantize_file("a.gguf", "q.gguf", "Q4_0").output == Path("q.gguf")
    assert set(ggufmerge.bake("base.gguf", ["lora.gguf=0.5"], "baked.gguf").survival) == ADAPTED
    assert ggufmerge.extract_lora("baked.gguf", "base.gguf", "out.gguf", rank=4).tensors
    assert ggufmerge.compare("a.gguf", "a.gguf").tensors[0].equal == 1
    assert ggufmerge.inspect("lora.gguf")["type"] == "adapter"
    assert {Path(m.references[0]).name for m in ggufmerge.models([folder])} >= {"a.gguf", "lora.gguf"}
    assert len(ggufmerge.explain(RECIPE, "attn_q")) == 1
    assert "merge_method" in ggufmerge.recipe_schema()["properties"]
    shards = ggufmerge.split_file("a.gguf", "cut", ggufmerge.SplitLimit(max_tensors=5))
    assert ggufmerge.join_file(shards[0], "joined.gguf") == Path("joined.gguf")


def test_models_are_evaluated(folder: Path) -> None:
    """In a process of its own, as a script would."""
    script = (
        "import ggufmerge; e = ggufmerge.evaluate(['a.gguf', 'base.gguf'], {'t': 'he was in it '* 9}, "
        "reference='base.gguf', context=16, prompt='he', chat=False, answer_tokens=2, threads=1); "
        "print([(s.model, s.text, s.divergence is None) for s in e.scores], sorted(e.answers)); "
        "print(len(repr(e)) < 200)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = "[('base.gguf', 't', True), ('a.gguf', 't', False)] ['a.gguf', 'base.gguf']\nTrue"
    assert done.stdout.strip() == expected


def test_a_recipe_of_a_program_builds_what_its_text_builds(folder: Path) -> None:
    """A mapping, a Recipe made by hand, the text of either: the same bytes but for the recipe that is kept in them."""
    by_hand = ggufmerge.Recipe(**{**RECIPE, "parameters": {"weight": [0.25, 0.5]}})
    loaded = ggufmerge.load_recipe(RECIPE)
    for number, recipe in enumerate((RECIPE, by_hand, loaded, loaded.text)):
        ggufmerge.build(recipe, f"{number}.gguf")
    assert len({Path(f"{number}.gguf").read_bytes() for number in range(4)}) == 1


def test_changes_make_another_recipe(folder: Path) -> None:
    """Only what is named changes, the recipe that it is made from does not, and paths start where they did."""
    Path("sub").mkdir()
    Path("sub/r.yaml").write_text(
        "name: one\nmerge_method: linear\nmodels: [{model: ../a.gguf}, {model: ../b.gguf}]\nparameters: {weight: 1}\n"
        "---\nmerge_method: linear\nmodels: [{model: one}, {model: ../base.gguf}]\nparameters: {weight: 1}\nseed: 3\n"
    )
    recipe = ggufmerge.load_recipe("sub/r.yaml")
    changed = recipe.with_changes(out_type="Q8_0", seed=None)
    assert (recipe.out_type, recipe.seed, changed.out_type, changed.seed) == (None, 3, "Q8_0", 0)
    assert ggufmerge.plan(changed).file_type == "Q8_0"
    assert [stage.name for stage in changed.stages] == ["one"]
    assert ggufmerge.plan(recipe).metadata["general.name"] == ggufmerge.plan(changed).metadata["general.name"] == "r"
    with pytest.raises(ggufmerge.RecipeError, match='did you mean "out_type"'):
        recipe.with_changes(out_typ="Q8_0")


@pytest.mark.parametrize(
    "part",
    [
        {"models": [{"model": {"model": "a+b.gguf", "lora": {"path": Path("x=1.gguf"), "strength": 0.5}}}]},
        {"parameters": {"t": [{"filter": "attn", "value": (0, 1)}, {"value": 0.5}]}, "merge_method": "slerp"},
        {"tokenizer": {"source": "base", "tokens": {"<x>": {"source": {"kind": "zero"}, "force": True}}}},
        {"tokenizer": {"tokens": {"<x>": {"source": {"kind": "model_token", "model": "a.gguf", "token_id": 3}}}}},
        {"merge_method": [{"filter": "attn", "value": "slerp"}, {"value": "linear"}]},
        {"graft": [{"model": "a.gguf+l.gguf=0.5", "tensors": ["output"]}], "exclude": "norm", "imatrix": "i.dat"},
        {"metadata": {"general.author": "me: 'too'", "x.y": [" a", "b"]}, "tensor_types": {"ffn.*": "Q8_0"}},
        {"slices": [{"sources": [{"model": "a.gguf", "layer_range": (0, 1)}]}], "models": None},
    ],
)
def test_a_recipe_made_by_hand_says_the_same_when_it_is_written(part: dict[str, Any]) -> None:
    """Whatever its fields hold: it is written, and read back as an equal one."""
    given = {"merge_method": "linear", "base_model": "b.gguf", "models": [{"model": "c.gguf"}], **part}
    given = {key: value for key, value in given.items() if value is not None}
    by_hand = ggufmerge.load_recipe(ggufmerge.Recipe(**ggufmerge.load_recipe(given).as_written()))
    read = ggufmerge.load_recipe(given)
    fields = type(read).model_fields
    assert {name: getattr(by_hand, name) for name in fields} == {name: getattr(read, name) for name in fields}


def test_values_that_are_none_of_a_recipe_are_refused() -> None:
    """With what they are; so is a mapping that contains itself."""
    with pytest.raises(ggufmerge.RecipeError, match="cannot be a value of a recipe"):
        ggufmerge.load_recipe({**RECIPE, "seed": object()})
    endless: dict[str, Any] = {}
    endless["x"] = endless
    with pytest.raises(ggufmerge.RecipeError, match="nested deeper"):
        ggufmerge.load_recipe(endless)


def test_descriptions_are_one_line(folder: Path) -> None:
    """Of whatever a notebook would show, and the signature of a recipe is its keys."""
    report = ggufmerge.build(RECIPE, "o.gguf")
    with ggufmerge.open("a.gguf") as file:
        shown = [
            repr(value) for value in (report, ggufmerge.plan(RECIPE), ggufmerge.load_recipe(RECIPE), file, file.tensors)
        ]
    assert all(len(line) < 160 and "\n" not in line for line in shown)
    assert shown[0].startswith("<BuildReport o.gguf: F32, ")
    assert shown[2] == "<Recipe linear: a.gguf, b.gguf>"
    assert shown[4] == "<12 tensors: token_embd.weight, blk.0.attn_norm.weight, ...>"
    assert str(inspect.signature(ggufmerge.Recipe)).startswith("(*, merge_method, base_model=None, models=None,")
    assert len(str(inspect.signature(ggufmerge.Recipe))) < 500


def test_a_tensor_that_is_not_there_has_a_neighbour(folder: Path) -> None:
    """The error is a KeyError and a GgufmergeError, shown without quotes around it; the rest is as in any mapping."""
    with ggufmerge.open("a.gguf") as file:
        with pytest.raises(
            KeyError, match=r'^there is no tensor "blk\.0\.attn_q": did you mean "blk\.0\.attn_q\.weight"\?'
        ):
            file.tensors["blk.0.attn_q"]
        with pytest.raises(ggufmerge.GgufmergeError, match="there are 12"):
            file.tensors["?"]
        assert file.tensors.get("blk.0.attn_q") is None
        assert "blk.0.attn_q" not in file.tensors


SHAPES: list[Callable[[], Any]] = [
    lambda: ggufmerge.quantize(np.zeros((2, 576)), "Q4_K"),
    lambda: ggufmerge.quantize(np.zeros((2, 31)), "Q8_0"),
    lambda: ggufmerge.quantize(np.zeros((2, 32)), "Q8_0", np.zeros(31)),
    lambda: ggufmerge.dequantize(np.zeros(33, np.uint8), "Q8_0", 32),
    lambda: ggufmerge.dequantize(np.zeros(34, np.uint8), "Q8_0", 31),
]


@pytest.mark.parametrize("call", SHAPES)
def test_arrays_that_do_not_fit_are_the_callers_to_mend(call: Callable[[], Any]) -> None:
    """A GgufmergeError as all others, and still the ValueError that it used to be."""
    with pytest.raises(ggufmerge.GgufmergeError) as caught:
        call()
    assert isinstance(caught.value, ValueError)


def test_a_row_that_fits_no_block_names_types_that_do() -> None:
    """For the row at hand."""
    with pytest.raises(ggufmerge.ShapeError, match="types that fit: Q8_0, Q5_1"):
        ggufmerge.quantize(np.zeros((1, 576)), "Q4_K")
    with pytest.raises(ggufmerge.ShapeError, match=r"types that fit: F16, F32$"):
        ggufmerge.quantize(np.zeros((1, 31)), "Q4_K")


def test_errors_name_arguments_not_options(folder: Path) -> None:
    """Of every public function; the command line's words stay where the command line is."""
    for call in (
        lambda: ggufmerge.build(RECIPE, "base.gguf"),
        lambda: ggufmerge.bake("base.gguf", ["lora.gguf"], "a.gguf"),
        lambda: ggufmerge.quantize_file("a.gguf", "b.gguf", "Q8_0"),
        lambda: ggufmerge.extract_lora("a.gguf", "base.gguf", "lora.gguf"),
        lambda: ggufmerge.merge_models(["a.gguf", "b.gguf"], "base.gguf", find_base=False),
    ):
        with pytest.raises(ggufmerge.OutputError, match=r"exists: use overwrite=True to replace it$") as caught:
            call()
        assert "--" not in "".join(caught.value.lines)
    with pytest.raises(ggufmerge.GgufmergeError, match=r"follow with like=\.\.\.$"):
        ggufmerge.quantize_file("a.gguf", "q.gguf")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("give one with --imatrix FILE", "give one with imatrix=[...]"),
        ("run ollama create x --quantize q4", "run ollama create x --quantize q4"),
        ("a--type b--overwrite", "a--type b--overwrite"),
        ("use --type Q8_0 (--overwrite)", "use out_type=... Q8_0 (overwrite=True)"),
        ("the file --typeface", "the file --typeface"),
    ],
)
def test_only_our_options_are_translated(text: str, expected: str) -> None:
    """Those of other programs, and names that look like some, stay."""
    assert in_python(text) == expected


def test_one_adapter_is_a_list_too(folder: Path) -> None:
    """A text is no list of letters, and a strength is a number."""
    with pytest.raises(ggufmerge.GgufmergeError, match="a list"):
        ggufmerge.bake("base.gguf", "lora.gguf", "o.gguf")
    with pytest.raises(ggufmerge.GgufmergeError, match="finite"):
        ggufmerge.bake("base.gguf", ["lora.gguf=nan"], "o.gguf")


def test_what_functions_give_prints_in_a_line(folder: Path) -> None:
    """In a session or a notebook, where it would flood the screen; a list has an entry a line's length."""
    with ggufmerge.open("a.gguf") as model:
        given = [
            ggufmerge.compare("a.gguf", "base.gguf"),
            *ggufmerge.models([folder]),
            model,
            model.metadata,
            model.tensors,
        ]
        for what in given:
            assert len(repr(what)) < 200
            assert "\n" not in repr(what)
    assert repr(ggufmerge.compare("a.gguf", "a.gguf")) == "<Comparison a.gguf with a.gguf: 12 tensors, identical>"
