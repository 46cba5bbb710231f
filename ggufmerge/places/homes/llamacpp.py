"""llama.cpp: the folder of `llama-server --models-dir`, the presets of `--models-preset`, and a line that runs a model.

A server without a model routes requests to those that it knows (router mode). In a models folder it lists
- `NAME.gguf`, as NAME;
- `NAME/`, as NAME, with the first shard or else a GGUF file in it, and as its projector a file with `mmproj` in its
  name. One model a folder: of several it takes any. Folders in folders are not looked into.

A preset file (`places/presets.py`) has a section a model, `[NAME]`, whose keys are options of the command line. `[*]`
holds for all models; a model's own keys win.

Chats use the template in the file, through Jinja, which is on by default (`use_jinja` in common/common.h), and ChatML
where there is none. Without `-c` the server takes as much context as the model was trained for and makes that fit
the devices only; so ours names a size.

Sources: `load_from_models_dir`, `load_from_ini` in common/preset.cpp, common/arg.cpp, and "Using
multiple models" in tools/server/README.md, of build 11434. What a server of build 10434 lists was compared.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufmerge.errors import PlanError
from ggufmerge.files.shards import ShardName
from ggufmerge.places.homes.home import Home, Model, Placed
from ggufmerge.places.presets import DEFAULT, HEADER, MODEL_KEYS, PAIR, parse_preset, preset_models
from ggufmerge.places.programs import MODELS_DIR, models_dir

_PROJECTOR = ("mmproj", "mm", "LLAMA_ARG_MMPROJ")
_CONTEXT = ("ctx-size", "c", "LLAMA_ARG_CTX_SIZE")
_TEMPLATE = "llama-server will use ChatML"


def recognize(folder: Path, model: Model, *, asked: bool) -> Home | None:
    """The place in a models folder of the router; asked: the user says that it is one."""
    why = _why(folder, asked=asked)
    if why is None:
        return None
    own = folder / model.stem
    rival = own.with_name(f"{model.stem}.gguf") if model.has_companions else own
    if rival.is_file() or (rival.is_dir() and any(rival.glob("*.gguf"))):
        raise PlanError(f"{rival}: llama-server would know both models as {model.stem}: take it away, or use -o NAME")
    place = own if model.has_companions else folder
    return Home(
        program="llama.cpp",
        why=why,
        root=folder,
        files=tuple(model.files(place)),
        projector=model.projector_in(place),
        listed=f"llama-server --models-dir lists it as {model.stem} when it starts",
        template=_TEMPLATE,
    )


def check_alone(home: Home) -> None:
    """PlanError when a folder that is to be one model to the server holds another."""
    folder = home.folder
    if home.program != "llama.cpp" or home.entry is not None or folder == home.root or not folder.is_dir():
        return
    ours = {path.name for path in (*home.files, *([home.projector] if home.projector else []))}
    others = sorted(path.name for path in folder.glob("*.gguf") if path.name not in ours)
    if others:
        raise PlanError(f"{folder}: llama-server lists one model a folder, and {others[0]} is in it: take it away")


def preset_home(path: Path, model: Model) -> Home:
    """The place beside a preset file, with an entry in it; the file need not be there."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - a link that the user names stays
    folder = path.parent
    if not folder.is_dir():
        raise PlanError(f"--to {path}: there is no folder {folder}: create it first")
    return Home(
        program="llama.cpp",
        why="it is a preset file, by its name",
        root=folder,
        files=tuple(model.files(folder)),
        projector=model.projector_in(folder),
        entry=Preset(path, model.stem),
        listed=f"llama-server --models-preset lists it as {model.stem} when it starts",
        template=_TEMPLATE,
    )


def arguments(placed: Placed) -> list[str]:
    """The command that serves a model, word by word."""
    words = ["llama-server", "-m", str(placed.file)]
    if placed.projector is not None:
        words += ["--mmproj", str(placed.projector)]
    return words + (["-c", str(placed.room)] if placed.room is not None else [])


