"""One owner of an output: locks, what may be replaced, and what a refused or failing build leaves alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ggufmerge.errors import GgufmergeError, OutputError, PlanError
from ggufmerge.files import MetadataEditor, TensorInfo, open_gguf
from ggufmerge.files.journal import Move
from ggufmerge.files.output import Output
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.types import TensorType
from tests.systems import needs_pipes

TENSORS = [TensorInfo(name, (4,), TensorType.F32) for name in "abc"]
DATA = {tensor.name: tensor.name.encode() * 16 for tensor in TENSORS}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def metadata(identity: str = "") -> MetadataEditor:
    editor = MetadataEditor()
    editor.set("general.architecture", "llama")
    editor.set("id", identity)
    return editor


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def make(target: Path, identity: str = "mine", *, stop: str = "", overwrite: bool = False) -> Move:
    """Make an output; `stop` names the step before which it is interrupted."""
    with Output([target], overwrite=overwrite) as output:
        move = output.take_up(identity)
        if move in (Move.START, Move.RESUME):
            writer = output.writer(metadata(), TENSORS)
            for tensor in TENSORS:
                if tensor.name == stop:
                    raise KeyboardInterrupt
                if tensor.name in output.record.done:
                    writer.mark_done(tensor.name)
                    continue
                writer.write(tensor.name, 0, DATA[tensor.name])
                output.finished(tensor.name, 0, {})
            if stop == "seal":
                raise KeyboardInterrupt
            output.seal({})
        if stop == "publish":
            raise KeyboardInterrupt
        output.publish()
        if stop == "complete":
            raise KeyboardInterrupt
        output.complete()
    return move


def assert_whole(target: Path) -> None:
    with open_gguf(target) as file:
        assert {name: tensor.raw.tobytes() for name, tensor in file.tensors.items()} == DATA
    assert not [name for name in files(target.parent) if name.startswith(".")]


@pytest.mark.parametrize(
    ("stop", "move"),
    [
        ("a", Move.START),
        ("b", Move.RESUME),
        ("seal", Move.RESUME),
        ("publish", Move.PUBLISH),
        ("complete", Move.FINISH),
    ],
)
def test_the_same_build_goes_on_where_it_was(target: Path, stop: str, move: Move) -> None:
    """Wherever it was interrupted; nothing is left over."""
    with pytest.raises(KeyboardInterrupt):
        make(target, stop=stop)
    assert make(target) is move
    assert_whole(target)


@pytest.mark.parametrize("stop", ["a", "b", "seal", "publish"])
def test_another_build_starts_over(target: Path, stop: str) -> None:
    """And says so, if there was something to go on with."""
    with pytest.raises(KeyboardInterrupt):
        make(target, stop=stop)
    with Output([target]) as output:
        assert output.take_up("other") is Move.START
        assert bool(output.resumption) == (stop != "a")
    assert make(target, "other") is Move.START
    assert_whole(target)


def test_a_complete_file_is_not_replaced_by_another_build(target: Path) -> None:
    """Though the journal of the one that made it is still there."""
    with pytest.raises(KeyboardInterrupt):
        make(target, stop="complete")
    with pytest.raises(OutputError, match="exists: use --overwrite"):
        make(target, "other")
    assert_whole(target)
    make(target, "other", overwrite=True)
    assert_whole(target)


def test_a_refused_build_leaves_the_work_of_another(target: Path) -> None:
    """The one that has the lock goes on, and what an interrupted one left stays as it was."""
    with Output([target]) as first:
        first.take_up("mine")
        writer = first.writer(MetadataEditor(), TENSORS)
        writer.write("a", 0, DATA["a"])
        first.finished("a", 0, {})
        before = {name: (target.parent / name).read_bytes() for name in files(target.parent)}
        with pytest.raises(OutputError, match="another process is writing it"):
            Output([target])
        assert {name: (target.parent / name).read_bytes() for name in files(target.parent)} == before
    assert files(target.parent) == set()
    with pytest.raises(KeyboardInterrupt):
        make(target, stop="b")
    target.write_bytes(b"precious")
    before = {name: (target.parent / name).read_bytes() for name in files(target.parent)}
    with pytest.raises(OutputError, match="exists: use --overwrite"):
        make(target)
    assert {name: (target.parent / name).read_bytes() for name in files(target.parent)} == before
    assert make(target, overwrite=True) is Move.RESUME
    assert_whole(target)


def fail(target: Path, error: Exception) -> Output:
    """An output that ended with this error after its first tensor."""
    try:
        with Output([target]) as output:
            output.take_up("mine")
            output.writer(metadata(), TENSORS).write("a", 0, DATA["a"])
            output.finished("a", 0, {})
            raise error
    except (type(error), OutputError):  # what the system says comes as an OutputError
        return output


@pytest.mark.parametrize("error", [OSError(5, "EIO"), MemoryError(), OutputError("full"), RuntimeError("bug")])
def test_errors_of_the_machine_keep_the_work(target: Path, error: Exception) -> None:
    """Anything but what the same inputs must repeat."""
    assert fail(target, error).kept
    assert make(target) is Move.RESUME
    assert_whole(target)


def test_errors_of_the_inputs_leave_nothing(target: Path) -> None:
    """The same inputs would only repeat them."""
    assert not fail(target, GgufmergeError("a source is damaged")).kept
    assert files(target.parent) == set()


@pytest.mark.parametrize("name", [".m.gguf.journal", ".m.gguf.partial", ".m.gguf.stages"])
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_planted_links_are_not_followed(
    target: Path, tmp_path_factory: pytest.TempPathFactory, name: str, kind: str
) -> None:
    """They could lead to a model, or to any file of the user."""
    precious = tmp_path_factory.mktemp("other") / "precious"
    if name.endswith("stages"):
        precious.mkdir()
        (precious / "file").write_bytes(b"precious")
        (target.parent / name).symlink_to(precious)
    else:
        precious.write_bytes(b"precious")
        link = target.parent / name
        link.symlink_to(precious) if kind == "symbolic" else link.hardlink_to(precious)

    def write() -> None:
        with Output([target]) as output:
            output.take_up("mine")
            output.stage_folder()
            output.writer(MetadataEditor(), TENSORS)

    with pytest.raises(OutputError, match="remove it"):
        write()
    found = precious / "file" if precious.is_dir() else precious
    assert found.read_bytes() == b"precious"


@needs_pipes
def test_only_files_are_replaced(tmp_path: Path) -> None:
    """Devices, pipes, sockets and folders are not, with or without --overwrite."""
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket.gguf"))
    for path in (tmp_path / "pipe.gguf", tmp_path / "folder.gguf", tmp_path / "socket.gguf", Path("/dev/null")):
        for overwrite in (False, True):
            with pytest.raises(PlanError, match=r"not a regular file|a folder"):
                Output([path], overwrite=overwrite)
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    assert make(tmp_path / "loop.gguf", overwrite=True) is Move.START
    listener.close()


def test_a_killed_owner_has_no_lock(target: Path) -> None:
    """Whatever ended the process, the next one may go on."""
    script = (
        "import os, sys; from pathlib import Path; from ggufmerge.files.output import Output;"
        "Output([Path(sys.argv[1])]).take_up('mine'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script, target], check=False).returncode == 9
    assert ".m.gguf.journal" in files(target.parent)
    make(target)
    assert_whole(target)


def make_shards(target: Path, identity: str, *, overwrite: bool = False) -> None:
    limit = SplitLimit(max_tensors=1)
    with Output(limit.paths(target, TENSORS), overwrite=overwrite) as output:
        if output.take_up(identity) in (Move.START, Move.RESUME):
            writer = output.writer(metadata(identity), TENSORS, limit)
            for tensor in TENSORS:
                if tensor.name in output.record.done:
                    writer.mark_done(tensor.name)
                    continue
                writer.write(tensor.name, 0, DATA[tensor.name])
                output.finished(tensor.name, 0, {})
            output.seal({})
        output.publish()
        output.complete()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("same", [False, True])
def test_a_publication_that_was_cut_short_is_finished_or_undone(
    target: Path, monkeypatch: pytest.MonkeyPatch, old: bool, same: bool
) -> None:
    """After each single renaming: the same build finishes it, another one puts the old set back before it starts."""
    number = 0
    while True:
        number += 1
        for path in target.parent.iterdir():
            path.unlink()
        if old:
            make_shards(target, "old")
        before = {path.name: path.read_bytes() for path in target.parent.iterdir()}
        left, replace = [number], Path.replace

        def stopping(self: Path, to: Path, left: list[int] = left, replace=replace) -> Path:  # type: ignore[no-untyped-def]
            done = replace(self, to)
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return done

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stopping)
            try:
                make_shards(target, "mine", overwrite=old)
            except KeyboardInterrupt:
                pass
            else:
                break
        if same:
            make_shards(target, "mine", overwrite=old)
        elif old and number < 6:
            with Output(SplitLimit(max_tensors=1).paths(target, TENSORS), overwrite=True) as output:
                output.take_up("other")
                assert {p.name: p.read_bytes() for p in target.parent.iterdir() if p.name[0] != "."} == before
            make_shards(target, "other", overwrite=True)
        else:
            make_shards(target, "other", overwrite=True)
        with open_gguf(target.with_name("m-00001-of-00003.gguf")) as file:
            assert file.metadata["id"] == ("mine" if same else "other")
            assert {name: tensor.raw.tobytes() for name, tensor in file.tensors.items()} == DATA
        assert len(files(target.parent)) == 3
    assert number == (7 if old else 4)
