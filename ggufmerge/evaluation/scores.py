"""Several models side by side, on texts and a question."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation import texts as built_in
from ggufmerge.evaluation.generate import chat_prompt, generate
from ggufmerge.evaluation.libllama import library
from ggufmerge.evaluation.lineup import Entry, Lineup, line_up
from ggufmerge.evaluation.llama import LlamaModel
from ggufmerge.evaluation.metrics import KLDivergence, Perplexity, kl_divergence, perplexity
from ggufmerge.evaluation.verdict import Verdict, judge
from ggufmerge.files.absent import absent
from ggufmerge.files.shards import short_name, short_names
from ggufmerge.files.small import open_regular

Texts = Mapping[str, str] | Sequence[str | os.PathLike[str]]
BUILT_IN = "builtin"


@dataclass(frozen=True)
class Score:
    """How one model predicts one text; `divergence` from the reference, where there is one."""

    model: str
    text: str
    perplexity: Perplexity
    divergence: KLDivergence | None = None


@dataclass(frozen=True)
class Evaluation:
    """The scores of every model on every text, model by model, and what each answered.

    lineup: the models, and who was made from whom.  verdicts: on each named model that can be compared with another.
    """

    scores: tuple[Score, ...]
    answers: Mapping[str, str]
    lineup: Lineup = field(default_factory=lambda: Lineup([], []))
    verdicts: tuple[Verdict, ...] = ()

    def __repr__(self) -> str:
        lines = [f"{short_name(s.model)} on {Path(s.text).name}: {s.perplexity.value:.4g}" for s in self.scores[:6]]
        more = f", and {len(self.scores) - 6} more" if len(self.scores) > 6 else ""
        answers = f", {len(self.answers)} answers" if self.answers else ""
        return f"<Evaluation: perplexity {', '.join(lines)}{more}{answers}>"

    def require_better(self) -> None:
        """GgufmergeError unless each named model predicts each text better than the first one does, a single one
        better than its base.
        """
        named = self.lineup.named
        first = named[0] if len(named) > 1 else self.lineup.base_of(named[0])
        bar = {s.text: s.perplexity.value for s in self.scores if s.model == first}
        worse = [
            f"{s.model} on {s.text} ({s.perplexity.value:.3f}, {first} has {bar[s.text]:.3f})"
            for s in self.scores
            if s.model in named and s.model != first and not s.perplexity.value < bar[s.text]
        ]
        if worse:
            raise GgufmergeError(f"not better: {'; '.join(worse)}")


class Watcher:
    """Who is told how far the work is; does nothing by itself."""

    def says(self, text: str) -> None:
        """What is being done now."""

    def notes(self, text: str) -> None:
        """Something that is good to know before the work is done."""

    def expect(self, tokens: int, quick: int | None = None) -> None:
        """All tokens that are to be computed, as far as is known; quick: how many there would be of short texts."""

    def advance(self, tokens: int) -> None:
        """So many tokens more are done."""


def evaluate(
    models: Sequence[str | os.PathLike[str]],
    texts: Texts = (),
    *,
    parents: bool = False,
    reference: str | os.PathLike[str] | None = None,
    context: int = 256,
    tokens: int | None = None,
    prompt: str | None = None,
    chat: bool = True,
    answer_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    threads: int | None = None,
) -> Evaluation:
    """Measure models with llama.cpp: how well they predict texts, how far they are from a reference, what they answer.

    models: paths or names, with adapters if wanted: "base.gguf+adapter.gguf=0.5".
    texts: paths of UTF-8 files, "builtin" for the texts that come with the program or "french" for one of them; or a
        mapping of names to texts.
    parents: measure the models that a merge was made from, too, where they are found.
    reference: a model from which the KL divergence of the others is measured; it is measured itself, before them.
    context: tokens of a window of text.  tokens: use only this many tokens from the beginning of a text; None for all.
    prompt: what each model is asked, in its chat format, or, without `chat`, has to go on with; `answer_tokens` is the
        longest answer, and above temperature 0 it is drawn by chance, the same for the same `seed`.
    threads: None for all cores.
    Needs the optional extra `llama`; GgufmergeError says so, and what else does not fit.
    """
    contents = dict(texts) if isinstance(texts, Mapping) else read_texts([os.fspath(text) for text in texts])
    if not contents and prompt is None:
        raise GgufmergeError("give texts to predict, or a prompt to answer")
    library()  # says that llama.cpp is missing before files of gigabytes are looked for
    lineup = line_up([*([] if reference is None else [reference]), *models], relatives=parents)
    return measure(
        lineup,
        contents,
        reference=None if reference is None else os.fspath(reference),
        context=context,
        tokens=tokens,
        prompt=prompt,
        chat=chat,
        answer_tokens=answer_tokens,
        temperature=temperature,
        seed=seed,
        threads=threads,
    )


def measure(
    lineup: Lineup,
    texts: Mapping[str, str],
    *,
    reference: str | None = None,
    context: int = 256,
    tokens: int | None = None,
    prompt: str | None = None,
    chat: bool = True,
    answer_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    threads: int | None = None,
    watcher: Watcher | None = None,
) -> Evaluation:
    """The same for models that are lined up. reference: the label of one of them.  texts: contents by name."""
    watcher = watcher or Watcher()
    room = context if prompt is None else max(context, 512)
    scores: list[Score] = []
    answers: dict[str, str] = {}
    with ExitStack() as stack:
        standard = next((entry for entry in lineup.models if entry.label == reference), None)
        other = None if standard is None else stack.enter_context(_open(standard, room, threads))
        share = threads  # once a model had to make room for other programs, the next ones begin with that
        load = _Load(len(lineup.models), reference=other is not None)
        for entry in lineup.models:
            watcher.says(f"loading {entry.label}")
            with nullcontext(other) if other and entry is standard else _open(entry, room, share) as model:
                against = None if model is other else other
                watcher.expect(*load.of(model, texts, tokens))
                for name, content in texts.items():
                    watcher.says(f"{short_name(entry.label)} reads {short_name(name)}")
                    scores.append(_score(entry.label, model, against, name, content, context, tokens, watcher))
                if prompt is not None:
                    watcher.says(f"{short_name(entry.label)} answers")
                    asked = chat_prompt(model, prompt) if chat else prompt
                    answers[entry.label] = generate(
                        model, asked, max_tokens=answer_tokens, temperature=temperature, seed=seed
                    )
                share = threads or (model.threads if model.threads < (os.cpu_count() or 1) else None)
    return Evaluation(tuple(scores), answers, lineup, tuple(_verdicts(lineup, scores)))


def _score(
    label: str,
    model: LlamaModel,
    other: LlamaModel | None,
    name: str,
    text: str,
    context: int,
    limit: int | None,
    watcher: Watcher,
) -> Score:
    if other is None:
        return Score(label, name, perplexity(model, text, context=context, limit=limit, advance=watcher.advance))

    def advance(tokens: int) -> None:
        watcher.advance(2 * tokens)  # the reference computes them, too

    far = kl_divergence(model, other, text, context=context, limit=limit, advance=advance)
    return Score(label, name, far.perplexity, far)


def _open(entry: Entry, context: int, threads: int | None) -> LlamaModel:
    return LlamaModel(entry.path, context=context, threads=threads, adapters=entry.adapters)


class _Load:
    """How many tokens are to be computed in all. What later models make of the texts is guessed from the last one."""

    def __init__(self, models: int, *, reference: bool) -> None:
        self._left, self._reference, self._before = models, reference, 0

    def of(self, model: LlamaModel, texts: Mapping[str, str], limit: int | None) -> tuple[int, int | None]:
        """(tokens in all, the same of short texts) when this model comes next; None if the texts are short already."""
        sizes = [len(model.tokenize(content)[:limit]) for content in texts.values()]
        each = 2 if self._reference else 1  # a model and the reference beside it
        now = each if self._before or not self._reference else 1  # the reference itself comes first, alone
        before = self._before
        self._before += now * sum(sizes)
        self._left -= 1
        times = now + each * self._left
        less = sum(min(size, built_in.QUICK) for size in sizes)
        return before + times * sum(sizes), None if less == sum(sizes) else times * less


def _verdicts(lineup: Lineup, scores: Sequence[Score]) -> list[Verdict]:
    """On each model that was named, as far as there is something to say; texts without their folders."""
    short = short_names(score.text for score in scores)
    found: dict[str, dict[str, Perplexity]] = {}
    for score in scores:
        found.setdefault(score.model, {})[short[score.text]] = score.perplexity
    verdicts = []
    for label in lineup.named:
        base = lineup.base_of(label)
        own = base is not None and base == lineup.own_base_of(label)
        verdict = judge(
            label,
            found.get(label, {}),
            base=None if base is None else found.get(base),
            base_name="its base" if own else short_name(str(base)),
            parents={parent: found[parent] for parent in lineup.parents_of(label) if parent in found},
        )
        if verdict.sentence:
            verdicts.append(verdict)
    return verdicts


def read_texts(wanted: Sequence[str]) -> dict[str, str]:
    """The texts to predict by name: files, and those that come with the program (`builtin`, `french`).

    GgufmergeError when one is not there or no UTF-8.
    """
    found = {}
    for name in wanted:
        if Path(name).exists() or name not in (BUILT_IN, *built_in.NAMES):
            found[name] = _read(Path(name))
        else:
            found.update((t, built_in.read(t)) for t in (built_in.NAMES if name == BUILT_IN else (name,)))
    return found


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        names = ", ".join([BUILT_IN, *built_in.NAMES])
        raise GgufmergeError(f"{path}: {absent(path, ('.txt',))} (built in are {names})") from None


def read_text(path: str | os.PathLike[str]) -> str:
    """A UTF-8 text with `\\n` as line break; GgufmergeError when it is none."""
    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise GgufmergeError(f"{path}: not a UTF-8 text (byte {error.start}): convert it, or give another") from None
