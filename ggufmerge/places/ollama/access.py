"""Who may write into an Ollama store, and with which permissions.

Ollama's server must be able to read every file of its store, and to own it: it sets the times of each blob that a new
model uses, and removes manifests, which only their owner may do (`touchLayer` in `manifest/layer.go`, `Remove` in
`manifest/manifest.go`). A blob of another user's makes even unrelated calls of `ollama create` fail when they happen to
need the same bytes. And a manifest that the server cannot see does not keep its blobs from being removed when the
server starts (`PruneLayers` in `server/images.go`). So a store is written by its owner only, and always with the modes
that Ollama gives.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ggufmerge.places.ollama.names import OllamaName, path_of

FOLDER_MODE, FILE_MODE = 0o755, 0o644  # whatever the user's umask
_READABLE = 0o044


def obstacle(root: Path, name: OllamaName) -> str:
    """Why this user must not write a model of this name into a store, in words; empty when nothing is in the way.

    name: spelled as in the store.
    """
    manifest = path_of(root, name)
    if foreign := _foreign(root, manifest):
        return foreign
    for target in (root / "blobs", manifest.parent):
        folder = _nearest(target)
        if folder != target and os.path.lexists(other := folder / target.relative_to(folder).parts[0]):
            return f"{other} is not a folder"
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"{folder} is not writable"
    return f"{manifest} is a folder" if is_folder(manifest) else ""


def make_folder(path: Path, root: Path) -> list[Path]:
    """Make a folder below `root`, and those above it, for everybody to read; the ones that were not there before.

    OSError when that is not possible.
    """
    made = []
    for folder in (*reversed(path.parents), path):
        if not is_folder(folder):
            folder.mkdir(FOLDER_MODE, exist_ok=True)
            made.append(folder)
        elif folder == root or not folder.is_relative_to(root):
            continue
        mode = folder.stat().st_mode & 0o7777
        # an empty one may be what a crash has left before it had its mode
        if mode & FOLDER_MODE != FOLDER_MODE and (folder in made or not any(folder.iterdir())):
            folder.chmod(mode | FOLDER_MODE)
    return made


def is_private(path: Path) -> bool:
    """Whether a link to a file would be a blob that the server cannot read, or that belongs to somebody else."""
    found = path.stat()
    return found.st_mode & _READABLE != _READABLE or (hasattr(os, "geteuid") and found.st_uid != os.geteuid())


def umask_is_private() -> bool:
    """Whether files that this process makes are not for everybody to read."""
    before = os.umask(0o077)
    os.umask(before)
    return bool(before & _READABLE)


def is_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_dir()
    return False


def _foreign(root: Path, manifest: Path) -> str:
    """Which part of the store belongs to somebody else."""
    if not hasattr(os, "geteuid"):
        return ""  # Windows
    user = os.geteuid()
    folders = [f for f in (root, root / "blobs", *_between(root, manifest)) if is_folder(f)]
    if not folders and user == 0:
        folders = [_nearest(root)]  # root makes no folders in those of others
    blobs = _files(root / "blobs")
    if any(_owner(blob) == user for blob in blobs):
        blobs = []  # some of another user's among our own are nothing new
    for path in (*folders, *blobs):
        if (owner := _owner(path)) not in (user, None):
            who = f"{path} belongs to {_user(owner)}, not to {_user(user)}"
            return f"{who}, and Ollama can manage only what belongs to the owner of its store"
    return ""


def _owner(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_uid
    return None


def _files(folder: Path) -> list[Path]:
    """The blobs of a folder."""
    with contextlib.suppress(OSError):
        return sorted(folder.glob("sha256-*"))
    return []


def _between(root: Path, path: Path) -> Iterator[Path]:
    """The folders below `root` on the way to a file, the outer ones first."""
    return (f for f in reversed(path.parents) if f != root and f.is_relative_to(root))


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first one above it that is there."""
    return next((f for f in (folder, *folder.parents) if is_folder(f)), folder)


def _user(number: int | None) -> str:
    """The name of a user, or the number where there is none."""
    with contextlib.suppress(ImportError, KeyError):
        import pwd

        return pwd.getpwuid(number or 0).pw_name
    return f"user {number}"
