"""Where a model for Ollama goes: into the local store, or to a server.

A model in a store is of use only when Ollama runs from that store and owns what is in it. Several stores may be on a
machine: the user's, that of a service, one in a container, one that OLLAMA_MODELS names in some shells only. So a
server that is up is asked which models it has. If they are those of a store that the user owns, the model is written
there; else it is sent to the server, which is always right. Without a server the store is all there is.
"""

from __future__ import annotations

import os
from pathlib import Path

from ggufmerge.errors import PlanError
from ggufmerge.files.digest import Advance, nobody
from ggufmerge.places.ollama.access import is_folder, obstacle
from ggufmerge.places.ollama.names import OllamaName
from ggufmerge.places.ollama.publish import Store, twin_note
from ggufmerge.places.ollama.server import Installed, Server
from ggufmerge.places.ollama.store import OllamaSettings, candidate_roots, environment


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
    """Where a model of this name goes. Nothing is changed yet.

    `OLLAMA_HOST` with another machine or port than Ollama's own means the server there, `OLLAMA_MODELS` the store.
    PlanError for names that Ollama would not take or that are taken, or when there is neither.
    """
    wanted = OllamaName.parse(name)
    server = Server.from_environment(wanted, overwrite=overwrite)
    if server.is_elsewhere:
        return _at(server)
    roots = [root for root in candidate_roots() if is_folder(root) or environment("OLLAMA_MODELS")]
    stores = [Store(root, wanted, overwrite=overwrite, server=server) for root in roots]
    obstacles = [obstacle(store.root, store.name) for store in stores]
    usable = [store for store, problem in zip(stores, obstacles, strict=True) if not problem]
    try:
        models = server.models()
    except PlanError:
        return _without_server(server, usable, obstacles)
    verdicts = [store.matches(models) for store in usable]
    for verdict in (True, None):
        if verdict in verdicts:
            store = usable[verdicts.index(verdict)]
            store.check_name()
            return store
    if usable:
        server.notes.append(
            f"the Ollama server at {server} runs from another store than {usable[0]}, so the model is sent to it"
        )
    return _at(server)


def _at(server: Server) -> Server:
    """The server, which must answer and have no model of the name."""
    server.check_name()
    if note := twin_note(server.name, server.models()):
        server.notes.append(note)
    return server


def _without_server(server: Server, usable: list[Store], obstacles: list[str]) -> Store:
    """The first store that can be used, when no server answers."""
    left = server.workplace()
    if left.exists():
        raise PlanError(
            f"{server}: no Ollama server answers: start it to have {left} sent, which an earlier run has built for it, "
            "or delete that file"
        )
    if usable:
        usable[0].check_name()
        return usable[0]
    found = "; ".join(obstacles) or "there is no Ollama store here"
    raise PlanError(
        f"{found}, and no Ollama server answers at {server}: start Ollama (or set OLLAMA_HOST, or OLLAMA_MODELS to a "
        f"store of your own), or write a file with --output and import it with ollama create {server.name} "
        "-f FILE.Modelfile"
    )
