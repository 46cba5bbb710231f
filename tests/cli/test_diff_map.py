"""`ggufmerge diff --map`: where changes are and where they conflict, as letters that fit a terminal."""

from __future__ import annotations

import io
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ggufmerge.cli import terminal
from ggufmerge.cli.diff_map import Steps, show_maps
from ggufmerge.engine.compare import compare
from tests.cli.conftest import Run
from tests.tiny import write_tiny_llama


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tunes(layers: int, **more: object) -> dict[str, np.ndarray]:
    """base.gguf and two tunes of it, of which the second takes back what the first does to attn_q of layer 0."""
    base = write_tiny_llama("base.gguf", layers=layers, **more)
    a = write_tiny_llama("a.gguf", layers=layers, tune=(1, 0.02), **more)
    name = "blk.0.attn_q.weight"
    write_tiny_llama("b.gguf", layers=layers, tune=(2, 0.02), replace={name: 2 * base[name] - a[name]}, **more)
    return base


def rows(out: str, title: str) -> dict[str, str]:
    """The rows of the map under a title: the letters by the names in front of them."""
    lines = out[out.index(title) :].split("\n\n")[0].splitlines()[1:]
    return {line.split("  ")[0].strip(): line.split("  ", 1)[-1].strip() for line in lines}


def test_a_map_is_drawn_when_it_is_asked_for(folder: Path, run: Run) -> None:
    """A letter for each layer, kinds below each other, and what letters mean."""
    tunes(3)
    assert "map of" not in run("diff", "a.gguf", "b.gguf")[1]
    out = run("diff", "a.gguf", "b.gguf", "--map")[1]
    found = rows(out, "map of the change from A to B")
    assert len(found["attn_q"]) == 3
    assert found["layer"] == "0"
    assert len(found["token_embd"]) == 1
    assert "attn_norm" in found
    assert any(line.startswith("░ to ") for line in out.splitlines())


def test_larger_changes_have_darker_letters(folder: Path, run: Run) -> None:
    """Step by step; what is the same has none of them."""
    base = write_tiny_llama("base.gguf", layers=4)
    names = [f"blk.{layer}.ffn_up.weight" for layer in range(4)]
    changed = {name: base[name] * (1 + size) for name, size in zip(names, (0.0, 0.001, 0.01, 0.5), strict=True)}
    write_tiny_llama("a.gguf", layers=4, replace=changed)
    letters = rows(run("diff", "base.gguf", "a.gguf", "--map")[1], "map of the change")
    assert letters["ffn_up"] == "·░▒█"
    assert letters["ffn_down"] == "····"


def test_several_tunes_have_a_map_each_and_one_of_their_conflict(folder: Path, run: Run) -> None:
    """On one scale; the weights that they pull apart are marked."""
    tunes(2)
    out = run("diff", "a.gguf", "b.gguf", "--base", "base.gguf", "--map")[1]
    assert "map of the change from the base to A" in out
    assert "map of the change from the base to B" in out
    alike = rows(out, "map of how alike they are")
    assert alike["attn_q"] == "x·"
    assert alike["ffn_up"] == "··"
    assert "x against each other (below -0.1)" in out


def test_changes_below_the_rounding_are_marked_as_hidden(folder: Path, run: Run) -> None:
    """Not as nothing."""
    write_tiny_llama("base.gguf", layers=1, type="Q8_0")
    write_tiny_llama("a.gguf", layers=1, type="Q4_0", tune=(1, 1e-4))
    out = run("diff", "base.gguf", "a.gguf", "--map")[1]
    assert rows(out, "map of the change")["ffn_up"] == "?"
    assert "? hidden by rounding" in out


@pytest.mark.parametrize("layers", [60, 61, 150])
def test_deep_models_fit_eighty_columns(layers: int, folder: Path, run: Run) -> None:
    """Layers share letters where there are more than columns, which the title says."""
    small = {"embed": 32, "ff": 32, "heads": 2, "kv_heads": 1}
    write_tiny_llama("base.gguf", layers=layers, **small)
    write_tiny_llama("a.gguf", layers=layers, tune=(1, 0.02), **small)
    out = run("diff", "base.gguf", "a.gguf", "--map")[1]
    found = rows(out, "map of the change")
    drawn = out[out.index("map of the change") :].split("\n\n")[0].splitlines()
    assert max(map(len, drawn)) <= 80
    group = math.ceil(layers / len(found["ffn_up"]))
    assert (group > 1) == (f"(a letter for {group} layers)" in out)
    assert group == (3 if layers == 150 else 1)


def test_a_terminal_without_these_letters_gets_plain_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every letter is ASCII."""
    tunes(2)
    result = compare("a.gguf", "b.gguf", base="base.gguf")
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    show_maps(result, ["A", "B"])
    out.flush()
    shown = out.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert rows(shown, "map of how alike they are")["attn_q"] == "x0"
    assert "\\u" not in shown


def test_colours_tell_steps_apart_where_there_are_some(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no line is longer than the terminal, the legend included."""
    tunes(3)
    result = compare("a.gguf", "b.gguf", base="base.gguf")
    out = io.StringIO()
    screen = Console(file=out, force_terminal=True, color_system="256", width=60, highlight=False)
    monkeypatch.setattr(terminal, "console", lambda **_: screen)
    show_maps(result, ["A", "B"])
    assert "\x1b[38;5;220m█" in out.getvalue()
    plain = [line for line in out.getvalue().splitlines() if "█" in line]
    assert all(len(re.sub(r"\x1b\[[\d;]*m", "", line)) <= 60 for line in plain)


@pytest.mark.parametrize("coloured", [False, True])
def test_steps_rise_and_hold_every_figure(coloured: bool) -> None:
    """Whatever the figures: equal ones, one outlier, tiny ones, none."""
    for figures in ([], [0.5], [0.01] * 20, [0.01, 0.011, 7.0], [1e-9, 2e-9, 0.3], [math.nan, 0.0, math.inf, 0.2]):
        steps = Steps.of(figures, coloured=coloured)
        assert list(steps.ends) == sorted(set(steps.ends))
        assert all(f <= steps.ends[-1] for f in figures if f == f and f != math.inf)
        assert all(steps.letter(f).letter for f in figures)
