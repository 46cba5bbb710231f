"""What the cache of huggingface_hub holds, read without that package: llama.cpp and others write the same folders.

`models--<owner>--<repo>/snapshots/<commit>/<file>` are the files (links to blobs where the system has links), and
`refs/<branch>` says which commit a branch was at. Source: "Understand caching" in the docs of huggingface_hub.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ggufmerge.files.small import read_small

DEFAULT_REVISION = "main"
_MAX_REF = 1000  # bytes of a file that names a commit


@dataclass(frozen=True)
class CachedFile:
    """A file of a snapshot. `name` is its name in the repository; `refs` are the branches that were at `commit`."""

    repo: str
    commit: str
    refs: tuple[str, ...]
    name: str
    path: Path

    @property
    def reference(self) -> str:
        """What a recipe writes for it."""
        revision = "" if DEFAULT_REVISION in self.refs else f"@{self.refs[0] if self.refs else self.commit}"
        return f"hf:{self.repo}/{self.name}{revision}"


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it downloads, by the same variables."""
    for variable, below in (
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ):
        if value := os.environ.get(variable):
            return Path(os.path.expandvars(value)).expanduser() / below
    return Path.home() / ".cache" / "huggingface" / "hub"


def cached_files(folder: Path, repo: str | None = None) -> Iterator[CachedFile]:
    """All GGUF files in a cache, of one repository if it is given."""
    pattern = "models--*" if repo is None else f"models--{repo.replace('/', '--')}"
    for place in sorted(folder.glob(pattern)):
        refs = _refs(place / "refs")
        for path in sorted((place / "snapshots").glob("*/**/*")):
            if path.suffix.lower() == ".gguf" and path.is_file():
                commit, *parts = path.relative_to(place / "snapshots").parts
                name = place.name.removeprefix("models--").replace("--", "/")
                yield CachedFile(name, commit, refs.get(commit, ()), "/".join(parts), path)


def _refs(folder: Path) -> dict[str, tuple[str, ...]]:
    """commit -> names of branches and other references."""
    refs: dict[str, tuple[str, ...]] = {}
    for path in sorted(folder.glob("**/*")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.is_file():
                commit = read_small(path, _MAX_REF).decode("ascii").strip()
                refs[commit] = (*refs.get(commit, ()), path.relative_to(folder).as_posix())
    return refs
