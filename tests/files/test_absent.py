"""What is said of a path that leads nowhere; names that were meant are tested where paths are given."""

from __future__ import annotations

from pathlib import Path

from ggufmerge.files.absent import absent


def test_a_link_to_nowhere_is_not_taken_for_a_slip_of_its_own_name(tmp_path: Path) -> None:
    """Its name is in the folder, so it would be the one that is most alike."""
    (tmp_path / "model.gguf").symlink_to("gone.gguf")
    assert absent(tmp_path / "model.gguf") == 'no such file: it is a link to "gone.gguf", which is not there'


def test_a_link_in_a_circle(tmp_path: Path) -> None:
    """It leads nowhere, too."""
    (tmp_path / "model.gguf").symlink_to("model.gguf")
    assert "it is a link to" in absent(tmp_path / "model.gguf")
