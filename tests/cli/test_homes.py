"""`build --lmstudio`, `--to`, `--llama-cpp`: results that other programs list at once, as `models` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ggufmerge.places.homes import placing
from tests.cli.test_mmproj import write_projector
from tests.tiny import write_tiny_llama

Run = Callable[..., tuple[int, str, str]]
BUILD = ("build", "recipe.yaml")
LMSTUDIO = (*BUILD, "--lmstudio", "me/merged")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a user of all programs, each with a model of its own and a setting or two."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_ARG_MODELS_DIR", "LLAMA_ARG_MODELS_PRESET"):
        monkeypatch.delenv(name, raising=False)
    for name, place in (("OLLAMA_MODELS", "ollama"), ("HF_HOME", "hf"), ("LLAMA_CACHE", "cache")):
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("OLLAMA_HOST", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for number, name in enumerate("ab"):
        write_tiny_llama(tmp_path / f"{name}.gguf", layers=1, tune=(number, 0.02), tokenizer="bpe", context=4096)
    text = "{name: My merge, merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}}"
    (tmp_path / "recipe.yaml").write_text(text)
    theirs = {
        ".lmstudio/models/them/theirs/theirs-F32.gguf": None,
        "koboldcpp/koboldcpp-linux-x64": "",
        "koboldcpp/theirs.gguf": None,
        "koboldcpp/theirs.kcpps": '{"gpulayers": 3}',
        "text-generation-webui/user_data/models/theirs.gguf": None,
        "text-generation-webui/user_data/models/config-user.yaml": "theirs.gguf$:\n  threads: 2\n",
        "models/theirs.gguf": None,
        "models/presets.ini": "[theirs]\nmodel = models/theirs.gguf ; a comment\n",
    }
    for name, content in theirs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "a.gguf").read_bytes() if content is None else content.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def listed(run: Run, *arguments: str) -> list[str]:
    code, out, _ = run("models", "--json", *arguments)
    assert code == 0
    return [name for model in json.loads(out)["models"] for name in model["references"]]


def test_lm_studio_lists_a_build_at_once(folder: Path, run: Run) -> None:
    """One file, whole, where it looks; nothing of its other models is touched, and nothing is left anywhere."""
    before = everything(folder)
    code, out, err = run(*LMSTUDIO)
    assert code == 0, err
    path = ".lmstudio/models/me/merged/merged-F32.gguf"
    after = everything(folder)
    assert {name: data for name, data in after.items() if name != path} == before
    assert "LM Studio" in out
    assert "as me/merged" in out
    assert "lmstudio:me/merged/merged-F32.gguf" in listed(run)


def test_what_lm_studio_has_is_a_source(folder: Path, run: Run) -> None:
    """Under the name that the build gave it."""
    assert run(*LMSTUDIO)[0] == 0
    text = (folder / "recipe.yaml").read_text().replace("b.gguf", "lmstudio:me/merged")
    (folder / "again.yaml").write_text(text)
    assert run("build", "again.yaml", "-o", "again.gguf")[0] == 0


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("output", [False, True])
def test_each_program_gets_what_it_needs(folder: Path, run: Run, shards: bool, output: bool) -> None:
    """All in one build, built in the first place or in a file of the user's; the rest is linked, settings are added."""
    write_projector(folder / "eyes.gguf")
    places = ["--to", "koboldcpp", "--to", "text-generation-webui", "--to", "models/presets.ini", "--to", "models"]
    before = everything(folder)
    options = ["--split-max-tensors", "5"] * shards + ["-o", "mine.gguf"] * output
    code, out, err = run(*LMSTUDIO, *places, "--mmproj", "eyes.gguf", "--llama-cpp", "--json", *options)
    assert code == 0, err
    facts = json.loads(out)
    after = everything(folder)
    assert {name: after[name] for name in before if not name.endswith(("presets.ini", "config-user.yaml"))} == {
        name: data for name, data in before.items() if not name.endswith(("presets.ini", "config-user.yaml"))
    }
    stem = "mine" if output else "merged-F32"
    ends = [f"-0000{n}-of-00003.gguf" for n in (1, 2, 3)] if shards else [".gguf"]
    web = "text-generation-webui/user_data"
    deep = f"{stem}/" if shards else ""
    wanted = {f".lmstudio/models/me/merged/merged-F32{end}" for end in ends}
    wanted |= {
        f"{place}{stem}{end}" for place in ("koboldcpp/", f"{web}/models/{deep}", f"models/{stem}/") for end in ends
    }
    wanted |= {".lmstudio/models/me/merged/mmproj-merged-F32.gguf", f"koboldcpp/{stem}.kcpps"}
    wanted |= {f"{place}/mmproj-{stem}.gguf" for place in ("koboldcpp", f"{web}/mmproj", f"models/{stem}")}
    wanted |= {f"mine{end}" for end in ends} | {"mmproj-mine.gguf", "mine.Modelfile"} if output else set()
    assert after.keys() - before.keys() == wanted
    first = folder / (f"mine{ends[0]}" if output else f".lmstudio/models/me/merged/merged-F32{ends[0]}")
    eyes = first.with_name(f"mmproj-{stem}.gguf")
    assert after["models/presets.ini"].decode() == (
        f"{before['models/presets.ini'].decode()}\n[{stem}]\nmodel = {first}\nmmproj = {eyes}\nctx-size = 4096\n"
    )
    config = after[f"{web}/models/config-user.yaml"].decode()
    assert config == f"theirs.gguf$:\n  threads: 2\n{stem}{ends[0]}$:\n  mmproj: mmproj-{stem}.gguf\n"
    assert json.loads(after[f"koboldcpp/{stem}.kcpps"])["model_param"] == str(folder / f"koboldcpp/{stem}{ends[0]}")
    assert facts["llama_cpp"]["arguments"][1:] == ["-m", str(first), "--mmproj", str(eyes), "-c", "4096"]
    programs = ["LM Studio", "KoboldCpp", "text-generation-webui", "llama.cpp", "llama.cpp"]
    assert [home["program"] for home in facts["homes"]] == programs
    assert (folder / f"models/{stem}/{stem}{ends[0]}").samefile(first)


