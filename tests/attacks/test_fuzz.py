"""A fixed budget of damaged inputs: each gives a result that llama.cpp reads, or one clear error line."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest
import typer

from ggufmerge.cli.app import app
from tests.attacks import command_line, hunt, kinds

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))
SEED = 1


def assert_kept(summary: hunt.Summary) -> None:
    assert not summary.failures, "\n".join(["the law of tests/attacks/law.py is broken:", *summary.lines()])


def test_a_few_inputs_of_every_kind() -> None:
    """The same some 1,500 cases every time: mostly headers, and some of everything else."""
    headers = ({"kind": "header", "seed": SEED, "number": i} for i in range(1200))
    others = [kind for kind in kinds.KINDS if kind != "header"]
    rest = ({"kind": kind, "seed": SEED, "number": i} for i in range(40) for kind in others)
    summary = hunt.hunt(itertools.chain(headers, rest))
    assert_kept(summary)
    assert summary.total.cases > 1500
    assert summary.total.built > 50  # damage does not keep everything from being read
    assert summary.total.compared > 1000


def test_what_was_found_once_stays_mended() -> None:
    """Every case of the corpus broke the law before."""
    summary = hunt.hunt({"file": str(path)} for path in CORPUS)
    assert_kept(summary)
    assert summary.total.cases == len(CORPUS) > 0


def test_a_case_is_the_same_again(tmp_path: Path) -> None:
    """A seed and a number make the same case, and a case file keeps it."""
    first = {kind: kinds.make(kind, 3, 7) for kind in kinds.KINDS}
    for kind in kinds.KINDS:
        for number in range(40):  # none of which changes the valid files
            kinds.make(kind, 4, number)
    for kind, case in first.items():
        assert case == kinds.make(kind, 3, 7)
        case.save(tmp_path / "case.json")
        back = case.load(tmp_path / "case.json")
        assert (back.command, back.files, back.interrupt) == (case.command, case.files, case.interrupt)


@pytest.mark.slow
def test_many_inputs_of_every_kind(tmp_path: Path) -> None:
    """Some 20,000 cases; what fails is left in the test's folder, to be tried again with scripts/fuzz --replay."""
    numbers = hunt.tasks(list(kinds.KINDS), SEED + 1, cases=20_000, seconds=420)
    assert_kept(hunt.hunt(numbers, workers=2, save=tmp_path))


@pytest.mark.slow
def test_no_kernel_reaches_outside_of_its_arrays(tmp_path: Path) -> None:
    """Damaged models and adapters, with kernels that check every index. They are compiled for this test alone."""
    environment = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    numbers = hunt.tasks(["model", "adapter", "peft", "imatrix"], SEED, cases=400, seconds=300)
    assert_kept(hunt.hunt(numbers, workers=2, save=tmp_path, environment=environment))


def test_all_names_of_all_options_are_tried() -> None:
    """The command lines of the hunt know each option by every name that the program itself takes it by."""
    root = typer.main.get_command(app)
    for command in command_line.commands():
        made = functools.reduce(lambda group, word: group.commands[word], command.words, root)
        options = [p for p in made.params if p.param_type_name == "option" and "--help" not in p.opts]
        assert {flag for value in command.values for flag in value.flags} == {
            name for option in options for name in (*option.opts, *option.secondary_opts)
        }
