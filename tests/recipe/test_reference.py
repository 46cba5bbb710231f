"""References to models, in the short form and in mergekit's dict form."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufmerge.errors import PlanError
from ggufmerge.recipe import AdapterReference, ModelReference

PATHS = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="+"), min_size=1).filter(
    lambda p: not p.startswith(("./", ".\\"))
)
STRENGTHS = st.floats(allow_nan=False, allow_infinity=False)
REFERENCES = st.builds(
    ModelReference, PATHS, st.lists(st.builds(AdapterReference, PATHS, STRENGTHS), max_size=3).map(tuple)
)


def reference(path: str, *adapters: str | tuple[str, float]) -> ModelReference:
    pairs = [(a, 1.0) if isinstance(a, str) else a for a in adapters]
    return ModelReference(path, tuple(AdapterReference(*pair) for pair in pairs))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("base.gguf", reference("base.gguf")),
        ("base.gguf+kjv.gguf", reference("base.gguf", "kjv.gguf")),
        ("base.gguf+kjv.gguf=0.5", reference("base.gguf", ("kjv.gguf", 0.5))),
        ("base.gguf + a.gguf = -1e-1 + b.gguf", reference("base.gguf", ("a.gguf", -0.1), "b.gguf")),
        (r"C:\My Models\a.gguf", reference(r"C:\My Models\a.gguf")),
        ("~/Modèles/模型 1.gguf", reference("~/Modèles/模型 1.gguf")),
        ("base.gguf+r=8/lora.gguf", reference("base.gguf", "r=8/lora.gguf")),
        ("base.gguf+r=8/lora.gguf=2", reference("base.gguf", ("r=8/lora.gguf", 2.0))),
        ("a=1.gguf", reference("a=1.gguf")),
        ("./base.gguf+.//x.gguf", reference("base.gguf", "x.gguf")),
        ("../base.gguf", reference("../base.gguf")),
        ({"model": "a+b.gguf"}, reference("a+b.gguf")),
        ({"model": "a.gguf", "lora": "c+d=2"}, reference("a.gguf", "c+d=2")),
        ({"model": "a.gguf", "lora": None, "override_architecture": None}, reference("a.gguf")),
        ({"model": {"path": "a.gguf", "revision": None}, "lora": {"path": "x"}}, reference("a.gguf", "x")),
        (
            {"model": "a.gguf", "lora": [{"path": "x", "strength": 0.5}, "y"]},
            reference("a.gguf", ("x", 0.5), "y"),
        ),
    ],
)
def test_forms(value, expected):
    """Blanks and a leading ./ do not make another model; only a number after = is a strength."""
    assert ModelReference.parse(value) == expected


@given(REFERENCES)
def test_short_form_means_the_same_again(value):
    """str() keeps every digit of a strength and every path without a plus sign."""
    assert ModelReference.parse(str(value)) == value


def test_a_reference_is_itself():
    """One that is parsed already is passed on."""
    value = reference("a.gguf", ("b", 0.25))
    assert ModelReference.parse(value) is value


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("", "empty path"),
        ("  ", "empty path"),
        ("a.gguf+", "empty path"),
        ("+a.gguf", "empty path"),
        ("a.gguf++b", "empty path"),
        ("a.gguf+b=nan", "finite number"),
        ("a.gguf+b=-inf", "finite number"),
        (5, "not 5"),
        (None, "not None"),
        (["a"], "a model is a path"),
        ({}, "keys model and lora"),
        ({"path": "a"}, "keys model and lora"),
        ({"model": "a", "adapter": "b"}, "keys model and lora"),
        ({"model": 3}, "not 3"),
        ({"model": " "}, "is a text"),
        ({"model": {"path": "a", "revision": "main"}}, "revision"),
        ({"model": {"path": "a", "sha": "b"}}, 'unknown key "sha"'),
        ({"model": "a", "override_architecture": "Llama"}, "override_architecture"),
        ({"model": "a", "lora": {"path": "b", "strength": "much"}}, 'not "much"'),
        ({"model": "a", "lora": {"path": "b", "strength": 10**400}}, "finite number"),
        ({"model": "a", "lora": {"path": "b", "strength": True}}, "is a number"),
    ],
)
def test_refused(value, complaint):
    """With words that say what is wrong with it."""
    with pytest.raises(ValueError, match=complaint) as caught:
        ModelReference.parse(value)
    assert "\n" not in str(caught.value)


def test_an_argument_is_a_file_that_exists_or_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plus sign in the name of a file begins no adapter; what is wrong with a reference is the user's to read."""
    monkeypatch.chdir(tmp_path)
    for name in ("c++.gguf", "a+b.gguf", "\udcff.gguf"):
        Path(name).touch()
        assert ModelReference.from_argument(name) == ModelReference(name)
        assert ModelReference.from_argument(Path(name)) == ModelReference(name)
    assert ModelReference.from_argument("a.gguf+b.gguf=0.5") == ModelReference.parse("a.gguf+b.gguf=0.5")
    for text in ("", "+", "a.gguf+", "a.gguf+lora.gguf=nan", "a.gguf+lora.gguf=inf"):
        with pytest.raises(PlanError):
            ModelReference.from_argument(text)
