"""A build owns its output, its stages and the state of its sources: what goes wrong around it never gets into a result.

What a second run does is compared with a build that nothing disturbed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.engine import Progress
from ggufmerge.errors import GgufmergeError, OutputError, PlanError
from ggufmerge.files.sharded import SplitLimit
from tests.engine.test_interruption import RECIPE, Stop
from tests.engine.test_quantize import write_imatrix
from tests.tiny import write_tiny_llama

STAGES = """\
name: pair
merge_method: linear
models: [{model: a.gguf}, {model: b.gguf}]
parameters: {weight: 1}
---
merge_method: linear
models: [{model: pair}, {model: c.gguf}]
parameters: {weight: 1}
"""
TENSORS = 39


class Act(Progress):
    """Does something after some tensors."""

    def __init__(self, action: Callable[[], object], after: int) -> None:
        self.action, self.left = action, after

    def tensor_done(self, name: str) -> None:
        self.left -= 1
        if not self.left:
            self.action()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, tune in (("a", None), ("b", (1, 0.02)), ("c", (2, 0.02))):
        write_tiny_llama(tmp_path / f"{name}.gguf", layers=4, tune=tune)
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "stages.yaml").write_text(STAGES)
    return tmp_path


def hidden() -> set[str]:
    return {path.name for path in Path().iterdir() if path.name.startswith(".")}


def change_inside(path: Path) -> None:
    """Other values in the middle of a tensor, where no fingerprint looks; size and name stay."""
    tensor = ggufmerge.open(path).tensors["blk.1.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    middle = tensor.offset + 4 * (tensor.nbytes // 16)
    data[middle : middle + 400] = np.full(100, 0.25, np.float32).tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("after", [5, 25, 38, TENSORS + 5, 2 * TENSORS - 1])
def test_a_source_that_changes_between_two_runs_changes_the_result(models: Path, after: int) -> None:
    """A finished stage, too, is only taken over when everything that it was made from is as it was."""
    with pytest.raises(KeyboardInterrupt):
        ggufmerge.build("stages.yaml", "out.gguf", progress=Stop(KeyboardInterrupt(), after))
    change_inside(models / "b.gguf")
    ggufmerge.build("stages.yaml", "out.gguf")
    ggufmerge.build("stages.yaml", "fresh.gguf")
    assert (models / "out.gguf").read_bytes() == (models / "fresh.gguf").read_bytes()
    assert hidden() == set()


@pytest.mark.parametrize("recipe", ["r.yaml", "stages.yaml"])
def test_a_second_build_of_an_output_is_refused_and_disturbs_nothing(models: Path, recipe: str) -> None:
    """At every point of the first one: it goes on, and could still be interrupted and continued."""
    ggufmerge.build(recipe, "whole.gguf")
    for after in (1, 20, TENSORS, TENSORS + 1, 2 * TENSORS - 1):
        refused = []

        def second(refused: list[str] = refused) -> None:
            before = {path: path.stat().st_size for path in Path().rglob(".*") if path.is_file()}
            with pytest.raises(OutputError, match="another process is writing it") as error:
                ggufmerge.build(recipe, "out.gguf")
            refused.append(str(error.value))
            assert {path: path.stat().st_size for path in Path().rglob(".*") if path.is_file()} == before

        ggufmerge.build(recipe, "out.gguf", overwrite=True, progress=Act(second, after))
        assert len(refused) == (1 if after <= TENSORS or recipe != "r.yaml" else 0)
        assert (models / "out.gguf").read_bytes() == (models / "whole.gguf").read_bytes()
        assert hidden() == set()


@pytest.mark.parametrize("split", [None, SplitLimit(max_tensors=10)])
def test_an_interruption_while_the_disk_is_slow_loses_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch, split: SplitLimit | None
) -> None:
    """Forcing a large file to the disk takes minutes: Ctrl-C then keeps all of it."""

    def slow(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 100_000:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", slow)
        with pytest.raises(KeyboardInterrupt):
            ggufmerge.build("r.yaml", "out.gguf", split=split)
    report = ggufmerge.build("r.yaml", "out.gguf", split=split)
    assert report.resumed == TENSORS
    assert hidden() == set()


def test_a_target_that_appears_meanwhile_costs_nothing(models: Path) -> None:
    """It is not replaced, and once the user allows that the finished work gets its name."""
    (models / "other").write_bytes(b"somebody else's")
    appear = Act(lambda: (models / "other").replace(models / "out.gguf"), 10)
    with pytest.raises(OutputError, match="exists: use overwrite=True"):
        ggufmerge.build("r.yaml", "out.gguf", progress=appear)
    assert (models / "out.gguf").read_bytes() == b"somebody else's"
    report = ggufmerge.build("r.yaml", "out.gguf", overwrite=True)
    assert report.resumed == TENSORS
    assert "only had to be given its name" in report.resumption
    ggufmerge.build("r.yaml", "whole.gguf")
    assert (models / "out.gguf").read_bytes() == (models / "whole.gguf").read_bytes()


def test_a_build_that_goes_on_reports_what_the_whole_build_found(models: Path) -> None:
    """Digests and notes, wherever it was interrupted."""
    whole = ggufmerge.build("r.yaml", "whole.gguf")
    for after in (9, TENSORS):
        with pytest.raises(KeyboardInterrupt):
            ggufmerge.build("r.yaml", "out.gguf", overwrite=True, progress=Stop(KeyboardInterrupt(), after))
        report = ggufmerge.build("r.yaml", "out.gguf", overwrite=True)
        assert report.sources == whole.sources
        assert report.notes == whole.notes
        assert report.nbytes == whole.nbytes


def test_imatrix_and_type_hold_for_the_last_document_from_the_start(models: Path) -> None:
    """The first look at all documents knows the options, too."""
    for name in "abc":
        write_tiny_llama(models / f"{name}.gguf", layers=1, embed=256, ff=256)
    with pytest.raises(PlanError, match="cannot be written without an importance matrix"):
        ggufmerge.build("stages.yaml", "out.gguf", out_type="IQ2_XS")
    with ggufmerge.open("a.gguf") as file:
        entries = {name: np.ones((1, t.n)) for name, t in file.tensors.items() if len(t.shape) == 2}
    write_imatrix(models / "i.gguf", entries)
    assert ggufmerge.build("stages.yaml", "out.gguf", out_type="IQ2_XS", imatrix=["i.gguf"]).nbytes


@pytest.mark.parametrize("target", ["a.gguf", "c.gguf", "link.gguf"])
def test_an_input_of_any_document_is_never_the_output(models: Path, target: str) -> None:
    """Found before the first stage is built."""
    (models / "link.gguf").symlink_to("b.gguf")
    before = (models / "c.gguf").read_bytes()
    started = Act(lambda: pytest.fail("work has begun"), 1)
    with pytest.raises(PlanError, match="also an input"):
        ggufmerge.build("stages.yaml", target, overwrite=True, progress=started)
    assert (models / "c.gguf").read_bytes() == before


def test_a_source_written_into_while_it_is_read_is_noticed(models: Path) -> None:
    """The result would be a mixture: nothing is published, and nothing kept."""
    with pytest.raises(GgufmergeError, match=r"b\.gguf: was changed while it was read"):
        ggufmerge.build("r.yaml", "out.gguf", progress=Act(lambda: change_in_place(models / "b.gguf"), 10))
    assert not (models / "out.gguf").exists()
    assert hidden() == set()


def change_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"12345678")


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_source_that_is_replaced_is_read_as_it_was(models: Path, how: str) -> None:
    """What was opened is what is merged and digested; the report says so."""
    whole = ggufmerge.build("r.yaml", "whole.gguf")
    action = (models / "b.gguf").unlink if how == "removed" else lambda: (models / "c.gguf").replace(models / "b.gguf")
    report = ggufmerge.build("r.yaml", "out.gguf", progress=Act(action, 10))
    assert [warning.split(":")[1] for warning in report.warnings if f"was {how} while it was read" in warning]
    assert report.sources == whole.sources
    assert (models / "out.gguf").read_bytes() == (models / "whole.gguf").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not cut files that are mapped")
def test_a_source_that_is_cut_ends_the_command_with_a_line(models: Path) -> None:
    """The signal that the system sends comes as one line, and the output does not appear."""
    script = """
