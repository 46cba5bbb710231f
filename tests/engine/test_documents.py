"""Recipes of several documents: stages are built first, beside the output, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import GgufmergeError, RecipeError
from ggufmerge.recipe import load_recipe
from tests.engine.conftest import build_report, raw, weights
from tests.engine.test_interruption import Stop

Build = Callable[..., Path]

TWO_STAGES = """\
name: pair
merge_method: linear
models: [{model: a.f32.gguf}, {model: b.f32.gguf}]
parameters: {weight: 1}
dtype: float32
---
merge_method: slerp
base_model: pair
models: [{model: pair}, {model: c.f32.gguf}]
parameters: {t: 0.25}
"""


def test_a_stage_is_a_model_of_the_next(family: Path, build: Build) -> None:
    """The same weights as two recipes one after the other, and no file but the result."""
    first, second = TWO_STAGES.split("---\n")
    pair = build(first, "pair.gguf")
    apart = build(second.replace("pair", str(pair)), "apart.gguf")
    together = build(TWO_STAGES)
    assert raw(together) == raw(apart)
    assert not [p for p in together.parent.iterdir() if p.name.startswith(".")]
    assert ggufmerge.open(together).metadata["general.base_model.0.name"] == "pair"


def test_documents_may_stand_in_any_order(family: Path, build: Build) -> None:
    """Stages are built in the order they need each other; the one without a name is the result."""
    first, second = TWO_STAGES.split("---\n")
    assert raw(build(second + "---\n" + first)) == raw(build(TWO_STAGES, "other.gguf"))
    recipe = load_recipe(second + "---\n" + first)
    assert [stage.name for stage in recipe.stages] == ["pair"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("name: pair", "name: pear"), 'no other document uses "pear"'),
        (("name: pair\n", ""), "a second document without a name"),
        (("a.f32.gguf", "pair"), '"pair" is made from itself'),
        (("weight: 1", "wieght: 1"), 'did you mean "weight"'),
        (("{t: 0.25}", "{tt: 0.25}"), 'no parameter "tt"'),
    ],
)
def test_documents_that_do_not_fit_together(change: tuple[str, str], complaint: str) -> None:
    """Found while reading, with the line in the file."""
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(TWO_STAGES.replace(*change))


def test_the_last_document_is_planned_before_the_first_is_built(family: Path, tmp_path: Path) -> None:
    """A mistake at the end costs seconds, not the work on the stages."""
    recipe = TWO_STAGES.replace("{model: c.f32.gguf}", "{model: nothing.gguf}")
    before = set(tmp_path.iterdir())
    with pytest.raises(GgufmergeError, match=r"nothing\.gguf"):
        build_report(family, recipe, tmp_path / "out.gguf")
    assert set(tmp_path.iterdir()) == before


def test_a_finished_stage_survives_an_interruption(family: Path, tmp_path: Path) -> None:
    """The next build takes it over, and the result is that of an undisturbed one."""
    build_report(family, TWO_STAGES, tmp_path / "whole.gguf")
    with pytest.raises(KeyboardInterrupt):
        build_report(family, TWO_STAGES, tmp_path / "out.gguf", progress=Stop(KeyboardInterrupt(), 25))
    [stage] = (tmp_path / ".out.gguf.stages").rglob("*.gguf")
    written = stage.stat().st_mtime_ns

    class Watch(Stop):
        def tensor_done(self, name: str) -> None:
            assert stage.stat().st_mtime_ns == written

    build_report(family, TWO_STAGES, tmp_path / "out.gguf", progress=Watch(KeyboardInterrupt(), 0))
    assert raw(tmp_path / "out.gguf") == raw(tmp_path / "whole.gguf")
    assert not (tmp_path / ".out.gguf.stages").exists()


def test_the_only_module_of_a_recipe_is_its_content(family: Path, build: Build) -> None:
    """Its parameters come before the recipe's, which hold where no filter of the module matches."""
    recipe = """\
merge_method: linear
modules:
  language_model:
    models: [{model: a.f32.gguf}, {model: b.f32.gguf, parameters: {weight: 1}}]
    parameters: {weight: [{filter: mlp, value: 3}]}
parameters: {weight: 1}
"""
    out, a, b = (weights(p) for p in (build(recipe), family / "a.f32.gguf", family / "b.f32.gguf"))
    for name, share in (("blk.0.ffn_up.weight", 0.75), ("blk.0.attn_q.weight", 0.5)):
        np.testing.assert_allclose(out[name], share * a[name] + (1 - share) * b[name], rtol=1e-5, atol=1e-6)


def test_a_stage_may_lend_its_vocabulary_alone(family: Path, build: Build) -> None:
    """It is built although no document merges it."""
    first, second = TWO_STAGES.split("---\n")
    second = second.replace("pair", "a.f32.gguf") + "tokenizer_source: pair\n"
    recipe = load_recipe(first + "---\n" + second)
    assert [stage.name for stage in recipe.stages] == ["pair"]
    assert build(first + "---\n" + second).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_an_interrupted_command_keeps_its_stages(family: Path, tmp_path: Path) -> None:
    """Ctrl-C while the last document is built: the next run takes the stage over."""
    (family / "interrupted.yaml").write_text(TWO_STAGES)
    script = textwrap.dedent("""
        import os, signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored
        from ggufmerge.cli.progress import ProgressDisplay
        from ggufmerge.cli import main
        class Interrupting(ProgressDisplay):
            left = 25
            def tensor_done(self, name):
                Interrupting.left -= 1
                if not Interrupting.left:
                    os.kill(os.getpid(), signal.SIGINT)
        import ggufmerge.cli.progress
        ggufmerge.cli.progress.ProgressDisplay = Interrupting
        main()
    """)
    recipe, output = str(family / "interrupted.yaml"), str(tmp_path / "out.gguf")
    command = [sys.executable, "-c", script, "build", recipe, "-o", output, "--threads", "1", "--chunk", "1024"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("interrupted: give the same command again")
    assert len(list((tmp_path / ".out.gguf.stages").rglob("*.gguf"))) == 1
