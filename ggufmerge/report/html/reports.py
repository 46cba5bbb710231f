"""Which command has which report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ggufmerge.report.html.build import build_report
from ggufmerge.report.html.diff import diff_report
from ggufmerge.report.html.drawing import drawing
from ggufmerge.report.html.evaluation import eval_report
from ggufmerge.report.html.quantize import quantize_report

_OF: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "build": build_report,
    "merge": build_report,
    "diff": diff_report,
    "eval": eval_report,
    "quantize": quantize_report,
}
REPORTED = tuple(_OF)  # the commands that have one


def report(facts: Mapping[str, Any]) -> str:
    """The page that tells of the facts of a command: what it prints with `--json`, read. See docs/reports.md.

    The same facts give the same text. Needs the optional extra `report` (`check_drawing`). ValueError for the facts of
    a command that has no report, and for those of an error or of a dry run.
    """
    command = str(facts.get("command"))
    if command not in _OF or "error" in facts or "forecast" in facts:
        raise ValueError(f"no report is made of the facts of {command!r}: give those of {', '.join(REPORTED)}")
    with drawing():
        return _OF[command](facts)