import os
from ggufmerge.cli import main, progress
class Cutting(progress.ProgressDisplay):
    def tensor(self, name):
        if "blk.1" in name:
            os.truncate("b.gguf", 4096)
progress.ProgressDisplay = Cutting
main()
"""
    command = [sys.executable, "-c", script, "build", "r.yaml", "-o", "out.gguf", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: a source became shorter while it was read")
    assert "Traceback" not in done.stderr
    assert not (models / "out.gguf").exists()


def test_the_bytes_do_not_depend_on_when_the_sources_were_written(models: Path) -> None:
    """Times decide whether work is taken over, and are in no result."""
    ggufmerge.build("stages.yaml", "one.gguf")
    for name in "abc":
        os.utime(models / f"{name}.gguf", (1, 1))
    ggufmerge.build("stages.yaml", "two.gguf")
    assert (models / "one.gguf").read_bytes() == (models / "two.gguf").read_bytes()


def test_a_report_is_in_the_order_of_the_recipe_and_of_the_file(models: Path) -> None:
    """Whichever source was read to its end first (here the second, which is much smaller), and whichever tensor was
    done first (here small ones).
    """
    write_tiny_llama("a.gguf", layers=4, vocab=40_000)
    write_tiny_llama("b.gguf", layers=4, vocab=40_000, type="Q4_0", tune=(1, 0.02))
    recipe = "merge_method: linear\nmodels: [{model: a.gguf}, {model: b.gguf}]\nparameters: {weight: 1}"
    report = ggufmerge.build(recipe, "out.gguf", threads=2)
    assert [Path(source).name for source in report.sources] == ["a.gguf", "b.gguf"]
    with ggufmerge.open("out.gguf") as file:
        assert list(report.survival) == [name for name in file.tensors if name in report.survival]
        assert list(report.errors) == [name for name in file.tensors if name in report.errors]
