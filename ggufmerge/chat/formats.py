"""The format that a Jinja chat template writes, found out by trying it.

Nearly all templates write messages one behind the other, each between two fixed texts. `learn` finds these texts from a
few conversations whose messages are words that occur nowhere else, then has the format write a corpus of other
conversations and compares: a format that was found writes what its template writes. So no list of known templates is
needed, and a template that does more than that is found out.

Templates that know no system message get it in front of the first question, as llama.cpp does it (`common/chat.cpp`,
`system_message_not_supported`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ggufmerge.chat.corpus import CORPUS, LARGE
from ggufmerge.chat.jinja import Conversation, Message

Render = Callable[[Sequence[Conversation]], Sequence[str | None] | None]


@dataclass(frozen=True)
class Turn:
    """What stands before and behind the text of a message."""

    before: str
    after: str


@dataclass(frozen=True)
class ChatFormat:
    """How a conversation becomes a prompt.

    start: before a conversation that does not begin with a system message, such as a system message of the template's
    own.  opening: behind the last message, where the assistant is to speak.
    joined: whether a system message and the question behind it are one turn, which `user.before` does not open again.
    system_last: whether the system message stands in the last question instead, between `user.before` and its text.
    """

    start: str
    system: Turn
    user: Turn
    assistant: Turn
    opening: str
    joined: bool = False
    system_last: bool = False

    def write(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation of system, user and assistant messages; an answer that is begun is left open."""
        system = "\n\n".join(m.content for m in messages if m.role == "system") if self.system_last else ""
        text = "" if messages[0].role == "system" and not self.system_last else self.start
        opened = False
        for number, (role, content) in enumerate(messages):
            last = number == len(messages) - 1
            if role == "system" and not self.system_last:
                text += self.system.before + content + self.system.after
                opened = self.joined
            elif role == "user":
                text += "" if opened else self.user.before
                text += self.system.before + system + self.system.after if last and system else ""
                text += content + self.user.after
                opened = False
            elif role == "assistant":
                text += self.assistant.before + content + ("" if last else self.assistant.after)
            if last and role != "assistant":
                text += self.opening
        return text

    @property
    def folds_system(self) -> bool:
        """Whether a system message is only text in front of the first question."""
        return self.joined and self.system == _folded(self.start, self.user)


def learn(render: Render, bos: str = "") -> ChatFormat | None:
    """The format of a template; None when it writes in another way than a `ChatFormat` can.

    render: gives the template's text of conversations, None for those that it refuses, and None for all when it cannot
    be run.  bos: the text of the token that begins a prompt where the tokenizer adds that; what the template writes of
    it in the beginning is no part of the format then.
    """
    others = (*CORPUS, *LARGE)
    texts = render([*_PROBES, *map(Conversation, others)])
    if texts is None:
        return None
    plain = [text.removeprefix(bos) if text is not None else None for text in texts]
    written = plain[len(_PROBES) :]
    for found in _candidates(plain[: len(_PROBES)]):
        if all(_agrees(found, messages, text) for messages, text in zip(others, written, strict=True)):
            return found
    return None


def _agrees(found: ChatFormat, messages: Sequence[Message], text: str | None) -> bool:
    if messages[0].role == "system" and found.folds_system:
        return text in (None, found.write(messages[1:]))  # the template has no system messages
    return text == found.write(messages)


_WORDS = _SYSTEM, _FIRST, _ANSWER, _SECOND = "Qsystemz", "Qfirstz", "Qanswerz", "Qsecondz"
_S, _U1, _A, _U2 = map(Message, ("system", "user", "assistant", "user"), _WORDS)
_PROBES = (
    Conversation((_U1,)),
    Conversation((_U1,), answer=False),
    Conversation((_U1, _A, _U2)),
    Conversation((_U1, _A), answer=False),
    Conversation((_S, _U1)),
    Conversation((_S, _U1, _A, _U2)),
)


def _candidates(probes: Sequence[str | None]) -> Iterator[ChatFormat]:
    """Formats that agree with the probes, the likeliest first."""
    one, closed, three, two, asked, longer = probes
    found = _between(one, _FIRST)
    pieces = _between(three, _FIRST, _ANSWER, _SECOND)
    if found is None or pieces is None or [pieces[0], pieces[3]] != found:
        return
    first, to_answer, to_question, end = pieces
    # a template that does not know add_generation_prompt writes `end` anyway
    done = _between(closed, _FIRST)
    user_after = _common_start(end, to_answer, done[1] if done else end)
    done = _between(two, _FIRST, _ANSWER)
    answer_after = _common_start(to_question, done[2]) if done else ""
    # a beginning of sequence may stand before each question, and is not part of `first`: see `bos`
    for after in (answer_after, to_question.removesuffix(_common_end(to_question, first))):
        user = Turn(to_question.removeprefix(after), user_after)
        if first.endswith(user.before):
            break
    else:
        return
    start = first.removesuffix(user.before)
    plain = ChatFormat(
        start=start,
        system=_folded(start, user),
        user=user,
        assistant=Turn(to_answer.removeprefix(user_after), after),
        opening=end.removeprefix(user_after),
        joined=True,
    )
    if places := _between(asked, _SYSTEM, _FIRST):
        before, between, _ = places
        if user.before and between.endswith(user.before):
            yield replace(plain, system=Turn(before, between.removesuffix(user.before)), joined=False)
        yield replace(plain, system=Turn(before, between))
    if places := _between(longer, _FIRST, _ANSWER, _SYSTEM, _SECOND):
        before = places[2].removeprefix(to_question)
        yield replace(plain, system=Turn(before, places[3]), joined=False, system_last=True)
    yield plain


def _folded(start: str, user: Turn) -> Turn:
    return Turn(start + user.before, "\n")


def _between(text: str | None, *words: str) -> list[str] | None:
    """The texts around words; None unless each of them stands once in the text, in this order, and no other probe's."""
    if text is None or any(text.count(word) != (word in words) for word in _WORDS):
        return None
    pieces = []
    for word in words:
        piece, found, text = text.partition(word)
        if not found:
            return None
        pieces.append(piece)
    return [*pieces, text]


def _common_start(*texts: str) -> str:
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)


def _common_end(a: str, b: str) -> str:
    return _common_start(a[::-1], b[::-1])[::-1]
