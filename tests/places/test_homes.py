"""Folders of other programs: how they are recognized, what files are called there, and how settings are edited."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from ggufmerge.errors import GgufmergeError, OutputError, PlanError
from ggufmerge.places.homes import Home, Model, Placed, find_home, lmstudio_home
from ggufmerge.places.homes.koboldcpp import Settings
from ggufmerge.places.homes.llamacpp import Preset, arguments, check_alone, command_line
from ggufmerge.places.homes.names import safe_stem
from ggufmerge.places.homes.placing import check_folder, folders_for, place_files, remove_left, write_entry
from ggufmerge.places.homes.webui import ConfigUser
from ggufmerge.places.presets import preset_models

ONE = Model("m-Q8_0")
SHARDS = Model("m-Q8_0", shards=2)
SEEING = Model("m-Q8_0", projector=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of a user who has none of these programs."""
    for name in ("LLAMA_ARG_MODELS_DIR", "LLAMA_ARG_MODELS_PRESET", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


def tree(root: Path, *names: str) -> Path:
    """Empty files, and folders (names that end with a slash), below a folder that is made."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return root


def names(home: Home) -> list[str]:
    """The files of a home, below its root."""
    paths = [*home.files, *([home.projector] if home.projector else [])]
    return [Path(os.path.relpath(path, home.root)).as_posix() for path in paths]


# --- LM Studio ---


def test_lm_studio_has_publisher_name_file(home: Path) -> None:
    """With the type in the file's name, a projector and shards beside it."""
    tree(home / ".lmstudio/models/")
    assert names(lmstudio_home("me/merged", "Q4_K_M")) == ["me/merged/merged-Q4_K_M.gguf"]
    assert names(lmstudio_home("me/merged-GGUF", "Q8_0")) == ["me/merged-GGUF/merged-Q8_0.gguf"]
    found = lmstudio_home("me/merged", "F16", shards=2, projector=True)
    assert names(found) == [
        "me/merged/merged-F16-00001-of-00002.gguf",
        "me/merged/merged-F16-00002-of-00002.gguf",
        "me/merged/mmproj-merged-F16.gguf",
    ]


@pytest.mark.parametrize("place", [".lmstudio", "config/LM Studio"])
def test_lm_studio_is_where_its_settings_say(home: Path, place: str) -> None:
    """`downloadsFolder` of its present and its early settings wins; a folder that is not there is an error."""
    tree(home / ".lmstudio/models/")
    tree(home / place)
    (home / place / "settings.json").write_text(json.dumps({"downloadsFolder": str(home / "big disk")}))
    with pytest.raises(PlanError, match=r"big disk.*not there"):
        lmstudio_home("me/merged", "F16")
    tree(home / "big disk/")
    assert lmstudio_home("me/merged", "F16").root == home / "big disk"


def test_lm_studio_of_early_versions(home: Path) -> None:
    """Its folder is taken when there is no other; without any there is no LM Studio."""
    with pytest.raises(PlanError, match="no LM Studio here"):
        lmstudio_home("me/merged", "F16")
    tree(home / ".cache/lm-studio/models/")
    assert lmstudio_home("me/merged", "F16").root == home / ".cache/lm-studio/models"


def test_folders_in_lm_studio_keep_their_spelling(home: Path) -> None:
    """A publisher who is there in other case is the same one."""
    tree(home / ".lmstudio/models/Me/Merged/")
    assert names(lmstudio_home("me/merged", "F16")) == ["Me/Merged/Merged-F16.gguf"]  # one model, not two


@pytest.mark.parametrize(
    "name",
    [
        *(
            "merged",
            "me/",
            "/merged",
            "a/b/c",
            "../x",
            "me/..",
            "me/a\\b",
            "me/.x",
            "me/x.",
            "me/ x",
            "me/x ",
            "me/con",
        ),
        *("me/Aux.v1", "me/a:b", "me/a*b", "me/a\nb", "me/" + "x" * 101, "me/mmproj-x", "me/mtp-x", "me/a\u202eb", ""),
    ],
)
def test_names_that_no_folder_should_have_are_refused(home: Path, name: str) -> None:
    """On every system, since the folder may be carried to Windows; and those that mean a part of another model."""
    tree(home / ".lmstudio/models/")
    with pytest.raises(PlanError, match="--lmstudio"):
        lmstudio_home(name, "F16")


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        *(
            ("My merge: v2", "My-merge-v2"),
            ("../../x", "x"),
            ("nul", "nul-model"),
            ("...", "model"),
            ("a/b\\c", "a-b-c"),
        ),
        *(("mmproj", "model"), ("mtp-x", "x"), ("名前", "名前"), ("a\x00\u202eb", "a-b"), ("x" * 300, "x" * 100)),
    ],
)
def test_a_models_own_name_makes_a_safe_file_name(text: str, stem: str) -> None:
    """Whatever a recipe or a parent says."""
    assert safe_stem(text) == stem


