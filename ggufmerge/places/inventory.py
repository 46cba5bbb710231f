"""The models that are on this machine, and which of them can be merged with each other; reads headers only.

Looks into Ollama's store, the cache of huggingface_hub, the folders of LM Studio and llama.cpp, those of KoboldCpp and
text-generation-webui where they usually are, and given ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ggufmerge import keys
from ggufmerge.chat.templates import TEMPLATE
from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.files import GGUFFile, ShardName, facts
from ggufmerge.files.absent import absent
from ggufmerge.formats.experts import open_model
from ggufmerge.formats.layers import layer_count, main_layer_count
from ggufmerge.places import choice, folders, programs
from ggufmerge.places.hub import cache as hub_cache
from ggufmerge.places.ollama import store as ollama
from ggufmerge.places.presets import preset_models
from ggufmerge.places.schemes import SCHEMES
from ggufmerge.sources.layouts import in_one_layout
from ggufmerge.sources.located import Located

# a head may be tied to the embedding, and constants of the rotation are not merged
_MAY_DIFFER = frozenset({keys.HEAD, "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})


@dataclass(frozen=True)
class FoundModel:
    """A GGUF file that was found.

    references: what a recipe may write for it, the first one suits best.  origin: where it was found: "ollama", "hf",
    "lmstudio", "llama.cpp", or the folder.  keeper: the program that keeps it, "" when nobody knows.
    kind: `general.type`: "model", "adapter", "imatrix", ...  name: what it calls itself, else the file's name.
    file_type: as in `files.facts.file_type`.  parameters: number of weights.
    nbytes: size of all its files.
    needs: what it takes to run it, beside a program that reads GGUF files, or to chat with it.
    projector: the name of a file beside it that makes images or sound its input, "" without one.
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
    keeper: str = ""
    needs: tuple[str, ...] = ()
    projector: str = ""
    error: str = ""

    def __repr__(self) -> str:
        what = self.error or ", ".join(filter(None, (f"{self.architecture} {self.kind}".strip(), self.file_type)))
        return f"<FoundModel {self.references[0]}: {what}>"


def find_models(extra: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = ()) -> list[FoundModel]:
    """All GGUF files that the programs of this machine keep, and those below the folders `extra`; each file once.

    Files that cannot be read are among them, with the reason. PlanError when one of the folders does not exist.
    """
    roots = [Path(folder) for folder in ([extra] if isinstance(extra, str | os.PathLike) else extra)]
    if missing := [folder for folder in roots if not folder.is_dir()]:
        raise PlanError(*(f"{folder}: {_no_folder(folder)}" for folder in missing))
    found: dict[tuple[Path, ...], FoundModel] = {}
    failed: list[FoundModel] = []
    for reference, origin, keeper, locate in _places(roots):
        try:
            located = locate()
            files = (located.path.resolve(), *located.adapters)
            if files in found:
                known = found[files]
                found[files] = replace(known, references=(*known.references, reference))
            else:
                found[files] = _described(reference, origin, keeper, located)
        except (GgufmergeError, OSError) as error:
            failed.append(FoundModel((reference,), origin, keeper=keeper, error=str(error)))
    return [*found.values(), *failed]


def _no_folder(path: Path) -> str:
    return (
        f"a file, not a folder; give the folder that it is in: {path.parent}" if path.exists() else absent(path, ("/",))
    )


def names() -> Iterator[str]:
    """What a recipe may write for each model that the programs of this machine keep; no file is opened."""
    return (reference for reference, *_ in _places(()))


def kept_files() -> Iterator[Path]:
    """Where the files of these models are, of shards the first; no file is opened."""
    for _, _, _, locate in _places(()):
        with contextlib.suppress(GgufmergeError, OSError):
            yield locate().path


