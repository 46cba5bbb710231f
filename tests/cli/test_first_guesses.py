"""First guesses of people who know other programs: they work, or one line holds the right command."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.tiny import write_tiny_llama, write_tiny_lora

# what is typed, and the file that is made ("" for a command that only shows)
WORKS = (
    # looking around
    ("", ""),
    ("--help", ""),
    ("-h", ""),
    ("help", ""),
    ("help build", ""),
    ("help recipe explain", ""),
    ("--version", ""),
    ("-V", ""),
    ("version", ""),
    ("ls .", ""),
    ("list .", ""),
    ("models .", ""),
    ("show a.gguf", ""),
    ("info a.gguf", ""),
    ("INSPECT a.gguf", ""),
    ("compare a.gguf b.gguf", ""),
    ("diff a.gguf b.gguf -t 2", ""),
    ("explain recipe.yaml blk.0.attn_q", ""),
    ("recipe schema", ""),
    ("schema", ""),
    ("methods", ""),
    ("methods TIES", ""),
    ("types", ""),
    ("types q4_k_m", ""),
    ("types Q4_K_L", ""),
    # mergekit-yaml
    ("build recipe.yaml out.gguf", "out.gguf"),
    ("mergekit-yaml recipe.yaml out.gguf --cuda", "out.gguf"),
    ("build recipe.yaml out.gguf --lazy-unpickle --copy-tokenizer --allow-crimes", "out.gguf"),
    ("build recipe.yaml -o out.gguf --trust-remote-code", "out.gguf"),
    ("build recipe.yaml --out out.gguf --num-threads 2", "out.gguf"),
    ("build recipe.yaml -o out.gguf --transformers-cache /tmp --lora-merge-cache=/tmp", "out.gguf"),
    ("build recipe.yaml -o out.gguf --outtype q8_0 -f", "out.gguf"),
    ("plan recipe.yaml -o out.gguf", ""),
    ("plan recipe.yaml --dry-run", ""),
    ("mergekit-extract-lora --model b.gguf --base-model a.gguf --out-path new.gguf --max-rank 2", "new.gguf"),
    ("extract-lora b.gguf new.gguf --base a.gguf --rank 2", "new.gguf"),
    ("mix a.gguf b.gguf -o out.gguf --no-base", "out.gguf"),
    # llama-quantize and its family
    ("quantize a.gguf out.gguf Q8_0 2", "out.gguf"),
    ("quantize a.gguf Q8_0", "a-Q8_0.gguf"),
    ("quantize a.gguf q8_0 2", "a-Q8_0.gguf"),
    ("quantize a.gguf out.gguf 7", "out.gguf"),
    ("quantize a.gguf 7", "a-Q8_0.gguf"),
    ("quantize --allow-requantize a.gguf out.gguf Q8_0", "out.gguf"),
    ("quantize --pure --nthread 2 a.gguf out.gguf Q8_0", "out.gguf"),
    ("quantize --keep-split a.gguf out.gguf Q8_0", "out.gguf"),
    ("quantize --tensor-type-file types.txt a.gguf out.gguf Q8_0", "out.gguf"),
    ("quantize a.gguf out.gguf COPY", "out.gguf"),
    ("quantize a.gguf out.gguf fp16", "out.gguf"),
    ("quantize a.gguf -o out.gguf -t Q8_0", "out.gguf"),
    ("quantize a.gguf Q8_0 out.gguf", "out.gguf"),
    ("llama-quantize a.gguf out.gguf Q8_0", "out.gguf"),
    ("quantize --dry-run a.gguf Q8_0", ""),
    ("bake a.gguf lora.gguf out.gguf", "out.gguf"),
    ("llama-export-lora a.gguf lora.gguf -o out.gguf -j 2", "out.gguf"),
    ("split --split a.gguf part", "part-00001-of-00001.gguf"),
    ("split -o part a.gguf", "part-00001-of-00001.gguf"),
    ("split a.gguf --output=part", "part-00001-of-00001.gguf"),
)
# what is typed, and what the line holds
TOLD = (
    ("join -o out.gguf a.gguf", "a.gguf: is not split"),
    ("join a.gguf --out out.gguf", "a.gguf: is not split"),
    ("new ties a.gguf b.gguf", "ggufmerge merge a.gguf b.gguf --dry-run --save-recipe recipe.yaml"),
    ("extract-lora a.gguf b.gguf -o out.gguf", "--base is missing"),
    ("inspect a.gguf b.gguf c.gguf", 'there is no place for "b.gguf", "c.gguf"'),
    ("merg", "ggufmerge"),
    ("lst", "ggufmerge models"),
    ("inspct a.gguf", "ggufmerge inspect"),
    ("frobnicate", "ggufmerge --help"),
    ("recipe.yaml", "ggufmerge build recipe.yaml -o"),
    ("a.gguf b.gguf", "ggufmerge inspect a.gguf"),
    ("slerp a.gguf b.gguf", "ggufmerge methods slerp"),
    ("run merged", "ollama run NAME"),
    ("chat merged.gguf", "ggufmerge build RECIPE --ollama NAME"),
    ("pull llama3.2:3b", "ggufmerge inspect hf:"),
    ("rm a.gguf", "rm FILE"),
    ("create mine", "ggufmerge build RECIPE --ollama NAME"),
    ("serve", "llama-server"),
    ("convert a.gguf", "ggufmerge quantize IN OUT TYPE"),
    ("dequantize a.gguf", "ggufmerge quantize IN OUT F16"),
    ("train", "ggufmerge bake BASE ADAPTER"),
    ("lora a.gguf lora.gguf", "ggufmerge bake BASE ADAPTER"),
    ("check recipe.yaml", "ggufmerge plan RECIPE"),
    ("init", "ggufmerge new"),
    ("recipe new", "ggufmerge new"),
    ("recipe check recipe.yaml", "ggufmerge plan RECIPE"),
    ("login", "hf auth login"),
    ("build", "ggufmerge build recipe.yaml -o merged.gguf"),
    ("build recipe.yaml", "-o recipe.gguf"),
    ("build a.gguf b.gguf c.gguf", "ggufmerge merge a.gguf b.gguf -o"),
    ("build recipe.yaml ./out", "-o out.gguf"),
    ("build recipe.yaml -o x.safetensors", "-o x.gguf"),
    ("build recipe.yaml -o folder", "-o folder/merged.gguf"),
    ("build recipe.yaml -o x.gguf --random-seed 42", "seed: 42"),
    ("build recipe.yaml -o x.gguf --out-shard-size 5B", "--split-max-size 4G"),
    ("build recipe.yaml -o x.gguf --method slerp", "ggufmerge methods METHOD"),
    ("build recipe.yaml -o x.gguf --all", "ggufmerge plan RECIPE --all"),
    ("build recipe.yaml -o x.gguf -t 8", "--threads 8"),
    ("bake a.gguf lora.gguf -o x.gguf -t 2", "--threads 2"),
    ("build recipe.yaml -o x.gguf --type 15", "-t Q4_K_M"),
    ("build recipe.yaml -o x.gguf --overwirte", "--overwrite"),
    ("quantize a.gguf", "ggufmerge quantize INPUT OUTPUT Q4_K_M"),
    ("quantize a.gguf out.gguf", "ggufmerge quantize INPUT OUTPUT Q4_K_M"),
    ("quantize a.gguf Q4_K_L", "--output-tensor-type Q8_0"),
    ("quantize a.gguf out.gguf UD-Q4_K_XL", "--like FILE"),
    ("quantize a.gguf out.gguf i1-Q4_K_M", "--imatrix FILE"),
    ("quantize a.gguf out.gguf Q4_0_4_8", "Q4_0"),
    ("quantize a.gguf out.gguf int8", "Q8_0"),
    ("quantize a.gguf out.gguf best", "ggufmerge types"),
    ("quantize a.gguf out.gguf Q8_0 2 3", "ggufmerge quantize INPUT OUTPUT"),
    ("quantize --override-kv general.name=str:x a.gguf out.gguf Q8_0", "ggufmerge build RECIPE"),
    ("quantize --prune-layers 1 a.gguf out.gguf Q8_0", "ggufmerge methods passthrough"),
    ("quantize --leave-output-tensor tied.gguf out.gguf Q8_0", "--token-embedding-type"),
    ("bake -m a.gguf --lora lora.gguf -o x.gguf", "ggufmerge bake BASE ADAPTER"),
    ("bake a.gguf lora.gguf --scale 0.5 -o x.gguf", "ADAPTER=0.5"),
    ("split --merge part-00001-of-00002.gguf x.gguf", "ggufmerge join FIRST OUTPUT"),
    ("join a.gguf x", "-o x.gguf"),
    ("diff a.gguf", "ggufmerge diff "),
    ("methods tise", "ties"),
    ("types Q4KM", "Q4_K_M"),
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one whose embeddings are its output, an adapter, a recipe, types for tensors, a folder."""
    folder = tmp_path_factory.mktemp("inputs")
    weights = write_tiny_llama(folder / "a.gguf", layers=1)
    write_tiny_llama(folder / "b.gguf", layers=1, tune=(1, 0.1))
    write_tiny_llama(folder / "tied.gguf", layers=1, tied=True)
    write_tiny_lora(folder / "lora.gguf", weights)
    models = "[{model: a.gguf, parameters: {weight: 1}}, {model: b.gguf, parameters: {weight: 1}}]"
    (folder / "recipe.yaml").write_text(f"merge_method: linear\nmodels: {models}\n")
    (folder / "types.txt").write_text("attn_q=F16\nffn_up=F16 ffn_down=F16\n")
    return folder


