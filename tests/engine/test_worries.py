"""What a plan worries about, and that it does not worry about what is usual."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ggufmerge.engine import make_plan
from ggufmerge.engine.worries import worries_of
from ggufmerge.recipe import load_recipe
from tests.tiny import write_tiny_llama

BASE = "base_model: {base}\nmodels: [{{model: {a}}}, {{model: {b}}}]\n"
OFF = "noise_aware: off\nout_type: Q8_0\n"
TYPES = {"f": "F16", "q4": "Q4_1", "q8": "Q8_0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two tunes in three types, and a copy under another name."""
    folder = tmp_path_factory.mktemp("worries")
    for short, kind in TYPES.items():
        for number, name in enumerate(("base", "a", "b")):
            tune = (number, 0.02) if number else None
            write_tiny_llama(folder / f"{name}-{short}.gguf", layers=1, tune=tune, type=kind)
    shutil.copy(folder / "a-q8.gguf", folder / "copy.gguf")
    return folder


def worries(folder: Path, text: str) -> list[str]:
    (folder / "r.yaml").write_text(text)
    plan, opened = make_plan(load_recipe(folder / "r.yaml"))
    with opened:
        return worries_of(plan, opened)


def merge(method: str, parameters: str, short: str = "q8", more: str = "") -> str:
    """A merge of the two tunes, which are all of one type, onto their base."""
    names = {name: f"{name}-{short}.gguf" for name in ("base", "a", "b")}
    return f"merge_method: {method}\n{BASE.format(**names)}parameters: {{{parameters}}}\n{more}"


PAIR = "merge_method: linear\nmodels: [{model: FIRST}, {model: SECOND}]\nparameters: {weight: 0.5}\n"


def pair(first: str, second: str, more: str = "") -> str:
    return PAIR.replace("FIRST", first).replace("SECOND", second) + more


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            merge("dare_ties", "weight: 0.5, density: 0.1", "q4", OFF),
            ["density 0.1", "by 10", "Q4_1", "noise_aware: auto"],
        ),
        (merge("della", "weight: 0.5, density: 0.2, epsilon: 0.1", "q4", OFF), ["density 0.2", "Q4_1"]),
        (merge("task_arithmetic", "weight: 5"), ["the weights sum to 10", "10 times"]),
        (merge("task_arithmetic", "weight: 0.5, lambda: 5"), ["lambda is 5"]),
        (merge("ties", "weight: 0.5, lambda: 5"), ["lambda is 5"]),
        (merge("task_arithmetic", "weight: 0.02"), ["nearly the base", "0.04"]),
        (pair("a-q8.gguf", "b-q8.gguf").replace("0.5", "0.5, normalize: false").replace("0.5", "5"), ["sum to 10"]),
        (pair("a-q8.gguf", "a-q8.gguf"), ["a-q8.gguf takes part twice"]),
        (pair("a-q8.gguf", "copy.gguf"), ["a-q8.gguf and copy.gguf are the same weights"]),
        (pair("a-q4.gguf", "b-q8.gguf"), ["Q4_1 because a-q4.gguf is listed first", "out_type: Q8_0"]),
        (merge("ties", "weight: 0.5, density: 0.5", "q4"), ["the type of the base, Q4_1, is kept", "out_type: Q6_K"]),
        (pair("a-q4.gguf", "b-q4.gguf", "dtype: float16\n"), ["a F16 file is made of Q4_1 models", "out_type: Q8_0"]),
        (
            merge("sce", "select_topk: 0.5").replace(", {model: b-q8.gguf}", ""),
            ["nothing is merged: all tensors of the result are those of base-q8.gguf"],
        ),
        (merge("task_arithmetic", "weight: 0"), ["all tensors of the result are those of base-q8.gguf"]),
    ],
)
def test_it_worries(folder: Path, text: str, words: list[str]) -> None:
    """One line, which says what and what to do."""
    [line] = worries(folder, text)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "text",
    [
        merge("dare_ties", "weight: 0.5, density: 0.1", "f"),
        merge("dare_ties", "weight: 0.5, density: 0.1", "q4", "out_type: Q8_0\n"),  # the density is raised
        merge("dare_ties", "weight: 0.5, density: 0.5", "q4", "out_type: Q8_0\n"),
        merge("task_arithmetic", "weight: 0.5"),
        merge("task_arithmetic", "weight: 1"),
        merge("task_arithmetic", "weight: -0.5"),
        merge("ties", "weight: 5, density: 0.5"),  # divided by their sum
        merge("ties", "weight: 0.5, density: 0.5"),
        pair("a-q8.gguf", "b-q8.gguf"),
        pair("a-q8.gguf", "b-q8.gguf").replace("0.5", "5"),  # divided by their sum
        pair("b-q8.gguf", "a-q4.gguf"),
        pair("a-q4.gguf", "b-q4.gguf", "out_type: Q8_0\n"),
        pair("a-f.gguf", "b-f.gguf", "dtype: float16\n"),
        pair("a-q4.gguf", "b-f.gguf", "out_type: F16\n"),
        "merge_method: slerp\nbase_model: a-q8.gguf\nmodels: [{model: b-q8.gguf}]\nparameters: {t: 0.5}\n",
    ],
)
def test_it_does_not_worry(folder: Path, text: str) -> None:
    """About what works."""
    assert worries(folder, text) == []
