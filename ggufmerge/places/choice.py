"""Which GGUF file of a folder or repository is meant by a type, such as Q4_K_M."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ggufmerge.errors import PlanError, nearest
from ggufmerge.files import ShardName
from ggufmerge.text import first_few

# files beside models: projectors for images and sound, draft heads, importance matrices
_BESIDE = re.compile(r"(^|[-_.])(mmproj|mtp|imatrix)([-_.]|$)", re.IGNORECASE)
_LISTED = 12  # names in a message


def models_among(names: Iterable[str]) -> list[str]:
    """The names (with `/` between folders) of models: whole files and first shards, sorted."""
    found = []
    for name in names:
        base = name.rpartition("/")[2]
        shard = ShardName.parse(base)
        if base.lower().endswith(".gguf") and not _BESIDE.search(base) and (shard is None or shard.number == 1):
            found.append(name)
    return sorted(found)


def all_shards(name: str) -> list[str]:
    """The names of all files of a model: the name itself, or of all shards when it is the name of one."""
    folder, slash, base = name.rpartition("/")
    shard = ShardName.parse(base)
    return [name] if shard is None else [f"{folder}{slash}{other}" for other in shard.all()]


def carries_type(name: str, file_type: str) -> bool:
    """Whether a file's name says that it is of this type: `model-Q4_K_M.gguf` is Q4_K_M but not Q4_K.

    Case does not matter. A folder's name counts when the file's own says nothing.
    """
    word = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(file_type)}(?![A-Za-z0-9_])", re.IGNORECASE)
    folder, _, base = name.rpartition("/")
    shard = ShardName.parse(base)
    base = shard.prefix if shard else base[: -len(".gguf")]
    return bool(word.search(base) or (word.search(folder) and not _ANY_TYPE.search(base)))


def choose(names: Sequence[str], file_type: str | None, label: str) -> str:
    """The one model among names; PlanError, which begins with `label`, unless exactly one is of the type.

    file_type: None when the user has named none.
    """
    models = models_among(names)
    if not models:
        raise PlanError(f"{label}: no GGUF model is there; repositories of GGUF files are often called ...-GGUF")
    fitting = models if file_type is None else [name for name in models if carries_type(name, file_type)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise PlanError(f"{label}: no file there is called {file_type}; there are {first_few(models, _LISTED)}")
    what = "has several models" if file_type is None else f"has several files called {file_type}"
    raise PlanError(f"{label}: {what}, name one of them: {first_few(fitting, _LISTED)}")


def missing(label: str, name: str, names: Iterable[str]) -> PlanError:
    """The error for a file that is not among the names of a place."""
    models = models_among(names)
    return PlanError(f"{label}: no file {name} is there; {nearest(name, models) if models else 'nor any GGUF model'}")


_ANY_TYPE = re.compile(
    r"(?<![A-Za-z0-9_])(I?Q[1-8]_[A-Z0-9_]+|T?Q[12]_0|B?F16|F32|MXFP4[A-Z_]*|NVFP4)(?![A-Za-z0-9_])", re.I
)
