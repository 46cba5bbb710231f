"""How facts look on a terminal and in a pipe: tables, sizes, plans, reports."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ggufmerge.architectures.stacks import kind_of, layer_of
from ggufmerge.cli import complaints, voice
from ggufmerge.cli.facts import facts, plain_json, space, wants_space, warn
from ggufmerge.text import count, folded, printable, shortened, size

if TYPE_CHECKING:
    from ggufmerge.engine import BuildReport, Plan
    from ggufmerge.planning.opened import Opened
    from ggufmerge.planning.plan import PlannedTensor
    from ggufmerge.planning.survival import Survival, TypeSurvival

Row = Sequence[str]
_NARROW = 12  # characters that are left of a name


def console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False)


def say(*lines: str) -> None:
    """Print lines on standard output, each as one line whatever it holds."""
    for line in lines:
        if wants_space():
            typer.echo()
        typer.echo(printable(line))


def ask(question: str) -> str:
    """The line that is typed behind a question. EOFError where nothing is typed any more."""
    if wants_space():
        typer.echo()
    typer.echo(printable(question), nl=False)
    return input()


def print_json(value: Mapping[str, Any]) -> None:
    """Print the facts of a command as JSON, after those that all commands begin with (`cli.facts`).

    Its warnings go to standard error, too, and those that were shown before are among its facts.
    """
    for part in (*value.get("stages", ()), value):
        show_warnings(part.get("warnings", ()))
    typer.echo(facts(value))


def print_plain_json(value: Any) -> None:
    """Print JSON that is no facts of a command."""
    typer.echo(plain_json(value))


def tell(lines: Iterable[str], indent: str = "  ") -> None:
    """Print sentences: each as one line in a file or pipe, on a terminal folded between words, the rest indented."""
    out = console()
    for line in lines:
        if out.is_terminal:
            say(*folded(printable(line), max(20, out.width - 1), indent))
        else:
            say(line)


def show_table(heads: Row, rows: Iterable[Row], numbers: int = 0, names: Sequence[int] = ()) -> None:
    """Rows under heads, the last `numbers` columns set to the right: a table that fits the terminal, or, in a file or
    pipe, one line a row with columns aligned by spaces and nothing folded. A blank line stands before and behind it.

    names: columns whose cells lose their middle, and stay in one line, where the table would be too wide; those that
    come first in it give way first.
    """
    lines = [[printable(cell) for cell in row] for row in rows]
    out = console()
    space()
    if wants_space():
        typer.echo()
    if out.is_terminal:
        if names:
            lines = _fitted(heads, lines, names, out.width)
        _show_folded(out, heads, lines, numbers)
    else:
        _show_plain(heads, lines, numbers)
    space()


def _fitted(heads: Row, lines: list[list[str]], names: Sequence[int], width: int) -> list[list[str]]:
    """The lines, with the columns `names` shortened, the first of them first, until all columns have room."""
    widths = [max(len(line[column]) for line in [list(heads), *lines]) for column in range(len(heads))]
    for name in names:
        over = sum(widths) + 2 * len(widths) - 1 - width
        widths[name] = max(min(widths[name], _NARROW), widths[name] - max(over, 0))
    return [[shortened(c, widths[i]) if i in names else c for i, c in enumerate(line)] for line in lines]


def _show_folded(out: Console, heads: Row, lines: Sequence[Row], numbers: int) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column, head in enumerate(heads):
        right = column >= len(heads) - numbers
        # names stay in one piece, and what stands behind them is folded, unless they are very long
        whole = right or (column == 0 and max((len(line[0]) for line in lines), default=0) <= out.width // 2)
        table.add_column(head, justify="right" if right else "left", overflow="fold", no_wrap=whole)
    for line in lines:
        table.add_row(*map(Text, line))
    out.print(table)


def _show_plain(heads: Row, lines: Sequence[Row], numbers: int) -> None:
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
    for line in [heads, *lines]:
        cells = [
            cell.rjust(width) if column >= len(heads) - numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())


def show_warnings(warnings: Iterable[str]) -> None:
    """Print warnings on standard error, each once, and keep them for the command's JSON."""
    for warning in warnings:
        if warn(warning):
            complain(f"warning: {warning}")


def complain(line: str) -> None:
    """Print a line on standard error, as one line whatever it holds; nothing when that is closed."""
    voice.current().log(line)
    if sys.stderr is not None and sys.stderr.isatty() and console().is_terminal and wants_space():
        typer.echo()  # both are on one screen
    complaints.show(line)


