"""Regular expressions that strangers wrote, matched in bounded time.

Recipes (`tensor_types`) and PEFT adapters (`rank_pattern`, `alpha_pattern`) hold regular expressions. Python's `re`
tries the ways to match one after the other, and there may be exponentially many: `(.+)+!` on a name of 30 letters takes
minutes. Refusing expressions by their looks (a repetition within a repetition) would refuse harmless ones and pass
`.*.*.*.*.*.*!`. So the question is answered otherwise: the expression as `re` parses it becomes an automaton that
follows all ways at once (Thompson, "Regular Expression Search Algorithm", 1968), with its states after each letter
remembered. Time grows with the length of the name times that of the expression, and `Budget` bounds it in total.

`re` itself says which letter each part of an expression takes and where anchors hold, so those mean exactly what they
mean there. Only whether an expression matches is asked, so greed and laziness, which decide where it does, make no
difference. What cannot be followed this way is refused: back references, conditions on groups, atomic groups and
possessive repetitions, none of which llama-quantize or published adapters use.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from typing import Any

from ggufmerge.errors import GgufmergeError
from ggufmerge.text import quoted

MAX_LENGTH = 1000  # letters of an expression
_MAX_STATES = 2000
_STEPS = 5_000_000  # a few seconds; a hundred expressions for a thousand tensors need a tenth of it
_COST = 20  # steps that reading a letter of an expression, or making a state, is counted for
_FEW = 16  # ways to match up to which `re` is asked
_WALK = 16  # letters that are followed through remembered states in the time of one step

# how `re` reads expressions; a package of the standard library that has no documentation, so no stubs either
_parser: Any = importlib.import_module("re._parser")
_compiler: Any = importlib.import_module("re._compiler")
_REFUSED = {
    "GROUPREF": "a reference back to a group",
    "GROUPREF_EXISTS": "a condition on a group",
    "ATOMIC_GROUP": "an atomic group",
    "POSSESSIVE_REPEAT": "a possessive repetition",
}


class PatternError(GgufmergeError):
    """An expression is none, cannot be followed, or takes too long."""


@dataclass
class Budget:
    """How many steps the expressions of one list may take together."""

    left: int = _STEPS

    def spend(self, steps: int, pattern: str) -> None:
        self.left -= steps
        if self.left < 0:
            raise PatternError(f"{quoted(pattern)} takes too long as a regular expression: write it in a simpler way")


class Pattern:
    """A regular expression of Python's, or the part of it that finite automata know. `flags` are those of `re`.

    PatternError for what is no expression, is refused (see above) or is longer than 1000 letters or 2000 states; also
    from the methods, when the budget is spent.
    """

    def __init__(self, text: str, flags: int = 0, budget: Budget | None = None) -> None:
        self.text = text
        self._budget = budget or Budget()
        if len(text) > MAX_LENGTH:
            raise PatternError(f"{quoted(text)} is too long for a regular expression: it has {len(text)} letters")
        self._budget.spend(_COST * len(text), text)
        try:
            compiled = re.compile(text, flags)
            tree = _parser.parse(text, flags)
            self._program = _Program(text, self._budget)
            self._start = self._program.sequence(tree, tree.state.flags | flags, self._program.add(_Match()))
        except re.error as error:
            raise PatternError(f"{quoted(text)} is not a regular expression: {error.msg}") from None
        except (RecursionError, OverflowError):
            raise PatternError(f"{quoted(text)} is not a regular expression: it is nested too deeply") from None
        self._plain = compiled if _ways(tree) <= _FEW else None  # the usual expression, many times faster
        self._walks: dict[bool, _Walk] = {}

    def search(self, name: str) -> bool:
        """Whether the expression matches somewhere in the name, as `re.search` says."""
        if self._plain is not None:
            self._budget.spend(1, self.text)
            return self._plain.search(name) is not None
        return self._walk(name, anywhere=True)

    def fullmatch(self, name: str) -> bool:
        """Whether the expression matches the whole name, as `re.fullmatch` says."""
        if self._plain is not None:
            self._budget.spend(1, self.text)
            return self._plain.fullmatch(name) is not None
        return self._walk(name, anywhere=False)

    def _walk(self, name: str, *, anywhere: bool) -> bool:
        self._budget.spend(1 + len(name) // _WALK, self.text)
        walk = self._walks.setdefault(anywhere, _Walk(self._program, self._start, anywhere))
        return walk.matches(name, self._budget)


def _ways(items: Any) -> int:
    """How many ways `re` may have to try at one place, or more than `_FEW`."""
    ways = 1
    for op, value in items:
        match str(op):
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN" | "AT":
                own = 1
            case "BRANCH":
                own = sum(map(_ways, value[1]))
            case "SUBPATTERN":
                own = _ways(value[3])
            case "MAX_REPEAT" | "MIN_REPEAT" if value[1] <= 1:
                own = 1 + _ways(value[2])
            case _:
                own = _FEW + 1
        ways = min(ways * own, _FEW + 1)
    return ways


@dataclass(frozen=True)
class _Match:
    """The expression has matched."""


@dataclass(frozen=True)
class _Letter:
    """Takes a letter that `one` matches; `known` remembers which ones do."""

    one: re.Pattern[str]
    then: int
    known: dict[str, bool] = field(default_factory=dict, compare=False)

    def takes(self, letter: str) -> bool:
        if (known := self.known.get(letter)) is None:
            known = self.known[letter] = self.one.fullmatch(letter) is not None
        return known


@dataclass
class _Choice:
    """Goes on in each of several states."""

    then: list[int]


@dataclass(frozen=True)
class _Place:
    """Goes on where an anchor or word boundary holds."""

    anchor: re.Pattern[str]
    then: int


@dataclass(frozen=True)
class _Look:
    """Goes on where another expression matches ahead, or (`width` letters long) behind; or where it does not."""

    start: int
    width: int | None
    wanted: bool
    then: int


class _Program:
    """The states of an expression; each is made after the one that follows it."""

    def __init__(self, text: str, budget: Budget) -> None:
        self.text, self._budget = text, budget
        self.states: list[_Match | _Letter | _Choice | _Place | _Look] = []
        self.has_places = self.has_looks = False
        self._singles: dict[tuple[str, str, int], re.Pattern[str]] = {}

    def add(self, state: _Match | _Letter | _Choice | _Place | _Look) -> int:
        if len(self.states) >= _MAX_STATES:
            raise PatternError(f"{quoted(self.text)} is too large a regular expression: write it in a simpler way")
        self._budget.spend(_COST, self.text)
        self.states.append(state)
        return len(self.states) - 1

    def sequence(self, items: Any, flags: int, then: int) -> int:
        """The first state of parsed items, of which the last one goes on in `then`."""
        for op, value in reversed(list(items)):
            then = self._item(str(op), op, value, flags, then)
        return then

    def _item(self, kind: str, op: Any, value: Any, flags: int, then: int) -> int:
        match kind:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                return self.add(_Letter(self._single(op, value, flags), then))
            case "AT":
                self.has_places = True
                return self.add(_Place(self._single(op, value, flags), then))
            case "BRANCH":
                return self.add(_Choice([self.sequence(branch, flags, then) for branch in value[1]]))
            case "SUBPATTERN":
                _, added, removed, items = value
                return self.sequence(items, _compiler._combine_flags(flags, added, removed), then)
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, items = value
                return self._repeat(least, most, items, flags, then)
            case "ASSERT" | "ASSERT_NOT":
                self.has_looks = True
                direction, items = value
                start = self.sequence(items, flags, self.add(_Match()))
                width = None if direction > 0 else int(items.getwidth()[0])
                return self.add(_Look(start, width, kind == "ASSERT", then))
            case "FAILURE":
                return self.add(_Choice([]))
        what = _REFUSED.get(kind, f"the construct {kind}")
        raise PatternError(f"{quoted(self.text)} is a regular expression with {what}: write it in a simpler way")

    def _repeat(self, least: Any, most: Any, items: Any, flags: int, then: int) -> int:
        if most == _parser.MAXREPEAT:
            loop = _Choice([then])
            then = self.add(loop)
            loop.then.append(self.sequence(items, flags, then))
        else:
            end = then
            for _ in range(int(most) - int(least)):
                then = self.add(_Choice([end, self.sequence(items, flags, then)]))
        for _ in range(int(least)):
            before, then = then, self.sequence(items, flags, then)
            if then == before:  # of nothing, any number is the same
                break
        return then

    def _single(self, op: Any, value: Any, flags: int) -> re.Pattern[str]:
        """One item of an expression as an expression of its own."""
        key = (str(op), str(value), flags)
        if key not in self._singles:
            state = _parser.State()
            state.flags = flags
            self._singles[key] = _compiler.compile(_parser.SubPattern(state, [(op, value)]), flags)
        return self._singles[key]


_States = frozenset[int]
_NONE: _States = frozenset()


class _Walk:
    """Follows all ways through a program at once, and remembers where each letter leads."""

    def __init__(self, program: _Program, start: int, anywhere: bool) -> None:
        """anywhere: the match may begin and end within the name."""
        self._program, self._start, self._anywhere = program, start, anywhere
        self._known: dict[tuple[_States, str, str, bool], tuple[bool, _States]] = {}

    def matches(self, name: str, budget: Budget) -> bool:
        program = self._program
        last, before = len(name) - 1, ""
        states: _States = frozenset({self._start})
        again = frozenset({self._start}) if self._anywhere else _NONE
        run = _Run(program, name, budget)
        for i, letter in enumerate(name):
            if program.has_looks:
                matched, states = run.step(states, i)
            else:
                key = (states, letter, before, i == last) if program.has_places else (states, letter, "", False)
                if (found := self._known.get(key)) is None:
                    found = self._known[key] = run.step(states, i)
                matched, states = found
            if matched and self._anywhere:
                return True
            states |= again
            if not states:
                return False
            before = letter
        return run.step(states, len(name))[0]


class _Run:
    """One name on its way through a program."""

    def __init__(self, program: _Program, name: str, budget: Budget) -> None:
        self._program, self._name, self._budget = program, name, budget
        self._looks: dict[tuple[int, int], bool] = {}

    def step(self, states: _States, at: int) -> tuple[bool, _States]:
        """Whether the match may end at this place, and the states after its letter."""
        letters, matched = self._reached(states, at)
        if at == len(self._name):
            return matched, _NONE
        letter = self._name[at]
        return matched, frozenset(state.then for state in letters if state.takes(letter))

    def _reached(self, states: _States, at: int) -> tuple[list[_Letter], bool]:
        """The letters that may come next, and whether the end is reached, without taking a letter."""
        letters, matched = [], False
        todo, seen = list(states), set(states)
        while todo:
            state = self._program.states[todo.pop()]
            then: list[int] = []
            if isinstance(state, _Letter):
                letters.append(state)
            elif isinstance(state, _Match):
                matched = True
            elif isinstance(state, _Choice):
                then = state.then
            elif isinstance(state, _Place):
                then = [state.then] if state.anchor.match(self._name, at) else []
            else:
                then = [state.then] if self._holds(state, at) else []
            for other in then:
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        self._budget.spend(1 + len(seen), self._program.text)
        return letters, matched

    def _holds(self, look: _Look, at: int) -> bool:
        key = (look.start, at)
        if key not in self._looks:
            self._looks[key] = self._found(look, at)
        return self._looks[key] == look.wanted

    def _found(self, look: _Look, at: int) -> bool:
        """Whether the expression of a look-ahead matches from here on, that of a look-behind up to here."""
        ahead = look.width is None
        first = at if look.width is None else at - look.width
        if first < 0:
            return False
        states: _States = frozenset({look.start})
        for i in range(first, len(self._name) + 1 if ahead else at + 1):
            matched, states = self.step(states, i)
            if matched and (ahead or i == at):
                return True
            if not states:
                return False
        return False
