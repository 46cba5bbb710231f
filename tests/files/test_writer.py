"""Writing: the file appears complete or not at all, readers of all kinds load it, and killed work is taken up again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import pathlib
import shutil
import subprocess
import sys
import threading
from typing import NoReturn

import gguf
import numpy as np
import pytest

from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.files import GGUFWriter, Layout, MetadataEditor, TensorInfo, check_target, open_gguf, same_file
from ggufmerge.types import TensorType
from tests import models
from tests.files import craft, oracle

TENSORS = (
    TensorInfo("token_embd.weight", (5, 32), TensorType.Q8_0),
    TensorInfo("norm", (3,), TensorType.F32),
    TensorInfo("experts", (2, 3, 64), TensorType.Q4_0),
    TensorInfo("scale", (), TensorType.F32),
    TensorInfo("nothing", (0, 32), TensorType.Q4_0),
)


def bytes_of(tensor: TensorInfo) -> np.ndarray:
    """uint8 [rows, row_bytes]: recognisable content for a tensor."""
    seed = sum(tensor.name.encode())
    return np.random.default_rng(seed).integers(1, 256, (tensor.rows, tensor.row_bytes), np.uint8)


@pytest.fixture
def metadata() -> MetadataEditor:
    editor = MetadataEditor()
    editor.set("general.architecture", "llama")
    editor.set("general.name", "Ünicode name")
    editor.set("tokenizer.ggml.tokens", ["a", "", "ö"])
    editor.set("digest", "0" * 8)
    return editor


@pytest.fixture
def target(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "größe 1"
    folder.mkdir()
    return folder / "model.gguf"


def write_all(writer: GGUFWriter) -> None:
    for tensor in TENSORS:
        writer.write(tensor.name, 0, bytes_of(tensor))


def write_all_but_norm(writer: GGUFWriter) -> None:
    for tensor in TENSORS:
        if tensor.name != "norm":
            writer.write(tensor.name, 0, bytes_of(tensor))


def build(target: pathlib.Path, metadata: MetadataEditor, **options: bool) -> None:
    with GGUFWriter(target, metadata, TENSORS, **options) as writer:
        write_all(writer)
        writer.commit()


def assert_complete(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """The file holds exactly the metadata and tensors of this module, and nothing stands beside it."""
    with open_gguf(target) as file:
        assert file.metadata == metadata
        assert list(file.metadata) == list(metadata)
        assert [TensorInfo(t.name, t.shape, t.type) for t in file.tensors.values()] == list(TENSORS)
        for tensor in TENSORS:
            np.testing.assert_array_equal(file.tensors[tensor.name].raw_rows(0, tensor.rows), bytes_of(tensor))
    assert list(target.parent.iterdir()) == [target]


def test_what_is_written_is_read_back(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Metadata in order, tensors with 0 to 3 dimensions, nothing but the file itself."""
    build(target, metadata)
    assert_complete(target, metadata)