def command_line(words: Sequence[str]) -> str:
    """The same for the system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


@dataclass(frozen=True)
class Preset:
    """The section of a model in a preset file."""

    path: Path
    section: str

    @property
    def name(self) -> str:
        return f"[{self.section}] in {self.path.name}"

    def exists(self, old: bytes) -> bool:
        return self.section in parse_preset(old, self.path)[1]

    def edited(self, old: bytes | None, placed: Placed) -> bytes:
        if "]" in self.section or self.section == DEFAULT:
            raise PlanError(f"{self.path}: a preset file cannot hold a model called {self.section}: use -o NAME.gguf")
        lines, sections = parse_preset(old or b"", self.path)
        before = sections.get(self.section, {})
        shared = {**sections.get("*", {}), **before}
        values: dict[tuple[str, ...], str | None] = {
            MODEL_KEYS: str(placed.file),
            _PROJECTOR: str(placed.projector) if placed.projector else None,
        }
        if placed.room is not None and not any(key in shared for key in _CONTEXT):
            values[_CONTEXT] = str(placed.room)  # one that the user has set stays
        for value in values.values():
            if value is not None and not _fits(value):
                raise PlanError(f"{self.path}: a preset file cannot hold the path {value}: rename it without ; and #")
        end = "\r\n" if any(line.endswith("\r\n") for line in lines) else "\n"
        if self.section in sections:
            new = self._renewed(lines, values, end)
        else:
            entry = [f"[{self.section}]", *(f"{keys[0]} = {value}" for keys, value in values.items() if value)]
            new = _with_end(lines, end) + ([end] if lines and lines[-1].strip() else []) + [f"{x}{end}" for x in entry]
        data = "".join(new).encode()
        known = {key for keys in values for key in keys}
        kept = {key: value for key, value in before.items() if key not in known}
        wanted = {**kept, **{keys[0]: value for keys, value in values.items() if value is not None}}
        if parse_preset(data, self.path)[1] != {**sections, self.section: wanted}:
            raise PlanError(f"{self.path}: [{self.section}] cannot be edited: write its model = {placed.file} yourself")
        return data

    def _renewed(self, lines: list[str], values: Mapping[tuple[str, ...], str | None], end: str) -> list[str]:
        """The lines with other values in this section; comments and keys that are not ours stay."""
        starts = [i for i, line in enumerate(lines) if (match := HEADER.fullmatch(line)) and match[1] == self.section]
        start = starts[-1]  # of sections of one name the last one counts
        stop = next((i for i in range(start + 1, len(lines)) if HEADER.fullmatch(lines[i])), len(lines))
        ours = {key: keys for keys in values for key in keys}
        body, written = [], set()
        for line in lines[start + 1 : stop]:
            match = PAIR.fullmatch(line)
            keys = ours.get(match["key"]) if match else None
            if match is None or keys is None:
                body.append(line)
            elif values[keys] is not None and keys not in written:
                written.add(keys)
                body.append(f"{keys[0]} = {values[keys]}{match['rest']}")
        added = [f"{keys[0]} = {value}{end}" for keys, value in values.items() if value and keys not in written]
        head = _with_end(lines[: start + 1], end)
        return head + added + body + lines[stop:]


def _fits(value: str) -> bool:
    """Whether llama-server reads this value as it is."""
    try:
        value.encode()
    except UnicodeEncodeError:  # a path that is no UTF-8 on the disk
        return False
    return not re.search(r"[;#\r\n]", value) and value == value.strip(" \t")


def _with_end(lines: list[str], end: str) -> list[str]:
    """The lines, the last of which ends, too."""
    if not lines or lines[-1].endswith(("\n", "\r")):
        return list(lines)
    return [*lines[:-1], lines[-1] + end]


def _why(folder: Path, *, asked: bool) -> str | None:
    if (named := models_dir()) is not None and folder.samefile(named):
        return f"{MODELS_DIR} names it"
    for path in sorted(folder.glob("*.ini")):
        with contextlib.suppress(PlanError):  # of another program
            if preset_models(path):
                return f"{path.name} has presets of llama-server's in it"
    for below in sorted(path for path in folder.iterdir() if path.is_dir()):
        names = [path.name for path in below.glob("*.gguf")]
        shards = [shard for name in names if (shard := ShardName.parse(name)) and shard.prefix == below.name]
        if shards or (f"{below.name}.gguf" in names and any("mmproj" in name for name in names)):
            return f"{below.name} in it has the files of one model, as llama-server --models-dir wants them"
    return "--llama-cpp says so" if asked else None
