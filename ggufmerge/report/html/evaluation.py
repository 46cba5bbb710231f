"""The report of `eval`: how well models predict texts, what they answer, and what to think of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ggufmerge.files.shards import short_name, short_names
from ggufmerge.report.html.page import Section, block, listed, page, paragraph, table, text
from ggufmerge.report.html.plots import PALETTE, Bar, Drawings
from ggufmerge.report.html.words import Facts, figure, percent, warnings_of
from ggufmerge.text import printable, series


def eval_report(facts: Facts) -> str:
    """A page of the facts of `eval`."""
    drawings = Drawings()
    scores = facts["scores"]
    models = short_names(model["model"] for model in facts["models"])
    texts = short_names(score["text"] for score in scores)
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(models)}
    verdicts = facts["verdicts"]
    named = [m["model"] for m in facts["models"] if m["role"] == "model"]
    measured = [models[name] for name in named if name != facts["reference"] or len(named) == 1]
    tokens = sum(score["tokens"] for score in scores if score["model"] == scores[0]["model"]) if scores else 0
    first = (
        f"{models.get(verdicts[0]['model'], verdicts[0]['model'])}: {verdicts[0]['sentence'].split('; ')[0]}"
        if verdicts
        else f"{series(measured)}: {len(texts)} texts read"
        if scores
        else f"{series(measured)}: asked"
    )
    told = [f"{len(texts)} texts of {tokens:,} tokens, in windows of {facts['context']}"] if scores else []
    return page(
        f"{series(measured)}: how good?",
        [first, *told],
        [
            Section("What it means", _meaning(facts, models)),
            Section("Models", _models(facts, models)),
            Section("How well they predict the texts", _losses(facts, models, texts, colours, drawings)),
            Section("What was gained and what was kept", _gains(facts, models, texts, colours, drawings)),
            Section("Perplexity", _perplexities(facts, models, texts)),
            Section("Answers", _answers(facts, models)),
        ],
        f"ggufmerge {facts['version']}",
    )


def _meaning(facts: Facts, models: Mapping[str, str]) -> str:
    lines = [f"{models.get(v['model'], v['model'])}: {v['sentence']}" for v in facts["verdicts"]]
    if lines:
        lines.append("± is one standard error; what differs by less than two, token by token, is as good.")
    missing = [
        f"note: not all models that {short_name(name)} was made from were found: {', '.join(why)}"
        for name, why in facts["missing"].items()
    ]
    return warnings_of(facts) + listed(lines) + listed(missing, "note")


def _models(facts: Facts, models: Mapping[str, str]) -> str:
    roles = {"model": "measured", "base": "its base", "parent": "a parent"}
    rows = []
    for model in facts["models"]:
        role = "the reference" if model["model"] == facts["reference"] else roles.get(model["role"], model["role"])
        rows.append([models[model["model"]], role, model["model"]])
    return table(["model", "", "file"], rows)


def _losses(
    facts: Facts, models: Mapping[str, str], texts: Mapping[str, str], colours: Mapping[str, str], drawings: Drawings
) -> str:
    groups: dict[str, list[Bar]] = {name: [] for name in texts.values()}
    for score in facts["scores"]:
        if score["nll"] is None or not score["perplexity"]:
            continue
        # the perplexity is e to the loss, so its relative error is the error of the loss
        error = (score["perplexity_error"] or 0.0) / score["perplexity"]
        name = models.get(score["model"], score["model"])
        told = f"{score['nll']:.2f} ± {error:.2f}"
        groups[texts[score["text"]]].append(Bar(name, colours[score["model"]], score["nll"], error, told))
    groups = {name: bars for name, bars in groups.items() if bars}
    return drawings.bars("Loss on each text, with one standard error: less is better", groups, "nats a token")


def _gains(
    facts: Facts, models: Mapping[str, str], texts: Mapping[str, str], colours: Mapping[str, str], drawings: Drawings
) -> str:
    groups: dict[str, list[Bar]] = {name: [] for name in texts.values()}
    rows = []
    bases = set()
    for verdict in facts["verdicts"]:
        name = models.get(verdict["model"], verdict["model"])
        for on in verdict["texts"]:
            label = texts.get(on["text"], on["text"])
            if on["gain"] is not None:
                error = on["gain_error"] or 0.0
                told = f"{on['gain']:+.3f} ± {error:.3f}"
                groups.setdefault(label, []).append(Bar(name, colours[verdict["model"]], on["gain"], error, told))
                bases.add(models.get(verdict["base"], verdict["base"]))
            kept = "-" if on["kept"] is None else f"{100 * on['kept']:.0f} %"
            rows.append(
                [
                    name,
                    label,
                    on["against_base"] or "-",
                    on["among_parents"] or "-",
                    short_name(on["best_parent"]) if on["best_parent"] else "-",
                    figure(on["best_parent_gain"], "+.3f"),
                    kept
                    + (f" ± {100 * on['kept_error']:.0f} %" if on["kept_error"] is not None and kept != "-" else ""),
                ]
            )
    groups = {name: bars for name, bars in groups.items() if bars}
    heads = ["model", "text", "beside its base", "among its parents", "best parent", "its gain", "kept of it"]
    whom = series(sorted(map(str, bases)))
    return drawings.bars(f"Gain over {whom} on each text, token by token: more is better", groups, "nats a token") + (
        table(heads, rows, numbers=2) if rows else ""
    )


def _perplexities(facts: Facts, models: Mapping[str, str], texts: Mapping[str, str]) -> str:
    """A column for each model, a row for each text."""
    if not facts["scores"]:
        return ""
    by = {(score["model"], score["text"]): score for score in facts["scores"]}
    heads = ["text", *models.values()]

    def row(name: str, told: Callable[[Facts], str]) -> list[str]:
        return [texts[name], *(told(by[model, name]) if (model, name) in by else "" for model in models)]

    def perplexity(score: Facts) -> str:
        return f"{figure(score['perplexity'], '.2f')} ± {figure(score['perplexity_error'], '.2f')}"

    def divergence(score: Facts) -> str:
        if "kl_divergence" not in score:
            return ""
        return f"{figure(score['kl_divergence'], '.4f')} ± {figure(score['kl_error'], '.4f')}"

    def same(score: Facts) -> str:
        return percent(score["same_top"], 1) if "same_top" in score else ""

    numbers = len(models)
    parts = [table(heads, [row(name, perplexity) for name in texts], numbers, "Perplexity, less is better")]
    if facts["reference"]:
        whose = short_name(facts["reference"])
        parts.append(table(heads, [row(name, divergence) for name in texts], numbers, f"KL divergence from {whose}"))
        parts.append(table(heads, [row(name, same) for name in texts], numbers, f"Same likeliest token as {whose}"))
    return "".join(parts)


def _answers(facts: Facts, models: Mapping[str, str]) -> str:
    if not facts["answers"]:
        return ""
    parts = [paragraph(f"Asked: {facts['answers'][0]['prompt']}")]
    for one in facts["answers"]:
        answer = one["answer"].strip()
        parts.append(f"<h3>{text(models.get(one['model'], one['model']))}</h3>")
        parts.append(block(answer) if printable(answer) else paragraph("(nothing)", "soft"))
    return "".join(parts)
