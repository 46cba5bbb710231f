"""`ggufmerge eval`: perplexity, divergence and answers of models, side by side, and what to think of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.options import Json, Overwrite, Threads, model_argument, model_option
from ggufmerge.cli.report import Report

if TYPE_CHECKING:
    from ggufmerge.evaluation.lineup import Lineup
    from ggufmerge.evaluation.scores import Score
    from ggufmerge.evaluation.verdict import Verdict

Facts = dict[str, Any]

HELP = """Is it good? Measure models with llama.cpp: how well they predict texts, how far they are from a reference,
what they say. Lower perplexity is better. Needs the optional extra: pip install 'ggufmerge\\[llama]'.

Without --text they read texts that come with the program, in five languages and Python.

The models that a merge was made from are measured, too, if they are found.

A MODEL is a GGUF file, with LoRA adapters if wanted: base.gguf+adapter.gguf=0.5.

[bold]Examples[/bold]

  ggufmerge eval merged.gguf --quick

  ggufmerge eval base.gguf merged.gguf --text prose.txt --text code.txt

  ggufmerge eval merged-Q4_K_M.gguf --reference merged-F16.gguf --context 512

  ggufmerge eval merged.gguf --prompt "Why is the sky blue?" --temperature 0.7 --seed 1

  ggufmerge eval base.gguf merged.gguf --text prose.txt --require-better

  ggufmerge eval merged.gguf --report scores.html

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
            "means all of those, and french the French one.",
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
        bool, typer.Option("--chat/--no-chat", help="Ask a question, or let the prompt be continued as it is.")
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
    report: Report = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    from ggufmerge.cli.eval_progress import EvalProgress
    from ggufmerge.cli.report import ReportFile
    from ggufmerge.cli.terminal import console, print_json
    from ggufmerge.evaluation.libllama import library
    from ggufmerge.evaluation.lineup import check_models, line_up
    from ggufmerge.evaluation.scores import BUILT_IN, measure, read_texts
    from ggufmerge.evaluation.texts import QUICK

    measured = bool(text) or prompt is None or quick or reference is not None or require_better
    names = [*([] if reference is None else [reference]), *models]
    page = ReportFile(report, overwrite=overwrite)
    page.check([])
    check_models(names)
    page.check_models(names, map(Path, text or ()))
    texts = read_texts(text or [BUILT_IN]) if measured else {}
    library()  # says that llama.cpp is missing before files of gigabytes are looked for
    wanted = measured and reference is None if parents is None else parents
    with console(stderr=True).status("looking for the models" + " and those that they were made from" * wanted):
        lineup = line_up(names, relatives=wanted)
    if require_better and len(lineup.named) == 1 and lineup.base_of(lineup.named[0]) is None:
        raise typer.BadParameter("needs models to compare: name the base first", param_hint="--require-better")
    with EvalProgress(len(lineup.models)) as progress:
        found = measure(
            lineup,
            texts,
            reference=reference,
            context=context,
            tokens=QUICK if quick and tokens is None else tokens,
            prompt=prompt,
            chat=chat,
            answer_tokens=answer_tokens,
            temperature=temperature,
            seed=seed,
            threads=threads,
            watcher=progress,
        )
    scores = list(map(_score_facts, found.scores))
    facts = {
        "context": context,
        "reference": reference,
        "models": [{"model": entry.label, "role": entry.role} for entry in lineup.models],
        "missing": lineup.missing,
        "scores": scores,
        "verdicts": [_verdict_facts(lineup, verdict, list(texts)) for verdict in found.verdicts],
        "answers": [{"model": m, "prompt": prompt, "answer": answer} for m, answer in found.answers.items()],
    }
    if json:
        print_json(facts)
    else:
        if scores:
            _show_scores(scores, reference)
            _show_verdicts(lineup, found.verdicts)
        for model, answer in found.answers.items():
            _show_answer(model, str(prompt), answer)
    page.write(facts, json=json)
    if require_better:
        found.require_better()


def _score_facts(score: Score) -> Facts:
    """A score for JSON."""
    found, far = score.perplexity, score.divergence
    facts = {
        "model": score.model,
        "text": score.text,
        "tokens": found.tokens,
        "nll": found.nll,
        "perplexity": found.value,
        "perplexity_error": found.error,
    }
    if far is not None:
        facts |= {"kl_divergence": far.mean, "kl_error": far.standard_error, "same_top": far.same_top}
    return facts


def _verdict_facts(lineup: Lineup, verdict: Verdict, texts: Sequence[str]) -> Facts:
    """A verdict for JSON, with the texts as they were given; gains are in nats a token."""
    from ggufmerge.files.shards import short_names

    given = {short: text for text, short in short_names(texts).items()}
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


def _show_verdicts(lineup: Lineup, verdicts: Sequence[Verdict]) -> None:
    """Below the table: how good each model is, what that means, and which models were not found."""
    from ggufmerge.cli.terminal import say
    from ggufmerge.files.shards import short_name

    for verdict in verdicts:
        say(f"{short_name(verdict.model)}:")
        for part in verdict.parts:
            _show_paragraph(f"  {part}")
        if verdict.nonsense or any(on.base is not None and on.base.order == "worse" for on in verdict.texts):
            _show_paragraph('  what helps: "When a merge is worse" in docs/evaluation.md')
    if verdicts:
        _show_paragraph("± is one standard error; what differs by less than two, token by token, is as good.")
    for name, missing in lineup.missing.items():
        _show_paragraph(
            f"note: not all models that {short_name(name)} was made from were found; give their paths to compare them:"
        )
        for line in missing:
            say(f"  {line}")


def _show_paragraph(text: str) -> None:
    """Running text, folded between words on a terminal; blanks in front of it come before each line."""
    from ggufmerge.cli.terminal import tell

    tell([text], " " * (len(text) - len(text.lstrip())))


def _show_scores(scores: list[Facts], reference: str | None) -> None:
    """A row for each text and model, the models of a text below each other; changes are against the first of them."""
    from ggufmerge.cli.terminal import show_table
    from ggufmerge.files.shards import short_names

    models = short_names(s["model"] for s in scores)
    texts = short_names(s["text"] for s in scores)
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


def _show_answer(model: str, prompt: str, answer: str) -> None:
    """Who was asked, then the answer as running text without what could control the terminal."""
    from ggufmerge.cli.facts import space
    from ggufmerge.cli.terminal import say, tell
    from ggufmerge.files.shards import short_name

    space()
    say(f"{short_name(model)}: {prompt}")
    tell(answer.strip().splitlines() or [""], "")
