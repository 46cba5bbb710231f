"""`ggufmerge inspect`: every fact of the header, for eyes and for programs, from hostile files too."""

from __future__ import annotations

import json
import pathlib
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from ggufmerge.cli.app import app
from ggufmerge.files import open_gguf
from tests import models
from tests.files import craft
from tests.tiny import write_tiny_llama

TERMINAL = {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    """A model with a long vocabulary, a long string, an array of every sort and names as long as they may be."""
    path = tmp_path / "größe 1.gguf"
    tokens = [f"token{i}" for i in range(100)]
    content = craft.Craft(
        pairs=(
            craft.text("general.architecture", "llama"),
            craft.text("general.type", "model"),
            craft.u32("general.file_type", 15),
            craft.text("tokenizer.chat_template", "{% for x in y %}\n" * 50),
            craft.array("tokenizer.ggml.tokens", craft.STRING, 100, b"".join(map(craft.string, tokens))),
            craft.pair("tokenizer.ggml.add_bos_token", craft.BOOL, b"\x01"),
            craft.pair("llama.epsilon", craft.F32, struct.pack("<f", float("nan"))),
            craft.text(b"broken\xff", b"\xfe\x1b[2J"),
        ),
        infos=(craft.info("n" * 63, [32, 4, 2], 8, 0), craft.info("[red]", [7], 0, 288)),
        data=bytes(288 + 28),
    )
    path.write_bytes(bytes(content))
    return path


def inspect(*arguments: str | pathlib.Path, env: dict[str, str] | None = None) -> str:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)], env=env, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def inspect_json(*arguments: str | pathlib.Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(inspect(*arguments, "--json"), parse_constant=pytest.fail)
    return facts


def test_json_has_every_fact_of_a_real_model() -> None:
    """What the reader knows, as one JSON object."""
    facts = inspect_json(models.smollm2())
    with open_gguf(models.smollm2()) as file:
        assert [tensor["name"] for tensor in facts["tensors"]] == list(file.tensors)
        assert [tensor["nbytes"] for tensor in facts["tensors"]] == [t.nbytes for t in file.tensors.values()]
        assert list(facts["metadata"]) == list(file.metadata)
        assert facts["nbytes"] == file.nbytes
    assert (facts["architecture"], facts["type"], facts["file_type"]) == ("llama", "model", "Q4_1")
    assert facts["parameters"] == 134_515_008
    assert facts["metadata"]["llama.block_count"] == {"kind": "u32", "value": 30}
    assert {name: row["tensors"] for name, row in facts["types"].items()} == {"Q4_1": 210, "Q8_0": 1, "F32": 61}


def test_json_shortens_arrays_unless_asked(path: pathlib.Path) -> None:
    """64 elements, and a mark that says so."""
    tokens = inspect_json(path)["metadata"]["tokenizer.ggml.tokens"]
    assert (tokens["count"], len(tokens["value"]), tokens["shortened"]) == (100, 64, True)
    tokens = inspect_json(path, "--full")["metadata"]["tokenizer.ggml.tokens"]
    assert (tokens["value"][-1], "shortened" in tokens) == ("token99", False)


def test_json_is_valid_whatever_the_file_holds(path: pathlib.Path) -> None:
    """NaN and bytes that are not UTF-8 have no place in JSON."""
    metadata = inspect_json(path)["metadata"]
    assert metadata["llama.epsilon"]["value"] == "nan"
    assert metadata["broken�"]["value"] == "�\x1b[2J"


def test_json_without_tensors(path: pathlib.Path) -> None:
    """The list can be left out, the summary stays."""
    facts = inspect_json(path, "--no-tensors")
    assert "tensors" not in facts
    assert facts["types"]["Q8_0"]["tensors"] == 1


def test_a_pipe_gets_one_line_for_each_fact(path: pathlib.Path) -> None:
    """Plain text without escape sequences or folding; long values are shortened."""
    lines = inspect(path, "--all").splitlines()
    assert re.search(
        r"größe 1\.gguf: llama model Q4_K_M, 263 parameters in 2 tensors, 3\.2 kB, .* bits per weight", lines[0]
    )
    assert any(
        re.fullmatch(r"tokenizer\.ggml\.tokens +string\[100\] +token0, token1, .*\.\.\.", line) for line in lines
    )
    assert any(re.fullmatch(r"tokenizer\.ggml\.add_bos_token +bool +true", line) for line in lines)
    assert any(re.fullmatch(r"n{63} +2 x 4 x 32 +Q8_0 +272", line) for line in lines)
    assert any(re.fullmatch(r"\[red\] +7 +F32 +28", line) for line in lines)
    assert any(re.fullmatch(r"F32 +1 +7 +28 bytes +32\.000 +9\.3 %", line) for line in lines)
    assert "\x1b" not in "".join(lines)
    assert r"\x1b[2J" in "".join(lines)


def test_full_shows_long_values_to_their_end(path: pathlib.Path) -> None:
    """The last token and the whole template."""
    shown = inspect(path, "--full")
    assert "token98, token99" in shown
    assert shown.count("{% for x in y %}") == 50


@pytest.mark.parametrize("options", [[], ["--no-tensors"]])
def test_types_come_first_and_tensors_only_when_asked_for(options: list[str], path: pathlib.Path) -> None:
    """The summary, then the metadata, then how to see the rest."""
    shown = inspect(path, *options)
    assert "n" * 63 not in shown
    assert shown.index("bits/weight") < shown.index("general.architecture") < shown.index("2 tensors: --all lists them")
    assert "n" * 63 in inspect(path, "--all")


@pytest.mark.parametrize("options", [[], ["--full"]])
def test_a_terminal_gets_tables_within_its_width(options: list[str], path: pathlib.Path) -> None:
    """80 columns hold everything: long names are folded, nothing is cut off."""
    shown = re.sub(r"\x1b\[[0-9;]*m", "", inspect(path, "--all", *options, env=TERMINAL))
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown
    assert "n" * 63 in re.sub(r"n *2 x 4 x 32 .*\n *", "n", shown)
    assert "[red]" in shown


def test_files_without_tensors_or_architecture_show_too(tmp_path: pathlib.Path) -> None:
    """An imatrix has no architecture, a vocabulary file no tensors."""
    content = craft.Craft(pairs=(craft.text("general.type", "imatrix"),))
    (tmp_path / "imatrix.gguf").write_bytes(bytes(content))
    assert "imatrix.gguf: imatrix, no tensors" in inspect(tmp_path / "imatrix.gguf")
    assert inspect_json(tmp_path / "imatrix.gguf")["bits_per_weight"] is None


def test_a_tensor_without_values_has_no_bits_per_weight(tmp_path: pathlib.Path) -> None:
    """Nothing is divided by zero."""
    content = craft.Craft(infos=(craft.info("nothing", [0], 0, 0),))
    (tmp_path / "model.gguf").write_bytes(bytes(content))
    assert re.search(r"F32 +1 +0 +0 bytes +- +-", inspect(tmp_path / "model.gguf"))


def test_help_has_examples() -> None:
    """Of every way to call it."""
    shown = inspect("--help")
    assert "ggufmerge inspect model.gguf --all" in shown
    assert "--json --full" in shown


def run(*arguments: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ggufmerge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def test_a_refusal_is_one_line_and_exit_code_1(path: pathlib.Path) -> None:
    """No traceback, nothing on stdout."""
    path.write_bytes(path.read_bytes()[:-40])
    done = run("inspect", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {path}: tensor ")
    assert done.stderr.count("\n") == 1


def test_help_loads_no_heavy_library() -> None:
    """numpy, numba and rich's tables are imported when something is to be shown, not before."""
    script = "import sys, ggufmerge.cli; print(*{'numpy', 'numba', 'pydantic', 'rich.table'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_model_in_several_files_is_one(tmp_path: pathlib.Path, run: Callable[..., tuple[int, str, str]]) -> None:
    """The first line says in how many shards it is."""
    write_tiny_llama(tmp_path / "m.gguf", layers=1)
    assert run("split", str(tmp_path / "m.gguf"), str(tmp_path / "cut"), "--split-max-tensors", "4")[0] == 0
    first, *others = sorted(tmp_path.glob("cut-*.gguf"))
    code, out, _ = run("inspect", str(first))
    assert code == 0
    assert f"cut.gguf in {1 + len(others)} shards: " in out
