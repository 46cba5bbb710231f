"""What follows from a journal and the files beside it: pure decisions, tried for every state."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from ggufmerge.files.journal import FORMAT, Decision, Finished, Move, Record, Seen, State, decide, replay

BUILD = {"build": "mine", "format": FORMAT}
TENSOR = {"tensor": "a", "crc32": 7, "facts": {"notes": ["x"]}}
SEALED = {"sealed": ["s0", "s1"], "facts": {"sources": {}}}
PUBLISHED = {"published": True}
CLAIMED = {"claimed": "m.Modelfile"}
TAKEN = {"taken": {"place": "store"}}
WHOLE = [BUILD, TENSOR, SEALED, PUBLISHED, CLAIMED, TAKEN]


def journal(*lines: Any) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_a_journal_goes_through_its_states() -> None:
    """new, writing, sealed, published; every line adds what it says."""
    states = [replay(journal(*WHOLE[:n])).state for n in range(7)]
    assert states == [State.NEW, State.WRITING, State.WRITING, State.SEALED] + [State.PUBLISHED] * 3
    assert replay(journal(*WHOLE)) == Record(
        State.PUBLISHED,
        "mine",
        {"a": Finished(7, {"notes": ["x"]})},
        ("s0", "s1"),
        {"sources": {}},
        frozenset({"m.Modelfile"}),
        {"place": "store"},
    )


@pytest.mark.parametrize("cut", range(len(journal(*WHOLE))))
def test_a_journal_may_end_anywhere(cut: int) -> None:
    """A crash cuts the last line short: what stands before it counts."""
    text = journal(*WHOLE)[:cut]
    assert replay(text) == replay(text.rpartition("\n")[0]) or replay(text) == replay(text + "\n")


@pytest.mark.parametrize(
    "line",
    [
        "", "x", "[]", "null", "7", '"a"', "{}", "[" * 100_000, "\x00", '{"tensor": 1, "crc32": 2, "facts": {}}',
        '{"tensor": "b", "crc32": "2", "facts": {}}', '{"tensor": "b", "crc32": 2, "facts": 3}', '{"published": 1.5}',
        '{"sealed": [1, 2], "facts": {}}', '{"sealed": "s", "facts": {}}', '{"build": 3, "format": 2}',
        '{"claimed": 4}', '{"taken": true}', "9" * 5000,
    ],
)  # fmt: skip
def test_lines_that_make_no_sense_are_passed_over(line: str) -> None:
    """Wherever they stand."""
    for at in range(7):
        lines = [json.dumps(x) for x in WHOLE]
        lines.insert(at, line)
        assert replay("\n".join(lines)) == replay(journal(*WHOLE))


def test_a_journal_of_another_format_is_as_good_as_none() -> None:
    """Its lines may mean something else."""
    assert replay(journal(BUILD | {"format": FORMAT + 1}, TENSOR)).state is State.NEW


def test_states_cannot_be_skipped() -> None:
    """A line that does not belong to the state says nothing."""
    for lines in itertools.permutations([BUILD, SEALED, PUBLISHED]):
        if list(lines) != [BUILD, SEALED, PUBLISHED]:
            assert replay(journal(*lines)).state is not State.PUBLISHED


FILES = [Seen(p, f, a) for p in (None, "", "s0", "s1") for f in (None, "", "s0", "s1") for a in (False, True)]
RECORDS = [replay(journal(*WHOLE[:n])) for n in range(7)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.state.value)
@pytest.mark.parametrize("identity", ["mine", "other"])
def test_every_situation_has_a_safe_answer(record: Record, identity: str) -> None:
    """Whatever lies in the folder: nothing of another build is taken up, nothing that is not sealed is published, and
    a publication that was cut short is finished or undone.
    """
    for seen in itertools.product(FILES, FILES):
        decision = decide(record, identity, seen)
        named = [file.final == seal for file, seal in zip(seen, record.seals, strict=False)]
        given = [name and file.partial is None for name, file in zip(named, seen, strict=False)]
        if identity != "mine":
            assert decision.move is Move.START
        if decision.move is Move.RESUME:
            assert record.state is State.WRITING
            assert all(file.partial is not None for file in seen)
        if decision.move is Move.PUBLISH:
            assert record.state is State.SEALED
            assert all(
                file.partial == seal or file.final == seal for file, seal in zip(seen, record.seals, strict=True)
            )
        if decision.move is Move.FINISH:
            assert record.taken is not None or all(given)
        if decision.move is Move.START and any(given) and not all(given) and record.taken is None:
            assert decision.undo
        if record.state is State.NEW:
            assert not decision.reason


def test_the_plain_course() -> None:
    """One file, killed at each step."""
    one = [BUILD, TENSOR, {"sealed": ["s0"], "facts": {}}, PUBLISHED]
    courses = [
        (0, Seen(), Decision(Move.START)),
        (1, Seen(""), Decision(Move.START)),  # nothing is finished
        (2, Seen(""), Decision(Move.RESUME)),
        (3, Seen("s0"), Decision(Move.PUBLISH)),
        (3, Seen("s0", ""), Decision(Move.PUBLISH)),  # over an old file
        (3, Seen(None, "s0"), Decision(Move.FINISH)),
        (4, Seen(None, "s0"), Decision(Move.FINISH)),
    ]
    for lines, seen, decision in courses:
        assert decide(replay(journal(*one[:lines])), "mine", [seen]) == decision
    for lines, seen, _ in courses[2:5]:
        assert decide(replay(journal(*one[:lines])), "other", [seen]).reason
