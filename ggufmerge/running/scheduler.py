"""Drives jobs over a pool of threads, with results folded in order and little work in flight.

A job is a generator of steps. A step is a number of independent tasks whose results are folded one after the other,
in order, by the main thread; when all are folded the job goes on to its next step. While one job waits for the end
of a step the next jobs fill the threads, so short steps cost nothing. What runs when never changes a result.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """`count` tasks: task(i) runs in a thread, fold(result) in the main thread, in the order of i.

    ordered: at most one task at a time is in flight (for digests).
    """

    count: int
    task: Callable[[int], Any]
    fold: Callable[[Any], None]
    ordered: bool = False


Job = Generator[Step, None, None]


class _Active:
    """A job under way: its step, the next task to hand out, the next result to fold."""

    def __init__(self, job: Job, step: Step) -> None:
        self.job, self.step = job, step
        self.handed = self.folded = 0
        self.results: dict[int, Any] = {}

    def may_hand_out(self, ahead: int) -> bool:
        ahead = 1 if self.step.ordered else ahead
        return self.handed < self.step.count and self.handed - self.folded < ahead

    def fold(self) -> bool:
        """Fold what is next in order; go on to the next step at the end of one. False when the job is over."""
        while self.folded in self.results:
            self.step.fold(self.results.pop(self.folded))
            self.folded += 1
        while self.folded == self.step.count:
            step = next(self.job, None)
            if step is None:
                return False
            self.step, self.handed, self.folded = step, 0, 0
        return True


def most_active(threads: int) -> int:
    """How many jobs can be under way at once."""
    return 2 * (threads + 1)


def drive(jobs: Iterable[Job], threads: int) -> None:
    """Run all jobs to their end. The first exception stops everything, after the tasks under way have ended."""
    waiting = iter(jobs)
    active: list[_Active] = []
    running: dict[Future[Any], tuple[_Active, int]] = {}
    limit = threads + 1  # one task is ready when a thread becomes free
    with ThreadPoolExecutor(threads, thread_name_prefix="ggufmerge") as pool:
        try:
            while True:
                while len(running) < limit and (chosen := _choose(active, waiting, limit, most_active(threads))):
                    i = chosen.handed
                    chosen.handed += 1
                    running[pool.submit(chosen.step.task, i)] = (chosen, i)
                if not running:
                    return
                # a timeout lets signals through on Windows, where a wait without one cannot be interrupted
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    owner, i = running.pop(future)
                    owner.results[i] = future.result()
                    if not owner.fold():
                        active.remove(owner)
        except BaseException:
            for future in running:
                future.cancel()
            raise
        finally:
            for job in active:
                job.job.close()


def _choose(active: list[_Active], waiting: Any, ahead: int, most: int) -> _Active | None:
    """The oldest job that has a task to hand out; a new one when none has; None when nothing can start now."""
    for job in active:
        if job.may_hand_out(ahead):
            return job
    while len(active) < most:
        generator = next(waiting, None)
        if generator is None:
            return None
        step = next(generator, None)
        if step is None:
            continue
        job = _Active(generator, step)
        if job.fold():  # skips empty steps
            active.append(job)
            if job.may_hand_out(ahead):
                return job
    return None
