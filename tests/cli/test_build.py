"""`ggufmerge build` and `plan` as a user meets them: output, exit codes, one line per error, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from numba import config

import ggufmerge
from tests.tiny import write_tiny_llama, write_tiny_lora

RECIPE = "merge_method: linear\nmodels:\n  - model: a.gguf\n  - model: b.gguf\nparameters: {weight: 0.5}\n"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a.gguf, b.gguf (fine-tunes of one base) and a recipe for them."""
    weights = write_tiny_llama(tmp_path / "a.gguf")
    write_tiny_llama(tmp_path / "b.gguf", tune=(1, 0.02))
    write_tiny_lora(tmp_path / "lora.gguf", weights)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_build_says_what_it_did(models: Path, run: Run) -> None:
    """On standard output, without colour codes in a pipe; the file is there."""
    code, out, _ = run("build", "recipe.yaml", "-o", "out.gguf", "--type", "q8_0")
    assert code == 0
    assert "out.gguf: Q8_0" in out
    assert "21 merged" in out
    assert "\x1b" not in out
    assert ggufmerge.open("out.gguf").metadata["general.file_type"] == 7


def test_json_is_all_that_stands_on_standard_output(models: Path, run: Run) -> None:
    """For build, plan and a dry run; warnings go to standard error."""
    (models / "recipe.yaml").write_text(RECIPE + "int_methods: TIES\n")
    code, out, err = run("build", "recipe.yaml", "-o", "out.gguf", "--json")
    assert code == 0
    assert json.loads(out)["merged"] == 21
    assert "int_methods" in err
    for arguments in (("plan", "recipe.yaml"), ("build", "recipe.yaml", "--dry-run")):
        code, out, _ = run(*arguments, "--json")
        assert code == 0
        assert len(json.loads(out)["tensors"]) == 21
    assert not (models / "dry.gguf").exists()


def test_a_plan_groups_layers_and_fits_eighty_columns(models: Path, run: Run) -> None:
    """One line for a tensor of all layers; --all lists each."""
    _, out, _ = run("plan", "recipe.yaml")
    assert "2 x blk.*.ffn_up.weight" in out
    _, every, _ = run("plan", "recipe.yaml", "--all")
    assert "blk.1.ffn_up.weight" in every


@pytest.mark.parametrize("command", ["build", "plan", "inspect"])
def test_help_has_examples(run: Run, command: str) -> None:
    """Every command's --help shows how it is used."""
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"ggufmerge {command}" in out


