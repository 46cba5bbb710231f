"""Into Ollama without a copy: a merged model becomes a blob of the local store, and a manifest gives it its name.

The order makes a crash harmless: blobs first, each under a temporary name until it is whole and on the disk, then the
manifest, in one rename. What a crash leaves is a temporary file or a blob that nothing refers to; Ollama removes both
when it starts, once they are an hour old. No file that was there before is changed or removed, but for the manifest of
a name that is to be overwritten; the blobs of an overwritten model stay until Ollama removes them.

The store's layout is no documented interface of Ollama. Source: its `manifest/layer.go`, `manifest/manifest.go`,
`server/create.go` and `server/images.go`; the reading side is `sources/ollama.py`.

The name of a blob is the sha256 of its bytes. It is taken in a pass of its own over the finished file and not while
that is written, because tensors are written in any order, by many threads, and the header last.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ggufmerge.errors import PlanError
from ggufmerge.files import GGUFFile, facts, open_gguf
from ggufmerge.files.atomic import fsync_folder, remove_abandoned, replacing, write_file
from ggufmerge.sinks.files import STEP, Advance, file_digest, nobody
from ggufmerge.sinks.ollama_api import Installed, Server
from ggufmerge.sinks.settings import check_file, completed
from ggufmerge.sources.ollama import (
    IMAGE,
    Layer,
    OllamaName,
    OllamaSettings,
    blob_path,
    candidate_roots,
    environment,
    manifest_path,
)

CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


def install(
    path: str | os.PathLike[str],
    name: str,
    settings: OllamaSettings | None = None,
    *,
    overwrite: bool = False,
    advance: Advance = nobody,
) -> Installed:
    """Put a GGUF file into Ollama under `name`, `[host/][namespace/]model[:tag]`; the file stays where it is.

    settings: what the model inherits from its parents (`inherited`).  advance: called with numbers of bytes done.
    PlanError when Ollama would refuse the file, the name is taken and `overwrite` not set, or there is no Ollama.
    """
    place = destination(name, overwrite=overwrite)
    return place.add(Path(path), settings or OllamaSettings(), advance=advance)


def destination(name: str, *, overwrite: bool = False) -> Store | Server:
    """Where a model of this name goes: the local store if it can be written, else a server. Nothing is changed yet.

    `OLLAMA_HOST` with another machine or port than Ollama's own means the server there, `OLLAMA_MODELS` the store.
    PlanError for names that Ollama would not take or that are taken, or when there is neither.
    """
    wanted = OllamaName.parse(name)
    server = Server.from_environment(wanted, overwrite=overwrite)
    if server.is_elsewhere:
        server.check_name()
        return server
    roots = [root for root in candidate_roots() if _is_folder(root) or environment("OLLAMA_MODELS")]
    for root in roots:
        if _is_writable(root):
            store = Store(root, wanted, overwrite=overwrite)
            store.check_name()
            return store
    if server.answers():
        server.check_name()
        return server
    found = f"{roots[0]} is not writable" if roots else "there is no Ollama store here"
    raise PlanError(
        f"{found}, and no Ollama server answers at {server.url}: start Ollama (or set OLLAMA_HOST or OLLAMA_MODELS), "
        f"or write a file with --output and import it with ollama create {wanted} -f FILE.Modelfile"
    )


class Store:
    """A local Ollama store, with the name that a model will have in it.

    overwrite: the name may be taken.
    """

    def __init__(self, root: Path, name: OllamaName, *, overwrite: bool = False) -> None:
        self.root, self.name, self.overwrite = root, name, overwrite

    def __str__(self) -> str:
        return str(self.root)

    def check_name(self) -> None:
        """PlanError when the name is taken."""
        if not self.overwrite and manifest_path(self.root, self.name).exists():
            raise PlanError(f"{self.name}: Ollama has a model of this name: use --overwrite to replace it")

    def check_space(self, folder: Path, nbytes: int) -> None:
        """PlanError when a file of this folder would have to be copied into the store and there is no space for it."""
        inside = next(f for f in (self.root, *self.root.parents) if _is_folder(f))
        if _device(inside) != _device(folder) and shutil.disk_usage(inside).free < nbytes:
            raise _refused(inside, nbytes, OSError(errno.ENOSPC, "no space"))

    def workplace(self) -> Path:
        """The file to build before `add`: inside the store, where it needs no copy. Its name is no blob's, so Ollama
        removes what an interrupted build leaves, once it is an hour old.
        """
        blobs = self.root / "blobs"
        _make_folder(blobs)
        return blobs / f"ggufmerge-{'-'.join(self.name.parts).replace(':', '-')}.gguf"

    def add(self, path: Path, settings: OllamaSettings, *, move: bool = False, advance: Advance = nobody) -> Installed:
        """Make a GGUF file a model of the store. PlanError when Ollama would refuse it or the disk does.

        PlanError, too, when another model has the name and `overwrite` is not set.
        move: take the file itself, which the caller removes afterwards; else it is linked, or copied where that is not
        possible.
        """
        with open_gguf(path) as file:
            check_file(file)
            settings = completed(settings, file.metadata)
            config = _config(file, settings)
            size = file.nbytes
        _make_folder(self.root / "blobs")
        manifest = manifest_path(self.root, self.name)
        try:
            remove_abandoned(self.root / "blobs")
            _make_folder(manifest.parent)
            digest = file_digest(path, advance)
            weights = Layer(IMAGE + "model", f"sha256:{digest}", size)
            layers = [weights, *(self._blob(data, IMAGE + kind) for kind, data in _texts(settings))]
            listed = {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": self._blob(_json(config), CONFIG_TYPE).to_json(),
                "layers": [layer.to_json() for layer in layers],
            }
            # one with these layers is what an interrupted run has written
            if manifest.exists() and not self.overwrite and manifest.read_bytes() != _json(listed):
                self.check_name()
            self._place(path, weights, move=move)
            self._write_manifest(manifest, _json(listed))
        except OSError as error:
            raise _refused(self.root, size, error) from None
        self._check_complete(listed)
        return Installed(str(self.name), str(self.root), weights.digest, size)

    def _blob(self, data: bytes, media_type: str) -> Layer:
        """A small blob; one that is there already is left alone."""
        layer = Layer(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
        path = blob_path(self.root, layer.digest)
        if not _holds(path, layer):
            write_file(path, data, mode=0o644)
        return layer

    def _place(self, path: Path, layer: Layer, *, move: bool) -> None:
        """Give the weights the name of their blob."""
        blob = blob_path(self.root, layer.digest)
        if _holds(blob, layer):
            return
        if move:
            path.chmod(0o644)
        try:
            os.link(path.resolve(), blob)
        except FileExistsError:
            return  # another process gave Ollama the same file in this moment
        except OSError:  # another disk, or a file system without links
            if move:
                path.replace(blob)
            else:
                with path.open("rb") as source, replacing(blob, mode=0o644) as copy:
                    shutil.copyfileobj(source, copy, STEP)
        fsync_folder(blob.parent)

    def _write_manifest(self, path: Path, data: bytes) -> None:
        # not beside its target: a stray file there would stop Ollama's clean-up of unused blobs
        try:
            write_file(path, data, folder=self.root / "blobs", mode=0o644)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            write_file(path, data, folder=self.root / "manifests", mode=0o644)  # blobs are on a disk of their own

    def _check_complete(self, manifest: Mapping[str, Any]) -> None:
        """A server that starts in this moment may remove a blob that was old and not referred to until now."""
        for layer in (manifest["config"], *manifest["layers"]):
            if not blob_path(self.root, layer["digest"]).exists():
                raise PlanError(f"{self.name}: Ollama removed {layer['digest']} meanwhile; give the same command again")


def human_number(count: int) -> str:
    """A number of parameters as Ollama shows it: 3.2B, 134.52M."""
    for unit, digits, letter in ((10**9, 1, "B"), (10**6, 2, "M")):
        if count >= unit:
            return f"{count // unit}{letter}" if count % unit == 0 else f"{count / unit:.{digits}f}{letter}"
    return f"{count / 1000:.0f}K" if count >= 1000 else str(count)


def _config(file: GGUFFile, settings: OllamaSettings) -> dict[str, Any]:
    """The configuration of a model, with the keys in Ollama's order."""
    words = {k: v for k in ("renderer", "parser", "requires") if (v := getattr(settings, k))}
    return {
        "model_format": "gguf",
        "model_family": file.architecture,
        "model_families": [file.architecture],
        "model_type": human_number(sum(t.size for t in file.tensors.values())),
        "file_type": str(facts.file_type(file) or "unknown"),
        **words,
        "architecture": "amd64",  # of the image format, whatever the machine
        "os": "linux",
    }


