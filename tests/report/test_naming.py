"""File names by the GGUF naming convention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ggufmerge
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.split import split_gguf
from ggufmerge.report.naming import conventional_names
from tests.tiny import write_tiny_llama

TINY = "78K"  # weights of the model below, rounded


def names(folder: Path, metadata: dict[str, Any], **options: Any) -> list[str]:
    write_tiny_llama(folder / "model.gguf", layers=1, metadata=metadata, **options)
    with ggufmerge.open(folder / "model.gguf") as file:
        return conventional_names(file)


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        (
            {"general.basename": "Llama-3.2", "general.size_label": "3B", "general.name": "Llama 3.2 3B merge"}
            | {"general.finetune": "merge"},
            "Llama-3.2-3B-merge-v1.0-Q8_0.gguf",
        ),
        ({"general.name": "Kingfisher", "general.version": "v0.2"}, "Kingfisher-{size}-v0.2-Q8_0.gguf"),
        ({"general.name": "Kingfisher", "general.version": "2.1"}, "Kingfisher-{size}-v2.1-Q8_0.gguf"),
        (
            {"general.name": "SmolLM2 135M Instruct merge", "general.size_label": "135M", "general.finetune": "merge"},
            "SmolLM2-135M-Instruct-merge-v1.0-Q8_0.gguf",
        ),
        ({"general.name": "../x: größe/1"}, "x-größe-1-{size}-v1.0-Q8_0.gguf"),
        ({"general.name": ""}, "model-{size}-v1.0-Q8_0.gguf"),
    ],
)
def test_parts_come_from_the_metadata(metadata: dict[str, Any], name: str, tmp_path: Path) -> None:
    """What it does not say is counted (weights), assumed (v1.0), or taken from the file (the base name)."""
    found = names(tmp_path, metadata, type="Q8_0")
    assert found == [name.format(size=TINY)]


def test_experts_are_counted(tmp_path: Path) -> None:
    """Four experts: the size of a model with one of them, times four."""
    [name] = names(tmp_path, {"general.name": "Mix"}, experts=4)
    assert name.startswith("Mix-4x")
    assert name.endswith("K-v1.0-F32.gguf")


def test_shards_are_numbered(tmp_path: Path) -> None:
    """Behind all other parts."""
    names(tmp_path, {"general.name": "Mix"})
    shards = split_gguf(tmp_path / "model.gguf", tmp_path / "cut", SplitLimit(max_tensors=6))
    with ggufmerge.open(shards[0]) as file:
        assert conventional_names(file) == [f"Mix-{TINY}-v1.0-F32-0000{n}-of-00002.gguf" for n in (1, 2)]
