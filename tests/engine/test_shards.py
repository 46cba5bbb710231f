"""Shards in, shards out: the same bytes in every tensor as without them, and llama.cpp runs the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import ggufmerge
from ggufmerge.engine import Progress
from ggufmerge.errors import PlanError
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.split import split_gguf
from tests.engine.conftest import build_report, raw

RECIPE = """
merge_method: ties
base_model: {base}
models:
  - model: {a}
    parameters: {{weight: 0.5, density: 0.5}}
  - model: b.q8.gguf
    parameters: {{weight: 0.5, density: 0.5}}
"""
WHOLE = RECIPE.format(base="base.q8.gguf", a="a.q8.gguf")
LIMIT = SplitLimit(max_tensors=5)


@pytest.mark.parametrize("limit", [LIMIT, SplitLimit(max_bytes=50000), SplitLimit(max_tensors=9, metadata_first=True)])
def test_shards_hold_the_tensors_of_the_whole_file(build: Callable[..., Path], family: Path, limit: SplitLimit) -> None:
    """Byte for byte, with the same metadata in the first shard."""
    whole = build(WHOLE + "name: same\n")
    report = build_report(family, WHOLE + "name: same\n", whole.with_name("cut.gguf"), split=limit)
    assert len(report.files) > 2
    assert report.output == report.files[0]
    assert sorted(whole.parent.iterdir()) == sorted([whole, *report.files])
    assert raw(report.output) == raw(whole)
    assert report.nbytes == sum(path.stat().st_size for path in report.files)
    with ggufmerge.open(whole) as a, ggufmerge.open(report.output) as b:
        assert all(a.metadata.raw(key) == b.metadata.raw(key) for key in a.metadata)


def test_sharded_sources_give_the_same_tensors(build: Callable[..., Path], family: Path) -> None:
    """As the whole files they were cut from, random masks included."""
    recipe = RECIPE.replace("ties", "dare_ties")
    base = split_gguf(family / "base.q8.gguf", family / "cut base", LIMIT, overwrite=True)[0]
    a = split_gguf(family / "a.q8.gguf", family / "cut a", LIMIT, overwrite=True)[0]
    sharded = build(recipe.format(base=base.name, a=a.name), "sharded.gguf")
    assert raw(sharded) == raw(build(recipe.format(base="base.q8.gguf", a="a.q8.gguf"), "whole.gguf"))


@pytest.mark.oracle
def test_llama_cpp_computes_the_same_with_shards(build: Callable[..., Path], family: Path) -> None:
    """It loads them by the first, and its logits are those of the whole file to the bit."""
    from ggufmerge.evaluation.llama import LlamaModel

    whole = build(WHOLE)
    shards = build_report(family, WHOLE, whole.with_name("cut.gguf"), split=LIMIT).output
    with LlamaModel(whole) as a, LlamaModel(shards) as b:
        assert (a.logits([5, 6, 7]) == b.logits([5, 6, 7])).all()


class Stop(Progress):
    """Interrupts after some tensors."""

    def __init__(self, after: int) -> None:
        self.left = after

    def tensor_done(self, name: str) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_an_interrupted_build_of_shards_goes_on(build: Callable[..., Path], family: Path, tmp_path: Path) -> None:
    """No shard has its name before, finished tensors are taken over, nothing is left behind."""
    whole = build(WHOLE)
    with pytest.raises(KeyboardInterrupt):
        build_report(family, WHOLE, tmp_path / "cut.gguf", split=LIMIT, progress=Stop(8), threads=1)
    assert not list(tmp_path.glob("cut*"))
    report = build_report(family, WHOLE, tmp_path / "cut.gguf", split=LIMIT)
    assert report.resumed >= 8
    assert raw(report.output) == raw(whole)
    assert sorted(tmp_path.iterdir()) == sorted([whole, *report.files])


def test_another_limit_starts_anew(build: Callable[..., Path], family: Path, tmp_path: Path) -> None:
    """Work of other shards is not mixed in."""
    with pytest.raises(KeyboardInterrupt):
        build_report(family, WHOLE, tmp_path / "cut.gguf", split=SplitLimit(max_tensors=11), progress=Stop(8))
    report = build_report(family, WHOLE, tmp_path / "cut.gguf", split=SplitLimit(max_tensors=12))
    assert report.resumed == 0
    assert raw(report.output) == raw(build(WHOLE))


def test_a_shard_that_exists_stops_the_build_at_once(family: Path, tmp_path: Path) -> None:
    """Before any work; a file of the output's own name is in nobody's way."""
    (tmp_path / "cut.gguf").write_bytes(b"another model")
    report = build_report(family, WHOLE, tmp_path / "cut.gguf", split=LIMIT)
    with pytest.raises(PlanError, match="exists: use overwrite=True"):
        build_report(family, WHOLE, tmp_path / "cut.gguf", split=LIMIT, progress=Stop(1))
    assert build_report(family, WHOLE, tmp_path / "cut.gguf", split=LIMIT, overwrite=True).files == report.files


def test_a_shard_of_an_input_is_no_output(family: Path) -> None:
    """Not even with permission to overwrite."""
    first = split_gguf(family / "a.q8.gguf", family / "input", LIMIT, overwrite=True)[0]
    recipe = RECIPE.format(base="base.q8.gguf", a=first.name)
    with pytest.raises(PlanError, match="the output is also an input"):
        build_report(family, recipe, family / "input.gguf", split=LIMIT, overwrite=True)
