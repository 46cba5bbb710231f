"""The decorator of all compiled kernels, and where their machine code is kept between runs.

numba recompiles a cached kernel when the kernel's own file changes, but not when a function that was inlined into it
from another file does: after an upgrade it could go on running old code. So the cache lies in a folder that is named by
a hash of the rooms that share functions between their files, quants and methods.

numba also trusts what it finds: a file that a power loss or a full disk has cut short ends the program, or worse is
run. So each file begins with a checksum of the rest, and one that does not have it counts as not there: the kernel is
compiled and written again. Nor does a cache that cannot be written stop anything.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba
import platformdirs
from numba import config, njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, UserProvidedCacheLocator

_compiled: Callable[..., Any] = njit(nogil=True, error_model="numpy")
_KEPT = 30 * 24 * 3600  # seconds that the kernels of another version are kept after their last use
_CHECKSUM = 32  # bytes
_NOTES = "prepared.txt"  # the kinds of kernels that are in the cache, a line each


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function on first use, without the GIL and with NumPy's division; keep the machine code on disk.

    No fastmath and no contraction: results are the same on every processor.
    """
    compiled: Any = _compiled(function)
    if hasattr(compiled, "enable_caching"):  # not when NUMBA_DISABLE_JIT gives the function itself
        # instead of `enable_caching`, which takes the folder from a setting that all threads and programs share
        with contextlib.suppress(OSError, RuntimeError):  # there is no place for a cache
            compiled._cache = _KernelCache(function)
    result: Callable[..., Any] = compiled
    return result


def is_prepared(kind: str) -> bool:
    """Whether kernels of this kind ("write Q6_K") were compiled here by this state of the program and are kept."""
    return bool(getattr(config, "DISABLE_JIT", 0)) or kind in _prepared()


def note_prepared(kinds: Iterable[str]) -> None:
    """Note that they are. Nothing happens where there is no place for a cache."""
    lines = "".join(f"{_compiler()} {kind}\n" for kind in kinds)
    with contextlib.suppress(OSError):
        if lines:
            with (_folder() / _NOTES).open("a", encoding="utf-8") as file:
                file.write(lines)


def _prepared() -> set[str]:
    try:
        lines = (_folder() / _NOTES).read_text("utf-8", "replace").splitlines()
    except OSError:
        return set()
    return {line.removeprefix(f"{_compiler()} ") for line in lines if line.startswith(f"{_compiler()} ")}


def _compiler() -> str:
    """What else than the sources the machine code depends on."""
    return f"{numba.__version__}-{platform.machine()}"


class _Locator(UserProvidedCacheLocator):
    """Puts kernels into the folder of this state of the program."""

    def __init__(self, function: Any, file: str) -> None:
        super().__init__(function, file)
        self._cache_path = str(_folder() / self.get_suitable_cache_subpath(file))

    @classmethod
    def from_function(cls, function: Any, file: str) -> _Locator:
        locator = cls(function, file)
        locator.ensure_cache_path()
        return locator


class _Implementation(CompileResultCacheImpl):
    _locator_classes = [_Locator]  # noqa: RUF012 - as in numba


class _KernelCache(FunctionCache):
    """numba's cache of the compiled forms of one function, with checksums."""

    _impl_class = _Implementation

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _CheckedFiles(self._cache_file)

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk: it is compiled again the next time
            super().save_overload(sig, data)


class _CheckedFiles(IndexDataCacheFile):
    """The files of one function: an index, and a file for each types of its arguments."""

    def __init__(self, plain: IndexDataCacheFile) -> None:
        self.__dict__.update(plain.__dict__)

    def _load_index(self) -> Any:
        """The index as numba's own method gives it: types of arguments -> file; empty if there is none of use."""
        loaded = _load(self._index_path)
        return loaded[2] if loaded is not None and loaded[:2] == (self._version, self._source_stamp) else {}

    def _save_index(self, overloads: Any) -> None:
        self._write(self._index_path, (self._version, self._source_stamp, overloads))

    def _load_data(self, name: str) -> Any:
        return _load(self._data_path(name))

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), data)

    def _write(self, path: str, content: Any) -> None:
        data = self._dump(content)
        with self._open_for_write(path) as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)


def _load(path: str) -> Any:
    """What a file of the cache holds; None when it is not there, or not as it was written."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        return None
    data = memoryview(content)[_CHECKSUM:]
    if hashlib.sha256(data).digest() == content[:_CHECKSUM]:
        # only what another version of numba's wrote in this folder could fail now
        with contextlib.suppress(Exception):
            return pickle.loads(data)
    _tell_of_damage()
    return None


@functools.cache
def _tell_of_damage() -> None:
    """One line in a run, however many files are damaged."""
    if sys.stderr is not None:
        print("note: the cache of compiled kernels is damaged; what is missing is compiled again", file=sys.stderr)


@functools.cache
def _folder() -> Path:
    """The cache of this state of the program: below NUMBA_CACHE_DIR, else in the user's cache folder, else, where that
    cannot be written, beside the sources.
    """
    settings: Any = config
    chosen = settings.CACHE_DIR or platformdirs.user_cache_dir("ggufmerge", appauthor=False)
    name = f"kernels-{_digest()}"
    for parent in (Path(chosen), Path(__file__).parent / "__pycache__"):
        folder = parent / name
        with contextlib.suppress(OSError):
            is_new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                os.utime(folder)  # it is in use, which tells other versions to keep it
                if is_new:
                    _remove_old(parent)
                return folder
    raise OSError("there is no place for compiled kernels")


def _remove_old(parent: Path) -> None:
    """Remove the kernels of versions that nobody has used for a month."""
    for other in parent.glob("kernels-*"):
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > _KEPT:
                shutil.rmtree(other, ignore_errors=True)


def _digest() -> str:
    digest = hashlib.sha256(str(getattr(config, "BOUNDSCHECK", None)).encode())  # numba's cache does not tell it apart
    here = Path(__file__)
    for path in (here, *sorted(here.parent.glob("quants/*.py")), *sorted(here.parent.glob("methods/*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
