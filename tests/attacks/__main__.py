"""`python -m tests.attacks`: hunt for inputs that break the law."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.attacks import hunt, kinds


def main() -> int:
    options = _options()
    if options.replay:
        tasks: Iterator[hunt.Task] = iter([{"file": str(path)} for path in _files(options.replay)])
    else:
        chosen = options.kind or list(kinds.KINDS)
        tasks = hunt.tasks(chosen, options.seed, cases=options.cases, seconds=options.seconds)
        print(f"seed {options.seed}; what breaks the law is saved in {options.save}; Ctrl-C to stop", file=sys.stderr)
    spoken = time.monotonic()

    def status(summary: hunt.Summary) -> None:
        nonlocal spoken
        if time.monotonic() - spoken < options.every:
            return
        spoken = time.monotonic()
        t = summary.total
        print(
            f"{summary.seconds:.0f} s: {t.cases:,} cases, {t.built:,} built, {t.compared:,} compared with llama.cpp, "
            f"{t.failed:,} failed in {len(summary.failures)} ways",
            file=sys.stderr,
        )

    summary = hunt.hunt(tasks, workers=options.workers, save=options.save, status=status)
    print("\n".join(summary.lines()))
    return int(bool(summary.failures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--kind", nargs="+", choices=kinds.KINDS, metavar="KIND", help=", ".join(kinds.KINDS))
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the same seed makes the same cases")
    parser.add_argument("--cases", type=int, help="stop after so many")
    parser.add_argument("--seconds", type=float, help="stop after so many")
    parser.add_argument("--save", type=Path, default=Path("build/fuzz"), metavar="FOLDER", help="where failures go")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="run saved cases, or folders of them")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that run cases at once")
    parser.add_argument("--every", type=float, default=10, metavar="SECONDS", help="between lines about the progress")
    return parser.parse_args()


def _files(paths: list[Path]) -> list[Path]:
    return [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]


if __name__ == "__main__":
    sys.exit(main())
