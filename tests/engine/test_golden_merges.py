"""Merges recorded for ever: the same recipe and the same inputs give the same bytes, whatever becomes of the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numba
import pytest

from tests.golden_merges import FOLDER, LATER, made, names, recorded

pytestmark = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT),  # type: ignore[attr-defined]
    reason="interpreted kernels take minutes for the half million weights of a K-quant model",
)


@pytest.fixture(scope="module", params=names())
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """What the code makes of a recorded merge now, and the record."""
    return made(request.param, Path(tmp_path_factory.mktemp(request.param))), recorded(request.param)


def differing(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What each differing entry is and should be."""
    return {key: (found.get(key), wanted.get(key)) for key in [*wanted, *found] if found.get(key) != wanted.get(key)}


def test_every_golden_is_recorded() -> None:
    """A recipe without its record would compare nothing: run scripts/make_merge_goldens.py."""
    assert names() == sorted(path.stem for path in FOLDER.glob("*.json"))
    assert len(names()) >= 12


def test_a_later_record_holds_digests_of_whole_files_only() -> None:
    """Of the same files: tensors and metadata are those of the first record for ever."""
    later = sorted(LATER.glob("*.json"))
    assert later
    for path in later:
        first, now = (json.loads(p.read_text(encoding="utf-8")) for p in (FOLDER / path.name, path))
        assert list(now) == ["files"]
        assert now["files"].keys() == first["files"].keys()


def test_the_inputs_are_those_of_the_record(both: tuple[Any, Any]) -> None:
    """Where this fails, the generators, gguf-py or a codec changed, and the other differences follow from it."""
    found, wanted = both
    assert differing(found["inputs"], wanted["inputs"]) == {}


def test_every_tensor_has_the_recorded_bytes(both: tuple[Any, Any]) -> None:
    """And its type, shape, file and place, in the recorded order."""
    found, wanted = both
    assert differing(found["tensors"], wanted["tensors"]) == {}
    assert list(found["tensors"]) == list(wanted["tensors"])


def test_the_metadata_are_the_recorded_ones(both: tuple[Any, Any]) -> None:
    """Values, types and order of all keys but the program's own."""
    found, wanted = both
    assert differing(found["metadata"], wanted["metadata"]) == {}
    assert list(found["metadata"]) == list(wanted["metadata"])


def test_whole_files_have_the_recorded_bytes(both: tuple[Any, Any]) -> None:
    """Also what the program says of itself, its version apart, and the space between tensors. Where only this fails,
    a key `ggufmerge.*` changed."""
    found, wanted = both
    assert differing(found["files"], wanted["files"]) == {}
