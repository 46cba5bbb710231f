"""Record commands in a terminal as a moving picture, docs/first-merge.svg.

    python scripts/record_demo.py            # after scripts/demo, which brings the model

The commands are typed in a real terminal of 80 columns, in a folder with the demo's files, with the `ggufmerge` of this
Python. What they print is played back at the pace of a reader, not at the speed of the machine. The picture is plain
SVG with CSS, so it plays wherever an image is shown, and it shows its last screen where nothing moves.
"""

from __future__ import annotations

import argparse
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pyte

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "recipes" / "demo"
PREPARE = [  # not shown
    "bake base.gguf adapters/smollm2-135m-fr-lora-r4.gguf -o french.gguf --type Q8_0",
    "bake base.gguf adapters/smollm2-135m-py-lora-r4.gguf -o python.gguf --type Q8_0",
]
SHOWN = [
    "merge french.gguf python.gguf -o both.gguf",
    "eval both.gguf --text french --text python --quick",
]
COLUMNS, ROWS = 80, 30
CHARACTER, LINE, MARGIN, BAR = 8.4, 19, 16, 30  # pixels
TYPING, PER_LINE, PAUSE, END = 0.045, 0.12, 1.2, 6.0  # seconds: a letter, a line, after a command, at the end
WINDOW = "#1e2327"
PLAIN = "#d0d4d9"
COLOURS = {"green": "#8cc98f", "red": "#e88388", "brown": "#dbab79", "cyan": "#7cc7d0"}
COLOURS |= {"blue": "#7ab3ef", "magenta": "#d290e4", "black": "#6c7680", "white": "#eef1f4"}


