"""Modelfiles: what `ollama create NAME -f merged.Modelfile` reads.

Ollama's parser has no escapes. A value ends at the first end of a line where the quotes it began with are closed, and
characters that are not printable are dropped, so some texts cannot be written; those are left out, with a comment that
says so. Source: Ollama's `parser/parser.go`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ggufmerge import keys
from ggufmerge.errors import PlanError
from ggufmerge.files import open_gguf
from ggufmerge.files.small import file_name
from ggufmerge.files.writer import write_new
from ggufmerge.places.ollama.settings import PARAMETERS, completed, prompt_warnings, refusals
from ggufmerge.places.ollama.store import OllamaSettings
from ggufmerge.text import printable


def modelfile_path(output: str | os.PathLike[str]) -> Path:
    """`merged.Modelfile` for `merged.gguf` and for its shards: beside it, and not in the way of other outputs.

    PlanError when `output` names no file.
    """
    path = Path(output)
    file_name(path)  # PlanError for a path that names none
    stem = path.stem if path.suffix.lower() == ".gguf" else path.name
    return path.with_name(re.sub(r"-\d{5}-of-\d{5}$", "", stem) + ".Modelfile")


def check_modelfile(output: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """PlanError when the Modelfile of an output must not be written."""
    path = modelfile_path(output)
    if os.path.lexists(path) and (path.is_dir() or not overwrite):
        gone = f", though {output} does not:" if not os.path.lexists(output) else ":"
        raise PlanError(f"{path}: exists{gone} use --overwrite to replace it, or --no-modelfile")


def write_modelfile(
    output: str | os.PathLike[str],
    settings: OllamaSettings | None = None,
    *,
    overwrite: bool = False,
    projector: Path | None = None,
) -> Path:
    """Write the Modelfile of a GGUF file beside it; returns its path.

    settings: what the model inherits from its parents (`inherited`).  projector: a file beside it for images or sound.
    PlanError when there is another one and `overwrite` is not set.
    """
    with open_gguf(output) as file:
        settings = completed(settings or OllamaSettings(), file.metadata)
        problems = refusals({n: t.type for n, t in file.tensors.items()}, file.metadata)
        context = file.metadata.integer(keys.context_length(file.architecture))
        names = [p.name for p in (*file.paths, *([projector] if projector else ()))]
        notes = prompt_warnings(settings, file.metadata) if keys.TOKENIZER_MODEL in file.metadata else []
        text = modelfile_text(names, settings, problems, context, notes)
    path, data = modelfile_path(output), text.encode("utf-8", "replace")
    # one with this content is what an interrupted run has written
    if os.path.lexists(path) and (path.is_dir() or path.read_bytes() != data):
        check_modelfile(output, overwrite=overwrite)
    write_new(path, data, overwrite=overwrite)
    return path


def modelfile_text(
    names: Sequence[str],
    settings: OllamaSettings,
    problems: Sequence[str] = (),
    context: int | None = None,
    notes: Sequence[str] = (),
) -> str:
    """A Modelfile for files of these names in its own folder.

    problems: why Ollama will not take them.  context: tokens that the model was trained for; a hint, since Ollama
    reserves memory for as many as num_ctx says.  notes: what else the user should know.
    """
    lines = [
        comment(f"ollama create NAME -f {shlex.quote(modelfile_path(names[0]).name)}"),
        comment(f"Written by ggufmerge for {names[0]}"),
        *(comment(f"Ollama will refuse it: {problem}") for problem in problems),
        *map(comment, notes),
    ]
    for name in names:
        lines += _line("FROM", f"./{name}", "rename the file and write its new name here")
    if settings.template:
        lines += _line("TEMPLATE", settings.template)
    for key, value in settings.parameters.items():
        if key not in PARAMETERS:
            lines.append(comment(f"PARAMETER {key} is left out: no model can have it today"))
            continue
        for item in value if isinstance(value, list) else [value]:
            lines += _line(f"PARAMETER {key}", _plain(item))
    if context is not None and "num_ctx" not in settings.parameters:
        lines.append(
            comment(f"PARAMETER num_ctx {context} would use all that the model was trained for, and more memory")
        )
    for word in ("renderer", "parser", "requires"):
        if value := getattr(settings, word):
            lines += _line(word.upper(), value)
    if settings.system:
        lines += _line("SYSTEM", settings.system)
    for message in settings.messages:
        role, content = message.get("role"), message.get("content")
        if role in ("system", "user", "assistant") and isinstance(content, str):
            lines += _line(f"MESSAGE {role}", content)
    for text in settings.licenses:
        # form feeds and the like, which are dropped anyway, are no reason to lose a licence
        lines += _line("LICENSE", "".join(c if _is_kept(c) else " " for c in text))
    return "\n".join(lines) + "\n"


def comment(text: str) -> str:
    """A line that Ollama skips, whatever the text holds: the only way that comments are written."""
    return f"# {printable(text)}"


def quoted(value: str) -> str | None:
    """A value as it stands in a Modelfile; None when nothing that can stand there reads back as this text."""
    if not all(map(_is_kept, value)):
        return None
    for quote in ('"', '"""'):
        text = quote + value + quote
        if quote == '"' and text.startswith('"""'):
            continue
        if not any(_closed(quote + start, quote) for start in _beginnings(value)):
            return text
    return None


def _is_kept(letter: str) -> bool:
    return letter.isprintable() or letter in "\t\r\n"


def _beginnings(value: str) -> Iterator[str]:
    """The value up to the end of each of its lines but the last, where Ollama looks whether the quotes are closed."""
    for at, c in enumerate(value):
        if c in "\r\n":
            yield value[:at]


def _closed(text: str, quote: str) -> bool:
    text = text.rstrip()
    return len(text) >= 2 * len(quote) and text.endswith(quote)


def _line(instruction: str, value: str, remedy: str = "`ggufmerge build --ollama NAME` keeps it") -> list[str]:
    text = quoted(value)
    if text is None:
        return [comment(f"{instruction} is left out: a Modelfile cannot hold its text; {remedy}")]
    return [f"{instruction} {text}"]


def _plain(value: Any) -> str:
    """The value of a parameter as Ollama reads it."""
    return value if isinstance(value, str) else json.dumps(value)
