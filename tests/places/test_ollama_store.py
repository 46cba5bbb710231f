"""References to models of an Ollama store: golden trees, made by hand, resolve or fail as they should."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

import ggufmerge
from ggufmerge.engine import make_plan
from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.places.ollama import store as ollama
from ggufmerge.places.ollama.store import OllamaSettings
from ggufmerge.places.opening import open_source
from ggufmerge.places.references import find
from ggufmerge.recipe import ModelReference, load_recipe
from tests.ollama_store import IMAGE, add_blob, add_model, snapshot
from tests.systems import needs_pipes
from tests.tiny import write_tiny_llama, write_tiny_lora

TEMPLATE = '{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"{{ .Prompt }}"'


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.gguf, its fine-tune b.gguf and an adapter for both."""
    folder = tmp_path_factory.mktemp("files")
    weights = write_tiny_llama(folder / "a.gguf", layers=1)
    write_tiny_llama(folder / "b.gguf", layers=1, tune=(1, 0.02))
    write_tiny_lora(folder / "lora.gguf", weights)
    return folder


@pytest.fixture
def store(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with models under names of all kinds; OLLAMA_MODELS leads to it."""
    root = tmp_path / "models"
    a, b = (files / "a.gguf").read_bytes(), (files / "b.gguf").read_bytes()
    add_model(
        root,
        "llama3.2/3b",
        a,
        [
            ("template", TEMPLATE),
            ("system", "Be brief."),
            ("params", '{"stop": ["<|im_end|>", "a \\"b\\""], "num_ctx": 8192}'),
            ("license", "MIT"),
            ("license", "and more"),
            ("messages", '[{"role": "user", "content": "Hi"}]'),
        ],
        {"renderer": "r1", "parser": "p1", "requires": "0.14.0"},
    )
    add_model(root, "llama3.2/latest", b)
    add_model(root, "registry.ollama.ai/someone/Mixed-Case/Q4_K_M", b)
    add_model(root, "hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF/Q4_K_M", a)
    add_model(root, "localhost-registry/team/model/v1.2", b)
    add_model(root, "tuned/latest", a, [("adapter", (files / "lora.gguf").read_bytes())])
    add_model(root, "seeing/latest", a, [("projector", b"GGUF...")])
    add_model(root, "cloud/latest", None, config={"remote_host": "https://ollama.com:443", "remote_model": "big"})
    add_model(root, "mlx/latest", None, [("tensor", b"1234")], {"model_format": "safetensors"})
    add_model(root, "empty/latest", None)
    add_model(root, "twice/latest", a, [("model", b)])
    add_model(root, "garbage/latest", b"not a model at all")
    add_model(root, "badparams/latest", a, [("params", "[1, 2]")])
    (root / "manifests/registry.ollama.ai/library/cut").mkdir()
    (root / "manifests/registry.ollama.ai/library/cut/latest").write_text('{"schemaVersion": 2, "layers": [{"med')
    (root / "manifests/registry.ollama.ai/library/cut/list").write_text("[1]")
    (root / "manifests/registry.ollama.ai/library/cut/nolayers").write_text('{"layers": [{"digest": 3}]}')
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    return root


@pytest.mark.parametrize(
    ("reference", "which"),
    [
        ("ollama:llama3.2:3b", "a"),
        ("ollama:llama3.2", "b"),
        ("ollama:library/llama3.2:3b", "a"),
        ("ollama:registry.ollama.ai/library/llama3.2:3b", "a"),
        ("ollama:Llama3.2:3B", "a"),
        ("ollama:someone/mixed-case:q4_k_m", "b"),
        ("ollama:hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M", "a"),
        ("ollama:hf.co/bartowski/llama-3.2-3b-instruct-gguf:q4_k_m", "a"),
        ("ollama:localhost-registry/team/model:v1.2", "b"),
    ],
)
def test_a_name_leads_to_the_blob_that_ollama_runs(store: Path, files: Path, reference: str, which: str) -> None:
    """With Ollama's defaults for what the name leaves out, in any case."""
    located = find(reference)
    assert located.path.parent == store / "blobs"
    assert located.path.read_bytes() == (files / f"{which}.gguf").read_bytes()


def test_what_comes_with_the_weights(store: Path) -> None:
    """Template, system prompt, parameters, licences, messages, and what the configuration says of prompting."""
    settings = find("ollama:llama3.2:3b").settings
    assert settings == ollama.OllamaSettings(
        template=TEMPLATE,
        system="Be brief.",
        parameters={"stop": ["<|im_end|>", 'a "b"'], "num_ctx": 8192},
        licenses=("MIT", "and more"),
        messages=({"role": "user", "content": "Hi"},),
        renderer="r1",
        parser="p1",
        requires="0.14.0",
    )
    assert find("ollama:llama3.2").settings == ollama.OllamaSettings()


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("ollama:llama3.2:1b", r'did you mean "llama3\.2:3b"\? otherwise get it with ollama pull llama3.2:1b'),
        ("ollama:zephyr", r"not in .*models; known: .*ollama pull zephyr:latest"),
        ("ollama:cloud", r"runs at https://ollama\.com:443, its weights are not on this machine"),
        ("ollama:mlx", r"is kept as safetensors, not as GGUF"),
        ("ollama:empty", r"0 model layers instead of one; get the model again with ollama pull empty"),
        ("ollama:twice", r"2 model layers instead of one"),
        ("ollama:garbage", r"is not a GGUF file"),
        ("ollama:badparams", r"sha256-\w+ is damaged"),
        ("ollama:cut", r"the manifest .*latest is damaged"),
        ("ollama:cut:list", r"damaged \(it is not a mapping\)"),
        ("ollama:cut:nolayers", r"damaged \(a layer has no mediaType, digest or size\)"),
        ("ollama:", r'its name is ""'),
        ("ollama:a/b/c/d", r'its host is "a/b"'),
        ("ollama:../../etc/passwd", r'its host is "\.\./\.\."'),
        ("ollama:name.space/model", r'its namespace is "name.space"'),
        ("ollama:model:", r'its tag is ""'),
        ("ollama:-model", r'its name is "-model"'),
        (f"ollama:{'x' * 81}", "its name has 81 letters, and Ollama takes 80"),
    ],
)
def test_names_that_lead_to_no_model(store: Path, reference: str, complaint: str) -> None:
    """One line says why, and what to do; nothing of the store is changed."""
    before = snapshot(store)
    with pytest.raises(PlanError, match=complaint) as caught:
        find(reference)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(store) == before


