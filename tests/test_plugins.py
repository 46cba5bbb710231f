"""What other packages add: found by name, used like what is built in, to blame by name when it does not work."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufmerge
from ggufmerge import plugins
from ggufmerge.cli import main
from ggufmerge.errors import GgufmergeError, PlanError, PluginError, RecipeError
from ggufmerge.methods import method, names
from ggufmerge.places.references import find
from ggufmerge.places.schemes import is_scheme
from ggufmerge.quants.encoders import encoder, encoder_names
from ggufmerge.recipe import load_recipe
from ggufmerge.recipe.json_schema import json_schema
from tests.plugins import EXAMPLE, write_example, write_package
from tests.tiny import write_tiny_llama, write_tiny_lora

ROOT = Path(__file__).parents[1]
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install packages for the time of a test: `write_package` without its first argument."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    loaded = set(sys.modules)

    def call(name: str, groups: Mapping[str, Mapping[str, str]], modules: Mapping[str, str] | None = None) -> None:
        write_package(site, name, groups, modules)
        plugins._entries.cache_clear()

    yield call
    plugins._entries.cache_clear()
    for module in set(sys.modules) - loaded:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(site)):
            del sys.modules[module]


def test_the_example_of_the_docs_merges_in_another_process(tmp_path: Path) -> None:
    """Installed beside ggufmerge: its method, a model of its place, its sink; and both lists name the method."""
    site, shelf = tmp_path / "site", tmp_path / "shelf"
    shelf.mkdir()
    write_example(site)
    for i, name in enumerate(("base", "a", "b", "c")):
        write_tiny_llama(shelf / f"{name}.gguf", layers=1, tune=(i, 0.05) if i else None)
    script = """
import json, ggufmerge
from ggufmerge_example.checksum import Checksum
models = [{"model": f"shelf:{name}", "parameters": {"weight": w}} for name, w in (("a", 1), ("b", "0.5"), ("c", 2))]
recipe = {"merge_method": "middle", "base_model": "shelf:base", "models": models, "parameters": {"share": 0.5}}
report = ggufmerge.build(recipe, "out.gguf", out_type="F32", sinks=[Checksum("out.gguf")])
print(json.dumps([report.merged, "middle" in ggufmerge.recipe_schema()["$defs"]["merge_method"]["anyOf"][0]["enum"]]))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "MODEL_SHELF": str(shelf)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    merged, listed = json.loads(done.stdout)
    assert merged > 0
    assert listed
    digest = hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest()
    assert (tmp_path / "out.gguf.sha256").read_text() == f"{digest}  out.gguf\n"
    name = "blk.0.ffn_down.weight"
    with ggufmerge.open(tmp_path / "out.gguf") as out:
        result = out.tensors[name].dequantize()
    arrays = []
    for one in ("base", "a", "b", "c"):
        with ggufmerge.open(shelf / f"{one}.gguf") as file:
            arrays.append(file.tensors[name].dequantize())
    base, models = arrays[0], np.stack(arrays[1:])
    change = np.median((models - base) * np.array([1, 0.5, 2])[:, None, None], axis=0)
    np.testing.assert_allclose(result, base + 0.5 * change, rtol=1e-6)


