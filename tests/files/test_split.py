"""`split_gguf` and `join_gguf`: the files that llama-gguf-split writes, the same bytes in every tensor."""

from __future__ import annotations

import hashlib
import json
import pathlib

import pytest

from ggufmerge.errors import FormatError, GgufmergeError, PlanError
from ggufmerge.files import TensorInfo, open_gguf
from ggufmerge.files.sharded import SplitLimit, parse_size, split_prefix
from ggufmerge.files.split import join_gguf, split_gguf
from ggufmerge.types import TensorType
from tests.files import craft, oracle

GOLDENS = json.loads((pathlib.Path(__file__).parents[2] / "vendor/llama.cpp/splits.json").read_text(encoding="utf-8"))


def limit_of(options: str) -> SplitLimit:
    """The limit that llama-gguf-split's options stand for."""
    words = options.split()
    size = words[words.index("--split-max-size") + 1] if "--split-max-size" in words else None
    tensors = int(words[words.index("--split-max-tensors") + 1]) if "--split-max-tensors" in words else None
    limit = SplitLimit.parse(size, tensors, metadata_first="--no-tensor-first-split" in words)
    assert limit
    return limit


def digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "a model.gguf"
    path.write_bytes(craft.splittable())
    return path


def data_of(path: pathlib.Path) -> dict[str, bytes]:
    with open_gguf(path) as file:
        return {name: bytes(tensor.raw) for name, tensor in file.tensors.items()}


def test_the_goldens_are_of_this_file(model: pathlib.Path) -> None:
    """The file that llama-gguf-split was given is the one given here."""
    assert digest(model) == GOLDENS["source"]


@pytest.mark.parametrize("options", GOLDENS["cases"])
def test_shards_and_joined_file_equal_llama_gguf_splits(options: str, model: pathlib.Path) -> None:
    """Names and bytes, headers and padding included."""
    case = GOLDENS["cases"][options]
    shards = split_gguf(model, model.parent / "cut", limit_of(options))
    assert {path.name: digest(path) for path in shards} == case["shards"]
    assert digest(join_gguf(shards[0], model.parent / "joined.gguf")) == case["joined"]


@pytest.mark.oracle
def test_llama_cpp_reads_every_shard(model: pathlib.Path) -> None:
    """Its parser has no complaint about any of the files."""
    shards = split_gguf(model, model.parent / "cut", SplitLimit(max_tensors=2, metadata_first=True))
    assert len(shards) == 5
    assert all(map(oracle.accepts, shards))


@pytest.mark.parametrize("limit", [SplitLimit(max_tensors=2), SplitLimit(max_bytes=10**6, metadata_first=True)])
def test_every_tensor_survives_splitting_and_joining(limit: SplitLimit, model: pathlib.Path) -> None:
    """Byte for byte, in the same order, with the same metadata in front of the keys of the split."""
    shards = split_gguf(model, model.parent / "cut", limit, threads=2)
    joined = join_gguf(shards[0], model.parent / "joined.gguf", threads=2)
    assert data_of(shards[0]) == data_of(joined) == data_of(model)
    assert list(data_of(shards[0])) == list(data_of(model))
    with open_gguf(model) as whole, open_gguf(joined) as again:
        assert list(again.metadata)[: len(whole.metadata)] == list(whole.metadata)
        assert all(again.metadata.raw(key) == whole.metadata.raw(key) for key in whole.metadata)


def test_shards_can_be_cut_anew(model: pathlib.Path) -> None:
    """Shards of shards equal shards of the whole."""
    limit = SplitLimit(max_tensors=3)
    direct = split_gguf(model, model.parent / "direct", limit)
    first = split_gguf(model, model.parent / "first", SplitLimit(max_tensors=1))
    anew = split_gguf(first[0], model.parent / "anew", limit)
    assert [path.read_bytes() for path in anew] == [path.read_bytes() for path in direct]


def test_a_tensor_above_the_limit_has_its_own_shard(model: pathlib.Path) -> None:
    """The first tensor, too, where llama-gguf-split gives up."""
    with open_gguf(model) as file:
        parts = SplitLimit(max_bytes=10**5).cut(file.tensors.values())
    assert [[tensor.name[-1] for tensor in part] for part in parts] == [["0"], ["1", "2"], ["3"], ["4"], ["5"], ["6"]]


