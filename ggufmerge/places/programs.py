"""Programs whose folders anybody may put anywhere, recognized by what is in them: KoboldCpp, text-generation-webui, and
llama-server with a models folder or presets.

Sources: `resolve_user_data_dir` (modules/paths.py) and one_click.py of text-generation-webui; names of the released
files of KoboldCpp; common/arg.cpp of llama.cpp.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

MODELS_DIR = "LLAMA_ARG_MODELS_DIR"
MODELS_PRESET = "LLAMA_ARG_MODELS_PRESET"
WEBUI_CONFIG = "config-user.yaml"
_WEBUI_MARKS = ("place-your-models-here.txt", WEBUI_CONFIG, "config.yaml")  # in its models folder
_WEBUI = ("server.py", "one_click.py", "start_linux.sh", "start_windows.bat", "start_macos.sh")
_KOBOLDCPP = re.compile(r"koboldcpp([-_.].*)?", re.IGNORECASE)
_KOBOLDCPP_SETTINGS = (".kcpps", ".kcppt")
# where people unpack or clone them; other places are given to `ggufmerge models`
_USUAL = ("koboldcpp", "text-generation-webui", "textgen")


def koboldcpp_mark(folder: Path) -> str | None:
    """What shows that a folder is KoboldCpp's: the name of the program or of a file of its settings."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    found = next((name for name in names if _KOBOLDCPP.fullmatch(name) and not name.lower().endswith(".gguf")), None)
    return found or next((name for name in names if name.lower().endswith(_KOBOLDCPP_SETTINGS)), None)


def webui_models(folder: Path) -> tuple[Path, str] | None:
    """The folder of models that a folder is or has in it, and how that was seen; None when it is not this program's."""
    if (folder / "user_data" / "models").is_dir():
        return folder / "user_data" / "models", "user_data/models is in the folder"
    if folder.name == "user_data" and (folder / "models").is_dir():
        return folder / "models", "it is a user_data folder with models in it"
    if any((folder / name).exists() for name in _WEBUI) and (folder / "modules").is_dir():
        portable = folder.parent / "user_data" / "models"
        for models in (portable, folder / "models"):
            if models.is_dir():
                return models, "server.py and modules are in the folder"
    if folder.name == "models" and folder.parent.name == "user_data":
        return folder, "it is user_data/models"
    if mark := next((name for name in _WEBUI_MARKS if (folder / name).is_file()), None):
        return folder, f"{mark} is in the folder"
    return None


def program_of(folder: Path) -> str:
    """The program that a folder of models belongs to, "" when that is not to be seen."""
    with contextlib.suppress(OSError):
        if webui_models(folder) is not None:
            return "text-generation-webui"
        if koboldcpp_mark(folder) is not None:
            return "KoboldCpp"
        if (named := models_dir()) is not None and folder.samefile(named):
            return "llama.cpp"
    return ""


def models_dir() -> Path | None:
    """The models folder that llama-server takes from the environment."""
    named = os.environ.get(MODELS_DIR)
    return Path(named) if named and Path(named).is_dir() else None


def preset_file() -> Path | None:
    """The preset file that llama-server takes from the environment."""
    named = os.environ.get(MODELS_PRESET)
    return Path(named) if named and Path(named).is_file() else None


def usual_folders() -> Iterator[tuple[str, Path]]:
    """(program, folder of models) where KoboldCpp and text-generation-webui often are and where they are recognized."""
    for name in _USUAL:
        folder = Path.home() / name
        with contextlib.suppress(OSError):
            if (found := webui_models(folder)) is not None:
                yield "text-generation-webui", found[0]
            elif folder.is_dir() and koboldcpp_mark(folder) is not None:
                yield "KoboldCpp", folder
