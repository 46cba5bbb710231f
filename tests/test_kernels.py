"""Compiled kernels are kept on disk, and never longer than the sources they were made from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba import config

import ggufmerge

SCRIPT = "import ggufmerge, numpy as np; ggufmerge.quantize(np.ones((1, 32)), 'Q8_0')"


def run(package: Path, cache: Path) -> list[Path]:
    """Quantize with a copy of the package; gives the folders of compiled kernels, in order of their making."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(package.parent)}
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=package.parent, env=environment, check=True)
    return sorted(cache.glob("kernels-*"), key=lambda folder: folder.stat().st_ctime_ns)


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="nothing is compiled")
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


def test_decorating_leaves_the_users_own_cache_folder_alone() -> None:
    """Other programs' kernels in the same process go where they went before."""
    from ggufmerge.kernels import kernel

    before = config.CACHE_DIR

    @kernel
    def nothing() -> None: ...

    nothing()
    assert before == config.CACHE_DIR
