"""KoboldCpp: GGUF files anywhere, and next to one a `.kcpps` file that its launcher, its command line and the list of
its admin page open, with what the model needs: its context size and its projector.

A `.kcpps` file is a JSON mapping from options of the command line to values; options that it lacks keep their
defaults. `AutoGuess`, the default of newer versions for the tags of chats, finds them by the chat template.

Source: `load_config_cli`, `import_vars` and `get_current_admindir_list` of `koboldcpp.py` and its later modules. The
launcher of older versions only takes context sizes of its own list, so ours are from that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufmerge.errors import PlanError
from ggufmerge.files.small import parse_mapping
from ggufmerge.places.homes.home import Home, Model, Placed
from ggufmerge.places.programs import koboldcpp_mark

_SIZES = (256, 512, 1024, 2048, 3072, 4096, 6144, 8192)  # contextsize_text, as far as `Placed.room` goes


def recognize(folder: Path, model: Model) -> Home | None:
    """The place in a folder that has KoboldCpp or its settings in it."""
    found = koboldcpp_mark(folder)
    if found is None:
        return None
    settings = folder / f"{model.stem}.kcpps"
    return Home(
        program="KoboldCpp",
        why=f"{found} is in the folder",
        root=folder,
        files=tuple(model.files(folder)),
        projector=model.projector_in(folder),
        entry=Settings(settings),
        listed=f"open {settings.name} in its launcher, or start it with --config {settings.name}",
    )


@dataclass(frozen=True)
class Settings:
    """The `.kcpps` file of a model: all of it is the entry, but what the user has set in it stays."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self, old: bytes) -> bool:
        self._read(old)
        return True

    def edited(self, old: bytes | None, placed: Placed) -> bytes:
        values: dict[str, Any] = {} if old is None else self._read(old)
        values["model_param"] = str(placed.file)
        values.pop("mmproj", None)
        if placed.projector is not None:
            values["mmproj"] = str(placed.projector)
        if placed.room is not None and (fitting := [size for size in _SIZES if size <= placed.room]):
            values.setdefault("contextsize", fitting[-1])
        if placed.template:
            values.setdefault("chatcompletionsadapter", "AutoGuess")
        # it is read in the system's encoding, which is not UTF-8 everywhere
        return (json.dumps(values, indent=2, ensure_ascii=True) + "\n").encode()

    def _read(self, old: bytes) -> dict[str, Any]:
        try:
            return parse_mapping(old)
        except ValueError as error:
            raise PlanError(f"{self.path}: cannot be edited: {error}; mend it or take it away") from None
