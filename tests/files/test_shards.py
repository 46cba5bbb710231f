"""Split models: names as llama.cpp derives them, all shards opened as one model, and what is wrong said clearly."""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Sequence

import pytest

from ggufmerge.errors import FormatError
from ggufmerge.files import ShardName, open_gguf, shard_paths
from tests.files import craft
from tests.files.attacks import wrong_shards
from tests.files.craft import I32, TYPE_F32, U16


def split_keys(number: int, count: int, total: int) -> tuple[bytes, ...]:
    return (
        craft.pair("split.no", U16, struct.pack("<H", number)),
        craft.pair("split.count", U16, struct.pack("<H", count)),
        craft.pair("split.tensors.count", I32, struct.pack("<i", total)),
    )


def shard(number: int, tensors: Sequence[str], *, count: int = 3, total: int = 4) -> bytes:
    """A shard whose tensors each hold one value: the length of their name."""
    model = (craft.text("general.architecture", "llama"),) if number == 0 else ()
    return bytes(
        craft.Craft(
            pairs=(*model, *split_keys(number, count, total)),
            infos=[craft.info(name, [1], TYPE_F32, 32 * index) for index, name in enumerate(tensors)],
            data=b"".join(struct.pack("<f", len(name)).ljust(32, b"\0") for name in tensors),
        )
    )


