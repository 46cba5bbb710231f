"""All or nothing: what an interrupted, killed or failing build leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.engine import Progress
from ggufmerge.errors import GgufmergeError
from tests.tiny import write_tiny_llama

RECIPE = "{merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}}\n"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, tune in (("a", None), ("b", (1, 0.02))):
        write_tiny_llama(tmp_path / f"{name}.gguf", layers=4, tune=tune)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


class Stop(Progress):
    """Raises an error after some tensors."""

    def __init__(self, error: BaseException, after: int) -> None:
        self.error, self.left = error, after

    def tensor_done(self, name: str) -> None:
        self.left -= 1
        if not self.left:
            raise self.error


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_an_interrupted_build_goes_on_where_it_was(models: Path) -> None:
    """The second run takes over finished tensors, and the file is the one an undisturbed run makes."""
    ggufmerge.build(models / "r.yaml", models / "whole.gguf")
    before = files(models)
    with pytest.raises(KeyboardInterrupt):
        ggufmerge.build(models / "r.yaml", models / "out.gguf", progress=Stop(KeyboardInterrupt(), 9))
    assert "out.gguf" not in files(models)
    report = ggufmerge.build(models / "r.yaml", models / "out.gguf")
    assert report.resumed == 9
    assert (models / "out.gguf").read_bytes() == (models / "whole.gguf").read_bytes()
    assert files(models) == before | {"out.gguf"}


def test_a_tensor_damaged_meanwhile_is_made_again(models: Path) -> None:
    """The journal's checksum does not match: nothing is trusted."""
    ggufmerge.build(models / "r.yaml", models / "whole.gguf")
    with pytest.raises(KeyboardInterrupt):
        ggufmerge.build(models / "r.yaml", models / "out.gguf", progress=Stop(KeyboardInterrupt(), 9))
    partial = models / ".out.gguf.partial"
    data = bytearray(partial.read_bytes())
    offset = ggufmerge.open(models / "whole.gguf").tensors["token_embd.weight"].offset
    data[offset + 100] ^= 0xFF
    partial.write_bytes(data)
    assert ggufmerge.build(models / "r.yaml", models / "out.gguf").resumed == 8
    assert (models / "out.gguf").read_bytes() == (models / "whole.gguf").read_bytes()


def test_another_recipe_does_not_continue_an_interrupted_build(models: Path) -> None:
    """It starts anew and leaves nothing of the old one."""
    with pytest.raises(KeyboardInterrupt):
        ggufmerge.build(models / "r.yaml", models / "out.gguf", progress=Stop(KeyboardInterrupt(), 9))
    (models / "r.yaml").write_text(RECIPE.replace("weight: 1", "weight: [1, 2]"))
    assert ggufmerge.build(models / "r.yaml", models / "out.gguf").resumed == 0
    assert not any(name.startswith(".") for name in files(models))


def test_a_failing_build_leaves_nothing(models: Path) -> None:
    """Neither the output nor anything unfinished, and an older output stays as it was."""
    before = files(models)
    with pytest.raises(GgufmergeError, match="broken"):
        ggufmerge.build(models / "r.yaml", models / "out.gguf", progress=Stop(GgufmergeError("broken"), 5))
    assert files(models) == before
    (models / "out.gguf").write_bytes(b"precious")
    with pytest.raises(GgufmergeError, match="broken"):
        ggufmerge.build(
            models / "r.yaml", models / "out.gguf", overwrite=True, progress=Stop(GgufmergeError("broken"), 5)
        )
    assert (models / "out.gguf").read_bytes() == b"precious"


def test_weights_that_are_not_finite_are_refused(models: Path) -> None:
    """NaN in a source names the tensor; nothing is written."""
    write_tiny_llama(models / "b.gguf", layers=4, replace={"output_norm.weight": np.full(64, np.nan, np.float32)})
    before = files(models)
    with pytest.raises(GgufmergeError, match=r"output_norm\.weight"):
        ggufmerge.build(models / "r.yaml", models / "out.gguf")
    assert files(models) == before


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_a_killed_process_loses_only_the_tensor_it_was_at(models: Path) -> None:
    """SIGKILL in the middle; the same command then finishes with the bytes of an undisturbed run."""
    ggufmerge.build(models / "r.yaml", models / "whole.gguf")
    script = textwrap.dedent("""
        import os, signal, sys, ggufmerge
        from ggufmerge.engine import Progress
        class Kill(Progress):
            left = 12
            def tensor_done(self, name):
                self.left -= 1
                if not self.left:
                    os.kill(os.getpid(), signal.SIGKILL)
        ggufmerge.build("r.yaml", "out.gguf", progress=Kill())
    """)
    killed = subprocess.run([sys.executable, "-c", script], cwd=models, env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert "out.gguf" not in files(models)
    assert ggufmerge.build(models / "r.yaml", models / "out.gguf").resumed == 12
    assert (models / "out.gguf").read_bytes() == (models / "whole.gguf").read_bytes()


def test_a_source_that_changed_meanwhile_starts_the_build_anew(models: Path) -> None:
    """Even in a place that no fingerprint looks at."""
    with pytest.raises(KeyboardInterrupt):
        ggufmerge.build(models / "r.yaml", models / "out.gguf", progress=Stop(KeyboardInterrupt(), 9))
    data = bytearray((models / "b.gguf").read_bytes())
    tensor = ggufmerge.open(models / "b.gguf").tensors["token_embd.weight"]
    data[tensor.offset + 4 * (tensor.nbytes // 16)] ^= 1
    (models / "b.gguf").write_bytes(data)
    assert ggufmerge.build(models / "r.yaml", models / "out.gguf").resumed == 0
