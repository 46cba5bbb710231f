"""`ggufmerge build` with Ollama: models in and out, Modelfiles, and what is refused before work starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ggufmerge
from ggufmerge.errors import PlanError
from ggufmerge.places.ollama import server as ollama_api
from ggufmerge.places.ollama import store as ollama
from ggufmerge.places.ollama.server import Server
from tests.ollama_store import add_model, check_store, layers_of, snapshot
from tests.places.modelfiles import read_modelfile
from tests.places.ollama_server import ollama_server
from tests.tiny import write_tiny_llama

Run = Callable[..., tuple[int, str, str]]
RECIPE = "merge_method: linear\nmodels: [{model: 'ollama:chat:1b'}, {model: 'ollama:other'}]\nparameters: {weight: 1}\n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with two models, chat:1b and other:latest, whose templates differ; the working folder has a recipe."""
    root = tmp_path / "store"
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setattr(ollama, "SERVICE_ROOT", tmp_path / "no service")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name, tune in (("a", None), ("b", (1, 0.02))):
        write_tiny_llama(tmp_path / f"{name}.gguf", layers=1, tune=tune)
    settings = [
        ("template", '{{ .Prompt }}\n"x"'),
        ("params", '{"stop": ["<|end|>"], "num_gqa": 8}'),
        ("license", "MIT"),
    ]
    add_model(root, "chat/1b", (tmp_path / "a.gguf").read_bytes(), settings, {"renderer": "r"})
    others = [("template", "{{ .Prompt }}"), ("license", "MIT"), ("license", "Llama")]
    add_model(root, "other/latest", (tmp_path / "b.gguf").read_bytes(), others)
    (work / "r.yaml").write_text(RECIPE)
    return root


def files(folder: Path = Path()) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_a_merge_goes_straight_into_the_store(store: Path, run: Run) -> None:
    """Without a file beside it and without a copy: the blob is the file that --output would have written."""
    before = snapshot(store)
    code, out, err = run("build", "r.yaml", "--ollama", "merged")
    assert code == 0
    assert f"merged:latest: is in the store {store}; no Ollama server answers now" in out
    assert "the prompt format is that of ollama:chat:1b; the template of ollama:other in Ollama is left out" in err
    assert "parameters num_gqa cannot be part of a model today" in err
    check_store(store)
    assert files() == {"r.yaml"}
    assert not [name for name in files(store / "blobs") if not name.startswith("sha256-")]
    assert before.items() <= snapshot(store).items()
    found = layers_of(store, "merged/latest")
    assert found["template"] == [b'{{ .Prompt }}\n"x"']
    assert json.loads(found["params"][0]) == {"stop": ["<|end|>"]}
    assert found["license"] == [b"MIT", b"Llama"]
    assert json.loads(found["config"][0])["renderer"] == "r"
    assert run("build", "r.yaml", "-o", "out.gguf")[0] == 0
    assert found["model"] == [Path("out.gguf").read_bytes()]


