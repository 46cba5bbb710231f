"""Unfinished builds: a note of each build under way, so that `ggufmerge models` finds those that never ended."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggufmerge.files.unfinished import Unfinished

_NOTES = "builds"  # the folder of the notes in the user's cache
_MOST = 200  # notes that are read
_LONGEST = 1 << 14  # bytes of a path


@contextlib.contextmanager
def listed(output: Path | None) -> Iterator[None]:
    """While the block runs, a note in the user's cache says that this output is made; it stays if the work does."""
    note = _note(output) if output is not None else None
    if note is not None and output is not None:
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_bytes(os.fsencode(output.absolute()))
    try:
        yield
    finally:
        if note is not None and output is not None and not of_output(output):
            with contextlib.suppress(OSError):
                note.unlink()


def of_output(output: Path) -> list[Unfinished]:
    """What is left of the builds of an output, which may be what the names of shards begin with."""
    from ggufmerge.files.sharded import split_prefix
    from ggufmerge.files.shards import ShardName
    from ggufmerge.files.unfinished import find_unfinished

    with contextlib.suppress(Exception):  # an output that is no file name has nothing
        prefix = split_prefix(output).name
        found = find_unfinished([output.parent], [output])
        return [
            one
            for one in found
            if one.output.name == output.name
            or ((shard := ShardName.parse(one.output.name)) is not None and shard.prefix == prefix)
        ]
    return []


def unfinished_builds(folders: Iterable[Path]) -> list[Unfinished]:
    """Those in the current folder, in these folders, and of all outputs that were noted, wherever they are."""
    from ggufmerge.files.unfinished import find_unfinished

    outputs, parents = [], []
    for note in _notes():
        with contextlib.suppress(OSError):
            path = Path(os.fsdecode(note.read_bytes()[:_LONGEST]))
            there = of_output(path)
            outputs += [found.output for found in there]
            if not there:
                note.unlink()
    parents = [Path(), *folders]
    return find_unfinished(dict.fromkeys(path.absolute() for path in parents), outputs)


def facts(found: Sequence[Unfinished]) -> list[dict[str, Any]]:
    """For JSON."""
    return [
        {
            "output": str(one.output),
            "done": one.done,
            "tensors": one.tensors,
            "running": one.running,
            "nbytes": one.nbytes,
            "files": [str(path) for path in one.files],
        }
        for one in found
    ]


def show(found: Sequence[Unfinished]) -> None:
    """A table, and how to go on or to drop them; nothing when there are none."""
    from ggufmerge.cli.terminal import say, show_table
    from ggufmerge.text import size

    if not found:
        return
    rows = [
        (str(one.output), one.progress + (", being written now" if one.running else ""), size(one.nbytes))
        for one in found
    ]
    show_table(("unfinished build of", "how far", "on the disk"), rows, numbers=1, names=(0,))
    say("the command that began a build goes on with it; to drop one:")
    say(*(f"  {how_to_drop(one)}" for one in found if not one.running))


def how_to_drop(found: Unfinished) -> str:
    """The command that removes what is left of a build."""
    if os.name == "nt":
        return "del " + " ".join(f'"{path}"' for path in found.files)
    return "rm -r " + " ".join(shlex.quote(str(path)) for path in found.files)


def _notes() -> list[Path]:
    from ggufmerge.running.rates import cache_folder

    with contextlib.suppress(OSError):
        return sorted((cache_folder() / _NOTES).glob("*.path"))[:_MOST]
    return []


def _note(output: Path) -> Path:
    from ggufmerge.running.rates import cache_folder

    name = hashlib.sha256(os.fsencode(output.absolute())).hexdigest()[:24]
    return cache_folder() / _NOTES / f"{name}.path"