def test_ollama_and_lm_studio_share_one_file(folder: Path, run: Run) -> None:
    """Built in LM Studio's folder and linked into Ollama's store; no Modelfile is left in either."""
    (folder / "ollama").mkdir()
    code, _, err = run(*LMSTUDIO, "--ollama", "merged")
    assert code == 0, err
    path = folder / ".lmstudio/models/me/merged/merged-F32.gguf"
    assert [other.name for other in (folder / "ollama/blobs").iterdir() if other.samefile(path)]
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert {"ollama:merged:latest", "lmstudio:me/merged/merged-F32.gguf"} <= set(listed(run))


def test_a_recipes_name_names_the_file(folder: Path, run: Run) -> None:
    """With the type behind it, in a plain folder, too."""
    (folder / "plain").mkdir()
    code, out, err = run(*BUILD, "--to", "plain", "--type", "Q8_0")
    assert code == 0, err
    assert [path.name for path in (folder / "plain").iterdir()] == ["My-merge-Q8_0.gguf"]
    assert "for any program (nothing in the folder is a known program's)" in out


def test_an_output_that_lies_in_the_folder_is_not_placed_twice(folder: Path, run: Run) -> None:
    """KoboldCpp's settings are all that is missing there."""
    code, _, err = run(*BUILD, "-o", "koboldcpp/m.gguf", "--to", "koboldcpp", "--no-modelfile")
    assert code == 0, err
    assert json.loads((folder / "koboldcpp/m.kcpps").read_text())["model_param"] == str(folder / "koboldcpp/m.gguf")


def test_a_projector_that_is_there_already_is_left_alone(folder: Path, run: Run) -> None:
    """It is an input, so it is not written."""
    projector = folder / ".lmstudio/models/me/merged/mmproj-merged-F32.gguf"
    projector.parent.mkdir(parents=True)
    write_projector(projector)
    before = projector.stat()
    code, _, err = run(*LMSTUDIO, "--mmproj", projector)
    assert code == 0, err
    after = projector.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)