def test_progress_counts_every_byte_and_every_tensor(model: pathlib.Path) -> None:
    """What is told adds up to what was announced."""
    told = Told()
    split_gguf(model, model.parent / "cut", SplitLimit(max_tensors=2), progress=told)
    assert told.bytes == told.total == sum(map(len, data_of(model).values()))
    assert told.names == list(data_of(model))
    assert told.ended


class Told:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.total = self.bytes = 0
        self.names: list[str] = []
        self.ended = False

    def begin(self, total_bytes: int, tensors: int) -> None:
        self.total = total_bytes

    def advance(self, nbytes: int) -> None:
        self.bytes += nbytes

    def tensor_done(self, name: str) -> None:
        self.names.append(name)

    def end(self) -> None:
        self.ended = True


def test_what_exists_is_kept(model: pathlib.Path) -> None:
    """A single shard in the way stops the split, unless it may be overwritten; nothing else appears."""
    in_the_way = model.parent / "cut-00002-of-00003.gguf"
    in_the_way.write_bytes(b"precious")
    with pytest.raises(PlanError, match=r"cut-00002-of-00003\.gguf: exists: use --overwrite"):
        split_gguf(model, model.parent / "cut", SplitLimit(max_tensors=3))
    assert sorted(model.parent.iterdir()) == [model, in_the_way]
    assert in_the_way.read_bytes() == b"precious"
    shards = split_gguf(model, model.parent / "cut", SplitLimit(max_tensors=3), overwrite=True)
    assert sorted(model.parent.iterdir()) == [model, *shards]


def test_an_input_is_never_an_output(model: pathlib.Path) -> None:
    """Not even with permission to overwrite."""
    shards = split_gguf(model, model.parent / "cut", SplitLimit(max_tensors=3))
    with pytest.raises(PlanError, match="the output is also an input"):
        split_gguf(shards[0], model.parent / "cut", SplitLimit(max_tensors=3), overwrite=True)
    with pytest.raises(PlanError, match="the output is also an input"):
        join_gguf(shards[0], shards[1], overwrite=True)


def test_a_whole_file_is_not_joined(model: pathlib.Path) -> None:
    """Nor is one that was joined before, nor a set that lacks a shard."""
    with pytest.raises(GgufmergeError, match="is not split, so there is nothing to join"):
        join_gguf(model, model.parent / "joined.gguf")
    shards = split_gguf(model, model.parent / "cut", SplitLimit(max_tensors=3))
    joined = join_gguf(shards[0], model.parent / "joined.gguf")
    with pytest.raises(GgufmergeError, match="nothing to join"):
        join_gguf(joined, model.parent / "again.gguf")
    shards[2].unlink()
    with pytest.raises(FormatError, match=r"00003-of-00003\.gguf is not in the same folder"):
        join_gguf(shards[0], model.parent / "again.gguf")


@pytest.mark.parametrize(("text", "nbytes"), [("500M", 500 * 10**6), ("4G", 4 * 10**9), ("2g", 2 * 10**9)])
def test_sizes_are_powers_of_1000(text: str, nbytes: int) -> None:
    """As llama-gguf-split has it."""
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "4", "4K", "0M", "-1G", "1.5G", "4GB", "G"])
def test_other_sizes_are_refused(text: str) -> None:
    """With the units that there are."""
    with pytest.raises(GgufmergeError, match="such as 500M or 4G"):
        parse_size(text)


def test_limits_that_say_nothing_are_refused() -> None:
    """Both limits, a limit of nothing, an empty first shard without a limit; no limit at all is None."""
    assert SplitLimit.parse() is None
    for size, tensors in (("1G", 3), (None, 0), (None, -1)):
        with pytest.raises(GgufmergeError, match="give "):
            SplitLimit.parse(size, tensors)
    with pytest.raises(GgufmergeError, match="needs --split-max-size"):
        SplitLimit.parse(metadata_first=True)


def test_more_shards_than_can_be_counted_are_refused() -> None:
    """The number of shards is a u16."""
    tensors = [TensorInfo(str(number), (1,), TensorType.F32) for number in range(0x10000)]
    with pytest.raises(GgufmergeError, match="65536 shards"):
        SplitLimit(max_tensors=1).cut(tensors)


@pytest.mark.parametrize("name", ["m", "m.gguf", "m-00001-of-00002.gguf"])
def test_an_output_may_be_named_with_or_without_what_shards_add(name: str) -> None:
    """A prefix, a file, the first shard."""
    assert split_prefix(pathlib.Path("folder") / name) == pathlib.Path("folder/m")
