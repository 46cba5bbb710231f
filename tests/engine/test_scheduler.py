"""Jobs over a pool of threads: results in order whatever the threads do, little in flight, the first error ends all."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Generator

import pytest

from ggufmerge.running.scheduler import Job, Step, drive


def job(name: str, counts: list[int], log: list[tuple[str, int, int]], chance: random.Random) -> Job:
    """A job of stages of so many tasks, which end in any order."""
    for stage, count in enumerate(counts):
        delays = [chance.uniform(0, 0.002) for _ in range(count)]

        def task(i: int, delays: list[float] = delays) -> int:
            time.sleep(delays[i])
            return i

        yield Step(count, task, lambda i, stage=stage: log.append((name, stage, i)))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_are_folded_in_order(threads: int) -> None:
    """Of each job stage after stage, task after task; stages without tasks are passed over."""
    chance, log = random.Random(threads), list[tuple[str, int, int]]()
    shapes = {f"job {n}": [chance.randrange(5) for _ in range(chance.randrange(4))] for n in range(12)}
    drive((job(name, counts, log, chance) for name, counts in shapes.items()), threads)
    for name, counts in shapes.items():
        wanted = [(name, stage, i) for stage, count in enumerate(counts) for i in range(count)]
        assert [entry for entry in log if entry[0] == name] == wanted


def test_little_is_in_flight() -> None:
    """However many tasks wait: results that are not folded yet are held in memory."""
    held, most, lock = 0, 0, threading.Lock()

    def task(i: int) -> int:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return i

    def fold(i: int) -> None:
        nonlocal held
        with lock:
            held -= 1

    drive(iter([one_stage(Step(500, task, fold))]), 3)
    assert most <= 4


def one_stage(stage: Step) -> Generator[Step, None, None]:
    yield stage


def test_ordered_stages_run_one_task_at_a_time() -> None:
    """A digest is of one piece after the other."""
    running, together = 0, []

    def task(i: int) -> int:
        nonlocal running
        running += 1
        together.append(running)
        time.sleep(0.001)
        running -= 1
        return i

    drive(iter([one_stage(Step(20, task, lambda i: None, ordered=True))]), 4)
    assert together == [1] * 20


@pytest.mark.parametrize("where", ["task", "fold", "job"])
def test_the_first_error_ends_everything(where: str) -> None:
    """It comes out as it is, no new task starts, and every job that was begun is closed."""
    closed, started = [], []

    def failing(number: int) -> Job:
        try:
            if where == "job" and number == 3:
                raise ZeroDivisionError
            yield Step(50, lambda i: task(number, i), lambda i: fold(number, i))
        finally:
            closed.append(number)

    def task(number: int, i: int) -> int:
        started.append((number, i))
        if where == "task" and (number, i) == (1, 7):
            raise ZeroDivisionError
        return i

    def fold(number: int, i: int) -> None:
        if where == "fold" and (number, i) == (1, 7):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        drive(map(failing, range(1, 9)), 2)
    before = len(started)
    time.sleep(0.01)
    assert len(started) == before
    assert before < 8 * 50
    assert 1 in closed