def _texts(settings: OllamaSettings) -> Iterator[tuple[str, bytes]]:
    """(kind of layer, content) of everything but the weights."""
    if settings.template:
        yield "template", settings.template.encode()
    if settings.system:
        yield "system", settings.system.encode()
    for text in settings.licenses:
        yield "license", text.encode("utf-8", "replace")
    if settings.parameters:
        yield "params", _json(dict(settings.parameters))
    if settings.messages:
        yield "messages", _json(list(settings.messages))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _holds(path: Path, layer: Layer) -> bool:
    """Whether a blob is there; PlanError when it is, but cannot be what its name says."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    if size != layer.size:
        raise PlanError(f"{path}: has {size} of {layer.size} bytes, so it is damaged: delete it, then try again")
    return True


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"{path}: cannot be created ({error.strerror}): check the Ollama store") from None


def _device(path: Path) -> int:
    return path.stat().st_dev


def _is_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_dir()
    return False


def _is_writable(root: Path) -> bool:
    """Whether blobs and manifests can be added; folders that are missing must be ones that can be made."""
    for folder in (root / "blobs", root / "manifests"):
        while not _is_folder(folder) and folder != folder.parent:
            if os.path.lexists(folder):
                return False
            folder = folder.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            return False
    return True


def _refused(root: Path, size: int, error: OSError) -> PlanError:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        free = shutil.disk_usage(root).free
        return PlanError(
            f"{root}: the model needs {size / 1e9:.2f} GB there but {free / 1e9:.2f} GB are free: make room, or set "
            "OLLAMA_MODELS to a store on another disk"
        )
    where = error.filename or root
    return PlanError(f"{where}: cannot be written ({error.strerror}): check the Ollama store")
