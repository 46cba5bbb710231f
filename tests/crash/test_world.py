"""What the harness takes for a broken law: it must not be satisfied with a program that has the faults it looks for."""

from __future__ import annotations

import pytest

from tests.crash.client import Run
from tests.crash.world import BUILDS, CHANGES, SOURCES, World, Worlds, complaints, halves, refusal

BY_NAME = {str(build): build for build in BUILDS}
FILE, FILE_OVER, SHARDS_OVER, STAGES = (BY_NAME[n] for n in ("file", "file-over", "shards-over", "stages"))


@pytest.mark.parametrize(
    ("run", "complaint"),
    [
        (Run("running"), "did not end"),
        (Run("ended", code=-11), "ended with -11"),
        (Run("ended", code=1), "without a word"),
        (Run("ended", code=1, err="Traceback (most recent call last):\nOSError: x\n"), "traceback"),
        (Run("ended", code=0, err="Exception ignored in: x\n"), "traceback"),
        (Run("ended", code=1, err="error: a\nerror: b\n"), "one line"),
        (Run("ended", code=1, err="error: a\n", raised=["OSError()"]), "raised OSError"),
    ],
)
def test_a_run_ends_with_one_line_or_success(run: Run, complaint: str) -> None:
    """Anything else is a complaint."""
    assert complaint in " ".join(complaints(run))


def test_an_ordinary_error_is_no_complaint() -> None:
    """Nor are success and Ctrl-C."""
    assert not [*complaints(Run("ended", code=1, err="error: x: exists\n", raised=["GgufmergeError"]))]
    assert not [*complaints(Run("ended", code=1, err="interrupted: go on\n", raised=["KeyboardInterrupt"]))]
    assert not [*complaints(Run("ended", code=0))]


def test_a_result_is_the_old_or_the_new_one(worlds: Worlds) -> None:
    """Half a file, a file that is gone, and shards of two sets are noticed."""

    def look(world: World) -> None:
        world.wanted(FILE_OVER), world.wanted(SHARDS_OVER)
        world.reset(FILE_OVER)
        assert not [*halves(world, FILE_OVER)]
        path = world.root / "out/m.gguf"
        path.write_bytes(path.read_bytes()[:-1])
        assert "neither" in " ".join(halves(world, FILE_OVER))
        path.unlink()
        assert "gone" in " ".join(halves(world, FILE_OVER))
        world.reset(SHARDS_OVER)
        assert world.server.run(SHARDS_OVER.arguments).code == 0
        new = (world.root / "out/m-00001-of-00003.gguf").read_bytes()
        world.reset(SHARDS_OVER)
        assert not [*halves(world, SHARDS_OVER)]
        (world.root / "out/m-00001-of-00003.gguf").write_bytes(new)
        assert "others of its set" in " ".join(halves(world, SHARDS_OVER))

    worlds.do(look)


def test_a_refusal_is_for_what_is_complete(worlds: Worlds) -> None:
    """The same command may only fail over a whole result, with nothing beside it."""
    run = Run("ended", code=1, err="error: exists\n")

    def look(world: World) -> None:
        whole = world.wanted(FILE)
        assert not [*refusal(world, FILE, run, whole)]
        assert "failed" in " ".join(refusal(world, FILE, run, {}))
        assert "left behind" in " ".join(refusal(world, FILE, run, {**whole, "out/.m.gguf.journal": ""}))

    worlds.do(look)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_source_gives_another_result_of_the_same_size(worlds: Worlds, change: str) -> None:
    """Else a mixture of both would not be seen, or would be prevented by the size alone."""

    def look(world: World) -> None:
        world.reset(STAGES)
        sizes = [(world.root / "work" / name).stat().st_size for name in SOURCES]
        assert world.wanted(STAGES, change) != world.wanted(STAGES)
        world.reset(STAGES)
        world.change_source(change)
        assert [(world.root / "work" / name).stat().st_size for name in SOURCES] == sizes

    worlds.do(look)
