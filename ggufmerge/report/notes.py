"""Decisions that were taken for many tensors, as few lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def noted(notes: Iterable[tuple[str, str]], tensors: int | None = None) -> list[str]:
    """(tensor, what was decided) pairs as a line for each decision, however many tensors it was taken for.

    Decisions that differ in their figures only are one, with the smallest and the largest of each figure.
    tensors: how many there are in all.
    """
    grouped: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}
    for name, note in notes:
        grouped.setdefault(tuple(_FIGURE.split(note)), []).append((name, _FIGURE.findall(note)))
    lines = []
    for words, found in grouped.items():
        figures = [_span(column) for column in zip(*(figures for _, figures in found), strict=True)]
        note = "".join(word + figure for word, figure in zip(words, [*figures, ""], strict=True))
        name, count = found[0][0], len(found)
        if count == 1:
            lines.append(f"note: {name}: {note}")
        elif tensors is None:
            lines.append(f"note: {name} and {count - 1} more: {note}")
        else:
            lines.append(f"note: {count} of {tensors} tensors ({name}, ...): {note}")
    return lines


_FIGURE = re.compile(r"[-+]?\d+\.\d+")


def _span(figures: Sequence[str]) -> str:
    """The smallest and the largest of some figures, as they are written."""
    low, high = min(figures, key=float), max(figures, key=float)
    return low if float(low) == float(high) else f"{low}..{high}"