@pytest.fixture
def model(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    """Three shards; the first holds metadata only, as `--no-tensor-first-split` makes it."""
    paths = [tmp_path / f"my model-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for number, (path, tensors) in enumerate(zip(paths, ([], ["a", "bb"], ["ccc", "dddd"]), strict=True)):
        path.write_bytes(shard(number, tensors))
    return paths


def test_all_shards_open_as_one_model(model: list[pathlib.Path]) -> None:
    """Tensors in the order of the shards, each knowing its file; metadata of the first; bytes of all."""
    with open_gguf(model[0]) as file:
        assert file.path == model[0]
        assert file.paths == model
        assert file.nbytes == sum(path.stat().st_size for path in model)
        assert file.architecture == "llama"
        assert list(file.tensors) == ["a", "bb", "ccc", "dddd"]
        assert [tensor.path for tensor in file.tensors.values()] == [model[1], model[1], model[2], model[2]]
        assert [tensor.raw.view("<f4")[0] for tensor in file.tensors.values()] == [1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 1])
def test_a_merged_or_single_shard_is_a_whole_file(count: int, tmp_path: pathlib.Path) -> None:
    """`llama-gguf-split --merge` leaves a count of 0; the name then does not matter."""
    (tmp_path / "merged.gguf").write_bytes(shard(0, ["a"], count=count))
    assert open_gguf(tmp_path / "merged.gguf").paths == [tmp_path / "merged.gguf"]


def test_a_later_shard_names_the_first(model: list[pathlib.Path]) -> None:
    """The user is told which file to give."""
    with pytest.raises(
        FormatError, match=r"this is part 2 of 3 of a split model: open the first one, my model-00001-of-00003\.gguf"
    ):
        open_gguf(model[1])


def test_a_missing_shard_is_named(model: list[pathlib.Path]) -> None:
    """Which file is missing, and where it should be."""
    model[2].unlink()
    with pytest.raises(FormatError, match=r"my model-00003-of-00003\.gguf is not in the same folder: put all 3 shards"):
        open_gguf(model[0])


def test_a_renamed_shard_is_told_its_pattern(model: list[pathlib.Path]) -> None:
    """The names of the others are derived from the first."""
    renamed = model[0].rename(model[0].with_name("model.gguf"))
    with pytest.raises(FormatError, match=r"the first of 3 shards must be named NAME-00001-of-00003\.gguf"):
        open_gguf(renamed)


def test_a_name_that_counts_otherwise_is_refused(model: list[pathlib.Path]) -> None:
    """A name "of 2" on a shard of three."""
    renamed = model[0].rename(model[0].with_name("my model-00001-of-00002.gguf"))
    with pytest.raises(FormatError, match="the first of 3 shards must be named"):
        open_gguf(renamed)


def test_swapped_shards_are_noticed(model: list[pathlib.Path]) -> None:
    """By the number within, not by the name."""
    model[1].write_bytes(shard(2, ["a", "bb"]))
    with pytest.raises(FormatError, match=r"my model-00002-of-00003\.gguf: by its contents this is part 3"):
        open_gguf(model[0])


def test_shards_of_another_model_are_noticed(model: list[pathlib.Path]) -> None:
    """The total of tensors must be right."""
    model[2].write_bytes(shard(2, ["ccc"]))
    with pytest.raises(FormatError, match="should hold 4 tensors but hold 3: the shards do not belong together"):
        open_gguf(model[0])


def test_a_tensor_in_two_shards_is_refused(model: list[pathlib.Path]) -> None:
    """Nobody could say which one is meant."""
    model[2].write_bytes(shard(2, ["a", "dddd"]))
    with pytest.raises(FormatError, match=r"00003.gguf: tensor 'a' is also in my model-00002-of-00003\.gguf"):
        open_gguf(model[0])


def test_a_damaged_shard_is_named(model: list[pathlib.Path]) -> None:
    """The message names the shard, not the file that was opened."""
    model[1].write_bytes(model[1].read_bytes()[:-40])
    with pytest.raises(FormatError, match=r"my model-00002-of-00003\.gguf: tensor 'bb' lies past the end"):
        open_gguf(model[0])


def test_a_file_that_is_no_shard_is_noticed(model: list[pathlib.Path]) -> None:
    """A whole model under a shard's name."""
    model[1].write_bytes(craft.valid())
    with pytest.raises(FormatError, match=r"00002-of-00003\.gguf: split\.no is missing"):
        open_gguf(model[0])


@pytest.mark.parametrize("count", wrong_shards())
def test_a_count_of_another_type_is_refused(count: bytes, tmp_path: pathlib.Path) -> None:
    """llama.cpp wants exactly a u16."""
    (tmp_path / "model-00001-of-00002.gguf").write_bytes(bytes(craft.Craft(pairs=(count,))))
    with pytest.raises(FormatError, match=r"split\.count must be of type U16"):
        open_gguf(tmp_path / "model-00001-of-00002.gguf")


def test_a_shard_without_its_keys_is_refused(tmp_path: pathlib.Path) -> None:
    """The number and the total belong to the count."""
    (tmp_path / "model-00001-of-00002.gguf").write_bytes(bytes(craft.Craft(pairs=split_keys(0, 2, 1)[1:2])))
    with pytest.raises(FormatError, match=r"split\.no is missing"):
        open_gguf(tmp_path / "model-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model-00001-of-00003.gguf", ShardName("model", 1, 3)),
        ("a-00001-of-00002-00002-of-00002.gguf", ShardName("a-00001-of-00002", 2, 2)),
        ("größe 1-12345-of-99999.gguf", ShardName("größe 1", 12345, 99999)),
        ("m-100000-of-100000.gguf", ShardName("m", 100000, 100000)),
        ("model.gguf", None),
        ("-00001-of-00003.gguf", None),
        ("model-1-of-3.gguf", None),
        ("model-000001-of-00003.gguf", None),
        ("model-00000-of-00003.gguf", None),
        ("model-00004-of-00003.gguf", None),
        ("model-00001-of-00003.gguf.part", None),
        ("model-0000१-of-00003.gguf", None),
    ],
)
def test_names_of_shards(name: str, expected: ShardName | None) -> None:
    """What llama.cpp's "%s-%05d-of-%05d.gguf" prints is a shard's name, and nothing else is."""
    assert ShardName.parse(name) == expected
    assert expected is None or str(expected) == name


def test_the_names_of_all_shards_follow_from_one() -> None:
    """Beside each other, counted from 1."""
    folder = pathlib.Path("some folder")
    expected = [folder / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    assert shard_paths(folder / "m-00002-of-00002.gguf") == expected
    assert shard_paths(folder / "m.gguf") is None