def blob_gone(root: Path, blob: Path, manifest: Path) -> None:
    blob.unlink()


def blob_short(root: Path, blob: Path, manifest: Path) -> None:
    blob.write_bytes(blob.read_bytes()[:-1])


def config_gone(root: Path, blob: Path, manifest: Path) -> None:
    (root / "blobs" / json.loads(manifest.read_text())["config"]["digest"].replace(":", "-")).unlink()


def config_garbled(root: Path, blob: Path, manifest: Path) -> None:
    content = json.loads(manifest.read_text())
    content["config"] = add_blob(root, b"{", "x")
    manifest.write_text(json.dumps(content))


def digest_leads_out(root: Path, blob: Path, manifest: Path) -> None:
    content = json.loads(manifest.read_text())
    content["layers"][0]["digest"] = "sha256:../../../secret"
    manifest.write_text(json.dumps(content))


def huge_manifest(root: Path, blob: Path, manifest: Path) -> None:
    with manifest.open("r+b") as file:
        file.truncate(1 << 25)


HOSTILE_JSON = ("[" * 100_000, '{"a":' * 10_000, "[]", '{"layers": NaN}', "\xff", '{"a": 1, "a": 2}', "1" * 5000)


def manifest_of(text: str) -> Callable[[Path, Path, Path], None]:
    return lambda root, blob, manifest: manifest.write_bytes(text.encode("latin-1")) and None


def config_of(text: str) -> Callable[[Path, Path, Path], None]:
    def harm(root: Path, blob: Path, manifest: Path) -> None:
        content = json.loads(manifest.read_text())
        content["config"] = add_blob(root, text.encode("latin-1"), "x")
        manifest.write_text(json.dumps(content))

    return harm


def with_layers(*layers: tuple[str, str]) -> Callable[[Path, Path, Path], None]:
    def harm(root: Path, blob: Path, manifest: Path) -> None:
        content = json.loads(manifest.read_text())
        content["layers"] += [add_blob(root, text.encode(), f"application/vnd.ollama.image.{k}") for k, text in layers]
        manifest.write_text(json.dumps(content))

    return harm


