"""The other end of `server.py`: starts it, asks for runs, hands back what came of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.shim import Operation

PATIENCE = 60.0  # seconds after which a run that is not over is one that hangs


@dataclass(frozen=True)
class Run:
    """What a run of the command line did.

    state: "ended", "stopped" (see `Server.resume`) or "running" when it took longer than it was given.  code: its exit
    status.  acted: the operation where the shim did something.  raised: what came out of the program's code.
    operations, written: of runs with the ways count and audit: what the shim counted, bytes handed to the system.
    events: of the way audit: what Python's audit events tell of the same operations.
    """

    state: str
    process: int = 0
    code: int = -1
    out: str = ""
    err: str = ""
    seconds: float = 0.0
    acted: str = ""
    raised: Sequence[str] = ()
    operations: Sequence[Operation] = ()
    events: Sequence[tuple[str, str]] = field(default=(), repr=False)
    written: int = 0

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Run:
        facts["operations"] = [Operation(*o) for o in facts.get("operations", ())]
        facts["events"] = [(event, path) for event, path in facts.get("events", ())]
        return cls(**facts)

    @property
    def lines(self) -> list[str]:
        """What it wrote to standard error."""
        return [line for line in self.err.splitlines() if line.strip()]


class Server:
    """A server and its process.

    root: the folder below which operations count.  folder: where commands run.  environment: variables they see.
    """

    def __init__(self, root: Path, folder: Path, environment: dict[str, str]) -> None:
        self.root, self.folder = root, folder
        here = Path(__file__).parents[2]
        own = {"PYTHONPATH": os.pathsep.join([str(here), *sys.path]), "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.server"],
            cwd=here,
            env={**os.environ, **own, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def warm(self, *arguments: str) -> None:
        """Run a command in the server itself. To be done before the first `run`."""
        assert self._ask(do="warm", arguments=arguments, folder=str(self.folder))["code"] == 0

    def run(self, arguments: Sequence[str], way: str = "count", at: int = 0, patience: float = PATIENCE) -> Run:
        """Run a command in a child, under the shim: see `shim.Watch`."""
        places = {"folder": str(self.folder), "root": str(self.root)}
        answer = self._ask(do="run", arguments=arguments, way=way, at=at, patience=patience, **places)
        return Run.from_json(answer)

    def resume(self, run: Run, patience: float = PATIENCE) -> Run:
        """Let a run that stopped, or is not over, go on to its end."""
        return Run.from_json(self._ask(do="resume", process=run.process, patience=patience))

    def kill(self, run: Run) -> Run:
        """End a run that stopped, as kill -9 does."""
        return Run.from_json(self._ask(do="kill", process=run.process, patience=PATIENCE))

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer
