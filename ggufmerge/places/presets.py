"""Preset files of llama-server (`--models-preset FILE.ini`): a section a model, whose keys are options.

They are read by a grammar of their own: nothing may stand before a key or `[`, values have no quotes and end at `;` or
`#` wherever these stand, and one line that does not fit makes the server give up. Of sections with one name the last
counts. Paths start from the folder in which the server was started.

Source: `parse_ini_from_file` in llama.cpp's common/preset.cpp, build 11434.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from ggufmerge.errors import PlanError
from ggufmerge.files.small import read_small

MODEL_KEYS = ("model", "m", "LLAMA_ARG_MODEL")
MAX_PRESET = 1 << 22  # bytes

# the grammar, a line at a time; `rest` is a comment and the end of the line
_REST = r"(?P<rest>[ \t]*(?:[;#][^\r\n]*)?(?:\r\n|\n|\r)?)"
HEADER = re.compile(rf"\[[ \t]*([^\]\r\n]+)\]{_REST}")
PAIR = re.compile(rf"(?P<key>[a-zA-Z_][a-zA-Z0-9_.\-]*)[ \t]*=[ \t]*(?P<value>[^;#\r\n]*?){_REST}")
_OTHER = re.compile(_REST)
DEFAULT = "default"  # where keys before the first section belong


def preset_models(path: Path) -> dict[str, Path]:
    """The sections of a preset file that name a file, with that; PlanError when llama-server could not read it."""
    try:
        data = read_small(path, MAX_PRESET)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}): check the file") from None
    sections = parse_preset(data, path)[1]
    found = {name: next((keys[key] for key in MODEL_KEYS if key in keys), "") for name, keys in sections.items()}
    return {name: Path(file) for name, file in found.items() if file}


def parse_preset(data: bytes, path: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """(lines with their ends, sections); PlanError when llama-server could not read the file."""
    if data.startswith(codecs.BOM_UTF8):
        raise PlanError(f"{path}:1: llama-server cannot read the byte order mark in front; save it without one")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise PlanError(f"{path}: it is not UTF-8 text; mend it") from None
    lines = [found[0] for found in re.finditer(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+$", text)]
    sections: dict[str, dict[str, str]] = {}
    current = DEFAULT
    for number, line in enumerate(lines, 1):
        if match := HEADER.fullmatch(line):
            current = match[1]
            sections[current] = {}
        elif match := PAIR.fullmatch(line):
            sections.setdefault(current, {})[match["key"]] = match["value"]
        elif not _OTHER.fullmatch(line):
            raise PlanError(f"{path}:{number}: llama-server cannot read this line; mend it")
    return lines, sections
