"""Pages of help: they fit, hide nothing, and say the same thing in the same words everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from ggufmerge.cli import habits
from ggufmerge.cli.app import app
from tests.cli.conftest import Run


def commands() -> dict[tuple[str, ...], Any]:
    """Every command by its words, those with commands below them included."""

    def below(group: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, command in group.commands.items():
            yield (*words, name), command
            if hasattr(command, "commands"):
                yield from below(command, (*words, name))

    return dict(below(typer.main.get_command(app), ()))


def options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and not p.hidden]


COMMANDS = commands()


@pytest.mark.parametrize("width", [72, 120])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_page_fits_and_cuts_no_name(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], width: int
) -> None:
    """All names of all options stand there in full, and no line is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = run(*words, "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= width
    for option in options(COMMANDS[words]):
        for name in (*option.opts, *option.secondary_opts):
            assert re.search(rf"(?<![\w-]){name}(?![\w-])", out), name
    assert "…" not in out
    assert f"ggufmerge {words[0]}" in out.split("Options")[0]


def test_examples_come_before_options(run: Run) -> None:
    """And common options before panels of others."""
    _, out, _ = run("build", "--help")
    places = [
        out.index(title) for title in ("Usage", "Examples", "--output FILE", "--dry-run  ", "\nShards", "\nThreads and")
    ]
    assert places == sorted(places)


def test_the_front_page_fits_a_small_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 x 24, with a prompt below it; every command is on it, and says what it is for."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run()
    assert (code, err) == (0, "")
    assert len(out.splitlines()) <= 24
    assert max(map(len, out.splitlines())) <= 80
    assert "ggufmerge build recipe.yaml -o merged.gguf" in "".join(out.splitlines()[:6])
    for words, command in COMMANDS.items():
        if len(words) == 1 and not command.hidden:
            assert re.search(rf"\b{words[0]}\b.* \w+ \w+", out), words
    assert "More" not in out


def test_help_has_several_ways(run: Run) -> None:
    """`help`, -h and nothing at all are --help; `help COMMAND` is `COMMAND --help`."""
    front = run("--help")
    assert run("help") == run("-h") == run() == front
    assert run("help", "recipe", "explain") == run("recipe", "explain", "--help")
    assert run("help", "ls") == run("models", "--help")


def test_headings_are_bold_on_a_terminal_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets plain text, and so does who asked for it."""
    from ggufmerge.cli import help as pages

    assert "\x1b" not in run("build", "--help")[1]
    monkeypatch.setattr(pages.sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert pages.front_page({"build"}).count("\x1b[1mMerge") == 1
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in pages.front_page({"build"})


def test_an_option_says_the_same_everywhere(run: Run) -> None:
    """In every command that has it, to the letter."""
    pages = {words: run(*words, "--help")[1].partition("\nOptions\n")[2] for words in COMMANDS}
    for name in ("--threads", "--json", "--all", "--overwrite", "--dry-run", "--imatrix"):
        found = {w: re.search(rf"^ +{name}\b.*(\n {{8,}}[^\n]*)*", page, re.MULTILINE) for w, page in pages.items()}
        told = {words: " ".join(match[0].split()) for words, match in found.items() if match}
        assert len(told) > 1
        assert len(set(told.values())) == 1, told


def test_the_default_of_chunk_is_told(run: Run) -> None:
    """As it is in the engine."""
    from ggufmerge.running.run import DEFAULT_CHUNK

    assert f"(default: {DEFAULT_CHUNK})" in run("build", "--help")[1]


def test_models_may_be_named_wherever_one_is_read(run: Run) -> None:
    """And the page says so."""
    for command in ("bake", "quantize", "extract-lora", "inspect", "diff", "eval"):
        page = " ".join(run(command, "--help")[1].split())
        assert "a GGUF file, or a name: ollama:llama3.2:3b, hf:owner/repo:Q4_K_M" in page


def test_habits_are_in_reach() -> None:
    """No word for an option hides behind one of ours, and those that mean one of ours lead to it."""
    for name, table in habits._OF.items():
        command = COMMANDS[(name,)]
        own = {
            text
            for option in command.params
            if option.param_type_name == "option"
            for text in (*option.opts, *option.secondary_opts)
        }
        assert not own & set(table), name
        for habit in table.values():
            assert not isinstance(habit, habits.Same) or habit.option in {*own, ""}, habit


def test_guessed_commands_lead_to_ours() -> None:
    """And none of them is ours."""
    for word, meant in habits.SAME_COMMAND.items():
        assert meant in COMMANDS
        assert (word,) not in COMMANDS
        assert word not in habits.TOLD_COMMAND[""]
    for lines in habits.TOLD_COMMAND.values():
        for line in lines.values():
            for named in re.findall(r'"ggufmerge ([a-z-]+)', line):
                assert (named,) in COMMANDS or named == "help" or named.startswith("--"), line


def test_an_option_of_ours_is_never_taken_for_another(run: Run) -> None:
    """Values that look like options, and what stands behind `--`, stay what they are."""
    switches = habits.Switches({"--prompt": True, "--text": True, "-o": True, "--output": True, "--threads": True})
    noted: list[str] = []
    for words in (["a", "--prompt", "--cuda"], ["--", "--cuda"], ["a", "--prompt=--cuda"], ["-", "-o", "-v"]):
        assert habits.translate("build", words, switches, noted.append) == words
    assert noted == []


def test_the_version_is_in_a_line(run: Run) -> None:
    """And `version` tells what else a report of a fault needs."""
    import json

    import ggufmerge

    assert run("--version")[1] == run("-V")[1] == f"ggufmerge {ggufmerge.__version__}\n"
    assert run("version")[1].startswith(run("--version")[1])
    facts = json.loads(run("version", "--json")[1])
    assert facts["ggufmerge"] == ggufmerge.__version__
    assert facts["libraries"]["numba"]