def test_the_example_is_the_one_of_the_docs() -> None:
    """File by file."""
    text = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    blocks = re.findall(r"^```(?:python|toml)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for path in (EXAMPLE / "pyproject.toml", *sorted((EXAMPLE / "ggufmerge_example").glob("[a-z]*.py"))):
        assert path.read_text("utf-8") in blocks, path


def test_the_encoder_of_the_docs_keeps_the_sum_of_a_change(install: Install, tmp_path: Path) -> None:
    """Of each block, to one step, and with it the change; nearest rounding keeps little of one as small as this."""
    code = (EXAMPLE / "ggufmerge_example" / "feedback.py").read_text("utf-8")
    install("feedback", {"ggufmerge.encoders": {"feedback": "feedback:feedback"}}, {"feedback": code})
    base = write_tiny_llama(tmp_path / "base.gguf", type="Q4_0")
    write_tiny_lora(tmp_path / "lora.gguf", base, strength=0.01)
    left = {}
    for rounding in ("nearest", "feedback"):
        recipe = {
            "merge_method": "passthrough",
            "models": [{"model": f"{tmp_path}/base.gguf+{tmp_path}/lora.gguf"}],
            "rounding": rounding,
        }
        report = ggufmerge.build(recipe, tmp_path / f"{rounding}.gguf")
        [kept] = report.kept
        left[rounding] = kept.survival.share
        notes = {note for tensor in ggufmerge.plan(recipe).tensors for note in tensor.decisions}
        assert ("feedback is of the package feedback 1.0" in notes) == (rounding == "feedback")
    assert left["nearest"] < 0.7
    assert left["feedback"] > 0.9


def test_an_encoder_that_does_not_work_is_the_fault_of_its_package(install: Install) -> None:
    """In one line, when a recipe is planned with it; a name that nobody has is told with the nearest ones."""
    install("bad", {"ggufmerge.encoders": {"bad": "bad:number", "other": "bad:other"}}, {"bad": "number = 3\n"})
    assert encoder_names()[:2] == ("stochastic", "nearest")
    assert set(encoder_names()) >= {"bad", "other"}
    for name, why in (("bad", "is not an Encoder but int"), ("other", "cannot be loaded (AttributeError: ")):
        with pytest.raises(PluginError, match=re.escape(f'the rounding "{name}" of the package bad 1.0 {why}')):
            encoder(name)
    with pytest.raises(GgufmergeError, match='unknown rounding "feedbak"'):
        encoder("feedbak")


SUM = """
import numpy as np
from ggufmerge import merge_method
@merge_method
def total(models: np.ndarray, *, lambda_: float = 1.0) -> np.ndarray:
    "the sum of the models"
    return lambda_ * models.sum(axis=0)
METHODS = {"total": total}
"""


@pytest.mark.parametrize("target", ["sums:total", "sums"])
def test_a_method_is_found_by_its_name(install: Install, target: str) -> None:
    """Through an entry point that leads to the method, or to the module that has it in its table."""
    install("sums", {"ggufmerge.methods": {"total": target}}, {"sums": SUM})
    a = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(ggufmerge.merge([a, 2 * a], "total", {"lambda": 2}), 6 * a)
    assert "total" in names()
    assert "total" in str(json_schema()["$defs"]["parameters"]["properties"]["lambda"]["description"])
    recipe = {"merge_method": "total", "models": [{"model": "a"}], "parameters": {"lambda": "x"}}
    with pytest.raises(RecipeError, match='"lambda" is a number, not "x"'):
        load_recipe(recipe)
    with pytest.raises(RecipeError, match='did you mean "total"'):
        method("totl")


BROKEN = {
    "nowhere:it": "cannot be loaded (ModuleNotFoundError: No module named 'nowhere')",
    "ill:it": "cannot be loaded (AttributeError: module 'ill' has no attribute 'it')",
    "ill:number": "is no Method but int",
    "ill": "is no Method but nothing",
    "sums:total": "calls itself 'total'",
    "leaves:it": "cannot be loaded (SystemExit: 3)",
    "many:it": "cannot be loaded (TypeError: it takes (models), (models, base) or (models, base=None)",
}
MODULES = {
    "ill": "number = 3\n",
    "sums": SUM,
    "leaves": "raise SystemExit(3)\n",
    "many": "from ggufmerge import merge_method\n@merge_method\ndef it(a, b, c):\n    return a\n",
}


@pytest.mark.parametrize("target", BROKEN)
def test_a_method_that_does_not_work_is_the_fault_of_its_package(install: Install, target: str) -> None:
    """One line, with the place in a recipe; the others can be listed and used."""
    install("broken", {"ggufmerge.methods": {"it": target}}, MODULES)
    with pytest.raises(PluginError) as info:
        method("it")
    [line] = info.value.lines
    assert line.startswith(f'the merge method "it" of the package broken 1.0 {BROKEN[target]}')
    assert line.endswith(": update the package or uninstall it")
    with pytest.raises(RecipeError) as in_recipe:
        load_recipe("merge_method: it\nmodels: [{model: a}]\n")
    assert in_recipe.value.lines == (f"recipe:1:1: {line}",)
    assert "ties" in json_schema()["$defs"]["merge_method"]["anyOf"][0]["enum"]


def test_what_is_built_in_wins(install: Install) -> None:
    """With a warning where a recipe uses the name, and nowhere else."""
    install("other", {"ggufmerge.methods": {"linear": "nowhere:it"}})
    assert type(method("linear")).__module__ == "ggufmerge.methods.linear"
    assert names().count("linear") == 1
    recipe = load_recipe("merge_method: linear\nmodels: [{model: a}]\n")
    assert recipe.warnings == (
        'recipe:1:1: the merge method "linear" of the package other 1.0 is not used: ggufmerge has one of this name',
    )
    assert load_recipe("merge_method: karcher\nmodels: [{model: a}]\n").warnings == ()


def test_two_packages_with_one_name_are_refused(install: Install) -> None:
    """Which of them is found first would be chance."""
    for name in ("one", "two"):
        install(name, {"ggufmerge.methods": {"it": "nowhere:it"}})
    with pytest.raises(PluginError, match=r"is added by several packages, one 1\.0 and two 1\.0: uninstall"):
        method("it")


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["ggufmerge", *arguments])
    with contextlib.suppress(SystemExit):
        main()
    out, err = capsys.readouterr()
    return out, err


