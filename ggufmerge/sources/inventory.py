"""The models that are on this machine, and which of them can be merged with each other; reads headers only.

Looks into Ollama's store, the cache of huggingface_hub, the folders of LM Studio and llama.cpp, and given ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.files import GGUFFile, ShardName, facts, open_gguf
from ggufmerge.files.absent import absent
from ggufmerge.sources import folders, hub_cache, ollama
from ggufmerge.sources.references import Located

# a head may be tied to the embedding, and constants of the rotation are not merged
_MAY_DIFFER = frozenset({"output.weight", "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
_VOCABULARY = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class FoundModel:
    """A GGUF file that was found.

    references: what a recipe may write for it, the first one suits best.  origin: who keeps it: "ollama", "hf",
    "lmstudio", "llama.cpp", or the folder that was given.
    kind: `general.type`: "model", "adapter", "imatrix", ...  name: what it calls itself, else the file's name.
    file_type: as in `files.facts.file_type`.  parameters: number of weights.
    nbytes: size of all its files.
    family: equal for models that can be merged with each other as they are: architecture, shapes and vocabulary.
    error: why it cannot be used, "" when it can; all facts from its header are then empty.
    """

    references: tuple[str, ...]
    origin: str
    path: Path | None = None
    kind: str = ""
    name: str = ""
    architecture: str = ""
    file_type: str = ""
    parameters: int = 0
    nbytes: int = 0
    family: str = ""
    error: str = ""


def find_models(extra: Sequence[Path] = ()) -> list[FoundModel]:
    """All GGUF files that the programs of this machine keep, and those below the folders `extra`; each file once.

    Files that cannot be read are among them, with the reason. PlanError when one of the folders does not exist.
    """
    if missing := [folder for folder in extra if not folder.is_dir()]:
        raise PlanError(*(f"{folder}: {_no_folder(folder)}" for folder in missing))
    found: dict[tuple[Path, ...], FoundModel] = {}
    failed: list[FoundModel] = []
    for reference, origin, locate in _places(extra):
        try:
            located = locate()
            files = (located.path.resolve(), *located.adapters)
            if files in found:
                known = found[files]
                found[files] = replace(known, references=(*known.references, reference))
            else:
                found[files] = _described(reference, origin, located.path)
        except (GgufmergeError, OSError) as error:
            failed.append(FoundModel((reference,), origin, error=str(error)))
    return [*found.values(), *failed]


def _no_folder(path: Path) -> str:
    return (
        f"a file, not a folder; give the folder that it is in: {path.parent}" if path.exists() else absent(path, ("/",))
    )


def families(models: Iterable[FoundModel]) -> list[list[FoundModel]]:
    """The models (of `kind` "model", readable) by family, large families first."""
    grouped: dict[str, list[FoundModel]] = {}
    for model in models:
        if model.family:
            grouped.setdefault(model.family, []).append(model)
    return sorted(grouped.values(), key=lambda group: (-len(group), group[0].architecture, group[0].parameters))


def _places(extra: Sequence[Path]) -> Iterator[tuple[str, str, Callable[[], Located]]]:
    """(reference, origin, how to locate it) of everything there is."""
    for root in ollama.candidate_roots():
        for name in ollama.names(root):
            yield f"ollama:{name}", "ollama", partial(ollama.find, name)
    for entry in hub_cache.cached_files(hub_cache.cache_folder()):
        if not _is_later_shard(entry.path):
            yield entry.reference, "hf", partial(Located, entry.path)
    kept = [("lmstudio", root) for root in folders.lmstudio_folders()] + [("llama.cpp", folders.llama_cpp_folder())]
    for origin, root in kept:
        for path in _first_files(root):
            yield f"{origin}:{path.relative_to(root).as_posix()}", origin, partial(Located, path)
    for root in extra:
        for path in _first_files(root):
            yield str(path), str(root), partial(Located, path)


def _first_files(root: Path) -> Iterator[Path]:
    return (path for path in folders.gguf_files(root) if not _is_later_shard(path))


def _is_later_shard(path: Path) -> bool:
    """Whether this is a shard whose first one is there to be opened."""
    shard = ShardName.parse(path.name)
    return shard is not None and shard.number > 1 and path.with_name(str(shard.all()[0])).exists()


def _described(reference: str, origin: str, path: Path) -> FoundModel:
    with open_gguf(path) as file:
        kind = file.metadata.text("general.type") or ("model" if file.architecture else "")
        return FoundModel(
            references=(reference,),
            origin=origin,
            path=path,
            kind=kind,
            name=facts.name(file),
            architecture=file.architecture,
            file_type=str(facts.file_type(file) or ""),
            parameters=sum(tensor.size for tensor in file.tensors.values()),
            nbytes=file.nbytes,
            family=_family(file) if kind == "model" and file.tensors else "",
        )


def _family(file: GGUFFile) -> str:
    """A hash of what models that are merged as they are have in common."""
    digest = hashlib.blake2b(file.architecture.encode("utf-8", "surrogateescape"), digest_size=16)
    for name in sorted(file.tensors.keys() - _MAY_DIFFER):
        digest.update(f"|{name}|{file.tensors[name].shape}".encode("utf-8", "surrogateescape"))
    digest.update(file.metadata.raw(_VOCABULARY) if _VOCABULARY in file.metadata else b"")
    return digest.hexdigest()