# --- which program a folder is of ---


@pytest.mark.parametrize(
    ("there", "model", "program", "placed"),
    [
        (["a.gguf"], SEEING, "", ["m-Q8_0.gguf", "mmproj-m-Q8_0.gguf"]),
        ([], SHARDS, "", ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"]),
        (["koboldcpp-linux-x64-nocuda"], SEEING, "KoboldCpp", ["m-Q8_0.gguf", "mmproj-m-Q8_0.gguf"]),
        (["koboldcpp.exe"], ONE, "KoboldCpp", ["m-Q8_0.gguf"]),
        (["koboldcpp.py", "models/"], ONE, "KoboldCpp", ["m-Q8_0.gguf"]),
        (["old.kcpps"], ONE, "KoboldCpp", ["m-Q8_0.gguf"]),
        (["koboldcpp-guide.gguf"], ONE, "", ["m-Q8_0.gguf"]),
        (["place-your-models-here.txt"], ONE, "text-generation-webui", ["m-Q8_0.gguf"]),
        (["config-user.yaml"], SHARDS, "text-generation-webui", [f"m-Q8_0/{f.name}" for f in SHARDS.files(Path())]),
        (["user_data/models/", "server.py"], ONE, "text-generation-webui", ["m-Q8_0.gguf"]),
        (["user_data/models/"], SEEING, "text-generation-webui", ["m-Q8_0.gguf", "../mmproj/mmproj-m-Q8_0.gguf"]),
        (["server.py", "modules/", "models/"], ONE, "text-generation-webui", ["m-Q8_0.gguf"]),
        (["server.py", "models/"], ONE, "", ["m-Q8_0.gguf"]),
        (["see/see.gguf", "see/mmproj-x.gguf"], ONE, "llama.cpp", ["m-Q8_0.gguf"]),
        (
            ["see/see.gguf", "see/mmproj-x.gguf"],
            SEEING,
            "llama.cpp",
            [f"m-Q8_0/{n}m-Q8_0.gguf" for n in ("", "mmproj-")],
        ),
        (["big/big-00001-of-00002.gguf"], SHARDS, "llama.cpp", [f"m-Q8_0/{f.name}" for f in SHARDS.files(Path())]),
    ],
)
def test_a_program_is_recognized_by_what_is_in_its_folder(
    home: Path, there: list[str], model: Model, program: str, placed: list[str]
) -> None:
    """And the files get the places that it looks into."""
    found = find_home(tree(home / "folder", *there), model)
    assert found.program == program
    assert names(found) == placed


def test_user_data_of_a_portable_webui(home: Path) -> None:
    """It lies beside the program there; user_data and its models are recognized, too."""
    tree(home / "app", "server.py", "modules/")
    models = tree(home / "user_data/models/")
    for folder in (home / "app", home / "user_data", models):
        found = find_home(folder, ONE)
        assert (found.program, found.root) == ("text-generation-webui", models)


def test_a_router_folder_is_one_that_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment, a preset file in it, or the user; other .ini files say nothing."""
    folder = tree(home / "models/", "desktop.ini")
    assert find_home(folder, ONE).program == ""
    assert find_home(folder, ONE, llama_cpp=True).program == "llama.cpp"
    (folder / "x.ini").write_text("[x]\nmodel = /x.gguf\n")
    assert "x.ini" in find_home(folder, ONE).why
    (folder / "x.ini").unlink()
    monkeypatch.setenv("LLAMA_ARG_MODELS_DIR", str(folder))
    assert "LLAMA_ARG_MODELS_DIR" in find_home(folder, ONE).why


def test_a_router_knows_one_model_by_one_name(home: Path) -> None:
    """NAME.gguf and NAME/ are the same to it, and of two models in a folder it takes any."""
    folder = tree(home / "models/", "m-Q8_0.gguf", "other/")
    with pytest.raises(PlanError, match=r"m-Q8_0\.gguf: llama-server would know both"):
        find_home(folder, SHARDS, llama_cpp=True)
    (folder / "m-Q8_0.gguf").unlink()
    tree(folder, "m-Q8_0/other.gguf")
    with pytest.raises(PlanError, match="m-Q8_0: llama-server would know both"):
        find_home(folder, ONE, llama_cpp=True)
    with pytest.raises(PlanError, match=r"other\.gguf is in it"):
        check_alone(find_home(folder, SHARDS, llama_cpp=True))
    (folder / "m-Q8_0/other.gguf").unlink()
    tree(folder, "m-Q8_0/m-Q8_0-00001-of-00002.gguf")
    check_alone(find_home(folder, SHARDS, llama_cpp=True))


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        ("ollama/blobs", "--ollama NAME"),
        (".lmstudio/models/me", "--lmstudio PUBLISHER/NAME"),
        ("hf/hub/models--a--b", "another folder"),
        ("llama", "another folder"),
    ],
)
def test_programs_with_lists_of_their_own_are_not_given_files(home: Path, place: str, hint: str) -> None:
    """A file that is only put there would not be seen."""
    folder = tree(home / f"{place}/")
    tree(home / "hf/hub/")
    with pytest.raises(PlanError, match=hint):
        find_home(folder, ONE)


def test_a_folder_must_be_there(home: Path) -> None:
    """A typing error makes no folder, and a file is none."""
    with pytest.raises(PlanError, match="create it first"):
        find_home(home / "nowhere", ONE)
    with pytest.raises(PlanError, match="is not a folder"):
        find_home(tree(home, "file") / "file", ONE)
    with pytest.raises(PlanError, match="there is no folder"):
        find_home(home / "nowhere/models.ini", ONE)


# --- settings ---

PRESETS = (
    "; models of mine\n[*]\nngl = 99\n\n[old]   # the first one\nmodel = /old.gguf ; here\nc = 2048\n"
    "; about it\ntemp = 0.5\n[later]\nm = /later.gguf\n"
)
PLACED = Placed(Path("/models/new.gguf"), None, 32768)


def test_a_preset_gets_one_section_more(tmp_path: Path) -> None:
    """Behind the others, which stay byte for byte."""
    new = Preset(tmp_path / "p.ini", "new").edited(PRESETS.encode(), PLACED).decode()
    assert new == PRESETS + "\n[new]\nmodel = /models/new.gguf\nctx-size = 8192\n"


def test_a_preset_that_is_not_there_is_made(tmp_path: Path) -> None:
    """With the section alone, and a projector if the model has one; a short context is not made longer."""
    placed = Placed(Path("/m.gguf"), Path("/mmproj-m.gguf"), 512)
    new = Preset(tmp_path / "p.ini", "m").edited(None, placed).decode()
    assert new == "[m]\nmodel = /m.gguf\nmmproj = /mmproj-m.gguf\nctx-size = 512\n"


def test_a_section_is_renewed_in_its_place(tmp_path: Path) -> None:
    """Only the keys that are ours; comments, order and what the user has set stay."""
    placed = Placed(PLACED.file, Path("/mmproj.gguf"), 32768)
    new = Preset(tmp_path / "p.ini", "old").edited(PRESETS.encode(), placed).decode()
    assert new == PRESETS.replace(
        "[old]   # the first one\nmodel = /old.gguf ; here\n",
        "[old]   # the first one\nmmproj = /mmproj.gguf\nmodel = /models/new.gguf ; here\n",
    )
    assert Preset(tmp_path / "p.ini", "old").edited(new.encode(), PLACED).decode() == new.replace(
        "mmproj = /mmproj.gguf\n", ""
    )


def test_a_context_that_holds_for_all_is_not_overruled(tmp_path: Path) -> None:
    """A section's own key would win over `[*]`."""
    new = Preset(tmp_path / "p.ini", "m").edited(b"[*]\nLLAMA_ARG_CTX_SIZE = 4096\n", PLACED).decode()
    assert "ctx-size" not in new


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_ends_of_lines_stay_as_they_are(tmp_path: Path, end: str) -> None:
    """Also where the last line has none."""
    old = f"[a]{end}model = /a.gguf"
    new = Preset(tmp_path / "p.ini", "b").edited(old.encode(), PLACED).decode()
    assert new == f"{old}{end}{end}[b]{end}model = /models/new.gguf{end}ctx-size = 8192{end}"


def test_a_byte_order_mark_is_named(tmp_path: Path) -> None:
    """Editors show none, so the line would look right."""
    with pytest.raises(PlanError, match=r"p\.ini:1: llama-server cannot read the byte order mark in front"):
        Preset(tmp_path / "p.ini", "m").edited("\ufeff[x]\n".encode(), PLACED)


@pytest.mark.parametrize("text", ["[a\n", " key = 1\n", "words\n", "= 1\n", "\ufeff[a]\n", "[]\n", '"k" = 1\n'])
def test_a_preset_file_that_llama_server_cannot_read_is_left_alone(tmp_path: Path, text: str) -> None:
    """With the line that is to blame: one more section would not make it any better."""
    with pytest.raises(PlanError, match=r"p\.ini:2: .*llama-server cannot read this line"):
        Preset(tmp_path / "p.ini", "m").edited(f"[x]\n{text}".encode(), PLACED)


@pytest.mark.parametrize(
    ("name", "path"), [("a]b", "/m.gguf"), ("default", "/m.gguf"), ("m", "/a;b.gguf"), ("m", "/a#"), ("m", "/\udcff")]
)
def test_what_a_preset_file_cannot_hold_is_refused(tmp_path: Path, name: str, path: str) -> None:
    """A value ends at ; and #, a name at ]."""
    with pytest.raises(PlanError, match="cannot hold"):
        Preset(tmp_path / "p.ini", name).edited(None, Placed(Path(path)))


def test_of_sections_with_one_name_the_last_counts(tmp_path: Path) -> None:
    """As for llama-server."""
    path = tmp_path / "p.ini"
    path.write_text("[a]\nmodel = /1\n[b]\nm = /b\n[a]\nLLAMA_ARG_MODEL = /2 # here\n[c]\nhf = x/y\n")
    assert preset_models(path) == {"a": Path("/2"), "b": Path("/b")}
    path.write_bytes(Preset(path, "a").edited(path.read_bytes(), PLACED))
    assert preset_models(path) == {"a": PLACED.file, "b": Path("/b")}
    assert "model = /1\n" in path.read_text()


def test_a_kcpps_file_has_what_the_model_needs(tmp_path: Path) -> None:
    """In ASCII, with a context size that old launchers know."""
    placed = Placed(Path("/ü/m.gguf"), Path("/ü/mmproj-m.gguf"), 5000)
    data = Settings(tmp_path / "m.kcpps").edited(None, placed)
    assert data.isascii()
    assert json.loads(data) == {
        "model_param": "/ü/m.gguf",
        "mmproj": "/ü/mmproj-m.gguf",
        "contextsize": 4096,
        "chatcompletionsadapter": "AutoGuess",
    }
    bare = json.loads(Settings(tmp_path / "m.kcpps").edited(None, Placed(Path("/m.gguf"), template=False)))
    assert bare == {"model_param": "/m.gguf"}


def test_a_kcpps_file_keeps_what_the_user_has_set(tmp_path: Path) -> None:
    """And one that is no mapping is left alone."""
    old = b'{"gpulayers": 20, "contextsize": 16384, "model_param": "/old.gguf", "mmproj": "/old"}'
    new = json.loads(Settings(tmp_path / "m.kcpps").edited(old, PLACED))
    assert list(new)[:2] == ["gpulayers", "contextsize"]
    assert (new["gpulayers"], new["contextsize"], new["model_param"]) == (20, 16384, "/models/new.gguf")
    assert "mmproj" not in new
    with pytest.raises(PlanError, match="cannot be edited"):
        Settings(tmp_path / "m.kcpps").edited(b"[1]", PLACED)


CONFIG = (
    "# mine\nfirst.*:\n    ctx_size: 4096   # enough\nold.gguf$:\n    threads: 2\n\n# the end\nlast$:\n  mmproj: x\n"
)
SEEN = Placed(Path("/models/m.gguf"), Path("/mmproj/mmproj-m.gguf"))


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("m.gguf", CONFIG + "m.gguf$:\n  mmproj: mmproj-m.gguf\n"),
        ("old.gguf", CONFIG.replace("old.gguf$:\n", "old.gguf$:\n    mmproj: mmproj-m.gguf\n")),
        ("last", CONFIG.replace("mmproj: x", "mmproj: mmproj-m.gguf")),
    ],
)
def test_the_webui_is_told_of_the_projector(tmp_path: Path, file: str, changed: str) -> None:
    """All else stays byte for byte, and what appears twice is the same."""
    entry = ConfigUser(tmp_path / "config-user.yaml", file)
    new = entry.edited(CONFIG.encode(), SEEN)
    assert new.decode() == changed
    assert yaml.safe_load(new)[f"{file}$"]["mmproj"] == "mmproj-m.gguf"
    assert entry.edited(new, SEEN) == new