TAKEN = [
    (".lmstudio/models/me/merged/merged-F32.gguf", (), "exists: use --overwrite"),
    ("koboldcpp/merged-F32.gguf", ("--to", "koboldcpp"), "exists: use --overwrite"),
    ("koboldcpp/merged-F32.kcpps", ("--to", "koboldcpp"), "use --overwrite"),
]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(("name", "options", "message"), TAKEN)
def test_a_name_that_is_taken_is_refused(
    folder: Path, run: Run, name: str, options: tuple[str, ...], message: str, dry_run: bool
) -> None:
    """Before any work, in one line, in dry runs too; everything stays as it was, and no folder is made."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")
    before, folders = everything(folder), sorted(p for p in folder.rglob("*") if p.is_dir())
    code, _, err = run(*LMSTUDIO, *options, *["--dry-run"] * dry_run)
    assert (code, err.count("error:")) == (1, 1)
    assert message in err
    assert everything(folder) == before
    assert sorted(p for p in folder.rglob("*") if p.is_dir()) == folders
    assert run(*LMSTUDIO, *options, "--overwrite")[0] == 0


def test_an_entry_that_is_there_is_refused(folder: Path, run: Run) -> None:
    """And renewed when that is asked for; the comment in it stays."""
    build = (*BUILD, "-o", "theirs.gguf", "--to", "models/presets.ini", "--no-modelfile")
    code, _, err = run(*build)
    assert code == 1
    assert "[theirs] in presets.ini" in err
    assert run(*build, "--overwrite")[0] == 0
    text = (folder / "models/presets.ini").read_text()
    assert text == f"[theirs]\nctx-size = 4096\nmodel = {folder / 'theirs.gguf'} ; a comment\n"


def test_a_build_over_what_it_has_linked(folder: Path, run: Run) -> None:
    """The linked file is another name of the old result, and is replaced with it."""
    build = (*BUILD, "-o", "m.gguf", "--to", "models", "--lmstudio", "me/merged", "--no-modelfile")
    assert run(*build)[0] == 0
    assert run(*build)[0] == 1
    code, _, err = run(*build, "--overwrite", "--type", "F16")
    assert code == 0, err
    assert (folder / "models/m.gguf").samefile(folder / "m.gguf")
    assert (folder / ".lmstudio/models/me/merged/merged-F16.gguf").samefile(folder / "m.gguf")


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("step", ["place_files", "write_entry"])
def test_an_interrupted_build_goes_on(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, step: str, output: bool
) -> None:
    """Stopped before or after each file and entry, the same command does what is left, without --overwrite."""
    options = ["--to", "koboldcpp", "--to", "models/presets.ini", "--to", "models"] + ["-o", "m.gguf"] * output
    assert run(*LMSTUDIO, *options)[0] == 0
    wanted = everything(folder)
    for name in ("m.gguf", "m.Modelfile"):
        (folder / name).unlink(missing_ok=True)
    stem = "m" if output else "merged-F32"
    for path in [*folder.glob(f"*/{stem}.*"), *(folder / ".lmstudio/models/me/merged").iterdir()]:
        path.unlink()
    (folder / "models/presets.ini").write_text("[theirs]\nmodel = models/theirs.gguf ; a comment\n")
    do = getattr(placing, step)
    for after in (False, True):
        calls = []

        def stop(*arguments: object, _after: bool = after, _calls: list[int] = calls, **options: object) -> None:
            _calls.append(1)
            if _after:
                do(*arguments, **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(f"ggufmerge.sinks.homes.{step}", stop)
        assert run(*LMSTUDIO, *options)[0] != 0
        assert calls
    monkeypatch.setattr(f"ggufmerge.sinks.homes.{step}", do)
    code, _, err = run(*LMSTUDIO, *options)
    assert code == 0, err
    assert everything(folder) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lmstudio", "merged"], "write PUBLISHER/NAME"),
        (["--lmstudio", "../../x"], "write PUBLISHER/NAME"),
        (["--lmstudio", "me/.."], "cannot be the name of a folder"),
        (["--to", "nowhere"], "create it first"),
        (["--to", "recipe.yaml"], "is not a folder"),
        (["--to", ".lmstudio/models"], "use --lmstudio PUBLISHER/NAME"),
        (["-o", "models/presets.ini", "--to", "models/presets.ini"], "is a file of the output"),
        (["-o", "mmproj-m.gguf", "--to", "models"], "a part of another model"),
        (["-o", "m.gguf", "--to", "models/bad.ini"], "bad.ini:1: llama-server cannot read this line"),
    ],
)
def test_what_cannot_be_is_one_line(folder: Path, run: Run, options: list[str], message: str) -> None:
    """What was wrong and what to do; nothing is left."""
    (folder / "models/bad.ini").write_text("words\n")
    before = everything(folder)
    code, _, err = run(*BUILD, *options)
    assert (code, err.count("error:")) == (1, 1)
    assert message in err
    assert everything(folder) == before


def test_a_dry_run_says_where_it_would_go(folder: Path, run: Run) -> None:
    """And why, and makes nothing."""
    before = everything(folder)
    code, out, err = run(*LMSTUDIO, "--to", "koboldcpp", "--dry-run")
    assert code == 0, err
    assert "for KoboldCpp (koboldcpp-linux-x64 is in the folder)" in out
    facts = json.loads(run(*LMSTUDIO, "--to", "koboldcpp", "--dry-run", "--json")[1])
    assert [home["program"] for home in facts["homes"]] == ["LM Studio", "KoboldCpp"]
    assert everything(folder) == before
    assert not (folder / ".lmstudio/models/me").exists()


def test_a_model_without_a_template_is_warned_of(folder: Path, run: Run) -> None:
    """With what the program will do about it."""
    for number, name in enumerate("ab"):
        write_tiny_llama(folder / f"{name}.gguf", layers=1, tune=(number, 0.02))
    code, _, err = run(*BUILD, "--to", "models", "--to", "text-generation-webui", "--llama-cpp")
    assert code == 0, err
    assert "no chat template: llama-server will use ChatML and text-generation-webui will use Alpaca's" in err


def test_models_says_who_keeps_what_and_what_it_needs(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs where they usually are, a models folder and presets of the environment, and a given folder."""
    write_projector(folder / ".lmstudio/models/them/theirs/mmproj-model-F16.gguf")
    (folder / "bare").mkdir()
    write_tiny_llama(folder / "bare/bare.gguf", layers=1)
    snapshot = folder / "cache/models--owner--tiny/snapshots/0123"
    snapshot.mkdir(parents=True)
    write_tiny_llama(snapshot / "tiny-F32.gguf", layers=2, tokenizer="bpe")
    monkeypatch.setenv("LLAMA_ARG_MODELS_DIR", str(folder / "models"))
    (folder / "models/presets.ini").write_text(f"[x]\nmodel = {folder / 'a.gguf'}\n[y]\nmodel = /gone.gguf\n")
    monkeypatch.setenv("LLAMA_ARG_MODELS_PRESET", str(folder / "models/presets.ini"))
    code, out, _ = run("models", "--json", "bare")
    assert code == 0
    facts = json.loads(out)
    models = {model["references"][0]: model for model in facts["models"]}
    web = folder / "text-generation-webui/user_data/models/theirs.gguf"
    assert {name: model["keeper"] for name, model in models.items()} == {
        "lmstudio:them/theirs/theirs-F32.gguf": "LM Studio",
        "lmstudio:them/theirs/mmproj-model-F16.gguf": "LM Studio",
        "llama.cpp:owner/tiny/tiny-F32.gguf": "llama.cpp",
        "llama.cpp:theirs.gguf": "llama.cpp",
        str(folder / "a.gguf"): "llama.cpp",
        str(folder / "koboldcpp/theirs.gguf"): "KoboldCpp",
        str(web): "text-generation-webui",
        "bare/bare.gguf": "",
    }
    assert models["lmstudio:them/theirs/theirs-F32.gguf"]["projector"] == "mmproj-model-F16.gguf"
    needs = {name: model["needs"] for name, model in models.items() if model["needs"]}
    assert needs == {"lmstudio:them/theirs/mmproj-model-F16.gguf": ["a model"], "bare/bare.gguf": ["a chat template"]}
    assert [failed["reference"] for failed in facts["unreadable"]] == ["/gone.gguf"]


@pytest.mark.parametrize("name", ["llama.cpp:owner/tiny/tiny-F32.gguf", "llama.cpp:owner/tiny:F32", "llama.cpp:theirs"])
def test_what_models_lists_is_a_source(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A cache in the Hub's layout and the models folder of llama-server, as they are listed and shorter."""
    snapshot = folder / "cache/models--owner--tiny/snapshots/0123"
    snapshot.mkdir(parents=True)
    write_tiny_llama(snapshot / "tiny-F32.gguf", layers=1, tokenizer="bpe", context=4096)
    monkeypatch.setenv("LLAMA_ARG_MODELS_DIR", str(folder / "models"))
    text = (folder / "recipe.yaml").read_text().replace("b.gguf", name)
    (folder / "other.yaml").write_text(text.replace(name, f'"{name}"'))
    code, _, err = run("plan", "other.yaml")
    assert code == 0, err
