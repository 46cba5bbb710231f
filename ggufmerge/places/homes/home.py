"""What is said of a model, and of the place that a program has for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ggufmerge.files import ShardName

CONTEXT = 8192  # tokens; what programs are told to keep room for, unless a model has less: 1 GB of an 8B model's cache


@dataclass(frozen=True)
class Model:
    """A model before it is there.

    stem: of its file's name, without shard and suffix.  shards: number of them, None for one file.
    projector: whether one goes with it.
    """

    stem: str
    shards: int | None = None
    projector: bool = False

    @property
    def has_companions(self) -> bool:
        """Whether it is more than one file."""
        return self.shards is not None or self.projector

    def files(self, folder: Path) -> list[Path]:
        """Its files in a folder, the one to open first."""
        if self.shards is None:
            return [folder / f"{self.stem}.gguf"]
        return [folder / str(shard) for shard in ShardName(self.stem, 1, self.shards).all()]

    def projector_in(self, folder: Path) -> Path | None:
        """Its projector's file in a folder, if one goes with it."""
        return folder / f"mmproj-{self.stem}.gguf" if self.projector else None


@dataclass(frozen=True)
class Placed:
    """A model that is there.

    file: the one to open, as an absolute path.  projector: its projector.  context: how many tokens it was trained
    for, None when it does not say.  template: whether it has a chat template.
    """

    file: Path
    projector: Path | None = None
    context: int | None = None
    template: bool = True

    @property
    def room(self) -> int | None:
        """The number of tokens to run it with: all that it was trained for, up to `CONTEXT`."""
        return None if not self.context or self.context < 0 else min(self.context, CONTEXT)


class Entry(Protocol):
    """What a program's settings say of one model, in a file that may hold much else, which stays as it is."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def name(self) -> str:
        """What the entry is called, for people."""

    def exists(self, old: bytes) -> bool:
        """Whether a file of this content has the entry; PlanError when the program could not read it, or we cannot."""

    def edited(self, old: bytes | None, placed: Placed) -> bytes:
        """The content with the entry for this model, added or renewed; None stands for a file that is not there.

        PlanError when the file cannot hold it.
        """


@dataclass(frozen=True)
class Home:
    """The place of one model in one program.

    program: its name, empty when no program was recognized.  why: how it was, for people.
    root: the folder that must be there already; those below it are made.
    files: the model's, the one to open first.  projector: where its projector goes, None without one.
    entry: of the program's settings, None when it needs none.  listed: as what and where the program shows the model.
    template: what the program does with a model that has no chat template, None when nobody knows.
    """

    program: str
    why: str
    root: Path
    files: tuple[Path, ...]
    projector: Path | None = None
    entry: Entry | None = None
    listed: str = ""
    template: str | None = None

    @property
    def folder(self) -> Path:
        return self.files[0].parent
