"""Facts in words: what is left where a figure is null in JSON, shares, shapes, the parts that all reports have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ggufmerge.report.html.page import Section, listed, paragraph, table
from ggufmerge.text import count, size
from ggufmerge.types import TensorType

Facts = Mapping[str, Any]


def percent(share: float | None, most: int = 2) -> str:
    """A share with three digits that count, at most so many behind the point.

    >>> [percent(x) for x in (0, 0.5, 0.0123, 0.00001, None)]
    ['0 %', '50 %', '1.23 %', '0.001 %', '-']
    """
    if share is None:
        return "-"
    value = 100 * share
    if value and abs(value) < 0.01:
        return f"{value:.1g} %" if abs(value) >= 1e-4 else f"{value:.0e} %"
    digits = max(0, min(most, 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0))
    words = f"{value:.{digits}f}"
    return f"{words.rstrip('0').rstrip('.') if '.' in words else words} %"


def figure(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else f"{value:{form}}"


def seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def warnings_of(facts: Facts, kind: str = "warning") -> str:
    return listed((f"{kind}: {line}" for line in facts.get("warnings", ())), kind)


def rules_of(tensors: Sequence[Facts]) -> str:
    """Why tensors have their types: each rule once."""
    rules = sorted({(tensor["type"], tensor["why"]) for tensor in tensors if tensor["why"]})
    if not rules:
        return ""
    return paragraph("Why tensors have their types:") + listed(f"{kind}: {why}" for kind, why in rules)


def weights(tensor: Facts) -> int:
    return prod(tensor["shape"])


def bits_of(name: str) -> float:
    """How many bits a weight has in a type."""
    return TensorType.parse(name).bits_per_weight


def types_table(tensors: Sequence[Facts], more: Sequence[tuple[str, Mapping[str, str]]] = ()) -> str:
    """How much of a model each type has; more: further columns, by type."""
    groups: dict[str, list[Facts]] = {}
    for tensor in tensors:
        groups.setdefault(tensor["type"], []).append(tensor)
    every = sum(map(weights, tensors)) or 1
    rows = []
    for name, group in sorted(groups.items(), key=lambda item: -sum(map(weights, item[1]))):
        of = sum(map(weights, group))
        rows.append(
            [
                name,
                f"{bits_of(name):.4g}",
                str(len(group)),
                count(of),
                percent(of / every, 1),
                size(sum(tensor["nbytes"] for tensor in group)),
                *(column.get(name, "-") for _, column in more),
            ]
        )
    heads = ["type", "bits/weight", "tensors", "weights", "share", "size", *(head for head, _ in more)]
    return table(heads, rows, numbers=len(heads) - 1)


def span(values: Sequence[Any]) -> str:
    """Every value that something has: one, the ends of a range, or all of few."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) == len(values) and len(values) > 1:
        return f"{min(numbers):.4g} to {max(numbers):.4g}"
    words = {True: "yes", False: "no", None: "none"}
    told = [
        words[v] if v is None or isinstance(v, bool) else f"{v:.4g}" if isinstance(v, int | float) else str(v)
        for v in values[:5]
    ]
    return ", ".join(told)


def parents_table(parents: Sequence[Facts]) -> str:
    """The models that went in, with the parameters that are theirs."""
    settings = list(dict.fromkeys(name for parent in parents for name in parent["settings"]))
    heads = ["", "model", "name", "type", *settings, "size"]
    rows = []
    for number, parent in enumerate(parents):
        adapters = "".join(f" + {a['path']} ({a['strength']:.4g})" for a in parent["adapters"])
        own = [span(parent["settings"][name]) if name in parent["settings"] else "-" for name in settings]
        label = parent["label"] if parent["label"].count("+") or not adapters else parent["label"] + adapters
        rows.append([f"#{number}", label, parent["name"], parent["type"], *own, size(parent["nbytes"])])
    return table(heads, rows, numbers=1)


def files_section(facts: Facts) -> Section:
    """Every file that was read, with its checksum."""
    rows = [[source["path"], source["sha256"]] for source in facts["sources"]]
    return Section("Files that were read", table(["file", "SHA-256"], rows) if rows else "")
