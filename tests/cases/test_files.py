"""Files and values: what is no whole model is named for what it is, and no damage is written or swallowed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from ggufmerge.methods import NAMES, method
from ggufmerge.methods.parameters import REQUIRED
from ggufmerge.methods.spec import Base
from tests.cases.conftest import Run, raw, weights
from tests.tiny import write_tiny_llama

SHAPE = {"layers": 1, "embed": 32, "ff": 64, "heads": 2, "kv_heads": 1}
DOWN = "blk.0.ffn_down.weight"


def spoilt(path: str, value: float, **more: object) -> None:
    """A model with one such value."""
    values = write_tiny_llama(path, **SHAPE, **more)[DOWN].copy()  # type: ignore[arg-type]
    values[3, 5] = value
    write_tiny_llama(path, replace={DOWN: values}, **SHAPE, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "names",
    [
        ("m.Q6_K.gguf.part1of2", "m.Q6_K.gguf.part2of2"),
        ("m.gguf-split-a", "m.gguf-split-b"),
        ("m.gguf.001", "m.gguf.002"),
        ("m.gguf.aa", "m.gguf.ab"),
        ("m-part1of2.gguf", "m-part2of2.gguf"),
        ("m.part1.gguf", "m.part2.gguf"),
        ("m-split-a.gguf", "m-split-b.gguf"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "join"])
def test_a_part_of_a_cut_file_is_to_be_put_together(
    folder: Path, run: Run, names: tuple[str, str], command: str
) -> None:
    """43: oobabooga/textgen#6187. The line to type is given, and it makes the model."""
    write_tiny_llama("whole.gguf", **SHAPE)
    data = Path("whole.gguf").read_bytes()
    for name, part in zip(names, (data[:50_000], data[50_000:]), strict=True):
        Path(name).write_bytes(part)
    for name in names:
        code, _, err = run(command, name, *(["joined.gguf"] if command == "join" else []))
        assert code == 1
        assert f"put the parts together: cat {names[0]} {names[1]} > m" in err


def test_parts_that_are_not_here_are_counted(folder: Path, run: Run) -> None:
    """43: the name says how many there are, so no file is made of some of them."""
    write_tiny_llama("whole.gguf", **SHAPE)
    for number in (1, 3):
        Path(f"m.gguf.part{number}of4").write_bytes(Path("whole.gguf").read_bytes()[: 50_000 * number])
    code, _, err = run("inspect", "m.gguf.part1of4")
    assert code == 1
    assert "get the other parts (2, 4 of 4) and put all of them together, in their order, to m.gguf" in err


@pytest.mark.parametrize("ending", [".part", ".crdownload", ".incomplete", ".aria2", ".download"])
def test_a_download_that_did_not_end_is_one(folder: Path, run: Run, ending: str) -> None:
    """43: browsers and programs name it so; a file that is whole is read under that name, too."""
    write_tiny_llama("whole.gguf", **SHAPE)
    data = Path("whole.gguf").read_bytes()
    Path(f"m.gguf{ending}").write_bytes(data[:50_000])
    code, _, err = run("inspect", f"m.gguf{ending}")
    assert code == 1
    assert "by its name a download that did not end: let it end, or download the file again" in err
    Path(f"m.gguf{ending}").write_bytes(data)
    assert run("inspect", f"m.gguf{ending}")[0] == 0


def test_the_first_part_of_a_zip_archive_is_one(folder: Path, run: Run) -> None:
    """43: `.z01` is not told to be damaged."""
    Path("m.z01").write_bytes(b"PK\x07\x08PK\x03\x04" + bytes(100))
    code, _, err = run("inspect", "m.z01")
    assert code == 1
    assert "not a GGUF file but the first part of a zip archive" in err


def test_all_shards_are_joined(folder: Path, run: Run) -> None:
    """45: ggml-org/llama.cpp#8264, as a wildcard gives them."""
    write_tiny_llama("m.gguf", **SHAPE)
    assert run("split", "m.gguf", "s", "--split-max-tensors", "5")[0] == 0
    shards = sorted(path.name for path in folder.glob("s-*.gguf"))
    assert len(shards) > 2
    assert run("join", *shards, "out.gguf")[0] == 0
    assert raw("out.gguf") == raw("m.gguf")
    code, _, err = run("join", *shards)
    assert code == 1
    assert "is a shard of the model: give the file to write behind the shards" in err


@pytest.mark.parametrize(("kind", "value"), [("F16", 1e6), ("Q4_0", 1e6), ("Q8_0", 9e6), ("F16", -2e5)])
def test_values_that_a_type_cannot_hold_are_not_written(folder: Path, run: Run, kind: str, value: float) -> None:
    """46: ggml-org/llama.cpp#13722. The tensor, its largest value and what holds it; not a word of a recipe."""
    spoilt("m.gguf", value)
    code, _, err = run("quantize", "m.gguf", kind, "-o", "out.gguf")
    assert code == 1
    assert err.startswith(f"error: {DOWN}: {kind} cannot hold the weights at row 3, column")
    assert f"the largest of the tensor is {abs(value):.0e}, which F32" in err
    assert "recipe" not in err
    assert not Path("out.gguf").exists()


