"""Models that other programs have downloaded, by name: `lmstudio:publisher/model/file.gguf`, `llama.cpp:file.gguf`.

Such a name is a path below the program's folder, or the end of one (`file.gguf`, `file`), or a folder with a type
behind it when several files are in it: `lmstudio:publisher/model:Q4_K_M`. llama.cpp's cache puts owner and repository
into one name; `llama.cpp:owner/repo:Q4_K_M`, as behind its option `-hf`, finds that, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ggufmerge.errors import PlanError, nearest
from ggufmerge.files.small import read_json, read_small
from ggufmerge.places import choice, programs
from ggufmerge.sources.located import Located

_MAX_SETTINGS = 1 << 20  # bytes
_SNAPSHOT = re.compile(r"models--([^/]+)/snapshots/[^/]+/(.+)", re.DOTALL)


def find_lmstudio(name: str) -> Located:
    """The file of a model of LM Studio; PlanError when there is none or several."""
    return _find("lmstudio", name, lmstudio_folders())


def find_llama_cpp(name: str) -> Located:
    """The file of a model in llama.cpp's cache; PlanError when there is none or several."""
    return _find("llama.cpp", name, llama_cpp_folders())


def lmstudio_folders() -> list[Path]:
    """Where its settings say, then where it puts models by default, now and in early versions."""
    chosen = _lmstudio_setting()
    folders = [_lmstudio_home() / "models", Path.home() / ".cache" / "lm-studio" / "models"]
    return list(dict.fromkeys([chosen, *folders] if chosen is not None else folders))


def lmstudio_folder() -> tuple[Path, str]:
    """The folder that LM Studio has its models in now, which is there, and how that is known, for people.

    PlanError when there is none.
    """
    chosen = _lmstudio_setting()
    if chosen is not None:
        if not chosen.is_dir():
            raise PlanError(f"{chosen}: LM Studio's settings name this folder, which is not there: create it")
        return chosen, "its settings name the folder"
    known = [folder for folder in lmstudio_folders() if folder.is_dir()]
    if not known:
        raise PlanError(
            f"there is no LM Studio here, which has its models in {lmstudio_folders()[0]}: start it once, or use --to"
        )
    return known[0], "it is the folder that LM Studio uses by default"


def _lmstudio_setting() -> Path | None:
    """The folder that LM Studio's settings name; early versions kept them with the system's other settings."""
    for place in (_lmstudio_home(), _application_settings() / "LM Studio"):
        with contextlib.suppress(OSError, ValueError):
            settings = read_json(place / "settings.json", _MAX_SETTINGS)
            if isinstance(chosen := settings.get("downloadsFolder"), str) and chosen:
                return Path(chosen)
    return None


def _application_settings() -> Path:
    """As `getUserAppDataPath` of lms has it."""
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def llama_cpp_folders() -> list[Path]:
    """llama.cpp's cache, and the models folder of its server where the environment names one."""
    named = programs.models_dir()
    return [llama_cpp_folder(), *([named] if named is not None else [])]


def llama_cpp_folder() -> Path:
    """As `fs_get_cache_directory` of llama.cpp has it."""
    if value := os.environ.get("LLAMA_CACHE"):
        return Path(value)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "llama.cpp"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "llama.cpp"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama.cpp"


def gguf_files(root: Path) -> Iterator[Path]:
    """All GGUF files below a folder, sorted; hidden ones are left out, such as unfinished downloads."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(".gguf") and not name.startswith("."):
                yield Path(folder) / name


def shown(root: Path, path: Path) -> str:
    """What a recipe writes for a file below a program's folder; as the Hub's own names in caches of its layout."""
    model = path.relative_to(root).as_posix()
    match = _SNAPSHOT.fullmatch(model)
    return f"{match[1].replace('--', '/')}/{match[2]}" if match else model


def models_below(root: Path) -> list[str]:
    """The models below a folder, as paths relative to it with `/` between folders."""
    return choice.models_among(path.relative_to(root).as_posix() for path in gguf_files(root))


def _find(scheme: str, name: str, folders: list[Path]) -> Located:
    label, roots = f"{scheme}:{name}", [folder for folder in folders if folder.is_dir()]
    if not roots:
        raise PlanError(
            f"{label}: there is no folder {' or '.join(map(str, folders))}; give the path of the file instead"
        )
    wanted, file_type = _parts(name)
    known = [(root, model) for root in roots for model in models_below(root)]
    found = [place for place in known if place[1] == wanted] or [place for place in known if _means(wanted, place[1])]
    if not found:
        names = [model for _, model in known]
        hint = nearest(wanted, names) if names else "nothing is there"
        raise PlanError(f"{label}: no such model in {' and '.join(map(str, roots))}; {hint}")
    chosen = choice.choose(list(dict.fromkeys(model for _, model in found)), file_type, label)
    return Located(next(root for root, model in found if model == chosen) / chosen)


def _lmstudio_home() -> Path:
    """`~/.lmstudio`, or the folder that took its place."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if text := read_small(Path.home() / ".lmstudio-home-pointer", _MAX_SETTINGS).decode().strip():
            return Path(text)
    return Path.home() / ".lmstudio"


def _parts(name: str) -> tuple[str, str | None]:
    """A name and the type behind its last colon."""
    name = name.strip().replace("\\", "/").strip("/")
    path, colon, file_type = name.rpartition(":")
    return (path, file_type) if colon and path and "/" not in file_type else (name, None)


def _means(wanted: str, model: str) -> bool:
    """Whether a name leads to a model: to the file itself, or to a folder that it is in."""
    wanted, model = wanted.lower(), model.lower()
    there = model
    model = shown(Path(), Path(model))
    ends = (model, model.removesuffix(".gguf"), model.rpartition("/")[0])
    if any(end == wanted or end.endswith("/" + wanted) for end in ends):
        return True
    # llama.cpp, older: owner_repo_file.gguf; newer: as huggingface_hub
    return model.startswith(wanted + "/" if model != there else wanted.replace("/", "_") + "_")
