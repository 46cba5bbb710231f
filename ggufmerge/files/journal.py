"""What the journal of an output says, and what follows from it. Nothing here touches a file.

A journal is text, one JSON object a line, appended as the work goes on:

    {"build": IDENTITY, "format": 2}         the work begins: `new` becomes `writing`
    {"tensor": NAME, "crc32": N, "facts": {}}  all bytes of a tensor are written
    {"sealed": [SEAL, ...], "facts": {...}}  every file is complete and on the disk: `sealed`
    {"published": true}                      every file has its name: `published`
    {"claimed": NAME}                        something beside the files is about to be written for them
    {"taken": {...}}                         the files have gone where they belong and are here no more

A line that is cut short or makes no sense is passed over: at worst work is done twice. A seal tells one finished file
from all others (see `files.output`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

FORMAT = 2  # of the journal and of what lies beside it; another one is started over


class State(Enum):
    """How far an output is."""

    NEW = "new"
    WRITING = "writing"
    SEALED = "sealed"
    PUBLISHED = "published"


@dataclass(frozen=True)
class Finished:
    """A tensor that is written: a checksum of its bytes, and what was found out while it was made."""

    crc32: int
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What a journal says.

    identity: of the build, a hash of all that its bytes depend on.  done: the finished tensors by name.
    seals: of the finished files, in order.  facts: what the build found out, for its report.
    claimed: what else this output has begun to write, such as a Modelfile.
    taken: who has the files now, if they are not under their names any more.
    """

    state: State = State.NEW
    identity: str = ""
    done: Mapping[str, Finished] = field(default_factory=dict)
    seals: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    claimed: frozenset[str] = frozenset()
    taken: Mapping[str, Any] | None = None

    def after(self, line: Any) -> Record:
        """The record when one more line was read; the same one for a line that says nothing here."""
        match line:
            case {"build": str(identity), "format": int(number)} if number == FORMAT and self.state is State.NEW:
                return Record(State.WRITING, identity)
            case {"tensor": str(name), "crc32": int(crc), "facts": dict(facts)} if self.state is State.WRITING:
                return replace(self, done={**self.done, name: Finished(crc, facts)})
            case {"sealed": list(seals), "facts": dict(facts)} if self.state is State.WRITING:
                if all(isinstance(seal, str) for seal in seals):
                    return replace(self, state=State.SEALED, seals=tuple(seals), facts=facts)
            case {"published": True} if self.state is State.SEALED:
                return replace(self, state=State.PUBLISHED)
            case {"claimed": str(name)} if self.state is State.PUBLISHED:
                return replace(self, claimed=self.claimed | {name})
            case {"taken": dict(facts)} if self.state is State.PUBLISHED:
                return replace(self, taken=facts)
        return self


def replay(text: str) -> Record:
    """What a journal says, line by line."""
    record, done = Record(), dict[str, Finished]()
    for part in text.split("\n"):
        try:
            line = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if record.state is State.WRITING and isinstance(line, dict) and "tensor" in line:
            # gathered here, or each of 100,000 lines would copy all before it
            done |= replace(record, done={}).after(line).done
        else:
            record = record.after(line)
    return replace(record, done=done)


@dataclass(frozen=True)
class Seen:
    """One file of an output as it was found: the seals of what lies under its temporary name and under its own name
    (None without a file; any text when it is something else), and whether an older file waits aside.
    """

    partial: str | None = None
    final: str | None = None
    aside: bool = False


class Move(Enum):
    """What to do with an output."""

    START = "start"  # write everything
    RESUME = "resume"  # take over finished tensors
    PUBLISH = "publish"  # everything is written: give the files their names
    FINISH = "finish"  # the files have their names: do what comes after


@dataclass(frozen=True)
class Decision:
    """move: what to do.  undo: first put back what a publication that was cut short has moved.
    reason: why earlier work is of no use; empty when there was none, or it is used.
    """

    move: Move
    undo: bool = False
    reason: str = ""


def decide(record: Record, identity: str, seen: Sequence[Seen]) -> Decision:
    """What follows for a build of this identity from what its output's journal says and its files are."""
    # an old file may be the same, byte for byte: a new one has its name only when its temporary one is gone
    given = [file.final == seal and file.partial is None for file, seal in zip(seen, record.seals, strict=False)]
    complete = record.taken is not None or (len(given) == len(seen) and all(given))
    undo = not complete and (any(given) or any(file.aside for file in seen))
    if record.state is State.NEW:
        return Decision(Move.START, undo)
    if record.identity != identity:
        # a complete output is nobody's unfinished work: what is left of it is only the journal
        return Decision(Move.START, undo, "" if complete else "a source, the recipe or an option is another one now")
    if record.state is State.WRITING:
        if all(file.partial is not None for file in seen):
            return Decision(Move.RESUME if record.done else Move.START, undo)
        return Decision(Move.START, undo, "its unfinished file is gone")
    if complete:
        return Decision(Move.FINISH)
    ready = [given or file.partial == seal for file, seal, given in zip(seen, record.seals, given, strict=False)]
    if record.state is State.SEALED and len(ready) == len(seen) and all(ready):
        return Decision(Move.PUBLISH)
    return Decision(Move.START, undo, "its finished file is gone or was changed")
