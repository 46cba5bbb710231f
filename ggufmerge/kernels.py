"""The decorator of all compiled kernels, and where their machine code is kept between runs.

numba recompiles a cached kernel when the kernel's own file changes, but not when a function that was inlined into it
from another file does: after an upgrade it could go on running old code. So the cache lies in a folder that is named by
a hash of the rooms that share functions between their files, quants and methods.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
from numba import config, njit

_compiled: Callable[..., Any] = njit(nogil=True, cache=True, error_model="numpy")
_KEPT = 30 * 24 * 3600  # seconds that the kernels of another version are kept


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function on first use, without the GIL and with NumPy's division; keep the machine code on disk.

    No fastmath and no contraction: results are the same on every processor.
    """
    settings: Any = config  # the folder is read when a function is decorated
    chosen = settings.CACHE_DIR
    settings.CACHE_DIR = str(_folder(chosen))
    try:
        compiled: Callable[..., Any] = _compiled(function)
    finally:
        settings.CACHE_DIR = chosen
    return compiled


@functools.cache
def _folder(chosen: str) -> Path:
    """The cache of this state of the program: below NUMBA_CACHE_DIR (`chosen`), else in the user's cache folder."""
    parent = Path(chosen or platformdirs.user_cache_dir("ggufmerge", appauthor=False))
    folder = parent / f"kernels-{_digest()}"
    if not folder.exists():
        for other in parent.glob("kernels-*"):
            if time.time() - other.stat().st_mtime > _KEPT:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def _digest() -> str:
    digest = hashlib.sha256(str(getattr(config, "BOUNDSCHECK", None)).encode())  # numba's cache does not tell it apart
    here = Path(__file__)
    for path in (here, *sorted(here.parent.glob("quants/*.py")), *sorted(here.parent.glob("methods/*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