def families(models: Iterable[FoundModel]) -> list[list[FoundModel]]:
    """The models (of `kind` "model", readable) by family, large families first."""
    grouped: dict[str, list[FoundModel]] = {}
    for model in models:
        if model.family:
            grouped.setdefault(model.family, []).append(model)
    return sorted(grouped.values(), key=lambda group: (-len(group), group[0].architecture, group[0].parameters))


def fits(adapter: Path, model: Path) -> bool:
    """Whether a LoRA adapter can be applied to a model, by names and shapes of their tensors; False if unreadable."""
    from ggufmerge.sources.adapters import open_adapter

    with contextlib.suppress(GgufmergeError, OSError, ValueError), open_model(model) as file:
        open_adapter(adapter, file).file.close()
        return True
    return False


def fitting_adapters(models: Iterable[FoundModel]) -> dict[str, list[FoundModel]]:
    """`FoundModel.family` -> the adapters among the models that fit the models of that family."""
    models = list(models)
    adapters = [model for model in models if model.kind == "adapter" and model.path is not None]
    fitting: dict[str, list[FoundModel]] = {}
    for group in families(models):
        found = [a for a in adapters if a.path and group[0].path and fits(a.path, group[0].path)]
        if found:
            fitting[group[0].family] = found
    return fitting


def known_models(folders: Iterable[Path]) -> list[FoundModel]:
    """The models in these folders and in the working folder, then all others of this machine; each once."""
    near: dict[Path, FoundModel] = {}
    for folder in dict.fromkeys([*folders, Path()]):
        for path in sorted(folder.glob("*.gguf")):
            if not path.name.startswith("."):
                with contextlib.suppress(GgufmergeError, OSError):
                    near.setdefault(path.resolve(), described(str(path), path))
    for model in find_models():
        if model.path is not None and not model.error:
            if model.origin in SCHEMES:  # a name is shorter than the path that it leads to
                near[model.path.resolve()] = model
            near.setdefault(model.path.resolve(), model)
    return list(near.values())


def described(reference: str, path: Path) -> FoundModel:
    """What there is to know of one GGUF file, which a recipe calls `reference`. FormatError when it cannot be read."""
    return _described(reference, str(path.parent), programs.program_of(path.parent), Located(path))


def family_of(file: GGUFFile) -> str:
    """`FoundModel.family` of a file that is open."""
    return _family(file)


def _places(extra: Sequence[Path]) -> Iterator[tuple[str, str, str, Callable[[], Located]]]:
    """(reference, origin, keeper, how to locate it) of everything there is."""
    for root in ollama.candidate_roots():
        for name in ollama.names(root):
            yield f"ollama:{name}", "ollama", "Ollama", partial(ollama.find, name)
    for entry in hub_cache.cached_files(hub_cache.cache_folder()):
        if not _is_later_shard(entry.path):
            yield entry.reference, "hf", "Hugging Face cache", partial(Located, entry.path)
    kept = [("lmstudio", "LM Studio", root) for root in folders.lmstudio_folders()]
    kept += [("llama.cpp", "llama.cpp", root) for root in folders.llama_cpp_folders()]
    for origin, keeper, root in kept:
        for path in _first_files(root):
            yield f"{origin}:{folders.shown(root, path)}", origin, keeper, partial(Located, path)
    if (preset := programs.preset_file()) is not None:
        yield from _of_preset(preset)
    for keeper, root in programs.usual_folders():
        for path in _first_files(root):
            yield str(path), str(root), keeper, partial(Located, path)
    for root in extra:
        keeper = programs.program_of(root)
        for path in _first_files(root):
            yield str(path), str(root), keeper, partial(Located, path)


def _of_preset(preset: Path) -> Iterator[tuple[str, str, str, Callable[[], Located]]]:
    """The models that a preset file of llama-server names; the file itself when it cannot be read."""
    try:
        models = preset_models(preset)
    except PlanError as error:
        yield str(preset), str(preset), "llama.cpp", partial(_fail, error)
        return
    for path in models.values():
        yield str(path), str(preset), "llama.cpp", partial(Located, path)


