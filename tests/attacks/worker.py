"""A process that runs cases one after the other. It reads a line of JSON per case and answers with one.

{"kind": .., "seed": .., "number": .., "seconds": ..} or {"file": .., "seconds": ..}. A case that takes longer ends the
process, which writes where it was to its standard error, a file; so does a crash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import functools
import json
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import typer.main

SPARE = 2 << 30  # bytes of addresses that a case may take


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    # the cache of compiled kernels is where it always is, though every case has a home of its own
    import platformdirs

    os.environ.setdefault("NUMBA_CACHE_DIR", platformdirs.user_cache_dir("ggufmerge", appauthor=False))
    # of some libraries, settings are read when they are imported
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    from ggufmerge.cli import progress
    from tests.attacks import kinds
    from tests.attacks.case import Case
    from tests.attacks.judge import Judge
    from tests.attacks.law import keep

    # typer builds all commands anew for each command line, which takes longer than most cases
    typer.main.get_command = functools.cache(typer.main.get_command)
    progress._PLAIN_INTERVAL = math.inf  # no lines about the progress while kernels are compiled
    shared = Path("/dev/shm")  # memory, where there is such a folder
    parent = Path(tempfile.mkdtemp(prefix="ggufmerge-fuzz-", dir=shared if os.access(shared, os.W_OK) else None))
    judge = Judge()
    try:
        faulthandler.enable()
        _warm_up(parent)
        _limit_memory()
        answers.write("ready\n")
        for number, line in enumerate(sys.stdin):
            task = json.loads(line)
            os.ftruncate(2, 0)  # what was said about the case before
            started = time.monotonic()
            faulthandler.dump_traceback_later(task["seconds"], exit=True)
            case = Case.load(Path(task["file"])) if "file" in task else kinds.make(**_numbers(task))
            folder = parent / f"case{number}"
            folder.mkdir()
            try:
                outcome = keep(case, folder, judge)
            finally:
                faulthandler.cancel_dump_traceback_later()
                shutil.rmtree(folder, ignore_errors=True)
            facts = dataclasses.asdict(outcome) | {"seconds": time.monotonic() - started}
            answers.write(json.dumps(facts | {"out": outcome.out[:2000], "err": outcome.err[:4000]}) + "\n")
    finally:
        judge.close()
        shutil.rmtree(parent, ignore_errors=True)


def _numbers(task: dict[str, Any]) -> dict[str, Any]:
    return {key: task[key] for key in ("kind", "seed", "number")}


def _warm_up(parent: Path) -> None:
    """A build of valid files, so that modules and kernels are loaded before time is measured."""
    from tests.attacks.case import Case
    from tests.attacks.law import keep

    case = Case("warm-up", ["build", "r.yaml", "-o", "out.gguf"])
    case.add("a.gguf", "q4-a.gguf")
    case.add("b.gguf", "q4-b.gguf")
    case.put("r.yaml", "{merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}}")
    folder = parent / "warm-up"
    folder.mkdir()
    outcome = keep(case, folder, None)
    assert outcome.built, outcome
    assert not outcome.faults, outcome
    shutil.rmtree(folder)


def _limit_memory() -> None:
    """A case that asks for very much memory gets an error instead of the machine's last bytes."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
