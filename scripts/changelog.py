"""Put the fragments of changelog.d together to the section of a release.

python scripts/changelog.py            prints the section of the version in pyproject.toml
python scripts/changelog.py --write    puts it into CHANGELOG.md and deletes the fragments
"""

from __future__ import annotations

import datetime
import re
import sys
import tomllib
from pathlib import Path

KINDS = ("added", "changed", "deprecated", "removed", "fixed", "security")  # as Keep a Changelog orders them
ROOT = Path(__file__).parents[1]


class ChangelogError(Exception):
    """What is wrong with the fragments or the change log, in one line."""


def fragments(folder: Path) -> dict[str, list[Path]]:
    """The files of each kind, by name. ChangelogError for a name that has none."""
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for path in sorted(folder.glob("*.md")):
        if path.name == "README.md":
            continue
        kind = path.name.split(".")[-2]
        if path.name.count(".") != 2 or kind not in found:
            raise ChangelogError(f"{path}: the name must be NAME.KIND.md, where KIND is one of {', '.join(KINDS)}")
        found[kind].append(path)
    return found


def section(root: Path, date: datetime.date) -> str:
    """The Markdown of the next release: its version and date, and a list of the fragments of each kind."""
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    parts = [f"## [{version}] - {date.isoformat()}\n"]
    for kind, paths in fragments(root / "changelog.d").items():
        if paths:
            parts.append(f"### {kind.capitalize()}\n" + "".join(map(_item, paths)))
    if len(parts) == 1:
        raise ChangelogError(f"{root / 'changelog.d'}: there is no fragment, so nothing to release")
    return "\n".join(parts)


def write(root: Path, date: datetime.date) -> None:
    """Put the section above those of earlier releases, then delete the fragments.

    ChangelogError when the version has a section already.
    """
    log = root / "CHANGELOG.md"
    new, old = section(root, date), log.read_text(encoding="utf-8")
    heading = new.partition("\n")[0].partition(" - ")[0]
    if re.search(rf"^{re.escape(heading)}(?: |$)", old, re.MULTILINE):
        raise ChangelogError(f"{log}: {heading[3:]} is there already; set the next version in pyproject.toml first")
    first = re.search(r"^## ", old, re.MULTILINE)
    above, below = (old[: first.start()], old[first.start() :]) if first else (old, "")
    text = f"{above.rstrip()}\n\n{new.rstrip()}\n" + (f"\n{below}" if below else "")
    log.write_text(text, encoding="utf-8", newline="\n")
    for paths in fragments(root / "changelog.d").values():
        for path in paths:
            path.unlink()


def _item(path: Path) -> str:
    """A fragment as an item of a list; its paragraphs stay together."""
    lines = path.read_text(encoding="utf-8").strip().splitlines()
    if not lines:
        raise ChangelogError(f"{path}: it is empty; write what users notice, or delete it")
    return "".join(f"{'- ' if i == 0 else '  ' if line else ''}{line}".rstrip() + "\n" for i, line in enumerate(lines))


def main(arguments: list[str]) -> int:
    today = datetime.datetime.now(datetime.UTC).date()
    try:
        if arguments == ["--write"]:
            write(ROOT, today)
        elif not arguments:
            print(section(ROOT, today), end="")
        else:
            raise ChangelogError(f"unknown argument {arguments[0]!r}: give --write or nothing")
    except ChangelogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
