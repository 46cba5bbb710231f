"""Parts of a file that was cut without regard to what is in it, told from whole files by their names.

Before GGUF had shards, large files were cut with `split` (`model.gguf.part1of2`, `model.gguf-split-a`,
`model.gguf.aa`), and are to be put together byte by byte. Shards must not be: each of them has a header of its own.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from ggufmerge.text import first_few

_COUNTED = r"\d+[._-]?of[._-]?\d+"
_NUMBERS = re.compile(r"(\d+)[._-]?of[._-]?(\d+)", re.IGNORECASE)
_PIECE = re.compile(
    rf"(?P<whole>.+\.gguf)(?:[._-]*(?:part|split|chunk|piece)s?[._-]*(?:{_COUNTED}|\d+|[a-z]{{1,3}})"
    rf"|[._-]{_COUNTED}|(?P<bare>[._-]?(?:\d{{1,4}}|[a-z]{{2}})))"
    rf"|(?P<stem>.+)[._-](?:part|split)[._-]*(?:{_COUNTED}|(?P<loose>\d{{1,4}}|[a-z]{{1,2}}))\.gguf",
    re.IGNORECASE,
)
# browsers, wget, curl, aria2 and huggingface_hub name files so until they are complete
_DOWNLOADING = (".part", ".partial", ".crdownload", ".download", ".incomplete", ".aria2", ".tmp")
_MOST = 1000  # parts, of which missing ones are looked for


def of_cut_file(path: Path) -> tuple[str, str] | None:
    """What a file with the name of a part of a cut file is, and what to do with it; None for other names."""
    match = _PIECE.fullmatch(path.name)
    if match is None:
        return None
    whole = _whole(match)
    parts = parts_of(path.with_name(whole))
    what = "by its name a part of a file that was cut into pieces"
    if len(parts) < 2 and (match["bare"] or match["loose"]):
        return None  # an ending like any other, such as that of an old version
    if lacking := _lacking(parts):
        return what, f"get the other parts ({lacking}) and put all of them together, in their order, to {whole}"
    if len(parts) < 2:
        return what, f"get the other parts and put all of them together, in their order, to {whole}"
    return what, f"put the parts together: {together(parts, whole)}"


def parts_of(path: Path) -> list[str]:
    """The names of the pieces of a file that lie where it would be, in their order."""
    parts = [name for name in _names_beside(path) if (piece := _PIECE.fullmatch(name)) and _whole(piece) == path.name]
    return sorted(parts, key=_in_order)


def together(parts: list[str], whole: str) -> str:
    """The command that puts pieces together."""
    return f"cat {' '.join(map(shlex.quote, parts))} > {shlex.quote(whole)}"


def _lacking(parts: list[str]) -> str:
    """Which parts are not here, where the names of the others tell how many there are; else ""."""
    counted = [match for match in map(_NUMBERS.search, parts) if match]
    if not counted:
        return ""
    count = int(counted[0][2])
    gone = [str(n) for n in range(1, min(count, _MOST) + 1) if n not in {int(match[1]) for match in counted}]
    return f"{first_few(gone, 3)} of {count}" if gone else ""


def unfinished_download(path: Path) -> tuple[str, str] | None:
    """What a file is that programs name so while they download it, and what to do with it; None for other names."""
    if path.suffix.lower() not in _DOWNLOADING:
        return None
    return "by its name a download that did not end", "let it end, or download the file again"


def _whole(match: re.Match[str]) -> str:
    return match["whole"] or f"{match['stem']}.gguf"


def _names_beside(path: Path) -> list[str]:
    try:
        return [other.name for other in path.parent.iterdir()]
    except OSError:
        return []


def _in_order(name: str) -> list[tuple[int, str]]:
    """Part 10 behind part 9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]
