"""`ggufmerge eval`: perplexity, divergence and answers of models, side by side, and what to think of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.options import Json, Threads, model_argument, model_option

if TYPE_CHECKING:
    from ggufmerge.engine.parents import Family
    from ggufmerge.evaluation import LlamaModel
    from ggufmerge.evaluation.metrics import Perplexity
    from ggufmerge.evaluation.verdict import Verdict

Facts = dict[str, Any]

BUILT_IN = "builtin"
HELP = """Is it good? Measure models with llama.cpp: how well they predict texts, how far they are from a reference,
what they say. Lower perplexity is better. Needs the optional extra: pip install 'ggufmerge\\[llama]'.

Without --text they read texts that come with the program, in five languages and Python.

The models that a merge was made from are measured beside it, where they are found.

A MODEL is a GGUF file, with LoRA adapters if wanted: base.gguf+adapter.gguf=0.5.

[bold]Examples[/bold]

  ggufmerge eval merged.gguf --quick

  ggufmerge eval base.gguf merged.gguf --text prose.txt --text code.txt

  ggufmerge eval merged-Q4_K_M.gguf --reference merged-F16.gguf --context 512

  ggufmerge eval merged.gguf --prompt "Why is the sky blue?" --temperature 0.7 --seed 1

  ggufmerge eval base.gguf merged.gguf --text prose.txt --require-better

  ggufmerge eval merged.gguf --json | jq '.verdicts[].sentence'
