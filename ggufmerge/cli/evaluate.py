"""`ggufmerge eval`: perplexity, divergence and answers of models, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ggufmerge.evaluate import LlamaModel

Facts = dict[str, Any]

HELP = """Measure models with llama.cpp: how well they predict texts, how far they are from a reference, what they say.

A MODEL is a GGUF file, with LoRA adapters if wanted: base.gguf+adapter.gguf=0.5. Lower perplexity is better.
Needs the optional extra: pip install 'ggufmerge\\[llama]'.

[bold]Examples[/bold]

  ggufmerge eval base.gguf merged.gguf --text prose.txt --text code.txt

  ggufmerge eval merged-Q4_K_M.gguf --reference merged-F16.gguf --text prose.txt --context 512

  ggufmerge eval merged.gguf --prompt "Why is the sky blue?" --temperature 0.7 --seed 1

  ggufmerge eval base.gguf merged.gguf --text prose.txt --require-better

  ggufmerge eval base.gguf merged.gguf --text prose.txt --json | jq '.scores[].perplexity'
"""


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="GGUF files to compare.", show_default=False)],
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="A UTF-8 text to predict; give as many as wanted."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="MODEL", help="Measure the KL divergence from this model.")
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
            "--require-better", help="Fail unless the models after the first predict every text better than it."
        ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads to compute with.", show_default="all cores")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print facts as JSON on standard output.")] = False,
) -> None:
    if not text and prompt is None:
        raise typer.BadParameter("give texts to predict (--text) or a question to answer (--prompt)")
    if reference is not None and not text:
        raise typer.BadParameter("the divergence from a reference needs a --text", param_hint="--reference")

    from rich.markup import escape

    from ggufmerge.cli.terminal import console, print_json
    from ggufmerge.text import printable

    names = list(dict.fromkeys([*([] if reference is None else [reference]), *models]))
    if require_better and not (text and len(names) > 1):
        raise typer.BadParameter("needs a --text and models to compare", param_hint="--require-better")
    _check_files(names, text or [])
    texts = {path: _read(path) for path in text or []}
    room = context if prompt is None else max(context, 512)
    scores: list[Facts] = []
    answers: list[Facts] = []
    with ExitStack() as stack, console(stderr=True).status("") as status:
        other = None if reference is None else stack.enter_context(_open(reference, room, threads))
        for name in names:
            status.update(f"loading {escape(printable(name))}")
            with nullcontext(other) if other and name == reference else _open(name, room, threads) as model:
                for path, content in texts.items():
                    status.update(f"{escape(printable(name))} reads {escape(printable(str(path)))}")
                    measured = _score(model, None if model is other else other, content, context, tokens)
                    scores.append({"model": name, "text": str(path), **measured})
                if prompt is not None:
                    status.update(f"{escape(printable(name))} answers")
                    said = _answer(model, prompt, chat, max_tokens=answer_tokens, temperature=temperature, seed=seed)
                    answers.append({"model": name, "prompt": prompt, "answer": said})
    if json:
        print_json({"context": context, "reference": reference, "scores": scores, "answers": answers})
    else:
        if scores:
            _show_scores(scores, reference)
        for answer in answers:
            _show_answer(answer)
    if require_better:
        _require_better(scores)


def _check_files(models: Iterable[str], texts: Iterable[Path]) -> None:
    """GgufmergeError that names all files that are not there."""
    from ggufmerge.errors import GgufmergeError, collected
    from ggufmerge.files.absent import absent
    from ggufmerge.recipe import ModelReference
    from ggufmerge.sources.references import check_found

    missing: list[str] = []
    with collected(missing):
        check_found(("", path) for name in models for path in ModelReference.from_argument(name).paths)
    missing += [f"--text: {path}: {absent(path, ('.txt', '.md'))}" for path in texts if not path.exists()]
    if missing:
        raise GgufmergeError(*missing)


def _read(path: Path) -> str:
    from ggufmerge.errors import GgufmergeError
    from ggufmerge.files.small import open_regular

    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise GgufmergeError(f"{path}: not a UTF-8 text (byte {error.start}): convert it, or give another") from None


def _open(name: str, context: int, threads: int | None) -> LlamaModel:
    """The model that `base.gguf+adapter.gguf=0.5` means; a file whose own name has a plus sign is that file."""
    from ggufmerge.evaluate import LlamaModel
    from ggufmerge.recipe import ModelReference
    from ggufmerge.sources import references

    model = ModelReference.from_argument(name)
    found = references.find(model.path)
    adapters = [(path, 1.0) for path in found.adapters]
    adapters += [(references.find(adapter.path).path, adapter.strength) for adapter in model.adapters]
    return LlamaModel(found.path, context=context, threads=threads, adapters=adapters)


def _score(model: LlamaModel, reference: LlamaModel | None, text: str, context: int, limit: int | None) -> Facts:
    from ggufmerge.evaluate import kl_divergence, perplexity

    divergence: Facts = {}
    if reference is None:
        found = perplexity(model, text, context=context, limit=limit)
    else:
        far = kl_divergence(model, reference, text, context=context, limit=limit)
        found = far.perplexity
        divergence = {"kl_divergence": far.mean, "kl_error": far.standard_error, "same_top": far.same_top}
    return {
        "tokens": found.tokens,
        "nll": found.nll,
        "perplexity": found.value,
        "perplexity_error": found.error,
        **divergence,
    }


def _answer(model: LlamaModel, prompt: str, chat: bool, **how: Any) -> str:
    from ggufmerge.evaluate import chat_prompt, generate

    return generate(model, chat_prompt(model, prompt) if chat else prompt, **how)


def _require_better(scores: list[Facts]) -> None:
    from ggufmerge.errors import GgufmergeError

    first = {s["text"]: s for s in reversed(scores)}
    worse = [
        f"{s['model']} on {s['text']} ({s['perplexity']:.3f}, {first[s['text']]['model']} has "
        f"{first[s['text']]['perplexity']:.3f})"
        for s in scores
        if s["model"] != first[s["text"]]["model"] and not s["perplexity"] < first[s["text"]]["perplexity"]
    ]
    if worse:
        raise GgufmergeError(f"not better: {'; '.join(worse)}")


def _show_scores(scores: list[Facts], reference: str | None) -> None:
    """A row for each text and model, the models of a text below each other; changes are against the first of them."""
    from ggufmerge.cli.terminal import show_table

    models = _short_names(s["model"] for s in scores)
    texts = _short_names(s["text"] for s in scores)
    heads = ["text", "model", "perplexity", "", *(["change"] if len(models) > 1 else [])]
    heads += ["KL divergence", "same top"] if reference else []
    rows = []
    for text in texts:
        first, *_ = same_text = [s for s in scores if s["text"] == text]
        for s in same_text:
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
