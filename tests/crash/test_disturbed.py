"""Builds that are killed, interrupted, out of room, run twice or given other sources, at any of their file operations.

`world.py` says what must hold then, `shim.py` what counts as an operation. The fast tests take some operations of each
kind, the slow ones all of them.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.crash.world import BUILDS, WAYS, Build, Worlds, moments, sample
from tests.tiny import write_tiny_llama

SAMPLE = 3  # moments of each build and way in the fast tests
PRODUCT = [pytest.param(build, way, id=f"{build}-{way}") for build in BUILDS for way in WAYS]


def check(worlds: Worlds, build: Build, way: str, chosen: list[int]) -> None:
    problems = worlds.disturb(build, way, chosen)
    moments = {tuple(problem.split()[:3]) for problem in problems}
    summary = [f"{len(moments)} of {len(chosen)} moments", *problems[:40]]
    assert not problems, "\n".join(summary)


@pytest.mark.parametrize(("build", "way"), PRODUCT)
def test_some_moments(worlds: Worlds, build: Build, way: str) -> None:
    """The same command gives the bytes of an undisturbed build, and leaves nothing."""
    operations = worlds.do(lambda world: world.operations(build))
    shift = BUILDS.index(build) * len(WAYS) + WAYS.index(way)
    check(worlds, build, way, sample(operations, way, SAMPLE, shift))


@pytest.mark.slow
@pytest.mark.parametrize(("build", "way"), PRODUCT)
def test_every_moment(worlds: Worlds, build: Build, way: str) -> None:
    """The same command gives the bytes of an undisturbed build, and leaves nothing."""
    operations = worlds.do(lambda world: world.operations(build))
    check(worlds, build, way, moments(operations, way))


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--split-max-tensors", "5"]], ids=["file", "shards"])
def test_a_real_process_killed_at_any_time(tmp_path: Path, options: list[str]) -> None:
    """Several times in a row, without a shim and with two threads: the command that is left alone finishes the work."""
    for name, tune in (("a", None), ("b", (1, 0.5)), ("c", (2, 0.5))):
        write_tiny_llama(tmp_path / f"{name}.gguf", layers=4, embed=256, ff=512, tune=tune)
    (tmp_path / "recipe.yaml").write_text(
        "{name: pair, merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}}\n"
        "---\n{merge_method: linear, models: [{model: pair}, {model: c.gguf}], parameters: {weight: [1, 3]}}\n"
    )
    command = [sys.executable, "-c", "from ggufmerge.cli import main; main()", "build", "recipe.yaml"]
    command += ["--threads", "2", "--chunk", "1024", *options]

    def start(folder: Path) -> subprocess.Popen[Any]:
        return subprocess.Popen([*command, "-o", str(folder / "m.gguf")], cwd=tmp_path, stdout=subprocess.DEVNULL)

    whole = tmp_path / "whole"
    whole.mkdir()
    process = start(whole)
    began = wait_for_work(process, whole)
    assert process.wait() == 0
    lasts = time.monotonic() - began
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}

    chance = random.Random(1)
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        for _ in range(2):
            process = start(folder)
            wait_for_work(process, folder)
            time.sleep(chance.uniform(0, 1.2 * lasts))
            process.kill()
            process.wait()
        code = start(folder).wait()
        found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        complete = {name for name in expected if name.endswith(".gguf")}
        assert code == 0 or complete <= found.keys()
        assert found == {name: expected[name] for name in expected if code == 0 or name in found}
        assert sorted(path.name for path in folder.iterdir()) == sorted(found)


def wait_for_work(process: subprocess.Popen[Any], folder: Path) -> float:
    """Wait until there is a file in the folder, or the process is over; the time."""
    while not any(folder.iterdir()) and process.poll() is None:
        time.sleep(0.002)
    return time.monotonic()