def pipe_for_blob(root: Path, blob: Path, manifest: Path) -> None:
    """With the size that a pipe has, so that only opening it could tell."""
    content = json.loads(manifest.read_text())
    content["layers"][0]["size"] = 0
    manifest.write_text(json.dumps(content))
    blob.unlink()
    os.mkfifo(blob)


def pipe_for_manifest(root: Path, blob: Path, manifest: Path) -> None:
    manifest.unlink()
    os.mkfifo(manifest)


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (blob_gone, "is missing; get the model again"),
        (blob_short, r"has \d+ of \d+ bytes"),
        (config_gone, "is missing"),
        (config_garbled, "is damaged"),
        (digest_leads_out, "is no sha256 digest"),
        (huge_manifest, "more than 1048576 bytes"),
        *((manifest_of(text), "the manifest .* is damaged") for text in HOSTILE_JSON),
        *((config_of(text), "is damaged") for text in HOSTILE_JSON),
        (with_layers(("params", "[]")), r"is damaged \(it is not a mapping\)"),
        (with_layers(("params", "[" * 100_000)), r"is damaged \(it is nested too deeply\)"),
        (with_layers(("messages", "{}")), r"is damaged \(it is not a list\)"),
        (with_layers(*[("license", "x" * (1 << 20))] * 20), r"its texts have 209\d+ bytes"),
        (with_layers(*[("adapter", "x")] * 20), "has 20 adapters"),
        pytest.param(pipe_for_blob, "cannot be read", marks=needs_pipes),
        pytest.param(pipe_for_manifest, "not in", marks=needs_pipes),
    ],
)
def test_a_damaged_store(store: Path, harm: Callable[[Path, Path, Path], None], complaint: str) -> None:
    """What a broken download, a full disk or a forged manifest leaves is refused with a way out."""
    manifest = store / "manifests/registry.ollama.ai/library/llama3.2/3b"
    harm(store, find("ollama:llama3.2:3b").path, manifest)
    with pytest.raises(PlanError, match=complaint):
        find("ollama:llama3.2:3b")


def test_settings_that_are_no_settings_are_left_out(store: Path) -> None:
    """Of parameters and messages what has the wrong type; a configuration may say anything."""
    manifest = store / "manifests/registry.ollama.ai/library/llama3.2/3b"
    content = json.loads(manifest.read_text())
    content["layers"] = [layer for layer in content["layers"] if layer["mediaType"].endswith(".model")]
    content["config"] = add_blob(store, b'{"renderer": [], "parser": {}, "requires": 1, "remote_host": []}', "x")
    for kind, value in (
        ("params", {"stop": ["a", {}], "seed": 1, "top_p": None, "top_k": {"a": 1}, "min_p": 0.5}),
        ("messages", [1, None, {"role": 1, "content": "x"}, {"role": "user"}, {"role": "user", "content": "Hi"}]),
    ):
        content["layers"].append(add_blob(store, json.dumps(value).encode(), f"application/vnd.ollama.image.{kind}"))
    manifest.write_text(json.dumps(content))
    settings = find("ollama:llama3.2:3b").settings
    assert settings == OllamaSettings(
        parameters={"seed": 1, "min_p": 0.5}, messages=({"role": "user", "content": "Hi"},)
    )


