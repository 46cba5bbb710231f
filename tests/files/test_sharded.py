"""Writing shards as one model: the set appears complete or not at all, and work that was kept is resumed."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from ggufmerge.errors import FormatError, GgufmergeError, PlanError
from ggufmerge.files import MetadataEditor, TensorInfo, open_gguf
from ggufmerge.files.sharded import ShardedWriter, SplitLimit
from ggufmerge.types import TensorType

TENSORS = [TensorInfo(name, (3, 32), TensorType.F32) for name in "abcde"]
LIMIT = SplitLimit(max_tensors=2)


def bytes_of(tensor: TensorInfo) -> np.ndarray:
    return np.full(tensor.nbytes, ord(tensor.name), np.uint8)


@pytest.fixture
def metadata() -> MetadataEditor:
    editor = MetadataEditor()
    editor.set("general.architecture", "llama")
    editor.set("digest", "0" * 8)
    return editor


@pytest.fixture
def target(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "größe.gguf"


def shard(target: pathlib.Path, number: int) -> pathlib.Path:
    return target.with_name(f"größe-0000{number}-of-00003.gguf")


def all_shards(target: pathlib.Path) -> list[pathlib.Path]:
    return [shard(target, number) for number in (1, 2, 3)]


def write_all(writer: ShardedWriter) -> None:
    for tensor in reversed(TENSORS):
        writer.write(tensor.name, 0, bytes_of(tensor))


def build(target: pathlib.Path, metadata: MetadataEditor, **options: bool) -> None:
    with ShardedWriter(target, metadata, TENSORS, LIMIT, **options) as writer:
        write_all(writer)
        writer.verify()
        writer.patch("digest", "8 digits")
        writer.commit()


def assert_complete(target: pathlib.Path) -> None:
    """The set holds what was written, and nothing stands beside it."""
    with open_gguf(shard(target, 1)) as file:
        assert {name: bytes(tensor.raw) for name, tensor in file.tensors.items()} == {
            tensor.name: bytes(bytes_of(tensor)) for tensor in TENSORS
        }
        assert file.metadata["digest"] == "8 digits"
    assert sorted(target.parent.iterdir()) == all_shards(target)


def test_what_is_written_is_read_back(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Metadata, patched, in the first shard; tensors in order over all."""
    build(target, metadata)
    assert_complete(target)


def test_nothing_has_its_name_before_commit(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """And leaving without it leaves nothing."""
    with ShardedWriter(target, metadata, TENSORS, LIMIT) as writer:
        write_all(writer)
        assert not any(path.exists() for path in all_shards(target))
    assert list(target.parent.iterdir()) == []


def test_missing_bytes_stop_the_commit(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """No shard appears, not even those that are complete."""
    with ShardedWriter(target, metadata, TENSORS, LIMIT) as writer:
        for tensor in TENSORS:
            if tensor.name != "c":
                writer.write(tensor.name, 0, bytes_of(tensor))
        with pytest.raises(ValueError, match="c: 0 of 384 bytes were written"):
            writer.commit()
    assert not any(path.exists() for path in all_shards(target))


def test_the_first_shard_gets_its_name_last(
    target: pathlib.Path, metadata: MetadataEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when an old set is replaced, whose first shard goes first: no mixture of sets can be opened at any time."""
    build(target, metadata)
    seen: list[list[int]] = []
    replace = pathlib.Path.replace

    def watched(self: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
        if self.name.endswith(".partial"):
            seen.append([number for number in (1, 2, 3) if shard(target, number).exists()])
        return replace(self, to)

    monkeypatch.setattr(pathlib.Path, "replace", watched)
    build(target, metadata, overwrite=True)
    assert seen == [[], [3], [2, 3]]
    assert_complete(target)


def test_a_shard_that_cannot_get_its_name_brings_the_old_set_back(
    target: pathlib.Path, metadata: MetadataEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new work is kept, and taken up by the next run."""
    build(target, metadata)
    before = [path.read_bytes() for path in all_shards(target)]
    replace = pathlib.Path.replace

    def forbid(self: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
        if to == shard(target, 1) and self.name.endswith(".partial"):
            raise PermissionError(13, "Permission denied")
        return replace(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", forbid)
        with pytest.raises(PlanError, match="cannot be written"):
            build(target, metadata, overwrite=True)
    assert [path.read_bytes() for path in all_shards(target)] == before
    with ShardedWriter(target, metadata, TENSORS, LIMIT, overwrite=True, resume=True) as writer:
        assert writer.resumed
        for tensor in TENSORS:
            np.testing.assert_array_equal(writer.read(tensor.name), bytes_of(tensor))
            writer.mark_done(tensor.name)
        writer.patch("digest", "8 digits")
        writer.commit()
    assert_complete(target)


def test_a_kill_while_names_change_loses_nothing(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """What it leaves (old shards aside, some new ones named, the first not) is no set, and the next build is one."""
    build(target, metadata)
    for path in all_shards(target):
        path.with_name(f".{path.name}.old").write_bytes(b"an older build's")
    with ShardedWriter(target, metadata, TENSORS, LIMIT, overwrite=True) as writer:
        write_all(writer)
        writer.keep()
    shard(target, 1).unlink()
    with pytest.raises(FormatError, match="no such file"):
        open_gguf(shard(target, 1))
    build(target, metadata, overwrite=True)
    assert_complete(target)


def test_kept_work_is_resumed(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Shard by shard; what a shard lost is written again."""
    with ShardedWriter(target, metadata, TENSORS, LIMIT) as writer:
        write_all(writer)
        writer.keep()
    shard(target, 2).with_name(f".{shard(target, 2).name}.partial").unlink()
    with ShardedWriter(target, metadata, TENSORS, LIMIT, resume=True) as writer:
        assert writer.resumed
        for tensor in TENSORS:
            if tensor.name in "cd":
                assert not writer.read(tensor.name).any()
                writer.write(tensor.name, 0, bytes_of(tensor))
            else:
                writer.mark_done(tensor.name)
        writer.patch("digest", "8 digits")
        writer.commit()
    assert_complete(target)


def test_a_target_in_the_way_is_named_before_any_work(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """Whichever shard it is."""
    shard(target, 3).mkdir()
    with pytest.raises(PlanError, match=r"größe-00003-of-00003\.gguf: this is a folder"):
        build(target, metadata)
    assert list(target.parent.iterdir()) == [shard(target, 3)]


def test_a_name_in_two_shards_is_refused(target: pathlib.Path, metadata: MetadataEditor) -> None:
    """As within one file."""
    with pytest.raises(GgufmergeError, match="twice"):
        ShardedWriter(target, metadata, [*TENSORS, TENSORS[0]], LIMIT)
    assert list(target.parent.iterdir()) == []