@pytest.mark.oracle
def test_gguf_py_and_llama_cpp_read_it(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Names, shapes, offsets and bytes as gguf-py sees them; llama.cpp's parser has no complaint."""
    build(target, metadata)
    theirs = gguf.GGUFReader(target)
    assert theirs.fields["tokenizer.ggml.tokens"].contents() == ["a", "", "ö"]
    for expected, tensor in zip(TENSORS, theirs.tensors, strict=True):
        assert (expected.name, expected.nbytes) == (tensor.name, tensor.n_bytes)
        assert expected.shape == tuple(int(size) for size in reversed(tensor.shape))
        np.testing.assert_array_equal(tensor.data.reshape(-1).view(np.uint8), bytes_of(expected).reshape(-1))
    assert oracle.accepts(target)


@pytest.mark.oracle
def test_a_copy_of_a_real_model_has_the_same_data(tmp_path: pathlib.Path) -> None:
    """Written in reverse order by four threads, in pieces: the data section equals the original's byte for byte."""
    with open_gguf(models.smollm2()) as source:
        infos = [TensorInfo(t.name, t.shape, t.type) for t in source.tensors.values()]
        with GGUFWriter(tmp_path / "copy.gguf", MetadataEditor(source.metadata), infos) as writer:

            def write(name: str, start: int, stop: int) -> None:
                writer.write(name, start, source.tensors[name].raw[start:stop])

            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                for info in reversed(infos):
                    for start in reversed(range(0, info.nbytes, 1 << 20)):
                        pool.submit(write, info.name, start, min(start + (1 << 20), info.nbytes))
            writer.commit()
            total = writer.total_bytes
        with open_gguf(tmp_path / "copy.gguf") as copy:
            assert copy.metadata == source.metadata
            assert all((copy.tensors[info.name].raw == source.tensors[info.name].raw).all() for info in infos)
            assert copy.nbytes == total
    assert oracle.accepts(tmp_path / "copy.gguf")


def test_where_everything_lies_is_known_before_writing(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Offsets are multiples of 32, without gaps, and the file has its full size at once."""
    layout = Layout(metadata, TENSORS)
    with GGUFWriter(target, metadata, TENSORS) as writer:
        assert writer.total_bytes == layout.total_bytes == writer.partial_path.stat().st_size
        assert len(layout.header) == writer.offset(TENSORS[0].name)
        end = len(layout.header)
        for tensor in TENSORS:
            assert writer.offset(tensor.name) == end
            end += -(-tensor.nbytes // 32) * 32
        assert end == writer.total_bytes


def test_the_alignment_is_32_and_the_file_is_whole(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Keys that describe another container are not copied; the caller's metadata stays as it is."""
    before = MetadataEditor(metadata)
    metadata.set("general.alignment", 64)
    metadata.set("split.count", 3)
    build(target, metadata)
    assert metadata["general.alignment"] == 64
    assert_complete(target, before)


def test_the_target_appears_at_commit_only(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Until then the work lies beside it under a name that follows from the target's."""
    with GGUFWriter(target, metadata, TENSORS) as writer:
        write_all(writer)
        assert list(target.parent.iterdir()) == [writer.partial_path] == [target.with_name(".model.gguf.partial")]
        writer.commit()
        assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(
    error: type[BaseException], target: pathlib.Path, metadata: MetadataEditor
) -> None:
    """Neither target nor temporary file."""
    with pytest.raises(error), GGUFWriter(target, metadata, TENSORS):
        raise error
    assert list(target.parent.iterdir()) == []


def test_leaving_without_commit_leaves_nothing(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """A file nobody committed is not complete; `abort` may be called at any time, twice too."""
    with GGUFWriter(target, metadata, TENSORS) as writer:
        write_all(writer)
    writer.abort()
    assert list(target.parent.iterdir()) == []


def test_a_failure_leaves_the_old_target_untouched(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """What stood under the name is replaced by a complete file or not at all."""
    target.write_bytes(b"old")
    with GGUFWriter(target, metadata, TENSORS, overwrite=True) as writer, contextlib.suppress(ValueError):
        write_all_but_norm(writer)
        writer.commit()
    assert target.read_bytes() == b"old"
    build(target, metadata, overwrite=True)
    assert_complete(target, metadata)


def test_missing_bytes_are_noticed(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """A file with a hole is never committed."""
    with GGUFWriter(target, metadata, TENSORS) as writer:
        write_all_but_norm(writer)
        writer.write("norm", 0, bytes(8))
        with pytest.raises(ValueError, match="norm: 8 of 12 bytes"):
            writer.commit()
    assert list(target.parent.iterdir()) == []


def test_bytes_written_twice_are_noticed(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Each byte belongs to one chunk; two writers of the same one are a mistake in the caller."""
    with GGUFWriter(target, metadata, TENSORS) as writer:
        write_all(writer)
        writer.write("norm", 0, bytes(12))
        with pytest.raises(ValueError, match="norm: 24 of 12 bytes"):
            writer.commit()


@pytest.mark.parametrize(("offset", "count"), [(-1, 4), (8, 8), (13, 0)])
def test_bytes_outside_a_tensor_are_refused(
    offset: int, count: int, target: pathlib.Path, metadata: MetadataEditor
) -> None:
    """A write never reaches a neighbour."""
    with (
        pytest.raises(ValueError, match=r"norm: bytes \["),
        GGUFWriter(target, metadata, TENSORS) as writer,
    ):
        writer.write("norm", offset, bytes(count))


def test_a_closed_writer_says_so(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Nothing is written after `commit`."""
    with GGUFWriter(target, metadata, TENSORS) as writer:
        write_all(writer)
        writer.commit()
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.write("norm", 0, bytes(12))
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.commit()


def test_a_string_is_patched_at_commit(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """A digest that only the end of the work knows takes the place of its placeholder."""
    with GGUFWriter(target, metadata, TENSORS) as writer:
        write_all(writer)
        writer.patch("digest", "cafebabe")
        writer.commit()
    metadata.set("digest", "cafebabe")
    assert_complete(target, metadata)


@pytest.mark.parametrize(("key", "value"), [("digest", "short"), ("digest", "ö" * 8), ("number", "1234")])
def test_a_patch_never_moves_bytes(key: str, value: str, target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Only a string of the same length in bytes takes the place of a string."""
    metadata.set("number", 1)
    with GGUFWriter(target, metadata, TENSORS) as writer, pytest.raises(ValueError, match=f"{key}: only a string"):
        writer.patch(key, value)


def interrupted(target: pathlib.Path, metadata: MetadataEditor, *done: str) -> None:
    """A build that is stopped when these tensors are written, and keeps them."""
    with GGUFWriter(target, metadata, TENSORS) as writer:
        writer.keep()
        for tensor in TENSORS:
            if tensor.name in done:
                writer.write(tensor.name, 0, bytes_of(tensor))


def test_an_interrupted_build_is_taken_up(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Finished tensors are verified, marked, and not written again."""
    interrupted(target, metadata, "token_embd.weight", "experts")
    with GGUFWriter(target, metadata, TENSORS, resume=True) as writer:
        assert writer.resumed
        for tensor in TENSORS:
            if tensor.name in ("token_embd.weight", "experts"):
                assert (writer.read(tensor.name) == bytes_of(tensor).reshape(-1)).all()
                writer.mark_done(tensor.name)
            else:
                assert not writer.read(tensor.name).any()
                writer.write(tensor.name, 0, bytes_of(tensor))
        writer.commit()
    assert_complete(target, metadata)


def test_a_build_killed_by_the_system_is_taken_up(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """No handler runs, no lock stays."""
    script = """
import os, sys
from ggufmerge.files import GGUFWriter, MetadataEditor, TensorInfo
from ggufmerge.types import TensorType
writer = GGUFWriter(sys.argv[1], MetadataEditor(), [TensorInfo("a", (2,), TensorType.F32)])
writer.write("a", 0, b"12345678")
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script, target], check=False).returncode == 9
    with GGUFWriter(target, MetadataEditor(), [TensorInfo("a", (2,), TensorType.F32)], resume=True) as writer:
        assert writer.resumed
        assert writer.read("a").tobytes() == b"12345678"


def test_resuming_without_earlier_work_starts_anew(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """As does resuming one that was killed before its header was written."""
    with GGUFWriter(target, metadata, TENSORS, resume=True) as writer:
        assert not writer.resumed
    writer.partial_path.write_bytes(bytes(100))
    build(target, metadata, resume=True)
    assert_complete(target, metadata)


def test_a_cut_partial_file_is_not_taken_up(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """It is not what the earlier run left: all is written anew."""
    interrupted(target, metadata, "norm")
    partial = target.with_name(".model.gguf.partial")
    os.truncate(partial, partial.stat().st_size - 32)
    with GGUFWriter(target, metadata, TENSORS, resume=True) as writer:
        assert not writer.resumed
        assert not writer.read("norm").any()


def test_without_resume_earlier_work_is_discarded(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Nothing of it shines through."""
    interrupted(target, metadata, "norm")
    with GGUFWriter(target, metadata, TENSORS) as writer:
        assert not writer.resumed
        assert not writer.read("norm").any()


def test_a_tensor_is_not_both_written_and_marked(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Counting would otherwise hide a hole."""
    with GGUFWriter(target, metadata, TENSORS) as writer:
        writer.write("norm", 0, bytes(4))
        with pytest.raises(ValueError, match="already written"):
            writer.mark_done("norm")


def test_a_target_that_appears_meanwhile_is_not_lost(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """The finished work waits under its temporary name, and can be committed when the user has decided."""
    with GGUFWriter(target, metadata, TENSORS) as writer:
        write_all(writer)
        writer.patch("digest", "cafebabe")
        target.write_bytes(b"somebody else's")
        with pytest.raises(PlanError, match="exists: use --overwrite"):
            writer.commit()
    assert target.read_bytes() == b"somebody else's"
    with GGUFWriter(target, metadata, TENSORS, overwrite=True, resume=True) as writer:
        for tensor in TENSORS:
            writer.mark_done(tensor.name)
        writer.commit()
    assert_complete(target, metadata)


def test_work_that_cannot_be_renamed_is_not_lost(
    target: pathlib.Path, metadata: MetadataEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows forbids it while a program has the target open; the finished work can be taken up as it was."""

    def forbid(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Access is denied")

    with monkeypatch.context() as patch, GGUFWriter(target, metadata, TENSORS) as writer:
        patch.setattr(pathlib.Path, "replace", forbid)
        write_all(writer)
        writer.patch("digest", "cafebabe")
        with pytest.raises(PlanError, match=r"cannot be written \(Access is denied\)"):
            writer.commit()
    with GGUFWriter(target, metadata, TENSORS, resume=True) as writer:
        assert writer.resumed


def test_two_builds_do_not_write_one_file(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """The second is told so, and the first goes on undisturbed."""
    if sys.platform == "win32":
        return  # no advisory locks there
    with GGUFWriter(target, metadata, TENSORS) as writer:
        with pytest.raises(PlanError, match="another process is writing it"):
            GGUFWriter(target, metadata, TENSORS)
        write_all(writer)
        writer.commit()
    assert_complete(target, metadata)


def test_a_link_in_place_of_the_temporary_file_is_not_followed(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """It could lead to a model."""
    precious = target.with_name("precious.gguf")
    precious.write_bytes(b"precious")
    target.with_name(".model.gguf.partial").symlink_to(precious)
    with pytest.raises(PlanError, match="cannot be created"):
        GGUFWriter(target, metadata, TENSORS)
    assert precious.read_bytes() == b"precious"


def test_a_target_that_is_a_link_is_replaced_not_followed(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Overwriting a link to an input must not write the input."""
    precious = target.with_name("precious.gguf")
    precious.write_bytes(b"precious")
    target.symlink_to(precious)
    with pytest.raises(PlanError, match="exists"):
        GGUFWriter(target, metadata, TENSORS)
    build(target, metadata, overwrite=True)
    assert precious.read_bytes() == b"precious"
    precious.unlink()
    assert not target.is_symlink()
    assert_complete(target, metadata)


def test_targets_that_cannot_be_are_refused(target: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any work, with what to do."""
    check_target(target)
    with pytest.raises(PlanError, match="this is a folder: give the name of a file in it"):
        check_target(target.parent)
    with pytest.raises(PlanError, match=r"there is no folder .*nowhere: create it first"):
        check_target(target.parent / "nowhere" / "model.gguf")
    target.write_bytes(b"")
    with pytest.raises(PlanError, match="exists: use --overwrite"):
        check_target(target)
    check_target(target, overwrite=True)
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write everywhere
    with pytest.raises(PlanError, match="is not writable"):
        check_target(target, overwrite=True)


def test_a_name_that_the_system_refuses_is_an_error(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """A file name that is too long."""
    with pytest.raises(PlanError, match="cannot be created"):
        GGUFWriter(target.with_name("n" * 250), metadata, TENSORS)


@pytest.mark.parametrize("fallocate", [True, False])
def test_a_full_disk_is_told_before_any_work(
    fallocate: bool, target: pathlib.Path, metadata: MetadataEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Needed and free space are told, and nothing is left behind; also where blocks cannot be reserved."""

    def full(*_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    if fallocate:
        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    else:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(PlanError, match=r"needs \d+ bytes but 100 bytes are free: make room"):
        GGUFWriter(target, metadata, TENSORS)
    assert list(target.parent.iterdir()) == []


def test_a_file_system_with_small_files_is_told(
    target: pathlib.Path, metadata: MetadataEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT holds no file of 4 GB."""

    def too_big(*_: int) -> NoReturn:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "posix_fallocate", too_big, raising=False)
    with pytest.raises(PlanError, match="this file system holds no file of"):
        GGUFWriter(target, metadata, TENSORS)


@pytest.fixture(params=["no pwrite", "no fallocate", "fallocate unsupported", "no flock"])
def poorer_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems and file systems that lack a call."""

    def unsupported(*_: int) -> NoReturn:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if request.param == "no pwrite":
        monkeypatch.delattr(os, "pwrite", raising=False)
    elif request.param == "no fallocate":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    elif request.param == "fallocate unsupported":
        monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    else:
        monkeypatch.setitem(sys.modules, "fcntl", None)


@pytest.mark.usefixtures("poorer_system")
def test_systems_without_a_call_write_the_same_file(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Windows has no pwrite, macOS no posix_fallocate; threads still do not disturb each other."""
    with GGUFWriter(target, metadata, TENSORS) as writer:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for tensor in TENSORS:
                for start in range(tensor.nbytes):
                    pool.submit(writer.write, tensor.name, start, bytes_of(tensor).reshape(-1)[start : start + 1])
        writer.commit()
    assert_complete(target, metadata)


def test_short_writes_are_continued(
    target: pathlib.Path, metadata: MetadataEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system may write less than it was given (Linux: never more than 2 GiB)."""
    if not hasattr(os, "pwrite"):
        return
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, view, position: pwrite(descriptor, view[:7], position))
    build(target, metadata)
    assert_complete(target, metadata)


def test_closing_waits_for_writes_under_way(
    target: pathlib.Path, metadata: MetadataEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a closed file may be another file's a moment later, and late bytes would end up in that."""
    if not hasattr(os, "pwrite"):
        return
    writer = GGUFWriter(target, metadata, TENSORS)
    begun, go_on, pwrite = threading.Event(), threading.Event(), os.pwrite

    def slow(descriptor: int, view: memoryview, position: int) -> int:
        begun.set()
        assert go_on.wait(60)
        return pwrite(descriptor, view, position)

    monkeypatch.setattr(os, "pwrite", slow)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        write = pool.submit(writer.write, "norm", 0, bytes(12))
        assert begun.wait(60)
        abort = pool.submit(writer.abort)
        with pytest.raises(concurrent.futures.TimeoutError):
            abort.result(0.05)
        go_on.set()
        write.result()
        abort.result()
    assert list(target.parent.iterdir()) == []


BAD_TENSORS = [
    ([TensorInfo("a", (1,), TensorType.F32)] * 2, "'a' would be in the file twice"),
    ([TensorInfo("n" * 64, (1,), TensorType.F32)], "names of 1 to 63 bytes"),
    ([TensorInfo("ö" * 32, (1,), TensorType.F32)], "names of 1 to 63 bytes"),
    ([TensorInfo("", (1,), TensorType.F32)], "names of 1 to 63 bytes"),
    ([TensorInfo("a", (48,), TensorType.Q8_0)], "rows of 48 values are no whole number of Q8_0 blocks of 32"),
    ([TensorInfo("a", (1, 1, 1, 1, 1), TensorType.F32)], "is not one that GGUF can hold"),
    ([TensorInfo("a", (-1, 2), TensorType.F32)], "is not one that GGUF can hold"),
]


@pytest.mark.parametrize(("tensors", "message"), BAD_TENSORS)
def test_tensors_that_nobody_could_read_are_refused(
    tensors: list[TensorInfo], message: str, target: pathlib.Path, metadata: MetadataEditor
) -> None:
    """Before anything is written."""
    with pytest.raises(GgufmergeError, match=message):
        GGUFWriter(target, metadata, tensors)
    assert list(target.parent.iterdir()) == []


def test_names_that_are_not_utf8_keep_their_bytes(target: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """From one file into another, undecoded."""
    content = craft.Craft(
        pairs=(craft.text(b"k\xff", b"v\xfe"),), infos=(craft.info(b"t\xfd", [1], 0, 0),), data=b"1234".ljust(32, b"\0")
    )
    (tmp_path / "source.gguf").write_bytes(bytes(content))
    source = open_gguf(tmp_path / "source.gguf")
    (tensor,) = source.tensors.values()
    with GGUFWriter(target, MetadataEditor(source.metadata), [tensor]) as writer:
        writer.write(tensor.name, 0, tensor.raw)
        writer.commit()
    assert target.read_bytes() == (tmp_path / "source.gguf").read_bytes()


def test_the_same_file_is_recognised_by_any_path(target: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Through links and detours, and also when it does not exist yet."""
    target.write_bytes(b"")
    link = tmp_path / "link.gguf"
    link.symlink_to(target)
    assert same_file(target, link)
    assert same_file(target, target.parent / ".." / target.parent.name / target.name)
    assert same_file(tmp_path / "new.gguf", tmp_path / "x" / ".." / "new.gguf")
    assert not same_file(target, tmp_path / "new.gguf")
    hard = tmp_path / "hard.gguf"
    hard.hardlink_to(target)
    assert same_file(hard, target)