def test_methods_lists_what_packages_add(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the package; those that do not work are named beside the table."""
    install("sums", {"ggufmerge.methods": {"total": "sums:total", "it": "nowhere:it"}}, {"sums": SUM})
    out, err = run(monkeypatch, capsys, "methods")
    assert re.search(r"total +models +the sum of the models \(sums 1.0\)", out)
    assert err.startswith('warning: the merge method "it" of the package sums 1.0 cannot be loaded')
    out, _ = run(monkeypatch, capsys, "methods", "total")
    assert "the package sums 1.0" in out
    out, _ = run(monkeypatch, capsys, "methods", "--json")
    assert {m["name"]: m["package"] for m in json.loads(out)["methods"]} | {"ties": None, "total": "sums 1.0"} == {
        name: "sums 1.0" if name == "total" else None for name in names() if name != "it"
    }


SHELVES = """
from pathlib import Path
from ggufmerge import Located, PlanError
def find(name):
    if name == "path":
        return Path(name)
    if name == "mine":
        raise PlanError("mine: buy it first")
    return Located({"a": Path("a.gguf")}[name])
thing = 3
"""


def test_a_place_finds_models_by_name(install: Install) -> None:
    """Its own errors are the user's to read; any other is its package's fault."""
    install("shelves", {"ggufmerge.places": {"my-shelf": "shelves:find", "bad": "shelves:thing", "C": "shelves:find"}},
            {"shelves": SHELVES})  # fmt: skip
    assert find("my-shelf:a").path == Path("a.gguf")
    assert is_scheme("my-shelf")
    assert not is_scheme("C")  # a drive
    complaints: dict[str, Any] = {
        "my-shelf:mine": "mine: buy it first",
        "my-shelf:b": 'the place of models "my-shelf" of the package shelves 1.0 cannot look for "b" (KeyError: \'b\')',
        "my-shelf:path": 'gives PosixPath for "path"' if os.name == "posix" else "gives WindowsPath",
        "bad:a": 'the place of models "bad" of the package shelves 1.0 is no function but int',
        "other:a": "no such file",
    }
    for reference, complaint in complaints.items():
        with pytest.raises(GgufmergeError) as info:
            find(reference)
        assert complaint in str(info.value)
        assert isinstance(info.value, PlanError | PluginError)


def test_the_plan_tells_the_package_of_a_method(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its version, so that an interrupted build is not gone on with by another one. Its own methods have none."""
    install("sums", {"ggufmerge.methods": {"total": "sums:total"}}, {"sums": SUM})
    monkeypatch.chdir(tmp_path)
    for i in (1, 2):
        write_tiny_llama(f"{i}.gguf", layers=1, tune=(i, 0.05))
    for name, expected in (("total", {("total is of the package sums 1.0",)}), ("karcher", {()})):
        plan = ggufmerge.plan({"merge_method": name, "models": [{"model": "1.gguf"}, {"model": "2.gguf"}]})
        assert {tensor.decisions for tensor in plan.tensors} == expected