"""


def evaluate(
    models: Annotated[list[str], model_argument("MODEL...", "Each model")],
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="A UTF-8 text to predict instead of the built-in ones; give as many as wanted. The word builtin "
            "stands for those, and french for the French one of them.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first impression in seconds: the first 256 tokens of each text.")
    ] = False,
    parents: Annotated[
        bool | None,
        typer.Option(
            "--parents/--no-parents",
            help="Measure the models that a merge was made from, too.",
            show_default="--parents when texts are read, without --reference",
        ),
    ] = None,
    reference: Annotated[
        str | None, model_option("--reference", "MODEL", "Measure the KL divergence from this model")
    ] = None,
    context: Annotated[int, typer.Option("--context", min=2, metavar="N", help="Tokens of a window of text.")] = 256,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=2, metavar="N", help="Use only the first N tokens of a text.", show_default="all"),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="Ask each model this, in its chat format.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Ask, or let the prompt be continued as it is.")
    ] = True,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", min=1, metavar="N", help="The longest answer.")] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0: always the most likely token; above: draw by chance.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed draws the same answer.")] = 0,
    require_better: Annotated[
        bool,
        typer.Option(
            "--require-better",
            help="Fail unless the models after the first predict every text better than it; a single model: better "
            "than its base.",
        ),
    ] = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    from os import cpu_count

    from ggufmerge.cli.eval_progress import EvalProgress
    from ggufmerge.cli.terminal import print_json
    from ggufmerge.evaluation.libllama import library
    from ggufmerge.evaluation.texts import QUICK

    measured = bool(text) or prompt is None or quick or reference is not None or require_better
    _check_files([*([] if reference is None else [reference]), *models])
    texts = _texts(text) if measured else {}
    limit = QUICK if quick and tokens is None else tokens
    library()  # says that llama.cpp is missing before files of gigabytes are looked for
    names = list(dict.fromkeys([*([] if reference is None else [reference]), *models]))
    wanted = measured and reference is None if parents is None else parents
    lineup = _lineup(names, relatives=wanted)
    if require_better and len(lineup.named) == 1 and lineup.base_of(lineup.named[0]) is None:
        raise typer.BadParameter("needs models to compare: name the base first", param_hint="--require-better")
    room = context if prompt is None else max(context, 512)
    found: dict[str, dict[str, Perplexity]] = {}
    scores: list[Facts] = []
    answers: list[Facts] = []
    with ExitStack() as stack, EvalProgress(len(lineup.models)) as progress:
        standard = next((entry for entry in lineup.models if entry.label == reference), None)
        other = None if standard is None else stack.enter_context(_open(standard, room, threads))
        share = threads  # once a model had to make room for other programs, the next ones begin with that
        load = _Load(len(lineup.models), reference is not None)
        for entry in lineup.models:
            progress.says(f"loading {entry.label}")
            with nullcontext(other) if other and entry is standard else _open(entry, room, share) as model:
                against = None if model is other else other
                progress.expect(*load.of(model, texts, limit, quick=quick))
                for name, content in texts.items():
                    progress.says(f"{_short_name(entry.label)} reads {_short_name(name)}")
                    # what a reference reads besides counts as much again
                    advance = partial(progress.advance, times=1 if against is None else 2)
                    facts, perplexity = _score(model, against, content, context, limit, advance)
                    found.setdefault(entry.label, {})[name] = perplexity
                    scores.append({"model": entry.label, "text": name, **facts})
                if prompt is not None:
                    progress.says(f"{_short_name(entry.label)} answers")
                    said = _answer(model, prompt, chat, max_tokens=answer_tokens, temperature=temperature, seed=seed)
                    answers.append({"model": entry.label, "prompt": prompt, "answer": said})
                share = threads or (model.threads if model.threads < (cpu_count() or 1) else None)
    verdicts = _verdicts(lineup, found)
    if json:
        print_json(
            {
                "context": context,
                "reference": reference,
                "models": [{"model": entry.label, "role": entry.role} for entry in lineup.models],
                "missing": {name: list(family.missing) for name, family in lineup.families.items() if family.missing},
                "scores": scores,
                "verdicts": [_verdict_facts(lineup, verdict, list(texts)) for verdict in verdicts],
                "answers": answers,
            }
        )
    else:
        if scores:
            _show_scores(scores, reference)
            _show_verdicts(lineup, verdicts)
        for answer in answers:
            _show_answer(answer)
    if require_better:
        _require_better(lineup, scores)


def _check_files(models: Iterable[str]) -> None:
    """GgufmergeError that names all models that are not there."""
    from ggufmerge.places.references import check_found
    from ggufmerge.recipe import ModelReference

    check_found(("", path) for name in models for path in ModelReference.from_argument(name).paths)


@dataclass(frozen=True)
class _Entry:
    """A model to measure. role: "model" for one that the user named, else "base" or "parent" of one."""

    label: str
    path: Path
    adapters: tuple[tuple[Path, float], ...]
    role: str = "model"

    @property
    def key(self) -> tuple[object, ...]:
        return (self.path.resolve(), *((path.resolve(), strength) for path, strength in self.adapters))


@dataclass
class _Lineup:
    """The models in the order of the table, and the family of each that has one.

    named: the labels of those that the user named.  relatives: label of a named model -> labels of its base (None
    without one) and of its parents.
    """

    models: list[_Entry]
    named: list[str]
    families: dict[str, Family] = field(default_factory=dict)
    relatives: dict[str, tuple[str | None, list[str]]] = field(default_factory=dict)

    def base_of(self, label: str) -> str | None:
        """What a model is compared with: its base, else the first model that was named when it has no parents here."""
        base, parents = self.relatives.get(label, (None, []))
        first = self.named[0]
        return base if base is not None or parents or label == first else first

    def parents_of(self, label: str) -> list[str]:
        return self.relatives.get(label, (None, []))[1]


def _lineup(names: Sequence[str], *, relatives: bool) -> _Lineup:
    """The named models; relatives: and beside each those that it was made from, in front of it unless it stands first
    among several, because changes are shown against the first of all.
    """
    from rich.markup import escape

    from ggufmerge.cli.terminal import console
    from ggufmerge.engine.parents import family
    from ggufmerge.text import printable

    named = [_named(name) for name in names]
    lineup = _Lineup([], [entry.label for entry in named])
    taken = {entry.key: entry.label for entry in named}
    folders = list(dict.fromkeys([Path(), *(entry.path.parent for entry in named)]))
    for place, entry in enumerate(named):
        added = []
        if relatives and not entry.adapters:
            with console(stderr=True).status(f"looking for the parents of {escape(printable(entry.label))}"):
                found = family(entry.path, folders)
            lineup.families[entry.label] = found
            for role, relative in [*([] if found.base is None else [("base", found.base)])] + [
                ("parent", parent) for parent in found.parents
            ]:
                if relative.key not in taken:
                    label = relative.label if relative.label not in taken.values() else str(relative.path)
                    taken[relative.key] = label
                    added.append(_Entry(label, relative.path, relative.adapters, role))
            base = None if found.base is None else taken[found.base.key]
            parents = [taken[parent.key] for parent in found.parents]
            lineup.relatives[entry.label] = (base, [p for p in dict.fromkeys(parents) if p != base])
        first_of_several = place == 0 and len(named) > 1
        lineup.models += [entry, *added] if first_of_several else [*added, entry]
    return lineup


def _named(name: str) -> _Entry:
    """The model that `base.gguf+adapter.gguf=0.5` means; a file whose own name has a plus sign is that file."""
    from ggufmerge.places import references
    from ggufmerge.recipe import ModelReference

    model = ModelReference.from_argument(name)
    found = references.find(model.path)
    adapters = [(path, 1.0) for path in found.adapters]
    adapters += [(references.find(adapter.path).path, adapter.strength) for adapter in model.adapters]
    return _Entry(name, found.path, tuple(adapters))


def _open(entry: _Entry, context: int, threads: int | None) -> LlamaModel:
    from ggufmerge.evaluation import LlamaModel

    return LlamaModel(entry.path, context=context, threads=threads, adapters=entry.adapters)


def _texts(wanted: Sequence[str] | None) -> dict[str, str]:
    """The texts to predict by name: files, and those that come with the program."""
    from ggufmerge.evaluation import texts

    found = {}
    for name in wanted or [BUILT_IN]:
        if Path(name).exists() or name not in (BUILT_IN, *texts.NAMES):
            found[name] = _read(Path(name))
        else:
            found.update((t, texts.read(t)) for t in (texts.NAMES if name == BUILT_IN else (name,)))
    return found


def _read(path: Path) -> str:
    from ggufmerge.errors import GgufmergeError
    from ggufmerge.evaluation import texts
    from ggufmerge.evaluation.scores import read_text
    from ggufmerge.files.absent import absent

    try:
        return read_text(path)
    except FileNotFoundError:
        built_in = ", ".join([BUILT_IN, *texts.NAMES])
        raise GgufmergeError(f"{path}: {absent(path, ('.txt',))} (built in are {built_in})") from None


class _Load:
    """How many tokens are to be computed in all. What later models make of the texts is guessed from the last one."""

    def __init__(self, models: int, reference: bool) -> None:
        self._left, self._reference, self._before = models, reference, 0

    def of(self, model: LlamaModel, texts: dict[str, str], limit: int | None, *, quick: bool) -> tuple[int, int | None]:
        """(tokens in all, the same with --quick) when this model comes next; None when it is quick enough as it is."""
        from ggufmerge.evaluation.texts import QUICK

        sizes = [len(model.tokenize(content)[:limit]) for content in texts.values()]
        each = 2 if self._reference else 1  # a model and the reference beside it
        now = each if self._before or not self._reference else 1  # the reference itself comes first, alone
        before = self._before
        self._before += now * sum(sizes)
        self._left -= 1
        times = now + each * self._left
        less = sum(min(size, QUICK) for size in sizes)
        return before + times * sum(sizes), None if quick or less == sum(sizes) else times * less


def _score(
    model: LlamaModel, reference: LlamaModel | None, text: str, context: int, limit: int | None, advance: Any
) -> tuple[Facts, Perplexity]:
    from ggufmerge.evaluation import kl_divergence, perplexity

    divergence: Facts = {}
    if reference is None:
        found = perplexity(model, text, context=context, limit=limit, advance=advance)
    else:
        far = kl_divergence(model, reference, text, context=context, limit=limit, advance=advance)
        found = far.perplexity
        divergence = {"kl_divergence": far.mean, "kl_error": far.standard_error, "same_top": far.same_top}
    facts = {
        "tokens": found.tokens,
        "nll": found.nll,
        "perplexity": found.value,
        "perplexity_error": found.error,
        **divergence,
    }
    return facts, found


def _answer(model: LlamaModel, prompt: str, chat: bool, **how: Any) -> str:
    from ggufmerge.evaluation import chat_prompt, generate

    return generate(model, chat_prompt(model, prompt) if chat else prompt, **how)


def _require_better(lineup: _Lineup, scores: list[Facts]) -> None:
    from ggufmerge.errors import GgufmergeError

    first = lineup.named[0] if len(lineup.named) > 1 else lineup.base_of(lineup.named[0])
    bar = {s["text"]: s["perplexity"] for s in scores if s["model"] == first}
    worse = [
        f"{s['model']} on {s['text']} ({s['perplexity']:.3f}, {first} has {bar[s['text']]:.3f})"
        for s in scores
        if s["model"] in lineup.named and s["model"] != first and not s["perplexity"] < bar[s["text"]]
    ]
    if worse:
        raise GgufmergeError(f"not better: {'; '.join(worse)}")


def _verdicts(lineup: _Lineup, found: dict[str, dict[str, Perplexity]]) -> list[Verdict]:
    """On each model that the user named, as far as there is something to say; texts without their folders."""
    from ggufmerge.evaluation.verdict import judge

    short = _short_names(text for scores in found.values() for text in scores)
    found = {label: {short[text]: score for text, score in scores.items()} for label, scores in found.items()}
    verdicts = []
    for label in lineup.named:
        base = lineup.base_of(label)
        own = base is not None and base == lineup.relatives.get(label, (None,))[0]
        verdict = judge(
            label,
            found.get(label, {}),
            base=None if base is None else found.get(base),
            base_name="its base" if own else _short_name(str(base)),
            parents={parent: found[parent] for parent in lineup.parents_of(label) if parent in found},
        )
        if verdict.sentence:
            verdicts.append(verdict)
    return verdicts


def _verdict_facts(lineup: _Lineup, verdict: Verdict, texts: Sequence[str]) -> Facts:
    """A verdict for JSON, with the texts as they were given; gains are in nats a token."""
    given = {short: text for text, short in _short_names(texts).items()}
    return {
        "model": verdict.model,
        "sentence": verdict.sentence,
        "nonsense": verdict.nonsense,
        "base": lineup.base_of(verdict.model),
        "parents": lineup.parents_of(verdict.model),
        "texts": [
            {
                "text": given[on.text],
                "gain": None if on.base is None else on.base.gain,
                "gain_error": None if on.base is None else on.base.error,
                "against_base": None if on.base is None else on.base.order,
                "among_parents": on.place,
                "best_parent": on.best,
                "best_parent_gain": None if on.gain is None else on.gain.gain,
                "kept": on.kept,
                "kept_error": on.kept_error,
            }
            for on in verdict.texts
        ],
    }


def _show_verdicts(lineup: _Lineup, verdicts: Sequence[Verdict]) -> None:
    """The foot of the table: who stands where, what that means, and who is missing."""
    from ggufmerge.cli.terminal import say

    for verdict in verdicts:
        say(f"{_short_name(verdict.model)}:")
        for part in verdict.parts:
            _show_paragraph(f"  {part}")
        if verdict.nonsense or any(on.base is not None and on.base.order == "worse" for on in verdict.texts):
            _show_paragraph('  what helps: "When a merge is worse" in docs/evaluation.md')
    if verdicts:
        _show_paragraph("± is one standard error; what differs by less than two, token by token, is as good.")
    for name, family in lineup.families.items():
        if family.missing:
            say(f"note: not all models that {_short_name(name)} was made from are here; name them to compare")
            for line in family.missing:
                say(f"  {line}")


def _show_paragraph(text: str) -> None:
    """Running text, folded between words on a terminal; blanks in front of it stand before each line."""
    from ggufmerge.cli.terminal import console
    from ggufmerge.text import printable

    out = console()
    if not out.is_terminal:
        out.print(printable(text), markup=False, soft_wrap=True)
        return
    from rich.padding import Padding
    from rich.text import Text

    words = text.lstrip()
    out.print(Padding(Text(printable(words)), (0, 0, 0, len(text) - len(words)), expand=False))


def _show_scores(scores: list[Facts], reference: str | None) -> None:
    """A row for each text and model, the models of a text below each other; changes are against the first of them."""
    from ggufmerge.cli.terminal import show_table

    models = _short_names(s["model"] for s in scores)
    texts = _short_names(s["text"] for s in scores)
    heads = ["text", "model", "perplexity", "", *(["change"] if len(models) > 1 else [])]
    heads += ["KL divergence", "same top"] if reference else []
    rows = []
    for text in texts:
        of_text = [s for s in scores if s["text"] == text]
        first = of_text[0]
        for s in of_text:
            row = [texts[text], models[s["model"]]]
            row += [f"{s['perplexity']:.2f}", f"± {s['perplexity_error']:.2f}"]
            if len(models) > 1:
                row.append("" if s is first else f"{100 * (s['perplexity'] / first['perplexity'] - 1):+.1f} %")
            if reference:
                known = "kl_divergence" in s
                row += [f"{s['kl_divergence']:.4f}", f"{100 * s['same_top']:.1f} %"] if known else ["", ""]
            rows.append(row)
    show_table(heads, rows, numbers=len(heads) - 2)


def _show_answer(answer: Facts) -> None:
    """Who was asked, then the answer as running text without what could control the terminal."""
    from ggufmerge.cli.terminal import console
    from ggufmerge.text import printable

    lines = [printable(line) for line in answer["answer"].strip().splitlines()]
    typer.echo(f"\n{printable(_short_name(answer['model']))}: {printable(answer['prompt'])}")
    console().print("\n".join(lines), markup=False, soft_wrap=not console().is_terminal)


def _short_names(names: Iterable[str]) -> dict[str, str]:
    """What to call each model or text in a table: without folders, unless two would be called the same."""
    short = {name: _short_name(name) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in short}


def _short_name(name: str) -> str:
    return "+".join(Path(part).name for part in name.split("+"))
