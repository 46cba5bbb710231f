"""What a run tells about itself while it works; the command line draws it, a library user may ignore it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ggufmerge.running.rates import Measured


class Progress:
    """Receiver of a run's events; every method does nothing, override what is of use. Called by the main thread.

    `advance` and `taken_over` together come to the `total` of `begin` when all is done. Units of work are estimates of
    processor time, so equal parts of the total take about equal times.
    """

    def warn(self, warnings: Sequence[str]) -> None:
        """What the user should know before work starts, one line each."""

    def begin(self, total: int, tensors: int) -> None:
        """Work starts: the units of work and the number of tensors, including those that an earlier run has made."""

    def taken_over(self, total: int, tensors: int) -> None:
        """So much of both was done by an earlier run."""

    def compiling(self, kernels: Sequence[str], seconds: float) -> None:
        """These kernels ("write Q6_K") are compiled, which happens once on a machine and takes about so long."""

    def phase(self, text: str) -> None:
        """What is being done outside the tensors: reserving space, verifying."""

    def tensor(self, name: str) -> None:
        """Work on this tensor starts."""

    def advance(self, units: int) -> None:
        """So many units of work more are done."""

    def tensor_done(self, name: str) -> None:
        """All of this tensor is written."""

    def measured(self, sums: Mapping[str, Measured]) -> None:
        """What the work took, by kind; see `running.rates`."""

    def end(self) -> None:
        """The result has its name, or the run failed."""


class Across(Progress):
    """The progress of a recipe of several documents as that of one work: passes on what one run after another tells.

    works: (units, tensors) of each document, in order.
    """

    def __init__(self, progress: Progress, works: Sequence[tuple[int, int]]) -> None:
        self._progress, self._works = progress, list(works)
        self._number = -1  # of the document under way
        self._left = 0  # of its work
        self._begun = False
        for name in ("warn", "compiling", "phase", "tensor", "tensor_done", "measured"):
            setattr(self, name, getattr(progress, name))

    def begin(self, total: int, tensors: int) -> None:
        self.advance(self._left)  # what was planned of the document before and did not come
        self._number += 1
        self._left = self._works[self._number][0]
        if not self._begun:
            self._begun = True
            self._progress.begin(sum(units for units, _ in self._works), sum(count for _, count in self._works))

    def skip(self) -> None:
        """The next document is there already."""
        total, tensors = self._works[self._number + 1]
        self.begin(total, tensors)
        self._left = 0
        self._progress.taken_over(total, tensors)

    def taken_over(self, total: int, tensors: int) -> None:
        self._progress.taken_over(self._part(total), tensors)

    def advance(self, units: int) -> None:
        if units := self._part(units):
            self._progress.advance(units)

    def end(self) -> None:
        if self._number == len(self._works) - 1:
            self._progress.end()

    def _part(self, units: int) -> int:
        """No more than is left of the document; its plan was made before the document before it was there."""
        units = min(units, self._left)
        self._left -= units
        return units
