"""The last lines of a plan: what the build will cost, what is in its way, and what to worry about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggufmerge.engine import Plan
    from ggufmerge.engine.documents import Documents
    from ggufmerge.engine.forecast import Forecast
    from ggufmerge.files.sharded import SplitLimit
    from ggufmerge.planning.opened import Opened

_INDENT = 9  # characters of the headings
_BUSY = 1.6  # times as long, from which on it is said


@dataclass(frozen=True)
class Place:
    """Where a result would go and how it would be built, as the command line says. output: None when it says nothing.

    measure: whether the command measures what writing costs (`bake`, `quantize`).
    """

    output: Path | None = None
    split: SplitLimit | None = None
    overwrite: bool = False
    chunk: int | None = None
    threads: int | None = None
    measure: bool = False

    def forecast(self, documents: Documents) -> Forecast:
        """What a build there will cost."""
        from ggufmerge.engine.forecast import forecast

        return forecast(
            documents,
            self.output,
            threads=self.threads,
            chunk=self._chunk(),
            split=self.split,
            measure=self.measure,
            try_changes=True,
        )

    def check(self, documents: Documents) -> None:
        """Refuse what the build would refuse of the place; nothing without one."""
        from ggufmerge.engine.forecast import check_output

        if self.output is not None:
            check_output(documents, self.output, split=self.split, overwrite=self.overwrite, chunk=self._chunk())

    def of_plan(self, plan: Plan, opened: Opened, facts: dict[str, Any] | None = None) -> None:
        """The end of a dry run without a recipe: print the forecast with `facts`, or show it; then `check`."""
        from ggufmerge.cli.terminal import print_json, show_warnings
        from ggufmerge.engine.documents import documents_of

        documents = documents_of(plan, opened)
        forecast = self.forecast(documents)
        if facts is None:
            show_warnings(expected(plan, forecast))
            show_forecast(forecast, plan, self)
        else:
            warnings = [*facts["warnings"], *expected(plan, forecast)]
            print_json({**facts, **tried(forecast), "warnings": warnings, "forecast": forecast.to_json()})
        self.check(documents)

    def _chunk(self) -> int:
        from ggufmerge.running.run import DEFAULT_CHUNK

        return self.chunk or DEFAULT_CHUNK


def expected(plan: Plan, forecast: Forecast) -> Sequence[str]:
    """What rounding will do to the changes as far as headers tell, where nothing was tried out."""
    return plan.expectations if forecast.trial is None else ()


def tried(forecast: Forecast) -> dict[str, Any]:
    """The figures of a trial for JSON: null without one."""
    from ggufmerge.cli.terminal import kept_facts

    return {"kept": None if forecast.trial is None else kept_facts(forecast.trial.kept)}


def show_forecast(forecast: Forecast, plan: Plan, place: Place) -> None:
    """A line for each question of somebody who plans, and one for each worry, last on the screen."""
    from ggufmerge.cli.facts import space
    from ggufmerge.cli.terminal import tell

    space()
    for head, lines in _lines(forecast, plan, place):
        for number, line in enumerate(lines):
            tell([f"{'' if number and head != 'worry' else head:<{_INDENT}}{line}"], " " * _INDENT)


def _lines(forecast: Forecast, plan: Plan, place: Place) -> list[tuple[str, Sequence[str]]]:
    from ggufmerge.text import count, size

    files = f"in {len(forecast.sizes)} shards, " if len(forecast.sizes) > 1 else ""
    total = f"{size(forecast.nbytes)} ({forecast.nbytes:,} bytes), {files}{plan.file_type}"
    free = f"{size(forecast.free)} free in {forecast.folder}" if forecast.free is not None else ""
    if forecast.free is not None and forecast.free < forecast.nbytes + forecast.between:
        free = f"too little: {free}"
    between = f"; {size(forecast.between)} more while it runs, for the models between" if forecast.between else ""
    memory = f"about {size(forecast.own)}"
    if forecast.mapped:
        memory += f", and up to {size(forecast.mapped)} of model files as long as there is room"
    return [
        ("result", [f"{total}, {count(plan.parameters)} parameters"]),
        ("change", forecast.trial.lines() if forecast.trial is not None else []),
        ("time", _time(forecast)),
        ("memory", [memory]),
        ("disk", [free + between] if free else []),
        ("there", list(forecast.there)),
        ("worry", list(forecast.worries)),
    ]


def _time(forecast: Forecast) -> list[str]:
    from ggufmerge.text import duration

    threads = "1 thread" if forecast.threads == 1 else f"{forecast.threads} threads"
    words = list(dict.fromkeys(kind.split()[1] for kind in forecast.guessed if " " in kind))
    unmeasured = f" (never measured on this machine: {', '.join(words)})" if words else ""
    guess = f"; a guess{unmeasured}" if forecast.guessed else ""
    once = []
    if forecast.busy > _BUSY:
        likely = duration((forecast.seconds + forecast.compiling) * forecast.busy)
        once = [f"if the machine stays as busy as it is now, rather {likely}"]
    if forecast.compiling >= 1:
        once = [
            f"and about {duration(forecast.compiling)} once, to compile kernels that are new on this machine",
            *once,
        ]
    return [f"about {duration(forecast.seconds)} on {threads}{guess}", *once]
