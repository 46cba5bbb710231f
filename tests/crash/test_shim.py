"""The count of file operations is complete, and what is done at one of them is what its name says."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.shim import KILLED
from tests.crash.world import BUILDS, Build, World, Worlds

EVENTS = {
    "open": "open",
    **dict.fromkeys(("rename", "replace"), "os.rename"),
    **dict.fromkeys(("unlink", "remove"), "os.remove"),
    **{name: f"os.{name}" for name in ("rmdir", "mkdir", "link", "symlink", "utime")},
    **dict.fromkeys(("chmod", "fchmod"), "os.chmod"),
    **dict.fromkeys(("truncate", "ftruncate"), "os.truncate"),
    **{name: f"fcntl.{name}" for name in ("flock", "lockf")},
}
PRELUDE = """
import os, shutil, signal, sys, tempfile
from pathlib import Path
from tests.crash import shim
shim.install()
from os import replace  # a name bound before anything is counted
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = Path(sys.argv[1])
acted = []
watch = shim.Watch(str(folder), sys.argv[2], int(sys.argv[3]), acted.append)
shim.arm(watch)
"""


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_python_reports_no_change_that_was_not_counted(worlds: Worlds, build: Build) -> None:
    """Audit events are raised inside the interpreter, whatever name a function is called by; maps for writing too."""

    def audit(world: World) -> None:
        world.reset(build)
        run = world.server.run(build.arguments, "audit")
        assert run.code == 0, run.err
        counted = Counter((EVENTS[o.name], o.path) for o in run.operations if o.name in EVENTS)
        assert counted == Counter(run.events)

    worlds.do(audit)


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_the_kernel_counts_no_byte_more(worlds: Worlds, build: Build) -> None:
    """All that the process has written is in the counted writes, or on its standard output."""

    def weigh(world: World) -> None:
        world.reset(build)
        run = world.server.run(build.arguments)
        shown = len(run.out.encode()) + len(run.err.encode())
        assert run.written == sum(o.nbytes for o in run.operations) + shown

    worlds.do(weigh)


def run(folder: Path, script: str, way: str = "count", at: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(folder), way, str(at)]
    here = Path(__file__).parents[2]
    return subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)


def test_what_is_called_by_other_names_counts_once(tmp_path: Path) -> None:
    """Path, shutil, tempfile, open and names bound before; reading and other folders do not count."""
    script = """
        (folder / "sub/deep").mkdir(parents=True)
        (folder / "sub/deep/a").write_text("text")
        with open(folder / "sub/b", "wb") as file:
            file.write(b"1")
            file.write(b"2")
        replace(folder / "sub/b", folder / "sub/c")
        shutil.copyfile(folder / "sub/c", folder / "sub/d")
        (folder / "sub/c").read_bytes()
        (folder.parent / "elsewhere").write_text("text")
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix="t", delete=False) as file:
            file.write("text")
        Path(file.name).rename(folder / "t")
        (folder / "t").unlink()
        shutil.rmtree(folder / "sub")
        shim.arm(None)
        print("\\n".join(f"{o.name} {o.path.split('/')[-1][:1]}" for o in watch.operations))
    """
    folder = tmp_path / "watched"
    folder.mkdir()
    done = run(folder, script)
    assert done.stderr == ""
    counted = [line.split() for line in done.stdout.splitlines()]
    made, removed = counted[:14], counted[14:]
    assert made == [
        *(["mkdir", "d"], ["mkdir", "s"], ["mkdir", "d"]),  # the first fails
        *(["open", "a"], ["write", "a"]),
        *(["open", "b"], ["write", "b"], ["replace", "c"]),
        *(["open", "d"], ["sendfile", "d"], ["sendfile", "d"]),
        *(["open", "t"], ["write", "t"], ["rename", "t"]),
    ]
    assert sorted(removed) == sorted([*(["unlink", name] for name in "acdt"), ["rmdir", "d"], ["rmdir", "s"]])


STEPS = """
    for name in "abc":
        os.mkdir(folder / name)
"""


@pytest.mark.parametrize(("way", "left"), [("kill", {"a"}), ("kill-after", {"a", "b"})])
def test_a_kill_ends_the_process_at_once(tmp_path: Path, way: str, left: set[str]) -> None:
    """Before or after the operation."""
    assert run(tmp_path, STEPS, way, 2).returncode == KILLED
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.parametrize(("way", "left"), [("interrupt", {"a"}), ("interrupt-after", {"a", "b"})])
def test_an_interruption_is_raised_there(tmp_path: Path, way: str, left: set[str]) -> None:
    """Before or after the operation."""
    assert "KeyboardInterrupt" in run(tmp_path, STEPS, way, 2).stderr
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.parametrize(("way", "number", "left"), [("full", errno.ENOSPC, {"a"}), ("broken", errno.EIO, {"a", "c"})])
def test_a_full_disk_stays_full(tmp_path: Path, way: str, number: int, left: set[str]) -> None:
    """While an error of the device comes once; what needs no room succeeds."""
    script = """
        failed = []
        for name in "abc":
            try:
                os.mkdir(folder / name)
            except OSError as error:
                failed.append(error.errno)
        os.rename(folder / "a", folder / "d")
        print(failed)
    """
    done = run(tmp_path, script, way, 2)
    assert done.stdout.strip() == str([number] * (4 - len(left) - 1))
    assert {path.name for path in tmp_path.iterdir()} == left - {"a"} | {"d"}
