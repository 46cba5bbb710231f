"""The texts that come with the program."""

from __future__ import annotations

import pathlib

import pytest

from ggufmerge.evaluation import texts

FOLDER = pathlib.Path(texts.__file__).parent


@pytest.mark.parametrize("name", texts.NAMES)
def test_a_text_is_long_enough_and_small(name: str) -> None:
    """Some hundred words for any tokenizer, a few kilobytes in the package."""
    text = texts.read(name)
    assert 1500 < len(text.encode()) < 6000
    assert "\r" not in text


def test_the_readme_knows_every_text() -> None:
    """With origin and licence."""
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert {path.stem for path in FOLDER.glob("*.txt")} == {*texts.NAMES, "calibration"}
    assert all(f"`{name}.txt`" in readme for name in texts.NAMES)
    assert "Licence" in readme


def test_the_demo_was_not_made_with_them() -> None:
    """No paragraph of them stands in a text of the demo."""
    demo = "".join(path.read_text(encoding="utf-8") for path in (FOLDER.parents[2] / "recipes/demo/texts").iterdir())
    for name in texts.NAMES:
        assert all(line not in demo for line in texts.read(name).splitlines() if len(line) > 60)
