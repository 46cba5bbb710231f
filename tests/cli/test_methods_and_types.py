"""`ggufmerge methods` and `ggufmerge types`: what they tell is true, and their recipes work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ggufmerge.methods import NAMES, method
from ggufmerge.quants import codec
from ggufmerge.quants.guide import PURPOSE, mixture, needs_matrix, uses_matrix
from ggufmerge.types import FileType
from tests.cli.conftest import Run
from tests.tiny import write_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two fine-tunes of it."""
    folder = tmp_path_factory.mktemp("models")
    for name, tune in (("base", None), ("a", (1, 0.1)), ("b", (2, 0.1))):
        write_tiny_llama(folder / f"{name}.gguf", layers=2, tune=tune)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_of_a_method_is_one(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It can be built as it stands, by that method, without a warning."""
    monkeypatch.chdir(folder)
    [facts] = json.loads(run("methods", name, "--json")[1])["methods"]
    (folder / f"{name}.yaml").write_text(facts["recipe"])
    code, out, err = run("plan", f"{name}.yaml", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["method"] == name
    assert facts["recipe"].splitlines()[0] == f"merge_method: {name}"
    shown = run("methods", name)[1]
    assert all(f"  {line}".rstrip() in shown for line in facts["recipe"].splitlines())


def test_a_method_tells_what_it_declares(run: Run) -> None:
    """Each with its parameters, when to use it, and a word for what it needs."""
    for facts in json.loads(run("methods", "--json")[1])["methods"]:
        found = method(facts["name"])
        assert facts["advice"].endswith(".")
        assert [p["name"] for p in facts["parameters"]] == [p.name for p in found.parameters]
        shown = run("methods", facts["name"])[1]
        assert "needs" in shown
        for p in found.parameters:
            assert re.search(rf"^{p.name} +(once|per model) ", shown, re.MULTILINE)


def test_a_range_is_told(run: Run) -> None:
    """Lowest and highest value, choices, what is required."""
    shown = run("methods", "ties")[1]
    assert re.search(r"^density +per model +1 +0\.\.1 ", shown, re.MULTILINE)
    assert re.search(r"^weight +per model +required +number ", shown, re.MULTILINE)
    assert re.search(r"^consensus +once +sum +sum, count ", shown, re.MULTILINE)
    assert re.search(r"^normalize +once +true +true, false ", shown, re.MULTILINE)


# llama-quantize's own table: GiB of Llama 3 8B (tools/quantize/quantize.cpp)
GIB = {
    "Q4_0": 4.34,
    "Q4_1": 4.78,
    "Q5_0": 5.21,
    "Q5_1": 5.65,
    "Q8_0": 7.96,
    "Q2_K": 2.96,
    "Q3_K_S": 3.41,
    "Q3_K_M": 3.74,
    "Q3_K_L": 4.03,
    "Q4_K_S": 4.37,
    "Q4_K_M": 4.58,
    "Q5_K_S": 5.21,
    "Q5_K_M": 5.33,
    "Q6_K": 6.14,
}


@pytest.mark.parametrize("name", GIB)
def test_sizes_are_those_of_llama_quantize(name: str) -> None:
    """Which tells them without the metadata, and to two digits."""
    _, bits, nbytes = mixture(FileType[name])
    assert nbytes / 2**30 == pytest.approx(GIB[name], abs=0.015)
    assert bits == pytest.approx(8 * nbytes / 8.03e9, rel=1e-3)


def test_every_type_has_a_purpose() -> None:
    """And what is said of importance matrices is what the codecs do."""
    assert set(PURPOSE) == set(FileType)
    assert max(map(len, PURPOSE.values())) <= 49  # what a terminal of 80 columns leaves in the table
    for kind in FileType:
        found = codec(kind.default)
        assert uses_matrix(kind) == (found.quantize_weighted is not None)
        if found.needs_imatrix:
            assert needs_matrix(kind)


def test_types_tells_of_each(run: Run) -> None:
    """In a table, alone in any case, as the type of a tensor, and as JSON."""
    code, out, _ = run("types")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines() if line} >= {str(kind) for kind in FileType} - {"NVFP4"}
    assert re.search(r"^Q4_K_M +4\.89 +4\.9 +the usual choice: small", out, re.MULTILINE)
    assert re.search(r"^IQ1_S +2\.0\d +2\.0 +i ", out, re.MULTILINE)
    assert re.search(r"^TQ1_0 .* o ", out, re.MULTILINE)
    assert "Q4_K 81 %, Q6_K 19 %" in run("types", "q4_k_m")[1]
    assert "4.5 bits per weight, 256 values in 144 bytes" in run("types", "Q4_K")[1]
    facts = json.loads(run("types", "--json")[1])
    assert {f["name"] for f in facts["file_types"]} == {str(kind) for kind in FileType}
    assert "Q8_K" not in {f["name"] for f in facts["tensor_types"]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Q4_K_L", "Q4_K_M with Q8_0 for the output and the token embeddings"),
        ("ud-q4_k_xl", "Unsloth"),
        ("i1-Q4_K_M", "importance matrix"),
        ("Q4_0_4_4", "give Q4_0"),
        ("IQ4_K", "a type of ik_llama.cpp, which llama.cpp does not read: of about that size is Q4_K_M"),
        ("iq3_kt", "of about that size is Q3_K_M"),
        ("Q8_0_R8", "of about that size is Q8_0"),
    ],
)
def test_names_of_the_community_are_explained(run: Run, name: str, words: str) -> None:
    """In words."""
    code, out, err = run("types", name)
    assert (code, err) == (0, "")
    assert words in out