@pytest.mark.parametrize(
    "old", ["- a\n", "a: [\n", "a: !!python/object:x y\n", "a: 1\n---\nb: 2\n", "m.gguf$: {a: 1}\n"]
)
def test_a_config_that_cannot_be_edited_is_left_alone(tmp_path: Path, old: str) -> None:
    """No mapping, no YAML, tags, several documents, an entry in one line."""
    with pytest.raises(PlanError, match="edited"):
        ConfigUser(tmp_path / "config-user.yaml", "m.gguf").edited(old.encode(), SEEN)


def test_entries_are_written_into_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    """With its permissions; an entry that is there is only renewed when that is wanted."""
    (tmp_path / "dotfiles.ini").write_text(PRESETS)
    (tmp_path / "dotfiles.ini").chmod(0o640)
    (tmp_path / "p.ini").symlink_to(tmp_path / "dotfiles.ini")
    entry = Preset(tmp_path / "p.ini", "new")
    write_entry(entry, PLACED, overwrite=False)
    assert (tmp_path / "p.ini").is_symlink()
    assert (tmp_path / "dotfiles.ini").read_text().startswith(PRESETS)
    assert (tmp_path / "dotfiles.ini").stat().st_mode & 0o777 == 0o640
    write_entry(entry, PLACED, overwrite=False)  # an interrupted run has written it
    with pytest.raises(PlanError, match=r"\[new\] in p\.ini.*--overwrite"):
        write_entry(entry, Placed(Path("/other.gguf")), overwrite=False)
    write_entry(entry, Placed(Path("/other.gguf")), overwrite=True)
    assert "model = /other.gguf" in (tmp_path / "p.ini").read_text()
    assert [path.name for path in tmp_path.glob(".*")] == []


