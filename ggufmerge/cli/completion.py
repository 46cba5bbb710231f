"""What a shell completes: types, methods, models. Quick, and silent when anything goes wrong."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_MOST = 200  # candidates that are looked at or shown

Candidates = list[tuple[str, str]]  # what is typed, what it is


def _quiet(find: Callable[[str], Iterable[tuple[str, str]]], incomplete: str) -> Candidates:
    """Those that begin with what was typed; none when they cannot be found."""
    try:
        return list(itertools.islice(find(incomplete), _MOST))
    except Exception:  # a shell has no use for a reason
        return []


def complete_types(incomplete: str) -> Candidates:
    """File types."""
    return _quiet(_types, incomplete)


def complete_tensor_types(incomplete: str) -> Candidates:
    """Types of tensors that weights may have."""
    return _quiet(_tensor_types, incomplete)


def complete_methods(incomplete: str) -> Candidates:
    """Merge methods."""
    return _quiet(_methods, incomplete)


def complete_models(incomplete: str) -> Candidates:
    """Names that `ggufmerge models` lists, and files; no header is read."""
    return _quiet(_models, incomplete)


def complete_reports(incomplete: str) -> Candidates:
    """Folders, and reports that are there."""
    return _quiet(lambda begun: _files(begun, (".html", ".htm")), incomplete)


def complete_types_and_files(incomplete: str) -> Candidates:
    """The words after the input of `quantize`: an output or a type."""
    return complete_types(incomplete) + _quiet(_files, incomplete)


def _types(incomplete: str) -> Iterator[tuple[str, str]]:
    from ggufmerge.types import FileType

    return ((name, "") for name in _in_case(FileType, incomplete) if name.startswith(incomplete))


def _tensor_types(incomplete: str) -> Iterator[tuple[str, str]]:
    from ggufmerge.types import TensorType

    usable = (t for t in TensorType if (t.is_float or t.is_quantized) and t not in ("Q8_1", "Q8_K"))
    return ((name, "") for name in _in_case(usable, incomplete) if name.startswith(incomplete))


def _in_case(names: Iterable[str], incomplete: str) -> Iterator[str]:
    """The names in the case in which somebody began to write one."""
    return (name.lower() if incomplete[:1].islower() else str(name) for name in names)


def _methods(incomplete: str) -> Iterator[tuple[str, str]]:
    from ggufmerge.methods import names

    return ((name, "") for name in names() if name.startswith(incomplete.lower()))


def _models(incomplete: str) -> Iterator[tuple[str, str]]:
    from ggufmerge.places.inventory import names

    known = ((name, "") for name in itertools.islice(names(), 10 * _MOST) if name.startswith(incomplete))
    return itertools.chain(_files(incomplete), known)


def _files(incomplete: str, endings: tuple[str, ...] = (".gguf",)) -> Iterator[tuple[str, str]]:
    """Files of this kind and folders that begin with what was typed."""
    folder, _, begin = incomplete.rpartition("/")
    place = Path(f"{folder}/" if incomplete.startswith("/") or folder else ".").expanduser()
    before = f"{folder}/" if "/" in incomplete else ""
    for path in sorted(itertools.islice(place.iterdir(), 10 * _MOST)):
        if path.name.startswith(begin) and (begin or not path.name.startswith(".")):
            if path.is_dir():
                yield f"{before}{path.name}/", ""
            elif path.name.lower().endswith(endings):
                yield f"{before}{path.name}", ""


@contextlib.contextmanager
def whole_words() -> Iterator[None]:
    """Answer bash, which breaks words at ":" and "=", as if it had given them whole: `ollama:llama3.2:3b`.

    bash puts what it is told in the place of the last piece only, so the answer leaves out what was typed before that
    piece. Other shells give words whole, and so does a bash whose COMP_WORDBREAKS says so.
    """
    if os.environ.get("_GGUFMERGE_COMPLETE") != "complete_bash":
        yield
        return
    text = os.environ.get("COMP_WORDS", "")
    blank = "\n" if "\n" in text else " "
    words, typed = _joined(text.split(blank)[: int(os.environ.get("COMP_CWORD") or 0) + 1])
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = blank.join(words), str(len(words) - 1)
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            yield
    finally:
        for line in answer.getvalue().splitlines():
            print(line.removeprefix(typed))


def _joined(pieces: list[str]) -> tuple[list[str], str]:
    """The words that bash has broken into pieces, and what the last one holds before the piece that is completed.

    >>> _joined(["ggufmerge", "inspect", "ollama", ":", "llama3.2", ":", "3"])
    (['ggufmerge', 'inspect', 'ollama:llama3.2:3'], 'ollama:llama3.2:')
    >>> _joined(["ggufmerge", "inspect", "ollama", ":"])
    (['ggufmerge', 'inspect', 'ollama:'], 'ollama:')
    """
    words: list[str] = []
    typed, broken = "", False
    for piece in pieces:
        is_break = bool(piece) and not piece.strip(":=")
        if words and (is_break or broken):
            typed = words[-1] + piece * is_break
            words[-1] += piece
        else:
            typed = ""
            words.append(piece)
        broken = is_break
    return words, typed
