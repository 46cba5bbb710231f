"""text-generation-webui: GGUF files anywhere below `user_data/models`, in older versions `models`.

Context size and chat template come out of the file, so most models need no settings. A projector lies in
`user_data/mmproj`, in the models folder it would be listed as a model, and `config-user.yaml` names it for its model.
That file is a mapping from regular expressions, matched against the start of a file's name, to settings; the program
itself writes the name with `$` behind it, and so do we.

Source: `get_available_models`, `get_available_mmproj` (modules/utils.py), `get_model_metadata`, `save_model_settings`
(modules/models_settings.py). A model without a chat template gets Alpaca's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ggufmerge.errors import PlanError, RecipeError
from ggufmerge.places.homes.home import Home, Model, Placed
from ggufmerge.places.programs import WEBUI_CONFIG, webui_models
from ggufmerge.recipe.document import parse


def recognize(folder: Path, model: Model) -> Home | None:
    """The place in a folder that is text-generation-webui's own, its `user_data`, or its folder of models."""
    found = webui_models(folder)
    if found is None:
        return None
    models, why = found
    # a model of several files has a folder of its own; the program lists its first shard by that
    place = models / model.stem if model.shards is not None else models
    files = model.files(place)
    # older versions take a projector from anywhere, by its path on their command line
    eyes = models.parent / "mmproj" if models.parent.name == "user_data" else models
    return Home(
        program="text-generation-webui",
        why=why,
        root=models,
        files=tuple(files),
        projector=model.projector_in(eyes),
        entry=ConfigUser(models / WEBUI_CONFIG, files[0].name) if model.projector else None,
        listed="its Model tab lists it, after a click on the button that refreshes the list",
        template="text-generation-webui will use Alpaca's",
    )


@dataclass(frozen=True)
class ConfigUser:
    """The projector of a model in `config-user.yaml`; file: the name of the model's file, of shards the first."""

    path: Path
    file: str

    @property
    def name(self) -> str:
        return f"{self.file} in {self.path.name}"

    def exists(self, old: bytes) -> bool:
        found = self._read(old).get(f"{self.file}$")
        return isinstance(found, dict) and "mmproj" in found

    def edited(self, old: bytes | None, placed: Placed) -> bytes:
        if placed.projector is None:
            return old or b""
        before = self._read(old or b"")
        text = (old or b"").decode()
        end = "\r\n" if "\r\n" in text else "\n"
        key, value = f"{self.file}$", placed.projector.name
        line = f"  mmproj: {_scalar(value)}"
        lines = re.split(r"\r\n|\n", text)
        lines = lines[:-1] if lines[-1] == "" else lines
        at = next((i for i, found in enumerate(lines) if _key(found) == key), None)
        if at is None:
            lines += [f"{_scalar(key)}:", line]
        else:
            last = next((i for i in range(at + 1, len(lines)) if _key(lines[i]) is not None), len(lines))
            known = next((i for i in range(at + 1, last) if re.match(r"\s+mmproj\s*:", lines[i])), None)
            if known is None:
                lines.insert(at + 1, re.sub(r"^\s*", _indent(lines[at + 1 : last]), line))
            else:
                lines[known] = re.match(r"\s+", lines[known])[0] + line.strip()  # type: ignore[index]
        new = (end.join(lines) + end).encode()
        settings = before.get(key)
        wanted = {**before, key: {**(settings if isinstance(settings, dict) else {}), "mmproj": value}}
        if self._read(new) != wanted:
            raise PlanError(f"{self.path}: {key} is written in a way that is not edited here: name {value} there")
        return new

    def _read(self, data: bytes) -> dict[str, Any]:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise PlanError(f"{self.path}: cannot be edited: it is not UTF-8 text; mend it") from None
        if all(line.strip()[:1] in ("", "#") for line in text.splitlines()):
            return {}
        try:
            documents = parse(text, str(self.path))
        except RecipeError as error:
            raise PlanError(f"cannot be edited: {error.lines[0]}") from None
        if len(documents) > 1 or not isinstance(documents[0].data, dict):
            raise PlanError(f"{self.path}: cannot be edited: it is not a mapping of models to settings; mend it")
        return documents[0].data


def _scalar(text: str) -> str:
    """A text as YAML writes it, on one line."""
    written: str = yaml.safe_dump(text, width=float("inf"), allow_unicode=True).split("\n")[0]
    return written


def _key(line: str) -> str | None:
    """The key of a line at the left edge; None for other lines."""
    match = re.match(r"""(?:"(?P<d>[^"]*)"|'(?P<s>[^']*)'|(?P<p>[^\s#'"-][^#]*?))\s*:(\s|$)""", line)
    return None if match is None else next(value for value in match.group("d", "s", "p") if value is not None)


def _indent(lines: list[str]) -> str:
    """How the settings of an entry are set in."""
    return next((found[0] for line in lines if line.strip() and (found := re.match(r"\s+", line))), "  ")