# --- files ---


def pair(tmp_path: Path, *texts: str) -> list[Path]:
    paths = [tmp_path / f"s-{number}" for number, _ in enumerate(texts)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


@pytest.mark.parametrize("link", [True, False])
def test_files_are_linked_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool) -> None:
    """With nothing beside them; a file system without links gets copies."""
    if not link:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    sources = pair(tmp_path, "one", "two")
    targets = [tree(tmp_path / "to/") / name for name in "ab"]
    place_files(sources, targets, overwrite=False)
    assert [path.read_text() for path in targets] == ["one", "two"]
    assert [path.samefile(source) for path, source in zip(targets, sources, strict=True)] == [link, link]
    place_files(sources, targets, overwrite=False)
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["a", "b"]


def test_a_file_of_another_content_is_not_replaced_unasked(tmp_path: Path) -> None:
    """Nor is any of the others placed; those that an interrupted run has placed already are no obstacle."""
    sources = pair(tmp_path, "one", "two")
    targets = [tmp_path / "a", tmp_path / "b"]
    targets[1].write_text("mine")
    with pytest.raises(OutputError, match=r"b: exists: use --overwrite"):
        place_files(sources, targets, overwrite=False)
    assert not targets[0].exists()
    targets[1].write_text("two")
    place_files(sources, targets, overwrite=False)
    assert [path.read_text() for path in targets] == ["one", "two"]
    sources = pair(tmp_path / "to" if tree(tmp_path / "to/") else tmp_path, "1", "2")
    place_files(sources, targets, overwrite=True)
    assert [path.read_text() for path in targets] == ["1", "2"]