def test_help_answers_without_loading_numba() -> None:
    """Nothing heavy is imported until a command needs it."""
    script = (
        "import sys, ggufmerge.cli.app; print([m for m in ('numba', 'numpy', 'pydantic', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def truncated(folder: Path) -> None:
    data = (folder / "b.gguf").read_bytes()
    (folder / "b.gguf").write_bytes(data[: len(data) // 2])


def wrong_magic(folder: Path) -> None:
    (folder / "b.gguf").write_bytes(b"PK\3\4" + (folder / "b.gguf").read_bytes()[4:])


def hostile_counts(folder: Path) -> None:
    data = bytearray((folder / "b.gguf").read_bytes())
    data[8:16] = (1 << 60).to_bytes(8, "little")
    (folder / "b.gguf").write_bytes(data)


def other_shape(folder: Path) -> None:
    write_tiny_llama(folder / "b.gguf", ff=256)


def other_architecture(folder: Path) -> None:
    data = (folder / "b.gguf").read_bytes()
    (folder / "b.gguf").write_bytes(data.replace(b"llama", b"qwen2"))


def other_vocabulary(folder: Path) -> None:
    write_tiny_llama(folder / "b.gguf", words=("quite", "other", "words"))


def other_layers(folder: Path) -> None:
    write_tiny_llama(folder / "b.gguf", layers=3)


def missing_tensor(folder: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(folder / "b.gguf")
    writer = gguf.GGUFWriter(folder / "c.gguf", "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)
    for tensor in reader.tensors:
        if tensor.name != "blk.1.attn_v.weight":
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    del reader
    (folder / "c.gguf").replace(folder / "b.gguf")


def absent(folder: Path) -> None:
    (folder / "b.gguf").unlink()


def folder_instead(folder: Path) -> None:
    (folder / "b.gguf").unlink()
    (folder / "b.gguf").mkdir()


def adapter_instead(folder: Path) -> None:
    (folder / "lora.gguf").replace(folder / "b.gguf")


def existing_output(folder: Path) -> None:
    (folder / "out.gguf").write_bytes(b"precious")


def bad_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("weight", "wieght"))


def bad_method(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("linear", "liner"))


def no_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").unlink()


def model_as_recipe(folder: Path) -> None:
    (folder / "a.gguf").replace(folder / "recipe.yaml")


REFUSED: dict[Callable[[Path], None], str] = {
    truncated: "b.gguf",
    wrong_magic: "b.gguf",
    hostile_counts: "b.gguf",
    other_shape: "the shapes differ",
    other_architecture: "different architectures",
    other_vocabulary: "different vocabularies",
    other_layers: "different numbers of layers",
    missing_tensor: "b.gguf lacks tensors that the other models have (blk.1.attn_v.weight)",
    absent: "b.gguf",
    folder_instead: "b.gguf",
    adapter_instead: "adapter",
    existing_output: "--overwrite",
    bad_recipe: 'recipe.yaml:5:14: linear has no parameter "wieght": did you mean "weight"?',
    bad_method: 'unknown merge_method "liner": did you mean "linear"?',
    no_recipe: "recipe.yaml",
    model_as_recipe: "GGUF",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda f: f.__name__)
def test_bad_input_gets_one_line_and_loses_nothing(models: Path, run: Run, spoil: Callable[[Path], None]) -> None:
    """Exit code 1, what and where on standard error, no traceback, no partial file, inputs as they were."""
    spoil(models)
    before = {p: p.read_bytes() for p in models.iterdir() if p.is_file()}
    code, out, err = run("build", "recipe.yaml", "-o", "out.gguf")
    assert code == 1
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert REFUSED[spoil] in err
    assert {p: p.read_bytes() for p in models.iterdir() if p.is_file()} == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can read everything")
def test_an_unreadable_file_is_named(models: Path, run: Run) -> None:
    """No permission: which file, in one line."""
    (models / "b.gguf").chmod(0)
    code, _, err = run("build", "recipe.yaml", "-o", "out.gguf")
    assert code == 1
    assert "b.gguf" in err


@pytest.mark.parametrize("name", ["a.gguf", "./a.gguf", "link.gguf"])
def test_an_input_is_never_the_output(models: Path, run: Run, name: str) -> None:
    """Not even with --overwrite, and not through a link."""
    (models / "link.gguf").symlink_to(models / "a.gguf")
    before = (models / "a.gguf").read_bytes()
    code, _, err = run("build", "recipe.yaml", "-o", name, "--overwrite")
    assert code == 1
    assert "also an input" in err
    assert (models / "a.gguf").read_bytes() == before


def test_a_disk_that_is_too_small_is_noticed_first(models: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is needed and what is free."""
    import shutil

    usage = shutil.disk_usage(models)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    code, _, err = run("build", "recipe.yaml", "-o", "out.gguf")
    assert code == 1
    assert "free" in err
    assert len(err.splitlines()) == 1
    assert not any(p.name.startswith((".out", "out")) for p in models.iterdir())


def test_a_missing_output_option_is_a_usage_error(models: Path, run: Run) -> None:
    """Exit code 2, as for every wrong use of options."""
    assert run("build", "recipe.yaml")[0] == 2
    assert run("build", "recipe.yaml", "-o", "x.gguf", "--threads", "0")[0] == 2


def test_paths_with_spaces_and_letters_of_the_world(models: Path, run: Run) -> None:
    """In recipes, models and outputs."""
    folder = models / "mes modèles 模型"
    folder.mkdir()
    for name in ("a.gguf", "b.gguf", "recipe.yaml"):
        (models / name).replace(folder / name)
    code, _, err = run("build", folder / "recipe.yaml", "-o", folder / "été fini.gguf")
    assert (code, err) == (0, "")
    assert (folder / "été fini.gguf").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_something_to_go_on_with(models: Path, kind: str) -> None:
    """Ctrl-C or a shutdown: a line how to go on, one of what is kept, exit code 1, and the next run continues."""
    size = {"layers": 8} if config.DISABLE_JIT else {"layers": 24, "embed": 256, "ff": 2048}
    write_tiny_llama(models / "a.gguf", **size)
    write_tiny_llama(models / "b.gguf", tune=(1, 0.02), **size)
    options = ["-o", "out.gguf", "--threads", "1", "--chunk", "1024"]
    # background jobs, and all that they start, ignore SIGINT unless told otherwise
    heed = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);from ggufmerge.cli import main; main()"
    )
    command = [sys.executable, "-c", heed, "build", "recipe.yaml", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = models / ".out.gguf.journal"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_text().count("\n") > 3:
            process.send_signal(getattr(signal, kind))
            break
        time.sleep(0.005)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("interrupted: give the same command again to go on")
    assert len(err.splitlines()) == 2
    assert not (models / "out.gguf").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "taken over from an interrupted build" in again.stdout
