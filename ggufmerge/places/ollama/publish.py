"""Into Ollama without a copy: a merged model becomes a blob of the local store, and a manifest gives it its name.

The order makes a crash harmless: blobs first, each under a temporary name until it is whole and on the disk, then the
manifest, in one rename. What a crash leaves is a temporary file or a blob that nothing refers to; Ollama removes both
when it starts, once they are an hour old. No file that was there before is changed or removed, but for the manifest of
a name that is to be overwritten; the blobs of an overwritten model stay until Ollama removes them.

The store's layout is no documented interface of Ollama. Source: its `manifest/layer.go`, `manifest/manifest.go`,
`server/create.go` and `server/images.go`; the reading side is `store.py`.

The name of a blob is the sha256 of its bytes. It is taken in a pass of its own over the finished file and not while
that is written, because tensors are written in any order, by many threads, and the header last.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggufmerge.errors import OutputError, PlanError
from ggufmerge.files import GGUFFile, facts, open_gguf
from ggufmerge.files.atomic import fsync_folder, remove_abandoned, replacing, write_file
from ggufmerge.files.digest import STEP, Advance, file_digest, nobody
from ggufmerge.places.ollama import access
from ggufmerge.places.ollama.names import PARTS, OllamaName, lookup, path_of, spelled, spellings, visible
from ggufmerge.places.ollama.server import Installed, Server, workname
from ggufmerge.places.ollama.settings import check_file, completed
from ggufmerge.places.ollama.store import IMAGE, Layer, OllamaSettings, blob_path, read_manifest
from ggufmerge.text import size as shown

CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}  # Go escapes them, for HTML's sake


class DeniedError(PlanError):
    """The user may not write what is there."""


class Store:
    """A local Ollama store, with the name that a model will have in it.

    name: as it is spelled there, or will be.  overwrite: the name may be taken.  claimed: an interrupted run of the
    same work may have taken it.  server: the one that may run from this store, asked when the model is there; without,
    nobody is asked.  notes: what its user should know.
    """

    def __init__(self, root: Path, name: OllamaName, *, overwrite: bool = False, server: Server | None = None) -> None:
        self.root, self.overwrite, self.server = root, overwrite, server
        self._wanted = name
        self.name = name
        self.claimed = False
        self.notes: list[str] = []
        self._added: list[Path] = []  # blobs and folders of this run, the later ones last
        self._respell()

    def __str__(self) -> str:
        return str(self.root)

    def check_name(self) -> None:
        """PlanError when the name is taken."""
        if not self.overwrite and lookup(self.root, self.name) is not None:
            raise PlanError(f"{self.name}: Ollama has a model of this name: use --overwrite to replace it")

    def check_space(self, folder: Path, nbytes: int) -> None:
        """PlanError when a file of this folder would have to be copied into the store and there is no space for it."""
        inside = next(f for f in (self.root, *self.root.parents) if access.is_folder(f))
        copied = _device(inside) != _device(folder) or access.umask_is_private()
        if copied and shutil.disk_usage(inside).free < nbytes:
            raise _refused(inside, nbytes, OSError(errno.ENOSPC, "no space"))

    def matches(self, models: Mapping[OllamaName, str]) -> bool | None:
        """Whether a server that lists these models runs from this store; None when that cannot be told: there are none.

        models: name -> sha256 of the manifest.
        """
        here = visible(self.root)
        digests = {name.folded: manifest_digests(data) for name, data in here.items()}
        listed = {name.folded for name in models}
        if any(digest not in digests.get(name.folded, ()) for name, digest in models.items()):
            return False
        # the server lists no model that lacks something
        if any(name.folded not in listed and self._is_whole(name) for name in here):
            return False
        return True if models else None

    def workplace(self) -> Path:
        """The file to build before `add`: inside the store, where it needs no copy. Its name is no blob's, so Ollama
        removes what an interrupted build leaves, once it is an hour old.
        """
        blobs = self.root / "blobs"
        self._make_folder(blobs)
        return blobs / workname(self.name)

    def add(self, path: Path, settings: OllamaSettings, *, move: bool = False, advance: Advance = nobody) -> Installed:
        """Make a GGUF file a model of the store. PlanError when Ollama would refuse it or the disk does.

        PlanError, too, when another model has the name and `overwrite` is not set.
        move: take the file itself, which the caller removes afterwards; else it is linked, or copied where that is not
        possible. When the server runs from another store, or the store cannot be written, the file goes to the server.
        """
        wanted = settings
        with open_gguf(path) as file:
            check_file(file)
            settings = completed(settings, file.metadata)
            config = _config(file, settings)
            size = file.nbytes
        try:
            done, data, before = self._write(path, settings, config, size, move, advance)
        except DeniedError as error:
            if self.server is None or not self.server.answers():
                raise
            return self._send(path, wanted, str(error), advance)
        if self.server is None:
            return replace(done, seen=False)
        seen = self.server.lists(self.name, manifest_digests(data))
        if seen is not False:
            return replace(done, seen=bool(seen))
        self._take_back(path, done.digest, data, before)
        why = f"the Ollama server at {self.server} runs from another store than {self.root}"
        return self._send(path, wanted, why, advance)

    def _write(
        self,
        path: Path,
        settings: OllamaSettings,
        config: Mapping[str, Any],
        size: int,
        move: bool,
        advance: Advance,
    ) -> tuple[Installed, bytes, bytes | None]:
        """The model, its manifest, and the manifest that had the name before."""
        self._added = []
        self._make_folder(self.root / "blobs")
        try:
            remove_abandoned(self.root / "blobs")
            digest = file_digest(path, advance)
            weights = Layer(IMAGE + "model", f"sha256:{digest}", size)
            layers = [weights, *(self._blob(data, IMAGE + kind) for kind, data in _texts(settings))]
            listed = {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": self._blob(_json(config), CONFIG_TYPE).to_json(),
                "layers": [layer.to_json() for layer in layers],
            }
            self._respell()  # others may have made models since
            manifest = path_of(self.root, self.name)
            before = manifest.read_bytes() if manifest.exists() else None
            # one with these layers is what an interrupted run has written
            if before != _json(listed):
                self.check_name()
            self._place(path, weights, move=move)
            self._write_manifest(manifest, _json(listed))
        except OSError as error:
            raise _refused(self.root, size, error) from None
        self._check_complete(listed)
        return Installed(str(self.name), str(self.root), weights.digest, size), _json(listed), before

    def _send(self, path: Path, settings: OllamaSettings, why: str, advance: Advance) -> Installed:
        """Give the file to the server instead. PlanError names both places."""
        assert self.server is not None
        server = Server(self.server.url, self._wanted, overwrite=self.overwrite)
        server.claimed = self.claimed
        try:
            done = server.add(path, settings, advance=advance)
        except PlanError as error:
            raise PlanError(f"{why}, and sending the model to the server failed: {error}") from None
        self.name = server.name
        self.notes.append(f"{why}, so the model was sent to {server}")
        return done

    def _take_back(self, path: Path, digest: str, data: bytes, before: bytes | None) -> None:
        """Remove the model from a store where nobody looks for it, with what this run has added for it.

        before: the manifest that had the name until now, which comes back.
        """
        manifest = path_of(self.root, self.name)
        with contextlib.suppress(OSError, OutputError):
            ours = manifest.read_bytes() == data  # else another program has replaced it meanwhile
            if ours and before is None:
                manifest.unlink()
            elif ours and before is not None and before != data:
                self._write_manifest(manifest, before)
        used = b"\n".join(visible(self.root).values()).decode("utf-8", "replace").lower()
        if not path.exists():  # it was moved, not linked
            blob = blob_path(self.root, digest)
            if digest.removeprefix("sha256:") in used:
                shutil.copyfile(blob, path)
            else:
                blob.replace(path)
        for added in reversed(self._added):
            with contextlib.suppress(OSError):
                if added.parent != self.root / "blobs":
                    added.rmdir()  # refused by the system when there is something in it
                elif added.name.removeprefix("sha256-") not in used:
                    added.unlink()

    def _respell(self) -> None:
        """Take the spelling of the models that are there, so that no part of the name has two; note what has two."""
        known = visible(self.root)
        self.name = spelled(self._wanted, known, self.root)
        note = twin_note(self.name, known, self.root)
        if note and note not in self.notes:
            self.notes.append(note)

    def _is_whole(self, name: OllamaName) -> bool:
        """Whether a model has all its blobs, as far as can be seen."""
        try:
            manifest = read_manifest(path_of(self.root, name))
            return all(blob_path(self.root, entry.digest).is_file() for entry in (manifest.config, *manifest.layers))
        except (OSError, ValueError):
            return False

    def _make_folder(self, path: Path) -> None:
        try:
            self._added += access.make_folder(path, self.root)
        except OSError as error:
            raise _denied(path, "created", error) from None

    def _blob(self, data: bytes, media_type: str) -> Layer:
        """A small blob; one that is there already is left alone."""
        layer = Layer(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
        path = blob_path(self.root, layer.digest)
        if not _holds(path, layer):
            write_file(path, data, mode=access.FILE_MODE)
            self._added.append(path)
        return layer

    def _place(self, path: Path, layer: Layer, *, move: bool) -> None:
        """Give the weights the name of their blob."""
        blob = blob_path(self.root, layer.digest)
        if _holds(blob, layer):
            return
        if move:
            path.chmod(access.FILE_MODE)
        self._added.append(blob)
        try:
            if not move and access.is_private(path):
                # A link shares mode and owner. That a file of the user's own is for nobody else's eyes is not ours to
                # change; and Ollama's server must read every blob, and may touch only what belongs to its own user.
                raise PermissionError(errno.EPERM, "not linked")
            os.link(path.resolve(), blob)
        except FileExistsError:
            self._added.remove(blob)
            return  # another process gave Ollama the same file in this moment
        except OSError:  # another disk, or a file system without links
            if move:
                path.replace(blob)
            else:
                with path.open("rb") as source, replacing(blob, mode=access.FILE_MODE) as copy:
                    shutil.copyfileobj(source, copy, STEP)
        fsync_folder(blob.parent)

    def _write_manifest(self, path: Path, data: bytes) -> None:
        self._make_folder(path.parent)
        try:
            self._replace(path, data)
        except FileNotFoundError:  # with every model that it removes, Ollama removes all empty folders
            self._make_folder(path.parent)
            self._replace(path, data)

    def _replace(self, path: Path, data: bytes) -> None:
        # not beside its target: a stray file there would stop Ollama's clean-up of unused blobs
        try:
            write_file(path, data, folder=self.root / "blobs", mode=access.FILE_MODE)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # blobs are on a disk of their own
            write_file(path, data, folder=self.root / "manifests", mode=access.FILE_MODE)

    def _check_complete(self, manifest: Mapping[str, Any]) -> None:
        """A server that starts in this moment may remove a blob that was old and not referred to until now."""
        for layer in (manifest["config"], *manifest["layers"]):
            if not blob_path(self.root, layer["digest"]).exists():
                raise PlanError(f"{self.name}: Ollama removed {layer['digest']} meanwhile; give the same command again")


def manifest_digests(data: bytes) -> frozenset[str]:
    """The sha256, in hexadecimal, that Ollama may take for that of a manifest.

    It digests what its JSON decoder reads: all of a file but, where the value happens to end with the decoder's buffer,
    the line break behind it.
    """
    return frozenset(hashlib.sha256(part).hexdigest() for part in (data, data.rstrip()))


def twin_note(name: OllamaName, known: Iterable[OllamaName], root: Path | None = None) -> str | None:
    """What to do about parts of a name that the models `known` spell in several ways; None when there are none.

    root: the store they are in, None when only a server can reach it.
    """
    known = list(known)
    for at in range(len(PARTS)):
        models = spellings(name, known, at)
        if len(models) < 2:
            continue
        (keep, (one, *_)), (_, (other, *more)) = list(models.items())[:2]
        if root is not None:
            old = root.joinpath("manifests", *other.parts[: at + 1])
            new = old.with_name(keep)
            what = f"move what is in {old} to {new}" if access.is_folder(new) else f"rename {old} to {new}"
        elif sum(same.folded == other.folded for same in known) > 1:  # which one it removes is chance
            what = f"rename one of them in the folder manifests of the server's store: {'/'.join(other.parts)}"
        else:
            what = f"copy {other} to another name (ollama cp) and remove it (ollama rm), each until it succeeds"
        return (
            f"Ollama confuses names that differ in case only, and {one} and {other} do in their {PARTS[at]}, so it "
            f"finds models of either spelling only sometimes; {what}" + (f"; so with {len(more)} more" if more else "")
        )
    return None


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
        "model_type": human_number(facts.parameters(file)),
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
        yield "params", _json(dict(sorted(settings.parameters.items())))
    if settings.messages:
        yield "messages", _json(list(settings.messages))


def _json(value: Any) -> bytes:
    """A JSON text as Go writes it, which makes equal settings equal blobs."""
    return _go_json(value).encode("utf-8", "replace") + b"\n"


def _go_json(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_go_json(str(k))}:{_go_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_go_json, value)) + "]"
    if isinstance(value, float) and value == int(value) and abs(value) < 1e21:
        return str(int(value))
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return re.sub(r"e([+-])0", r"e\1", text)
    return text.translate(_ESCAPED) if isinstance(value, str) else text


def _holds(path: Path, layer: Layer) -> bool:
    """Whether a blob is there; PlanError when it is, but cannot be what its name says."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    if size != layer.size:
        raise PlanError(f"{path}: has {size} of {layer.size} bytes, so it is damaged: delete it, then try again")
    return True


def _device(path: Path) -> int:
    return path.stat().st_dev


def _refused(root: Path, size: int, error: OSError) -> PlanError:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        free = shutil.disk_usage(root).free
        return PlanError(
            f"{root}: the model needs {shown(size)} there but {shown(free)} are free: make room, or set "
            "OLLAMA_MODELS to a store on another disk"
        )
    return _denied(Path(error.filename or root), "written", error)


def _denied(path: Path, how: str, error: OSError) -> PlanError:
    kind = DeniedError if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else PlanError
    return kind(f"{path}: cannot be {how} ({error.strerror}): check the Ollama store")