def test_of_shards_the_first_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two names, no set looks complete that is not; the same call finishes."""
    sources, targets = pair(tmp_path, "new 1", "new 2"), [tmp_path / "a", tmp_path / "b"]
    for target in targets:
        target.write_text("old")
    replace, calls = Path.replace, []

    def stop(path: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        place_files(sources, targets, overwrite=True)
    monkeypatch.setattr(Path, "replace", replace)
    assert calls == [targets[1], targets[0]]
    assert not targets[0].exists()
    place_files(sources, targets, overwrite=True)
    assert [path.read_text() for path in targets] == ["new 1", "new 2"]
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_process_has_left_is_removed_but_no_unfinished_build(tmp_path: Path) -> None:
    """A link or a part of a copy goes; the work of another build of this name stays, and is told of."""
    source, target = pair(tmp_path, "one")[0], tmp_path / "m.gguf"
    os.link(source, tmp_path / ".m.gguf.partial")
    remove_left([target])
    assert not (tmp_path / ".m.gguf.partial").exists()
    (tmp_path / ".m.gguf.partial").write_text("half")
    place_files([source], [target], overwrite=False)
    target.unlink()
    for name in (".m.gguf.partial", ".m.gguf.journal"):
        (tmp_path / name).write_text("work")
    remove_left([target])
    with pytest.raises(OutputError, match="an unfinished build has this name"):
        place_files([source], [target], overwrite=True)
    assert (tmp_path / ".m.gguf.partial").read_text() == "work"


def test_folders_are_gone_again_when_nothing_came_of_it(tmp_path: Path) -> None:
    """But those that were there, or have something in them, stay."""
    target = tree(tmp_path / "a/") / "b/c/m.gguf"

    def fail(*, first: bool) -> None:
        with folders_for([target]):
            assert target.parent.is_dir()
            if first:
                target.touch()
            raise GgufmergeError("no")

    with pytest.raises(GgufmergeError):
        fail(first=False)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a"]
    with pytest.raises(GgufmergeError):
        fail(first=True)
    assert target.exists()


def test_places_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where a folder should be, a folder without permission, a folder of the file's name."""
    tree(tmp_path, "file", "m.gguf/")
    with pytest.raises(PlanError, match="file is not a folder"):
        check_folder(tmp_path, [tmp_path / "file/m.gguf"], overwrite=True)
    with pytest.raises(PlanError, match="this is a folder"):
        check_folder(tmp_path, [tmp_path / "m.gguf"], overwrite=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PlanError, match="is not writable"):
        check_folder(tmp_path, [tmp_path / "new/x.gguf"], overwrite=True)


# --- the command ---


def test_the_command_that_runs_a_model() -> None:
    """Quoted for the shell; no context that the model does not have, none at all when it does not say."""
    words = arguments(Placed(Path("/my models/it's.gguf"), Path("/p.gguf"), 2048))
    assert words == ["llama-server", "-m", "/my models/it's.gguf", "--mmproj", "/p.gguf", "-c", "2048"]
    assert command_line(words[:3]) == "llama-server -m '/my models/it'\"'\"'s.gguf'"
    assert arguments(Placed(Path("/m.gguf"), context=131072))[-2:] == ["-c", "8192"]
    assert arguments(Placed(Path("/m.gguf"))) == ["llama-server", "-m", "/m.gguf"]