@dataclass(frozen=True)
class Line:
    """A line of the recording, and when it appears; what is typed appears letter by letter."""

    cells: tuple[tuple[str, str, bool], ...]  # letter, colour, bold
    at: float
    typed: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "first-merge.svg")
    parser.add_argument("commands", nargs="*", default=SHOWN, help="what follows `ggufmerge`, one text each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in ("adapters", "texts"):
            shutil.copytree(DEMO / source, folder / source)
        (folder / "base.gguf").symlink_to((DEMO / "base.gguf").resolve(strict=True))
        # before the recording, everything once, so that kernels are compiled; then again for the picture
        for command in [*PREPARE, *arguments.commands]:
            run(command, folder)
        for file in folder.glob("both*"):
            file.unlink()
        lines: list[Line] = []
        clock = 0.5
        for command in arguments.commands:
            typed = f"$ ggufmerge {command}"
            lines.append(Line(tuple((letter, "white", True) for letter in typed), clock, typed=True))
            clock += len(typed) * TYPING + 0.4
            for cells in run(command, folder):
                lines.append(Line(cells, clock))
                clock += PER_LINE
            lines.append(Line((), clock))
            clock += PAUSE
        arguments.output.write_text(picture(lines[:-1], clock + END), encoding="utf-8")


def run(command: str, folder: Path) -> list[tuple[tuple[str, str, bool], ...]]:
    """What a command leaves on a terminal, as lines of cells. A command that fails ends the recording."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    environment.pop("NO_COLOR", None)
    words = [sys.executable, "-m", "ggufmerge", *command.split()]
    process = subprocess.Popen(words, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    screen = pyte.Screen(COLUMNS, 500)  # higher than the program believes, so that nothing scrolls away
    stream = pyte.ByteStream(screen)
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the terminal is closed when the program ends
            break
        if not data:
            break
        stream.feed(data)
    os.close(ours)
    if process.wait():
        raise SystemExit(
            f"ggufmerge {command} failed:\n" + "\n".join(line.rstrip() for line in screen.display).rstrip()
        )
    rows = [_cells(screen, row) for row in range(screen.cursor.y + 1)]
    while rows and not rows[-1]:
        rows.pop()
    return rows


def _cells(screen: pyte.Screen, row: int) -> tuple[tuple[str, str, bool], ...]:
    cells = [screen.buffer[row][column] for column in range(COLUMNS)]
    while cells and not cells[-1].data.strip():
        cells.pop()
    return tuple((cell.data, cell.fg, cell.bold) for cell in cells)


def picture(lines: list[Line], length: float) -> str:
    """The SVG. Every line is drawn once, and hidden until its time; the whole text moves up when the window is full."""
    text_height = ROWS * LINE + MARGIN
    height = BAR + text_height
    width = round(COLUMNS * CHARACTER + 2 * MARGIN)
    rules, drawn = [], []
    for number, line in enumerate(lines):
        y = BAR + (number + 1) * LINE - 5
        text = "".join(
            f'<tspan fill="{COLOURS.get(colour, PLAIN)}" font-weight="{700 if bold else 400}">{escape(letters)}</tspan>'
            for letters, colour, bold in _runs(line)
        )
        percent = 100 * line.at / length
        rules.append(
            f"@keyframes l{number}{{0%,{max(percent - 0.001, 0):.3f}%{{opacity:0}}{percent:.3f}%{{opacity:1}}}}"
        )
        style = f"animation:l{number} {length:.2f}s infinite step-end"
        drawn.append(f'<text x="{MARGIN}" y="{y}" xml:space="preserve" style="{style}">{text}</text>')
        if line.typed:  # a cover in the colour of the window moves to the right, a letter at a time
            letters = len(line.cells)
            end = 100 * (line.at + letters * TYPING) / length
            rules.append(
                f"@keyframes t{number}{{0%{{opacity:1}}{percent:.3f}%{{opacity:1;transform:translateX(0);"
                f"animation-timing-function:steps({letters})}}{end:.3f}%{{opacity:1;"
                f"transform:translateX({letters * CHARACTER:.1f}px);animation-timing-function:step-end}}"
                f"{end + 0.001:.3f}%,100%{{opacity:0}}}}"
            )
            drawn.append(
                f'<rect x="{MARGIN}" y="{y - LINE + 5}" height="{LINE}" width="{width}" fill="{WINDOW}" opacity="0" '
                f'style="animation:t{number} {length:.2f}s infinite step-end"/>'
            )
    steps = [(max(0, number + 1 - ROWS), line.at) for number, line in enumerate(lines)]
    moves = {up: at for up, at in reversed(steps) if up}
    last = max(moves, default=0)
    frames = "0%{transform:translateY(0)}" + "".join(
        f"{100 * at / length:.3f}%{{transform:translateY({-up * LINE}px)}}" for up, at in sorted(moves.items())
    )
    rules.append(f"@keyframes up{{{frames}100%{{transform:translateY({-last * LINE}px)}}}}")
    buttons = "".join(
        f'<circle cx="{18 + 18 * i}" cy="15" r="5.5" fill="{c}"/>'
        for i, c in enumerate(("#ec6a5e", "#f4bf4f", "#61c554"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        "<style>text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}"
        f"{''.join(rules)}@media(prefers-reduced-motion){{*{{animation:none!important}}}}</style>"
        f'<rect width="{width}" height="{height}" rx="8" fill="{WINDOW}"/>{buttons}'
        f'<svg y="{BAR}" width="{width}" height="{text_height}" viewBox="0 {BAR} {width} {text_height}">'
        f'<g transform="translate(0 {-last * LINE})" style="animation:up {length:.2f}s infinite step-end">\n'
        + "\n".join(drawn)
        + "\n</g></svg></svg>\n"
    )


def _runs(line: Line) -> list[tuple[str, str, bool]]:
    """The cells of a line, neighbours of one look put together."""
    runs: list[tuple[str, str, bool]] = []
    for letter, colour, bold in line.cells:
        if runs and runs[-1][1:] == (colour, bold):
            runs[-1] = (runs[-1][0] + letter, colour, bold)
        else:
            runs.append((letter, colour, bold))
    return runs


if __name__ == "__main__":
    main()