def show_plan(plan: Plan, opened: Opened, *, every: bool = False, tried: bool = False) -> None:
    """The models, the parameters that hold everywhere, what happens to each kind of tensor (`every`: to each tensor),
    and what was decided without asking. tried: what would be left of the changes is known better than headers tell.
    """
    from ggufmerge.planning.survival import unknown
    from ggufmerge.running.effort import is_one_tensor

    tell(
        [
            f"{plan.method} of {len(plan.sources)} {plan.architecture} models into one {plan.file_type} file: "
            f"{count(plan.parameters)} parameters"
        ]
    )
    sources = [(f"#{i}", s.label, s.name, s.file_type, size(s.nbytes)) for i, s in enumerate(plan.sources)]
    if len(sources) > 1:
        sources.append(("", "together", "", "", size(sum(s.nbytes for s in plan.sources))))
    # the file is what the user knows a model by, so it keeps its name as long as possible
    show_table(("", "model", "name", "type", "size"), sources, numbers=1, names=(2, 1))
    merged = [t for t in plan.tensors if t.action == "merge"]
    told = _told(merged)
    common = {k: text for k, text in _ranges(merged, told).items() if len({_values(t).get(k) for t in merged}) == 1}
    if common:
        tell(["everywhere: " + ", ".join(f"{k} {v}" for k, v in common.items())], "  ")
    several = len({t.method for t in merged}) > 1
    groups: dict[tuple[Row, int], list[PlannedTensor]] = {}
    for tensor in plan.tensors:
        name = tensor.name if every else kind_of(tensor.name)
        shape = " x ".join(map(str, tensor.shape))
        verb = _verb(tensor, len(plan.sources), several=several, same=is_one_tensor(tensor, opened))
        # tensors that stand in one line have the same models, so their parameters can be set side by side
        counts = "/".join(f"{k} {len(v)}" for k, v in _values(tensor).items())
        groups.setdefault(((name, shape, str(tensor.type), verb, counts), _shift(tensor)), []).append(tensor)
    rows = []
    for ((name, shape, kind, verb, _), shift), tensors in groups.items():
        verb += _layers_of(tensors) if shift else ""
        own = ", ".join(f"{k} {v}" for k, v in _ranges(tensors, told).items() if k not in common)
        title = f"{len(tensors)} x {name}" if len(tensors) > 1 else tensors[0].name
        rows.append((title, shape, kind, f"{verb}: {own}" if own and not verb.endswith("models") else verb))
    show_table(("tensor", "shape", "type", "what happens"), rows)
    show_notes((t.name, decision) for t in plan.tensors for decision in t.decisions)
    if not tried and (line := unknown(plan.tensors, plan.sources)):
        tell([f"note: {line}"], "  ")
    show_warnings([*plan.warnings, *(() if tried else plan.expectations)])


def _verb(tensor: PlannedTensor, models: int, *, several: bool, same: bool) -> str:
    """What happens to a tensor and to which models' tensors; `several`: by which of the recipe's methods, too.

    same: all inputs are one and the same, which the reader might think to be changed.
    """
    origins = " ".join(f"#{i.source}" for i in tensor.inputs)
    if tensor.action == "merge":
        merged = f"merged by {tensor.method}" if several else "merged"
        if same:
            return f"{merged}: the same in all models"
        return merged if {i.source for i in tensor.inputs} == set(range(models)) else f"{merged} from {origins}"
    verb = {"copy": "copied", "convert": "converted"}[tensor.action]
    return f"{verb} from {origins}"


def _shift(tensor: PlannedTensor) -> int:
    """By how many layers a tensor that is copied or converted was further down in its model."""
    own = layer_of(tensor.name)
    theirs = layer_of(tensor.inputs[0].tensor)
    return 0 if own is None or theirs is None or tensor.action == "merge" else theirs - own


def _layers_of(tensors: Sequence[PlannedTensor]) -> str:
    """The layers that tensors were in: layers 4 to 10."""
    layers = [layer_of(tensor.inputs[0].tensor) for tensor in tensors]
    return f" layer {layers[0]}" if len(layers) == 1 else f" layers {layers[0]} to {layers[-1]}"


def _values(tensor: PlannedTensor) -> dict[str, tuple[Any, ...]]:
    """The parameters of a merged tensor: those of the models have a value for each, the others one."""
    return {**tensor.models, **{name: (value,) for name, value in tensor.shared.items()}}