def test_blobs_of_another_user(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of a service may not be readable: the message has the path and the ways out."""

    def refuse(path: Path) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(ollama, "open_regular", refuse)
    with pytest.raises(PlanError, match=r"you may not read .*sha256-.*usermod -aG ollama.*setfacl"):
        find("ollama:llama3.2")


def test_stores_are_looked_for_where_ollama_keeps_them(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's store, then the one of a Linux service; with OLLAMA_MODELS, that one only."""
    home, service, own = tmp_path / "home", tmp_path / "service", tmp_path / "own"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setattr(ollama, "SERVICE_ROOT", service)
    with pytest.raises(PlanError, match=r"no Ollama store here .*set OLLAMA_MODELS"):
        find("ollama:m")
    add_model(service, "m/latest", (files / "a.gguf").read_bytes())
    assert find("ollama:m").path.parent == service / "blobs"
    add_model(home / ".ollama/models", "m/latest", (files / "a.gguf").read_bytes())
    assert find("ollama:m").path.parent == home / ".ollama/models/blobs"
    monkeypatch.setenv("OLLAMA_MODELS", f' "{own}" ')
    add_model(own, "m/latest", (files / "a.gguf").read_bytes())
    assert find("ollama:m").path.parent == own / "blobs"
    (own / "manifests/registry.ollama.ai/library/m/latest").unlink()
    with pytest.raises(PlanError, match="nothing is there; ollama pull m:latest gets it"):
        find("ollama:m")


def test_an_adapter_of_the_model_is_applied(store: Path, files: Path) -> None:
    """A model with an ADAPTER layer behaves as base and adapter; the plan says so, and more adapters may follow."""
    tuned = open_source(ModelReference.parse("ollama:tuned"))
    by_hand = open_source(ModelReference.parse("a.gguf+lora.gguf"), files)
    name = "blk.0.attn_q.weight"
    got, wanted = (np.empty((64, 64), np.float32) for _ in range(2))
    tuned.open_tensor(name).read(0, got)
    by_hand.open_tensor(name).read(0, wanted)
    np.testing.assert_array_equal(got, wanted)
    assert tuned.fingerprint() == by_hand.fingerprint()
    assert any("applied before merging, as Ollama does" in w for w in tuned.warnings)
    more = open_source(ModelReference.parse(f"ollama:tuned+{files / 'lora.gguf'}=0.5"))
    assert [a.strength for a in more.adapters] == [1, 0.5]


def test_a_projector_takes_no_part(store: Path) -> None:
    """The plan says that the result does not see."""
    (warning,) = open_source(ModelReference.parse("ollama:seeing")).warnings
    assert "takes text only" in warning


def test_layouts_of_ollamas_own_are_named(store: Path, files: Path) -> None:
    """Vision inside the file and architectures that llama.cpp lacks: merged, with a warning that llama.cpp cannot."""
    data = (files / "a.gguf").read_bytes()
    add_model(store, "gemma3/4b", data.replace(b"output_norm.weight", b"v.patch_embd.weigh"))
    add_model(store, "gpt-oss/20b", data.replace(b"llama", b"gptos"))
    assert not open_source(ModelReference.parse("ollama:llama3.2")).warnings
    (vision,) = open_source(ModelReference.parse("ollama:gemma3:4b")).warnings
    assert "1 tensors (v.patch_embd.weigh, ...) are in Ollama's own layout" in vision
    (unknown,) = open_source(ModelReference.parse("ollama:gpt-oss:20b")).warnings
    assert "'gptos' is not known as an architecture of llama.cpp" in unknown


def test_a_recipe_of_ollama_models(store: Path, files: Path, tmp_path: Path) -> None:
    """Built from names, it is the file built from paths, but for the names in its metadata."""
    recipe = "{{merge_method: linear, models: [{{model: '{}'}}, {{model: '{}'}}], parameters: {{weight: 1}}}}"
    (tmp_path / "names.yaml").write_text(recipe.format("ollama:llama3.2:3b", "ollama:llama3.2"))
    (tmp_path / "paths.yaml").write_text(recipe.format(files / "a.gguf", files / "b.gguf"))
    for name in ("names", "paths"):
        ggufmerge.build(tmp_path / f"{name}.yaml", tmp_path / f"{name}.gguf")
    ours, theirs = (ggufmerge.open(tmp_path / f"{name}.gguf") for name in ("names", "paths"))
    for name, tensor in theirs.tensors.items():
        np.testing.assert_array_equal(tensor.raw, ours.tensors[name].raw)
    assert ours.metadata["ggufmerge.source.0.file"].startswith("sha256-")
    plan, _ = make_plan(load_recipe(tmp_path / "names.yaml"))
    assert [source.label for source in plan.sources] == ["ollama:llama3.2:3b", "ollama:llama3.2"]


def test_a_colon_does_not_make_a_reference(files: Path, tmp_path: Path) -> None:
    """Unknown schemes are parts of paths, as drive letters are."""
    with pytest.raises(GgufmergeError, match=r"olama:llama3: no such file"):
        find("olama:llama3", tmp_path)
    if os.name != "nt":
        shutil.copy(files / "a.gguf", tmp_path / "c:a.gguf")
        assert find("c:a.gguf", tmp_path).path == tmp_path / "c:a.gguf"


def test_layer_kinds() -> None:
    """Of Ollama's media types the kind is what they end in."""
    assert ollama.Layer(IMAGE + "model", "sha256:" + "0" * 64, 1).kind == "model"
