"""`ggufmerge diff`: how far two models are from each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.diff_map import ALIKE, UNRELATED, show_maps, shows
from ggufmerge.cli.options import All, Json, Overwrite, Threads, model_argument, model_option
from ggufmerge.cli.report import Report
from ggufmerge.text import first_few

if TYPE_CHECKING:
    from ggufmerge.engine.changes import Beside, Signal
    from ggufmerge.engine.compare import Change, Comparison, TensorDifference, Totals

HELP = """Compare the weights of two models, tensor by tensor.

[bold]Examples[/bold]

  ggufmerge diff model-f16.gguf model-Q4_K_M.gguf

  ggufmerge diff storyteller.gguf coder.gguf --base base.gguf

  ggufmerge diff a.gguf b.gguf c.gguf --base base.gguf

  ggufmerge diff storyteller.gguf coder.gguf --base base.gguf --map

  ggufmerge diff storyteller.gguf coder.gguf --base base.gguf --report diff.html

  ggufmerge diff base.gguf base.gguf+adapter.gguf --all --json

With a base, cosine and signs compare the two models' changes from it: how alike two fine-tunes are, and how often
they pull a weight in the same direction; the last lines say what that means for merging them. For quantized models
a second table says how much of a difference is rounding, and how large the change behind it is.
"""


def diff(
    first: Annotated[str, model_argument("A", "A model, with adapters if wanted (base.gguf+adapter.gguf)")],
    second: Annotated[str, model_argument("B", "The one to compare it with")],
    others: Annotated[
        list[str] | None, model_argument("[C...]", "Further ones, to compare the changes of all from --base")
    ] = None,
    base: Annotated[str | None, model_option("--base", "BASE", "The model that all were tuned from")] = None,
    threads: Threads = None,
    with_map: Annotated[
        bool, typer.Option("--map", help="Also draw where the changes are, layer by layer, and where they conflict.")
    ] = False,
    every: All = False,
    report: Report = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    from ggufmerge.cli.report import ReportFile
    from ggufmerge.cli.terminal import print_json
    from ggufmerge.engine.compare import compare

    page = ReportFile(report, overwrite=overwrite)
    models = [first, second, *(others or ())]
    page.check_models([*models, *([base] if base is not None else [])])
    result = compare(*models, base=base, threads=threads)
    if json:
        print_json(_facts(result))
    else:
        _show(result, every, with_map=with_map)
    page.write(_facts(result), json=json)


def _facts(result: Comparison) -> dict[str, Any]:
    from dataclasses import asdict

    return {"identical": result.identical, **asdict(result), "summary": summary(result)}


def _show(result: Comparison, every: bool, *, with_map: bool) -> None:
    """The models, the table, where in the depth of the model they differ, and what all of it means."""
    from ggufmerge.cli.terminal import say, show_table, tell
    from ggufmerge.files.shards import model_name

    with_base = result.base is not None
    models = dict(zip(_letters(result), (result.first, result.second, *result.others), strict=True))
    models |= {"base": result.base} if result.base else {}
    say(*(f"{letter:5} {model_name(model)}" for letter, model in models.items()))
    if not result.identical:
        heads = ["tensor", "difference", "largest", "equal", "cosine", *(["signs"] if with_base else [])]
        show_table(heads, _rows(result.tensors, with_base, every), numbers=len(heads) - 1)
        _wrapped(
            "difference: RMS of A - B over that of A; largest: absolute; equal: share of the weights; "
            + (
                "cosine: of the changes from the base (1 the same, 0 unrelated, -1 opposite); signs: share of the "
                "weights changed by both that move in the same direction (50 % is chance)"
                if with_base
                else "cosine: 1 is the same direction"
            )
        )
        _show_layers(result)
        if result.rounded:
            _show_noise(result, every)
        if with_map:
            show_maps(result, _letters(result))
    for line in summary(result):
        _wrapped(line)
    for names, which in ((result.only_first, result.first), (result.only_second, result.second)):
        if names:
            tell([f"only in {model_name(Path(which).name)}: {first_few(names, 1)}"])
    if result.left_out:
        tell([f"not in all models, and left out: {first_few(result.left_out, 1)}"])


def _letters(result: Comparison) -> list[str]:
    """What the models are called: A, B, C, ... and numbers where letters run out."""
    count = 2 + len(result.others)
    return [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(count)]


def _show_noise(result: Comparison, every: bool) -> None:
    """How much of each difference is rounding, and how the changes of several models relate."""
    from ggufmerge.cli.terminal import show_table

    letters = _letters(result)
    views: list[tuple[str, Callable[[Signal], Beside]]] = [("A - B", lambda signal: signal.difference)]
    if result.base is not None:
        views = [(f"{letter} - base", lambda signal, i=i: signal.changes[i]) for i, letter in enumerate(letters)]  # type: ignore[misc]
    for name, view in views:
        heads = [f"{name}, of it rounding", "seen", "noise", "change", "ratio", "same blocks"]
        show_table(heads, _noise_rows(result, view, every), numbers=len(heads) - 1)
    _wrapped(
        "seen: the difference; noise: RMS of the rounding errors in it; change: RMS of what is likely to be behind it, "
        "< where it is too small to be seen; ratio: change over noise; same blocks: those with the same weights"
    )
    if len(letters) > 2:
        signal = result.total.signal
        rows = [
            [a, *(_figure(signal.cosines[i][j], "{:.2f}") if i != j else "" for j in range(len(letters)))]
            for i, a in enumerate(letters)
        ]
        show_table(["cosine of changes", *letters], rows, numbers=len(letters))
        rows = [
            [a, *(_figure(100 * signal.same_signs[i][j], "{:.0f} %") if i != j else "" for j in range(len(letters)))]
            for i, a in enumerate(letters)
        ]
        show_table(["signs that agree", *letters], rows, numbers=len(letters))


def _noise_rows(result: Comparison, view: Callable[[Signal], Beside], every: bool) -> list[list[str]]:
    """A row for each kind of tensor that is not the same in both, and one for all weights."""
    rows = []
    for name, group in _groups(result.tensors, every).items():
        found = [view(t.signal) for t in group]
        if any(one.seen for one in found):
            rows.append([name, *_beside(found)])
    return [*rows, ["all", *_beside([view(result.total.signal)])]]


def _beside(found: Sequence[Beside]) -> list[str]:
    """Figures of some tensors of about the same size: root mean squares."""

    def middle(values: Sequence[float]) -> float:
        return (sum(v * v for v in values) / len(values)) ** 0.5 if values else float("nan")

    seen, noise = middle([one.seen for one in found]), middle([one.noise for one in found])
    visible = [one for one in found if one.change == one.change]
    if 2 * len(visible) >= len(found):
        size = middle([one.change for one in visible])
        change, ratio = f"{100 * size:.2f} %", f"{size / noise:.2f}" if noise else "-"
    else:
        change, ratio = f"< {100 * middle([one.limit for one in found if one.limit == one.limit]):.2f} %", "-"
    same = sum(one.identical_blocks for one in found) / len(found)
    return [f"{100 * seen:.2f} %", f"{100 * noise:.2f} %", change, ratio, _percent(same)]


def _figure(value: float, form: str) -> str:
    return form.format(value) if value == value else "-"


def _wrapped(line: str) -> None:
    """A line of running text, folded between words on a terminal."""
    from ggufmerge.cli.terminal import tell

    tell([line], "")


def _show_layers(result: Comparison) -> None:
    """A letter for each layer: how much it differs, or how much each of the two changed the base there."""
    if len(result.layers) < 2:
        return
    views: list[tuple[str, Callable[[Totals], Change | None]]] = [("", lambda t: t.difference)]
    if result.base is not None:
        views = [(", A", lambda t: t.first), (", B", lambda t: t.second)]
    for name, view in views:
        values = {number: change.relative for number, t in result.layers.items() if (change := view(t)) is not None}
        top = max(values, key=lambda number: values[number])
        if values[top] == 0:
            _wrapped(f"by layer{name}: nothing changed")
            continue
        low, high = (f"{100 * choose(values.values()):.2f}" for choose in (min, max))
        line = sparkline(list(values.values()), blocks=shows(_BLOCKS))
        _wrapped(f"by layer{name}: {line} {low} to {high} %, most in {top}")


_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", "_.:-=+*#"


def sparkline(values: Sequence[float], *, blocks: bool = True) -> str:
    """A letter for each value, from nothing to the largest one; blocks: of Unicode, else of ASCII.

    >>> sparkline([0, 1, 2, 4]), sparkline([0, 1, 2, 4], blocks=False)
    ('▁▃▅█', '_:=#')
    """
    from math import isfinite

    letters = _BLOCKS if blocks else _ASCII
    top = max((v for v in values if isfinite(v)), default=0.0) or 1.0
    last = len(letters) - 1
    return "".join(letters[round(last * min(v / top, 1.0))] if isfinite(v) else letters[-1] for v in values)


def summary(result: Comparison) -> list[str]:
    """What the figures mean, in a few sentences."""
    from math import isnan

    from ggufmerge.text import count

    total = result.total
    lines = []
    if not result.tensors:
        return ["A and B have no tensor in common"]
    types = sum(t.types[0] != t.types[1] for t in result.tensors)
    kinds = f"; {types} are stored in another type" if types else ""
    if result.identical:
        lines.append(f"identical: all {count(total.values)} weights of {len(result.tensors)} tensors are equal{kinds}")
    else:
        same = sum(t.identical for t in result.tensors)
        lines.append(
            f"in sum: B differs from A by {_percent(total.difference.relative)} of A's size, in "
            f"{_percent(total.difference.changed)} of {count(total.values)} weights; "
            f"{same} of {len(result.tensors)} tensors are identical{kinds}"
        )
    if result.rounded and result.base is None and not result.identical:
        lines.append(f"of it {_told(total.signal.difference)}")
    if total.first is not None and total.second is not None:
        for name, change, beside in zip("AB", (total.first, total.second), total.signal.changes, strict=False):
            line = (
                f"{name} changes the base by {_percent(change.relative)}, in {_percent(change.changed)} of the weights"
            )
            lines.append(line + (f": of it {_told(beside)}" if result.rounded and change.relative else ""))
        lines += _meaning(result)
        # rounding to another type is the same in both where they are alike, so it looks like a common part
        rounded = [t for t in result.tensors if t.types[0] == t.types[1] != t.base_type and not isnan(t.cosine)]
        if rounded and total.cosine >= UNRELATED and isnan(total.signal.cosines[0][1]):
            lines.append(
                f"careful: A and B are {rounded[0].types[0]} and the base is {rounded[0].base_type}, so both changes "
                f"hold the same rounding and look more alike than they are; compare with a base in their type "
                f"(ggufmerge quantize makes it)"
            )
    keys = ", ".join(result.metadata[:5]) + (", ..." if len(result.metadata) > 5 else "")
    lines.append(f"metadata: {len(result.metadata)} different ({keys})" if keys else "metadata: the same")
    return lines


def _told(beside: Beside) -> str:
    """How much of a difference is a change and how much is noise."""
    from math import isnan

    if isnan(beside.change):
        return (
            f"rounding is so much that no change of less than about {_percent(beside.limit)} can be seen; "
            f"{_percent(beside.identical_blocks)} of the blocks are the same"
        )
    unsure = f" (give or take {_percent(beside.error)})" if beside.error else ""
    return (
        f"a change of {_percent(beside.change)}{unsure} and rounding of {_percent(beside.noise)}; "
        f"{_percent(beside.identical_blocks)} of the blocks are the same"
    )


def _meaning(result: Comparison) -> list[str]:
    """What the cosine of two changes says about merging them."""
    from math import isnan

    total = result.total
    if isnan(total.cosine):
        return ["one of the two is the base itself, so there are no two changes to relate"]
    cosine, signs, freed = total.cosine, total.same_sign, ""
    if result.rounded and not isnan(total.signal.cosines[0][1]):
        cosine, signs = total.signal.cosines[0][1], total.signal.same_signs[0][1]
        freed = ", freed of rounding"
    if abs(cosine) < UNRELATED:
        found = "are unrelated: they will add up without conflict"
    elif cosine < 0:
        found = "pull against each other: each takes a part of the other away"
    elif cosine < ALIKE:
        found = "have a part in common, which counts twice when they are added: use ties, or weights below 1"
    else:
        found = "are largely the same: take one of the two, or weights that sum to 1"
    return [f"the two changes {found} (cosine {cosine:.3f}, {100 * signs:.1f} % of signs agree{freed})"]


def _percent(share: float) -> str:
    """A share with as many digits as show that it is neither nothing nor all.

    >>> [_percent(x) for x in (0, 0.5, 0.00001, 0.99999)]
    ['0 %', '50.0 %', '0.001 %', '99.999 %']
    """
    percent = 100 * share
    if percent in (0, 100):
        return f"{percent:.0f} %"
    edge = min(percent, abs(100 - percent))
    return f"{percent:.1f} %" if edge >= 0.05 else f"{percent:.3f} %" if edge >= 0.0005 else f"{percent:.2g} %"


def _groups(tensors: Sequence[TensorDifference], every: bool) -> dict[str, list[TensorDifference]]:
    """Tensors of one kind together, or each by itself, by what their row is called."""
    from ggufmerge.architectures.stacks import kind_of

    groups: dict[str, list[TensorDifference]] = {}
    for t in tensors:
        groups.setdefault(t.name if every else kind_of(t.name), []).append(t)
    return {group[0].name if len(group) == 1 else f"{len(group)} x {kind}": group for kind, group in groups.items()}


def _rows(tensors: Sequence[TensorDifference], with_base: bool, every: bool) -> list[list[str]]:
    """A row for each kind of tensor, with the means of its tensors' figures (the largest of the largest)."""
    rows = []
    for name, group in _groups(tensors, every).items():
        if all(t.identical for t in group):
            row = [name, "identical", "", "", "", *([""] if with_base else [])]
        else:
            row = [name, _share(group, "relative"), f"{max(t.largest for t in group):.3g}", _share(group, "equal")]
            row.append(_mean(group, "cosine"))
            if with_base:
                row.append(_share(group, "same_sign"))
        rows.append(row)
    return rows


def _mean(group: Sequence[Any], figure: str) -> str:
    values = [v for t in group if (v := getattr(t, figure)) == v]
    if not values:
        return "-"
    mean = sum(values) / len(values)
    return f"{mean:.3f}" if abs(mean) < 0.999 else f"{mean:.6f}"  # 1.000 would look like the same


def _share(group: Sequence[Any], figure: str) -> str:
    values = [v for t in group if (v := getattr(t, figure)) == v]
    return f"{100 * sum(values) / len(values):.2f} %" if values else "-"