def _told(merged: Sequence[PlannedTensor]) -> set[str]:
    """The parameters that say something: those that are at their default in every tensor say nothing."""
    from ggufmerge.methods import method

    told = set()
    for tensor in merged:
        defaults = {q.name: q.default for q in method(tensor.method).parameters}
        for name, values in _values(tensor).items():
            if any(value is not None and value != defaults[name] for value in values):
                told.add(name)
    return told


def _ranges(tensors: Sequence[PlannedTensor], told: set[str]) -> dict[str, str]:
    """For each parameter that says something its value for these tensors: one per model, with the model's number,
    unless they agree; from-to where tensors differ.
    """
    seen: dict[str, list[tuple[Any, ...]]] = {}
    models: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        if tensor.action == "merge":
            for key, value in _values(tensor).items():
                if key in told:
                    seen.setdefault(key, []).append(value)
                    if key in tensor.models:
                        of = tuple(i.source for i in tensor.inputs)[len(tensor.inputs) - len(value) :]
                        models[key] = of if models.get(key, of) == of else ()
    out = {}
    for key, values in seen.items():
        if len({len(value) for value in values}) > 1:
            continue  # not of the same models, so there is nothing that holds for all
        columns = [list(dict.fromkeys(column)) for column in zip(*values, strict=True)]
        if all(column == columns[0] for column in columns):
            columns = columns[:1]
        texts = list(map(range_text, columns))
        if len(texts) > 1 and len(models.get(key, ())) == len(texts):
            texts = [f"#{source} {text}" for source, text in zip(models[key], texts, strict=True)]
        out[key] = " ".join(texts)
    return out


def range_text(values: Sequence[Any]) -> str:
    """One value, the ends of a range of numbers (as they follow each other if they rise or fall), or all of several."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numbers or len(values) == 1:
        return "/".join(map(value_text, values))
    ends = (values[0], values[-1])
    if set(ends) != {min(values), max(values)}:
        ends = (min(values), max(values))
    return f"{value_text(ends[0])}..{value_text(ends[1])}"


def value_text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)


def show_build(report: BuildReport, name: str | None = None) -> None:
    """What a build did, in a few lines. name: of the result where it is no file that the user knows."""
    made = [("merged", report.merged), ("converted", report.converted), ("copied byte for byte", report.copied)]
    what = ", ".join(f"{n} {verb}" for verb, n in made if n)
    shards = f" in {len(report.files)} shards" if len(report.files) > 1 else ""
    total = f"{report.file_type}, {count(report.parameters)} parameters, {size(report.nbytes)}{shards}"
    tell([f"{name or report.output}: {total}"])
    rate = report.source_bytes / max(report.seconds, 1e-9) / 1e6
    tensors = sum(n for _, n in made)
    tell([f"{tensors} tensors: {what}; {report.seconds:.1f} s, {rate:.0f} MB/s of sources"])
    if report.resumption:
        tell([f"note: {report.resumption}"])
    elif report.resumed:
        tell([f"{report.resumed} tensors were taken over from an interrupted build"])
    show_kept(report)
    show_notes([*report.notes, *((name, h.note) for name, found in report.heeded.items() for h in found)], tensors)


def show_kept(report: BuildReport) -> None:
    """What is left of the changes in each type, a line each."""
    tell(found.line() for found in report.kept)


def survival_facts(survival: Survival) -> dict[str, Any]:
    """What is left of a change as numbers for JSON; a share of None where nothing was changed."""
    share = survival.share if survival.energy else None
    return {"share": share, "noise": survival.noise, "uncertainty": survival.uncertainty}


def kept_facts(kept: Iterable[TypeSurvival]) -> list[dict[str, Any]]:
    """The same of each type, and what it would be in wider ones."""
    return [
        {
            "type": found.type,
            "tensors": found.tensors,
            "stochastic": found.stochastic,
            **survival_facts(found.survival),
            "wider": {name: {**survival_facts(s), "nbytes": found.sizes.get(name)} for name, s in found.wider.items()},
        }
        for found in kept
    ]


def show_notes(notes: Iterable[tuple[str, str]], tensors: int | None = None) -> None:
    """(tensor, what was decided) pairs, as `noted` puts them into lines. tensors: how many there are in all."""
    from ggufmerge.report.notes import noted

    tell(noted(notes, tensors), "  ")
