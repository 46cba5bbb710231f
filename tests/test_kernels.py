"""Compiled kernels are kept on disk, and never longer than the sources they were made from."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from numba import config

import ggufmerge
from ggufmerge import kernels

SCRIPT = "import ggufmerge, numpy as np; ggufmerge.quantize(np.ones((1, 32)), 'Q8_0')"


def run(package: Path, cache: Path) -> list[Path]:
    """Quantize with a copy of the package; gives the folders of compiled kernels, in order of their making."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(package.parent)}
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=package.parent, env=environment, check=True)
    return sorted(cache.glob("kernels-*"), key=lambda folder: folder.stat().st_ctime_ns)


needs_jit = pytest.mark.skipif(bool(config.DISABLE_JIT), reason="nothing is compiled")


@needs_jit
def test_a_changed_helper_leaves_no_kernel_of_old(tmp_path: Path) -> None:
    """A second run compiles nothing; a change in a file that others inline compiles anew, in another folder."""
    package, cache = tmp_path / "ggufmerge", tmp_path / "cache"
    shutil.copytree(Path(ggufmerge.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    [folder] = run(package, cache)
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nb*")}
    assert made
    assert run(package, cache) == [folder]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nb*")} == made
    helper = package / "quants" / "blocks.py"
    helper.write_text(helper.read_text(encoding="utf-8") + "\n# another helper\n", encoding="utf-8")
    assert len(run(package, cache)) == 2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that takes the kernels of this test."""
    monkeypatch.setattr(kernels, "_folder", lambda: tmp_path)
    kernels._tell_of_damage.cache_clear()
    return tmp_path


def doubled(x):  # type: ignore[no-untyped-def]
    return 2 * x


def compiled_anew() -> bool:
    """Whether `doubled`, in a program that has not run it before, is compiled instead of loaded."""
    fresh: Any = kernels.kernel(doubled)
    assert fresh(21) == 42
    return not sum(fresh.stats.cache_hits.values())


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@needs_jit
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:20], lambda data: data[:-1], flip, lambda data: bytes(len(data))]
)
def test_a_damaged_file_is_made_again(
    cache: Path, suffix: str, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """Index or code, empty, cut short, changed or all zeros: one line tells of it, and the next run loads it again."""
    assert compiled_anew()
    assert not compiled_anew()
    assert not capsys.readouterr().err
    [path] = cache.rglob(f"*.{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    assert compiled_anew()
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not compiled_anew()


@needs_jit
def test_a_file_that_is_gone_is_made_again(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a word: somebody has tidied up."""
    assert compiled_anew()
    [path] = cache.rglob("*.nbc")
    path.unlink()
    assert compiled_anew()
    assert not compiled_anew()
    assert not capsys.readouterr().err


@needs_jit
def test_a_cache_that_cannot_be_written_stops_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or no place at all."""
    monkeypatch.setattr(kernels._CheckedFiles, "_write", refuse)
    assert compiled_anew()
    monkeypatch.setattr(kernels, "_folder", refuse)
    assert compiled_anew()


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_cache_in_use_keeps_its_age_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old folders of other versions go when a new one is made; one that somebody has used lately stays."""
    monkeypatch.setattr(kernels.config, "CACHE_DIR", str(tmp_path))
    kernels._folder.cache_clear()
    own = kernels._folder()
    month = 31 * 24 * 3600
    for folder in (own, tmp_path / "kernels-other", tmp_path / "kernels-used"):
        folder.mkdir(exist_ok=True)
        os.utime(folder, (time.time() - month, time.time() - month))
    os.utime(tmp_path / "kernels-used")
    kernels._folder.cache_clear()
    assert kernels._folder() == own
    assert time.time() - own.stat().st_mtime < month / 2
    own.rmdir()
    kernels._folder.cache_clear()
    kernels._folder()
    assert {path.name for path in tmp_path.iterdir()} == {own.name, "kernels-used"}
    kernels._folder.cache_clear()


def test_an_unwritable_cache_folder_is_replaced_by_one_beside_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As numba does it."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(kernels.config, "CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "package" / "kernels.py"))
    monkeypatch.setattr(kernels, "_digest", lambda: "x")
    kernels._folder.cache_clear()
    assert kernels._folder() == tmp_path / "package" / "__pycache__" / "kernels-x"
    kernels._folder.cache_clear()


def test_decorating_leaves_the_users_own_cache_folder_alone() -> None:
    """Other programs' kernels in the same process go where they went before, also while many threads decorate."""
    before = config.CACHE_DIR
    seen = set()

    def decorate(_: int) -> None:
        kernels.kernel(lambda x: x)
        seen.add(config.CACHE_DIR)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decorate, range(100)))
    assert seen == {before}