@pytest.fixture
def folder(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own with the inputs in it."""
    for path in inputs.iterdir():
        os.link(path, tmp_path / path.name)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("typed", "made"), WORKS, ids=lambda text: text.replace("/", "|") or "-")
def test_it_works(run: Run, folder: Path, typed: str, made: str) -> None:
    """Exit code 0, nothing but notes and warnings on standard error, and the file is there."""
    before = {path.name for path in folder.iterdir()}
    code, out, err = run(*shlex.split(typed))
    assert code == 0, err
    assert all(line.startswith(("note: ", "warning: ")) for line in err.splitlines())
    new = {path.name for path in folder.iterdir()} - before
    assert {name for name in new if name.endswith(".gguf")} == ({made} if made else set())
    assert out


@pytest.mark.parametrize(("typed", "told"), TOLD, ids=lambda text: text.replace("/", "|"))
def test_one_line_holds_the_right_command(run: Run, folder: Path, typed: str, told: str) -> None:
    """One error, nothing on standard output, nothing made."""
    before = sorted(folder.rglob("*"))
    code, out, err = run(*shlex.split(typed))
    [line] = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code in (1, 2), out) == (True, "")
    assert line.startswith("error: ")
    assert told in line
    assert sorted(folder.rglob("*")) == before


def test_who_asks_for_json_gets_the_line_there_too(run: Run, folder: Path) -> None:
    """Of a command line that makes no sense."""
    import json

    code, out, err = run("quantize", "a.gguf", "out.gguf", "--json")
    assert code != 0
    assert "ggufmerge quantize INPUT OUTPUT Q4_K_M" in json.dumps(json.loads(out))
    assert "ggufmerge quantize INPUT OUTPUT Q4_K_M" in err