def _fail(error: PlanError) -> Located:
    raise error


def _first_files(root: Path) -> Iterator[Path]:
    return (path for path in folders.gguf_files(root) if not _is_later_shard(path))


def _is_later_shard(path: Path) -> bool:
    """Whether this is a shard whose first one is there to be opened."""
    shard = ShardName.parse(path.name)
    return shard is not None and shard.number > 1 and path.with_name(str(shard.all()[0])).exists()


def _described(reference: str, origin: str, keeper: str, located: Located) -> FoundModel:
    path = located.path
    with open_model(path) as file:
        kind = facts.kind(file)
        return FoundModel(
            references=(reference,),
            origin=origin,
            path=path,
            kind=kind,
            name=facts.name(file),
            architecture=file.architecture,
            file_type=str(facts.file_type(file) or ""),
            parameters=facts.parameters(file),
            nbytes=file.nbytes,
            family=_family(file) if kind == "model" and file.tensors else "",
            keeper=keeper,
            needs=_needs(file, kind, located),
            projector=_projector_beside(path, origin) if kind == "model" and origin not in ("ollama", "hf") else "",
        )


def _needs(file: GGUFFile, kind: str, located: Located) -> tuple[str, ...]:
    """What a file lacks to be run as it is, in a few words each."""
    if kind == "adapter":
        return ("its base model",)
    if kind == "mmproj" or file.architecture == "clip":
        return ("a model",)
    needs = []
    if located.adapters:
        needs.append("Ollama's adapter for it")
    settings = located.settings if isinstance(located.settings, ollama.OllamaSettings) else None
    if settings is not None and ollama.layout_warnings("", file):
        needs.append("Ollama")
    prompted = settings is not None and (settings.template or settings.renderer)
    if kind == "model" and keys.TOKENS in file.metadata and not prompted and not file.metadata.text(TEMPLATE):
        needs.append("a chat template")
    return tuple(needs)


def _projector_beside(path: Path, origin: str) -> str:
    """The projector in a model's folder: that of its own name, or the only one, if it is for all models there, as in
    LM Studio's folders, or for the only one.
    """
    names = [found.name for found in path.parent.glob("*.gguf")]
    projectors = [name for name in names if "mmproj" in name.lower()]
    shard = ShardName.parse(path.name)
    own = f"mmproj-{shard.prefix if shard else path.stem}.gguf"
    if own in projectors:
        return own
    alone = origin == "lmstudio" or choice.models_among(names) == [path.name]
    return projectors[0] if len(projectors) == 1 and alone else ""


def _family(file: GGUFFile) -> str:
    """A hash of what models that are merged as they are have in common. Settings may differ: a merge takes some, as
    a missing pre-tokenizer, from the other models, and warns of the rest (`planning.settings`). So may layers that
    predict further tokens (MTP), and vision and sound in the file: the result has those of one model.
    """
    architecture, shapes = in_one_layout(file.architecture, file.tensors)
    digest = hashlib.blake2b(architecture.encode("utf-8", "surrogateescape"), digest_size=16)
    for name in sorted(filter(_is_common(file), shapes.keys() - _MAY_DIFFER)):
        digest.update(f"|{name}|{shapes[name]}".encode("utf-8", "surrogateescape"))
    digest.update(file.metadata.raw(keys.TOKENS) if keys.TOKENS in file.metadata else b"")
    return digest.hexdigest()


def _is_common(file: GGUFFile) -> Callable[[str], bool]:
    """Whether models that are merged have a tensor in common, by its name; others one model may have alone."""
    own = list(keys.OTHER_SENSES)
    with contextlib.suppress(GgufmergeError):  # of a damaged file, which opening will say
        own += [f"blk.{number}." for number in range(main_layer_count(file), layer_count(file))]
    return lambda name: not name.startswith(tuple(own))
