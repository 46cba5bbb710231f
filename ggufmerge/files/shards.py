"""File names of a model that is split into several files: `<prefix>-00001-of-00003.gguf`, counted from 1.

llama.cpp derives the names of all shards from the first (`llama_split_path`, `llama_split_prefix`); so do we. All
metadata is in the first shard, the others hold only the `split.*` keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufmerge import keys
from ggufmerge.errors import GgufmergeError
from ggufmerge.files.metadata import MetadataEditor, ValueKind
from ggufmerge.files.pieces import of_cut_file

NUMBER = keys.SPLIT_NUMBER  # u16, counted from 0
COUNT = keys.SPLIT_COUNT  # u16; 0 and 1 mean that the file is complete
TENSORS = keys.SPLIT_TENSORS  # i32, of all shards together
KEYS = (NUMBER, COUNT, TENSORS)


@dataclass(frozen=True, slots=True)
class ShardName:
    """Name of one shard: `number` counts from 1 to `count`; `prefix` may hold anything but must not be empty."""

    prefix: str
    number: int
    count: int

    @classmethod
    def parse(cls, name: str) -> ShardName | None:
        """The parts of a file name (without folder), None when it is not the name of a shard."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        shard = cls(match["prefix"], int(match["number"]), int(match["count"]))
        # %05d pads but does not cut: "000012" is no number that llama.cpp would print
        return shard if 1 <= shard.number <= shard.count and str(shard) == name else None

    def __str__(self) -> str:
        return f"{self.prefix}-{self.number:05d}-of-{self.count:05d}.gguf"

    def all(self) -> list[ShardName]:
        """The names of all shards of the model, first to last."""
        return [ShardName(self.prefix, number, self.count) for number in range(1, self.count + 1)]


@dataclass(frozen=True, slots=True)
class SplitKeys:
    """What a shard says about its place: `number` counts from 0, `tensors` are those of all shards together.

    A count of 0 marks a whole file that was joined from shards.
    """

    number: int
    count: int
    tensors: int

    def write_to(self, metadata: MetadataEditor) -> None:
        """Set the three keys, behind all others and in the order that llama-gguf-split leaves them in."""
        for key in KEYS:
            metadata.remove(key)
        metadata.set(NUMBER, self.number, ValueKind.U16)
        metadata.set(TENSORS, self.tensors, ValueKind.I32)
        metadata.set(COUNT, self.count, ValueKind.U16)


def model_name(reference: str, shards: int = 1) -> str:
    """What tables and sentences call a model: what the user does, but shards by what their names have in common.

    shards: how many files it has, where that is known and the name may not tell.

    >>> model_name("big-00001-of-00003.gguf+lora.gguf=0.5")
    'big.gguf+lora.gguf=0.5 in 3 shards'
    >>> model_name("hf:owner/repo:Q4_K_M", 2)
    'hf:owner/repo:Q4_K_M in 2 shards'
    """
    model, plus, adapters = reference.partition("+")
    name = re.split(r"[/\\]", model)[-1]
    if (shard := ShardName.parse(name)) is not None:
        model, shards = f"{model.removesuffix(name)}{shard.prefix}.gguf", shard.count
    return f"{model}{plus}{adapters}" + (f" in {shards} shards" if shards > 1 else "")


_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>[0-9]{5,})-of-(?P<count>[0-9]{5,})\.gguf", re.DOTALL)


def shard_paths(path: Path) -> list[Path] | None:
    """Paths of all shards of the model that `path` is a shard of, by name alone; None when it is not named like one."""
    name = ShardName.parse(path.name)
    return None if name is None else [path.with_name(str(shard)) for shard in name.all()]


def first_of(paths: Sequence[Path], output: Path) -> Path:
    """The first shard of the model that these files are shards of, in any order; a file alone that is no shard is it.

    output: what is to be written, which a user may have forgotten behind a wildcard.
    GgufmergeError when they are shards of several models, or no shards, or when the output is one of them.
    """
    names = [ShardName.parse(path.name) for path in paths]
    models = [name and (path.parent, name.prefix, name.count) for path, name in zip(paths, names, strict=True)]
    last = ShardName.parse(output.name)
    if last is not None and (output.parent, last.prefix, last.count) in models:
        raise GgufmergeError(f"{output}: is a shard of the model: give the file to write behind the shards")
    if len(paths) == 1 and models[0] is None:
        return paths[0]
    for path, model in zip(paths, models, strict=True):
        if model is None and (piece := of_cut_file(path)):
            raise GgufmergeError(f"{path}: {piece[0]}: {piece[1]}")
        if model is None:
            example = ShardName("NAME", 1, max(len(paths), 2))
            raise GgufmergeError(f"{path}: not named as a shard is ({example}): give the shards of one model")
        if model != models[0]:
            raise GgufmergeError(f"{path}: not a shard of the same model as {paths[0]}: give the shards of one model")
    found = shard_paths(paths[0])
    assert found is not None, "all names are those of shards"
    return found[0]


def short_names(names: Iterable[str]) -> dict[str, str]:
    """What to call each model or text in a table: without folders, unless two would be called the same."""
    short = {name: short_name(name) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in short}


def short_name(name: str) -> str:
    """A model, with adapters if it has some (`base.gguf+adapter.gguf`), without the folders of its files."""
    return model_name("+".join(Path(part).name for part in name.split("+")))