def test_with_a_file_beside_it(store: Path, run: Run) -> None:
    """--output and --ollama: one file, two names, and a Modelfile."""
    code, out, _ = run("build", "r.yaml", "-o", "out.gguf", "--ollama", "merged:v1", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["output"] == "out.gguf"
    assert facts["modelfile"] == "out.Modelfile"
    blob = store / "blobs" / facts["ollama"]["digest"].replace(":", "-")
    assert blob.samefile("out.gguf")
    assert files() == {"r.yaml", "out.gguf", "out.Modelfile"}
    check_store(store)


def test_a_modelfile_beside_every_output(store: Path, run: Run) -> None:
    """With what the parents have in Ollama; --no-modelfile leaves it out."""
    assert run("build", "r.yaml", "-o", "out.gguf")[0] == 0
    assert read_modelfile(Path("out.Modelfile").read_text()) == [
        ("model", "./out.gguf"),
        ("template", '{{ .Prompt }}\n"x"'),
        ("stop", "<|end|>"),
        ("renderer", "r"),
        ("license", "MIT"),
        ("license", "Llama"),
    ]
    assert run("build", "r.yaml", "-o", "other.gguf", "--no-modelfile")[0] == 0
    assert "other.Modelfile" not in files()


def test_a_chat_template_of_the_recipe_wins(store: Path, run: Run) -> None:
    """The parents' templates do not fit it: they are left out, with a warning."""
    Path("r.yaml").write_text(RECIPE + "chat_template: chatml\n")
    code, _, err = run("build", "r.yaml", "-o", "out.gguf")
    assert code == 0
    assert "the recipe sets a chat template; the template and renderer of ollama:chat:1b in Ollama are left out" in err
    found = dict(read_modelfile(Path("out.Modelfile").read_text()))
    assert "<|im_start|>user" in found["template"]
    assert found["stop"] == "<|im_end|>"


def test_what_is_refused_is_refused_before_work_starts(store: Path, run: Run, tmp_path: Path) -> None:
    """Names, taken names, types, a Modelfile in the way: one line each, in a dry run, too, and nothing is written."""
    (Path() / "out.Modelfile").write_text("FROM precious")
    write_tiny_llama(tmp_path / "wide.gguf", layers=1, embed=256, ff=256)
    path = (tmp_path / "wide.gguf").as_posix()
    Path("wide.yaml").write_text(f"merge_method: linear\nmodels: [{{model: '{path}'}}]\nparameters: {{weight: 1}}\n")
    before, work = snapshot(store), snapshot(Path())
    wide = ("wide.yaml", "--type", "TQ1_0")
    for arguments, complaint in (
        (("r.yaml", "--ollama", "-bad"), '"-bad" cannot be the name of an Ollama model'),
        (("r.yaml", "--ollama", "Chat:1b"), "chat:1b: Ollama has a model of this name: use --overwrite"),
        ((*wide, "--ollama", "m"), "is TQ1_0, a type that Ollama does not know"),
        (
            ("r.yaml", "-o", "out.gguf"),
            "out.Modelfile: exists, though out.gguf does not: use --overwrite",
        ),
    ):
        for extra in ((), ("--dry-run",)) if "--ollama" in arguments else ((),):
            code, _, err = run("build", *arguments, *extra)
            assert code == 1
            assert complaint in err
            assert err.count("error:") == 1
    assert run("build", "r.yaml", "--ollama", "m", "--split-max-size", "1M")[0] == 2
    assert run("build", "r.yaml")[0] == 2
    assert snapshot(store) == before
    assert snapshot(Path()) == work


def test_a_store_is_overwritten_only_when_asked(store: Path, run: Run) -> None:
    """A parent may be replaced by the merge; its weights stay until Ollama removes them."""
    before = snapshot(store / "blobs")
    assert run("build", "r.yaml", "--ollama", "other")[0] == 1
    assert run("build", "r.yaml", "--ollama", "other", "--overwrite")[0] == 0
    assert before.items() <= snapshot(store / "blobs").items()
    check_store(store)
    assert "ollama:other" in ggufmerge.open(ollama.find("other").path).metadata["ggufmerge.recipe"]


def test_an_interrupted_build_goes_on_in_the_store(store: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done is in files that Ollama would remove, and the same command takes it over."""
    from ggufmerge.running.run import _Build

    real, left = _Build._tensor, [5]

    def stop(self: _Build, tensor: object) -> object:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return real(self, tensor)  # type: ignore[arg-type]

    monkeypatch.setattr(_Build, "_tensor", stop)
    assert run("build", "r.yaml", "--ollama", "merged", "--threads", "1")[0] == 1
    strays = {name for name in files(store / "blobs") if not name.startswith("sha256-")}
    assert strays == {
        f".ggufmerge-registry.ollama.ai-library-merged-latest.gguf.{end}" for end in ("partial", "journal")
    }
    check_store(store)
    monkeypatch.setattr(_Build, "_tensor", real)
    code, out, _ = run("build", "r.yaml", "--ollama", "merged")
    assert code == 0
    assert "taken over from an interrupted build" in out
    assert not [name for name in files(store / "blobs") if not name.startswith("sha256-")]


def test_through_a_server(store: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where OLLAMA_HOST says so: built here, sent, removed."""
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        before = snapshot(store)
        code, out, _ = run("build", "r.yaml", "--ollama", "merged")
        assert code == 0
        assert f"merged:latest: is in Ollama ({server.url})" in out
        assert server.models["merged:latest"]["template"] == '{{ .Prompt }}\n"x"'
        assert files() == {"r.yaml"}
        assert snapshot(store) == before


FAILURES = ["invalid", "refused", "cut", "no room", "hangs up", "silent", "dies when done", "gone"]


@pytest.mark.parametrize("trouble", FAILURES)
def test_what_could_not_be_sent_is_kept(store: Path, run: Run, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """It is named, with both ways on: the same command sends it without building it or `--overwrite`, also when only
    the answer was lost; and a Modelfile lies beside it, which goes when the model is there.
    """
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        server.troubles.add(trouble)
        if trouble == "gone":  # after the name was looked for, before anything was sent
            monkeypatch.setattr(Server, "_send_blob", _gone)
        code, _, err = run("build", "r.yaml", "--ollama", "Second:v1")
        assert code == 1
        name = "ggufmerge-registry.ollama.ai-library-second-v1"
        assert f"the merged model is complete: {name}.gguf; give the same command again" in err
        assert f"ollama create Second:v1 -f {name}.Modelfile" in err
        assert [line for line in err.splitlines() if line.startswith("error: ")] == err.splitlines()[-1:]
        assert files() == {"r.yaml", f"{name}.gguf", f"{name}.Modelfile", f".{name}.gguf.journal"}
        assert read_modelfile(Path(f"{name}.Modelfile").read_text())[0] == ("model", f"./{name}.gguf")
        monkeypatch.setattr(Server, "_send_blob", SEND)
        server.troubles.clear()
        code, out, err = run("build", "r.yaml", "--ollama", "Second:v1")
        assert code == 0, err
        assert "an interrupted build was complete" in out
        assert files() == {"r.yaml"}
        (weights,) = layers_of(server.ollama.root, "Second/v1")["model"]
        assert run("build", "r.yaml", "-o", "out.gguf")[0] == 0
        assert weights == Path("out.gguf").read_bytes()


SEND = Server._send_blob


def _gone(self: Server, *arguments: object) -> None:
    raise PlanError(f"{self.url}: no answer from an Ollama server (Connection refused): start it")


def test_a_model_of_somebody_elses_is_no_lost_answer(
    store: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A name that another program takes while the merge waits to be sent stays its own."""
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        server.troubles.add("refused")
        assert run("build", "r.yaml", "--ollama", "m")[0] == 1
        server.troubles.clear()
        theirs = add_model(server.ollama.root, "m/latest", (tmp_path / "a.gguf").read_bytes())
        before = theirs.read_bytes()
        code, _, err = run("build", "r.yaml", "--ollama", "m")
        assert code == 1
        assert "has a model of this name: use --overwrite" in err
        assert theirs.read_bytes() == before
        assert "ggufmerge-registry.ollama.ai-library-m-latest.gguf" in files()


def test_a_file_beside_the_model_is_kept_as_it_was(store: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --output the file is the user's: the message names its own Modelfile, or how to write one."""
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        server.troubles.add("cut")
        code, _, err = run("build", "r.yaml", "-o", "out.gguf", "--ollama", "m")
        assert code == 1
        assert "the merged model is complete: out.gguf" in err
        assert "ollama create m:latest -f out.Modelfile" in err
        code, _, err = run("build", "r.yaml", "-o", "bare.gguf", "--no-modelfile", "--ollama", "n")
        assert code == 1
        assert "ollama create n:latest -f FILE, with the line FROM ./bare.gguf in FILE" in err
        server.troubles.clear()
        assert run("build", "r.yaml", "-o", "out.gguf", "--ollama", "m")[0] == 0
        assert run("build", "r.yaml", "-o", "bare.gguf", "--no-modelfile", "--ollama", "n")[0] == 0
        assert files() == {"r.yaml", "out.gguf", "out.Modelfile", "bare.gguf"}


def test_a_modelfile_of_the_users_is_no_left_over(store: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has the name by chance is neither replaced nor removed."""
    theirs = Path("ggufmerge-registry.ollama.ai-library-m-latest.Modelfile")
    theirs.write_text("FROM precious")
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        server.troubles.add("cut")
        assert run("build", "r.yaml", "--ollama", "m")[0] == 1
        assert theirs.read_text() == "FROM precious"
        server.troubles.clear()
        assert run("build", "r.yaml", "--ollama", "m")[0] == 0
        assert theirs.read_text() == "FROM precious"


def test_the_lines_are_true_of_the_place(
    store: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a store whose server has it, and with a server that runs from another store, which is told."""
    with ollama_server(root=store) as server:
        monkeypatch.setattr(ollama_api, "_PORT", server.server_port)
        code, out, err = run("build", "r.yaml", "--ollama", "mine")
        assert code == 0
        assert f"mine:latest: is in Ollama ({store}); to run it: ollama run mine:latest" in out
        assert "warning: the Ollama server" not in err
    with ollama_server(root=tmp_path / "elsewhere") as server:
        add_model(tmp_path / "elsewhere", "theirs/latest", b"GGUF theirs")
        monkeypatch.setattr(ollama_api, "_PORT", server.server_port)
        before = snapshot(store)
        code, out, err = run("build", "r.yaml", "--ollama", "other2", "--json")
        assert code == 0
        assert (
            err.count(f"server at {server.url} runs from another store than {store}, so the model is sent to it") == 1
        )
        facts = json.loads(out)["ollama"]
        assert (facts["name"], facts["place"], facts["seen"]) == ("other2:latest", server.url, True)
        assert server.ollama.find("other2")
        assert snapshot(store) == before
        assert files() == {"r.yaml"}


@pytest.mark.parametrize("output", [(), ("-o", "out.gguf")], ids=["store", "file"])
def test_a_store_that_turns_out_to_be_anothers(
    store: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: tuple[str, ...]
) -> None:
    """Built in the store, which a server of a copy of it has not: the model goes there, and the store is as it was."""
    shutil.copytree(store, tmp_path / "copy")
    before = {path: path.is_dir() for path in store.rglob("*")}
    with ollama_server(root=tmp_path / "copy") as server:
        monkeypatch.setattr(ollama_api, "_PORT", server.server_port)
        code, out, err = run("build", "r.yaml", "--ollama", "mine", *output)
        assert code == 0
        assert f"mine:latest: is in Ollama ({server.url})" in out
        assert err.count(f"runs from another store than {store}, so the model was sent to {server.url}") == 1
        assert {path: path.is_dir() for path in store.rglob("*")} == before
        assert server.ollama.find("mine")
        assert files() == {"r.yaml"} | ({"out.gguf", "out.Modelfile"} if output else set())


def test_another_spelling_is_told(store: Path, run: Run) -> None:
    """In one line, and the name that is then written is the one that Ollama will show."""
    code, out, _ = run("build", "r.yaml", "--ollama", "Team/CHAT:1B")
    assert code == 0
    assert "Team/CHAT:1B: is spelled Team/chat:1b in Ollama, as models that are there already are" in out
    assert f"Team/chat:1b: is in the store {store}" in out
    assert layers_of(store, "registry.ollama.ai/Team/chat/1b")
    code, out, _ = run("build", "r.yaml", "--ollama", "plain")
    assert code == 0
    assert "is spelled" not in out


def test_two_spellings_are_a_warning(store: Path, run: Run) -> None:
    """Once."""
    add_model(store, "x/Q4", b"GGUF x")
    add_model(store, "y/q4", b"GGUF y")
    code, _, err = run("build", "r.yaml", "--ollama", "z:q4")
    assert code == 0
    assert err.count("warning: Ollama confuses names that differ in case only, and y:q4 and x:Q4 do in their tag") == 1