def test_a_merge_that_its_type_cannot_hold_is_not_written(folder: Path, run: Run) -> None:
    """46: with `dtype: float16`, as in the report."""
    spoilt("a.gguf", 1e6)
    write_tiny_llama("b.gguf", tune=(1, 0.05), **SHAPE)  # type: ignore[arg-type]
    recipe = (
        "merge_method: linear\nmodels: [{model: a.gguf}, {model: b.gguf}]\nparameters: {weight: 1}\ndtype: float16\n"
    )
    Path("r.yaml").write_text(recipe)
    code, _, err = run("build", "r.yaml", "-o", "out.gguf")
    assert code == 1
    assert f"{DOWN}: F16 cannot hold the weights at row 3, column 5, up to 5e+05" in err


NEEDED = {"density": 0.5, "weight": 0.5, "t": 0.5, "select_topk": 0.5, "gamma": 0.01, "epsilon": 0.1}


@pytest.mark.parametrize("name", [n for n in NAMES if n != "passthrough"])
def test_a_nan_in_a_source_is_refused_by_every_method(folder: Path, run: Run, name: str) -> None:
    """47: turboderp-org/exllamav2#622, merges of damaged models. The file and the tensor are named."""
    spoilt("bad.gguf", np.nan, tune=(1, 0.05))
    for number, model in enumerate(("base", "b")):
        write_tiny_llama(f"{model}.gguf", tune=(number + 2, 0.05), **SHAPE)  # type: ignore[arg-type]
    chosen = method(name)
    given = {q.name: NEEDED[q.name] for q in chosen.parameters if q.default is REQUIRED}
    listed = ["bad.gguf", "b.gguf"][: 1 if chosen.pair else 2]
    parameters = ", ".join(f"{key}: {value}" for key, value in given.items())
    text = f"merge_method: {name}\nmodels: [{', '.join(f'{{model: {model}}}' for model in listed)}]\n"
    text += "" if chosen.base is Base.MODEL and name != "slerp" else "base_model: base.gguf\n"
    Path("r.yaml").write_text(f"{text}parameters: {{{parameters}}}\n")
    code, _, err = run("build", "r.yaml", "-o", "out.gguf")
    assert code == 1
    assert f"bad.gguf: {DOWN}: the weight at row 3, column 5 is NaN" in err


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Q4_K_L", "Q4_K_M with Q8_0 for the output and the token embeddings"),
        ("Q6_K_L", "Q6_K with Q8_0 for the output and the token embeddings"),
        ("IQ4_K", "a type of ik_llama.cpp, which llama.cpp does not read"),
        ("IQ5_KS", "a type of ik_llama.cpp"),
        ("UD-Q4_K_XL", "a mixture that Unsloth makes for each model"),
        ("Q8_K_XL", "a mixture that Unsloth makes for each model"),
        ("Q2_K_XL", "a mixture that Unsloth makes for each model"),
    ],
)
def test_names_that_people_give_to_types_are_known(folder: Path, run: Run, name: str, meant: str) -> None:
    """49: names of files on the Hub that no type of llama.cpp has."""
    write_tiny_llama("m.gguf", **SHAPE)  # type: ignore[arg-type]
    code, _, err = run("quantize", "m.gguf", name, "-o", "out.gguf")
    assert code == 1
    assert f'unknown type "{name}": {meant}' in err


def test_experts_in_mxfp4_are_merged_with_those_in_f16(folder: Path, run: Run) -> None:
    """As the files of gpt-oss are; the result is their average, in the type of the first, to one of its steps."""
    for name, kind, tune in (("a", "MXFP4", None), ("b", "F16", (1, 0.05))):
        write_tiny_llama(f"{name}.gguf", experts=2, types={"*_exps.weight": kind}, tune=tune, **SHAPE)  # type: ignore[arg-type]
    Path("r.yaml").write_text(
        "merge_method: linear\nmodels: [{model: a.gguf}, {model: b.gguf}]\nparameters: {weight: 1}\n"
    )
    for options in (("--type", "F32"), ()):
        assert run("build", "r.yaml", "-o", "out.gguf", "--overwrite", *options)[0] == 0
        a, b, out = weights("a.gguf"), weights("b.gguf"), weights("out.gguf")
        for name in (name for name in out if "_exps" in name):
            tolerance = 1e-6 if options else 0.4 * np.abs(a[name]).max()
            np.testing.assert_allclose(out[name], (a[name] + b[name]) / 2, atol=tolerance)


def test_the_command_in_a_modelfile_takes_its_name_for_one_word(folder: Path, run: Run) -> None:
    """Whatever is in it."""
    write_tiny_llama("a.gguf", **SHAPE)  # type: ignore[arg-type]
    write_tiny_llama("b.gguf", tune=(1, 0.05), **SHAPE)  # type: ignore[arg-type]
    assert run("merge", "a.gguf", "b.gguf", "-o", "my merge (2).gguf")[0] == 0
    first = Path("my merge (2).Modelfile").read_text(encoding="utf-8").splitlines()[0]
    assert shlex.split(first.removeprefix("# ")) == ["ollama", "create", "NAME", "-f", "my merge (2).Modelfile"]


def test_a_disk_that_is_too_small_is_told_in_small_sizes(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as 0.00 GB."""
    write_tiny_llama("a.gguf", **SHAPE)  # type: ignore[arg-type]
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    code, _, err = run("quantize", "a.gguf", "Q8_0", "-o", "q.gguf")
    assert code == 1
    assert re.search(r"the result needs \d+\.\d kB but only 1\.0 kB are free", err)
