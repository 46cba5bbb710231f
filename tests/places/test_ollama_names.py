"""How names of Ollama's models are spelled: one spelling of each part in a store, and what is found beside two."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufmerge.places.ollama.names import OllamaName, lookup, spelled, spellings, stored, visible
from tests.ollama_store import add_model


def names(*texts: str) -> list[OllamaName]:
    return [OllamaName.parse(text) for text in texts]


@pytest.mark.parametrize(
    ("wanted", "known", "expected"),
    [
        ("mine:q4_k_m", ["hf.co/o/r:Q4_K_M"], "mine:Q4_K_M"),
        ("foo", ["acme/Foo"], "Foo:latest"),
        ("FOO/bar", ["acme/foo:1"], "FOO/bar:latest"),  # a namespace is no model
        ("HF.co/O/R:q8", ["hf.co/o/r:Q8"], "hf.co/o/r:Q8"),
        ("hf.co/library/x", ["Library/y"], "hf.co/Library/x:latest"),
        ("a:X", ["a:x", "b:X"], "a:x"),  # its own path goes first
        ("c:x", ["a:x", "b:X", "d:X"], "c:X"),  # then what most have
        ("a:X", ["a:x", "a:X"], "a:X"),
        ("a:y", ["a:x", "A:x", "b:Y"], "a:Y"),
        ("A/b:c", ["a/B:1", "A/B:2"], "A/B:c"),
        ("m:Latest", [], "m:latest"),
        ("Registry.Ollama.AI/LIBRARY/m", [], "m:latest"),
        ("m", ["other:Latest"], "m:Latest"),
        ("Mine:V1", ["other:v2"], "Mine:V1"),
    ],
)
def test_each_part_takes_the_spelling_that_is_there(wanted: str, known: list[str], expected: str) -> None:
    """On its own path if there is one, else anywhere, whatever the rest of the other name is."""
    found = spelled(OllamaName.parse(wanted), names(*known))
    assert str(found) == expected
    assert found.folded == OllamaName.parse(wanted).folded
    for at in range(4):
        others = spellings(found, names(*known), at)
        assert len(spellings(found, [found, *names(*known)], at)) == max(1, len(others)), "no new spelling is made"


def test_the_spelling_of_a_folder_counts_where_no_model_has_one(tmp_path: Path) -> None:
    """On disks that ignore case, a model would get the folder's spelling anyway."""
    (tmp_path / "manifests/registry.ollama.ai/library/Mine").mkdir(parents=True)
    assert str(spelled(OllamaName.parse("mine:1"), [], tmp_path)) == "Mine:1"


def test_two_spellings_are_told_with_their_models() -> None:
    """The most usual one first."""
    known = names("hf.co/o/r:Q4", "mine:q4", "other:Q4", "x:Q5")
    found = spellings(OllamaName.parse("m:q4"), known, 3)
    assert {text: list(map(str, models)) for text, models in found.items()} == {
        "Q4": ["hf.co/o/r:Q4", "other:Q4"],
        "q4": ["mine:q4"],
    }
    assert list(found) == ["Q4", "q4"]
    assert not spellings(OllamaName.parse("m:q8"), known, 3)


def test_a_model_is_found_in_any_case(tmp_path: Path) -> None:
    """Also beside an empty folder, or a model of another tag, in the spelling that was asked for."""
    add_model(tmp_path, "Foo/1b", b"GGUF")
    (tmp_path / "manifests/registry.ollama.ai/library/foo").mkdir()
    assert lookup(tmp_path, OllamaName.parse("foo:1B")) == OllamaName.parse("Foo:1b")
    add_model(tmp_path, "foo/2b", b"GGUF")
    assert lookup(tmp_path, OllamaName.parse("foo:1b")) == OllamaName.parse("Foo:1b")
    assert lookup(tmp_path, OllamaName.parse("foo:3b")) is None


def test_what_ollama_does_not_see_is_found_last(tmp_path: Path) -> None:
    """A damaged manifest, or a name that is none, decides on no spelling; alone, it is still found."""
    add_model(tmp_path, "m/Good", b"GGUF")
    damaged = add_model(tmp_path, "m/good", b"GGUF")
    damaged.write_text('{"layers": [')
    add_model(tmp_path, "-bad/Tag", b"GGUF")
    assert [str(name) for name in visible(tmp_path)] == ["m:Good"]
    assert len(list(stored(tmp_path))) == 3
    assert lookup(tmp_path, OllamaName.parse("m:good")) == OllamaName.parse("m:Good")
    (tmp_path / "manifests/registry.ollama.ai/library/m/Good").unlink()
    assert lookup(tmp_path, OllamaName.parse("M:GOOD")) == OllamaName.parse("m:good")


def test_the_short_form_hides_the_defaults_in_any_case() -> None:
    """As `ollama list` shows it."""
    assert str(OllamaName("Registry.ollama.ai", "Library", "M", "T")) == "M:T"
    assert str(OllamaName("registry.ollama.ai", "Team", "M", "T")) == "Team/M:T"
