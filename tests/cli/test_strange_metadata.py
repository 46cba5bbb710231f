"""Metadata are a stranger's: any key may hold anything, and every command then does its work or says why in one line.

The keys are those that the program itself asks for while it runs, so a new one joins the table by itself. Some cases,
always the same, are tried every time; many more in `pytest -m slow`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.cli import main
from ggufmerge.files.metadata import Metadata, MetadataEditor
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.split import split_gguf
from ggufmerge.places.ollama import store as ollama
from ggufmerge.tokenizers.sentencepiece import write_tokenizer_model
from ggufmerge.tokenizers.vocabulary import read_vocabulary
from tests.cli.test_mmproj import write_projector
from tests.files import craft
from tests.formats.test_peft import halves, write_peft
from tests.ollama_store import add_model
from tests.tiny import write_tiny_llama, write_tiny_lora

LIMIT = 300  # letters of a line that tells what is wrong, the file's path aside


def number(kind: int, code: str, value: float) -> bytes:
    return struct.pack(f"<I{code}", kind, value)


def some(element: int, count: int, data: bytes) -> bytes:
    return struct.pack("<IIQ", craft.ARRAY, element, count) + data


def words(*texts: str | bytes) -> bytes:
    return some(craft.STRING, len(texts), b"".join(map(craft.string, texts)))


def word(text: str | bytes) -> bytes:
    return struct.pack("<I", craft.STRING) + craft.string(text)


VALUES = {
    "u8": number(craft.U8, "B", 200),
    "i8": number(craft.I8, "b", -1),
    "u16": number(craft.U16, "H", 60000),
    "i16": number(craft.I16, "h", -30000),
    "zero": number(craft.U32, "I", 0),
    "three": number(craft.U32, "I", 3),
    "largest u32": number(craft.U32, "I", 2**32 - 1),
    "i32": number(craft.I32, "i", -1),
    "u64": number(craft.U64, "Q", 2**64 - 1),
    "i64": number(craft.I64, "q", -(2**63)),
    "f32": number(craft.F32, "f", 1.5),
    "nan": number(craft.F32, "f", np.nan),
    "f64": number(craft.F64, "d", np.inf),
    "true": number(craft.BOOL, "?", True),
    "text": word("abc"),
    "empty text": word(""),
    "control letters": word("a\x1b[2J\nerror: b\x00\t\u2028FROM x"),
    "no UTF-8": word(b"\xff\xfeabc"),
    "long text": word("x" * 5000),
    "u8 list": some(craft.U8, 3, b"abc"),
    "u32 list": some(craft.U32, 2, struct.pack("<2I", 1, 2)),
    "u32 list of one": some(craft.U32, 1, struct.pack("<I", 4)),
    "i64 list": some(craft.I64, 2, struct.pack("<2q", -1, 2**62)),
    "f32 list": some(craft.F32, 2, struct.pack("<2f", 1, np.nan)),
    "flags": some(craft.BOOL, 2, b"\x01\x00"),
    "texts": words("a", "b"),
    "bad texts": words("", b"\xff", "a\nb\x1b"),
    "no numbers": some(craft.U32, 0, b""),
    "no texts": words(),
}


@dataclass(frozen=True)
class Use:
    """A command line; `{}` in it stands for the strange file.

    original: the file whose metadata become strange.  output: what it writes, "" for nothing.
    """

    arguments: str
    original: str = "a.gguf"
    output: str = ""


USES = {
    "plan": Use("plan linear.yaml"),
    "plan of a second model": Use("plan second.yaml --json"),
    "plan of slices": Use("plan slices.yaml"),
    "plan of a union": Use("plan union.yaml"),
    "plan by ties": Use("plan ties.yaml --json"),
    "plan with types of a file": Use("plan like.yaml"),
    "plan with a vocabulary of a file": Use("plan vocabulary.yaml"),
    "explain": Use("recipe explain slices.yaml --json"),
    "dry run": Use("build second.yaml --dry-run -t Q4_K_M"),
    "build": Use("build linear.yaml -o out.gguf --card card.md --json", output="out.gguf"),
    "build of slices": Use("build slices.yaml -o out.gguf", output="out.gguf"),
    "build of a union": Use("build union.yaml -o out.gguf -t Q8_0", output="out.gguf"),
    "build of shards": Use("build linear.yaml -o out.gguf --split-max-tensors 9 --json", output="out-00001-of-*.gguf"),
    "into Ollama": Use("build linear.yaml --ollama merged --overwrite --json"),
    "Ollama's dry run": Use("build linear.yaml --ollama merged --overwrite --dry-run"),
    "out of Ollama": Use("plan ollama.yaml"),
    "quantize": Use("quantize {} out.gguf Q4_K_M --json", output="out.gguf"),
    "copy": Use("quantize {} out.gguf COPY", output="out.gguf"),
    "quantize like": Use("quantize a.gguf out.gguf --like {} --dry-run"),
    "bake": Use("bake {} lora.gguf -o out.gguf", output="out.gguf"),
    "bake from PEFT": Use("bake {} peft -o out.gguf --json --dry-run"),
    "the adapter": Use("bake a.gguf {} -o out.gguf", original="lora.gguf", output="out.gguf"),
    "extract": Use("extract-lora b.gguf --base {} -o out.gguf --json --rank 2 --include attn_q", output="out.gguf"),
    "extract from it": Use("extract-lora {} --base a.gguf --dry-run --rank 2", original="b.gguf"),
    "diff": Use("diff {} b.gguf"),
    "split": Use("split {} part --json", output="part-00001-of-00001.gguf"),
    "join": Use("join strange-00001-of-00003.gguf out.gguf", original="s-00001-of-00003.gguf", output="out.gguf"),
    "inspect": Use("inspect {}"),
    "inspect facts": Use("inspect {} --json --full"),
    "models": Use("models lonely"),
    "models facts": Use("models lonely --json"),
    "push": Use("push {} me/model --dry-run --json"),
    "an importance matrix": Use("quantize a.gguf out.gguf Q4_0 --dry-run --imatrix {}", original="imatrix.gguf"),
    "a projector": Use("build plain.yaml -o out.gguf --mmproj {}", original="eyes.gguf", output="out.gguf"),
    "beside a projector": Use("build linear.yaml -o out.gguf --mmproj eyes.gguf", output="out.gguf"),
}
RECIPES = {
    "plain": "{merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}}",
    "linear": "{merge_method: linear, models: [{model: strange.gguf}, {model: b.gguf}], parameters: {weight: 1}}",
    "second": "{merge_method: linear, models: [{model: b.gguf}, {model: strange.gguf}], parameters: {weight: 1}}",
    "ties": "{merge_method: ties, base_model: strange.gguf, models: [{model: b.gguf}], "
    "parameters: {density: 0.5, weight: 1}}",
    "slices": "{merge_method: passthrough, slices: [{sources: [{model: strange.gguf, layer_range: [0, 2]}]}, "
    "{sources: [{model: b.gguf, layer_range: [1, 2]}]}]}",
    "union": "{merge_method: linear, tokenizer_source: union, chat_template: auto, "
    "models: [{model: strange.gguf}, {model: c.gguf}], parameters: {weight: 1}}",
    "like": "{merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}, "
    "like: strange.gguf}",
    "vocabulary": "{merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}, "
    "tokenizer_source: strange.gguf}",
    "ollama": "{merge_method: linear, models: [{model: 'ollama:odd'}, {model: b.gguf}], parameters: {weight: 1}}",
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, an adapter in both forms, an importance matrix and a projector, none of them strange."""
    folder = tmp_path_factory.mktemp("originals")
    known = {
        "general.license": "mit",
        "general.tags": ["chat"],
        "tokenizer.chat_template": "{{ x }}</s>",
        "llama.attention.sliding_window_pattern": [1, 0],
    }
    weights = write_tiny_llama(folder / "a.gguf", metadata=known, type="Q8_0")
    write_tiny_llama(folder / "b.gguf", metadata=known, type="Q8_0", tune=(1, 0.05))
    write_tiny_llama(folder / "c.gguf", added={"<x>": 3}, vocab=371, type="Q8_0", tune=(2, 0.05))
    write_tiny_lora(folder / "lora.gguf", weights)
    write_peft(folder / "peft", halves("model.layers.0.self_attn.q_proj", 64, 64))
    write_projector(folder / "eyes.gguf")
    write_imatrix(folder / "imatrix.gguf")
    split_gguf(folder / "a.gguf", folder / "s", SplitLimit.parse(None, 9, False))  # type: ignore[arg-type]
    with ggufmerge.open(folder / "a.gguf") as file:
        vocabulary = read_vocabulary(file.metadata, "a")
    write_tokenizer_model(vocabulary, folder / "tokenizer.model")
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def write_imatrix(path: Path) -> None:
    """As llama-imatrix writes it, for two tensors of the models."""
    infos, data = [], b""
    for name, n in (("blk.0.attn_q.weight", 64), ("blk.0.ffn_down.weight", 128)):
        for suffix, values in ((".in_sum2", np.ones(n, "<f4")), (".counts", np.ones(1, "<f4"))):
            infos.append(craft.info(name + suffix, (len(values), 1), craft.TYPE_F32, len(data)))
            data += values.tobytes().ljust(-(-values.nbytes // 32) * 32, b"\0")
    pairs = [
        craft.text("general.type", "imatrix"),
        craft.array("imatrix.datasets", craft.STRING, 1, craft.string("x.txt")),
        craft.u32("imatrix.chunk_count", 1),
        craft.u32("imatrix.chunk_size", 512),
    ]
    path.write_bytes(bytes(craft.Craft(pairs=pairs, infos=infos, data=data)))


def with_value(original: Path, key: str, span: bytes) -> bytes:
    """The bytes of a file in which a key has another value."""
    content = original.read_bytes()
    with ggufmerge.open(original) as file:
        editor = MetadataEditor(file.metadata)
        editor.set_raw(key, span)
        offsets = [tensor.offset for tensor in file.tensors.values() if tensor.path == original]
        first, own = min(offsets), [t for t in file.tensors.values() if t.path == original]
    infos = [craft.info(t.name, t.shape[::-1], t.type.id, t.offset - first) for t in own]
    head = b"GGUF" + struct.pack("<Iqq", 3, len(infos), len(editor)) + editor.encode() + b"".join(infos)
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + content[first:]


@pytest.fixture
def work(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with links to the originals and a store of Ollama's."""
    for path in originals.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "lonely").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setattr(ollama, "SERVICE_ROOT", tmp_path / "no service")
    monkeypatch.setattr("ggufmerge.places.hub.upload._existing", lambda repo: (None, []))
    monkeypatch.setattr("ggufmerge.places.hub.cache.cache_folder", lambda: tmp_path / "no cache")
    return tmp_path


def prepared(use: Use, work: Path, content: bytes) -> list[str]:
    """The strange file put where the use wants it; the arguments of the command."""
    name = "strange-00001-of-00003.gguf" if use.arguments.startswith("join") else "strange.gguf"
    (work / name).write_bytes(content)
    if use.arguments.startswith("join"):
        for number_ in (2, 3):
            target = work / f"strange-0000{number_}-of-00003.gguf"
            if not target.exists():
                target.symlink_to(work / f"s-0000{number_}-of-00003.gguf")
    if "lonely" in use.arguments:
        (work / "lonely" / "x.gguf").write_bytes(content)
    if "ollama.yaml" in use.arguments:
        add_model(work / "store", "odd/latest", content, [("template", "{{ .Prompt }}")])
    return [word.replace("{}", name) for word in use.arguments.split()]


def run(arguments: list[str]) -> tuple[int, str, str]:
    """The command line in this process: (exit code, standard output, standard error)."""
    out, err, code, before = io.StringIO(), io.StringIO(), 0, sys.argv
    sys.argv = ["ggufmerge", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def complaints(use: Use, work: Path, content: bytes) -> list[str]:
    """What a command does wrong with this strange file; nothing if all is well."""
    arguments = prepared(use, work, content)
    try:
        code, out, err = run(arguments)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    wrong = []
    lines = [line for line in err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if code not in (0, 1) or (code == 1) != bool(errors) or len(errors) > 2:
        wrong.append(f"exit code {code} with {errors}")
    if any(len(line.replace(str(work), "")) > LIMIT or not line.isprintable() for line in errors):
        wrong.append(f"not one short line: {errors}")
    if code == 0 and "--json" in arguments:
        json.loads(out)
    made = list(work.glob(use.output)) if use.output else []
    if use.output and (code == 0) != bool(made):
        wrong.append(f"exit code {code}, made {made}")
    if made:
        ggufmerge.open(made[0]).close()
    left = {path.name for path in work.iterdir() if path.name.startswith(".")}
    if left:
        wrong.append(f"left {left}")
    for path in work.iterdir():
        if path.name.startswith((".", "out", "part", "card", "mmproj-out")):
            path.unlink()
    return wrong


@contextlib.contextmanager
def recorded() -> Iterator[set[str]]:
    """The keys that are looked at meanwhile, whether they are there or not."""
    keys: set[str] = set()
    contains, get = Metadata.__contains__, Metadata.__getitem__

    def watched(method: Callable[[Metadata, str], object]) -> Callable[[Metadata, str], object]:
        def call(self: Metadata, key: str) -> object:
            keys.add(key)
            return method(self, key)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Metadata, "__contains__", watched(contains))
        patch.setattr(Metadata, "__getitem__", watched(get))
        yield keys


def keys_of(use: Use, work: Path) -> list[str]:
    """The keys that a use looks at, those of its strange file and of others."""
    with recorded() as keys:
        code, _, err = run(prepared(use, work, (work / use.original).read_bytes()))
    assert code == 0, err
    for path in work.iterdir():
        if path.name.startswith((".", "out", "part", "card", "mmproj-out")):
            path.unlink()
    return sorted(keys)


def cases(use: Use, work: Path) -> list[tuple[str, str]]:
    return [(key, value) for key in keys_of(use, work) for value in VALUES]


def check(use: Use, work: Path, chosen: list[tuple[str, str]]) -> None:
    found = {}
    for key, value in chosen:
        wrong = complaints(use, work, with_value(work / use.original, key, VALUES[value]))
        if wrong:
            found[f"{key} = {value}"] = wrong
    assert found == {}


@pytest.mark.parametrize("name", USES)
def test_strange_values_are_used_or_refused(name: str, work: Path) -> None:
    """A sample of the table, the same every time."""
    table = cases(USES[name], work)
    check(USES[name], work, [table[i * 7919 % len(table)] for i in range(8)])


@pytest.mark.slow
@pytest.mark.parametrize("name", USES)
def test_every_strange_value_is_used_or_refused(name: str, work: Path) -> None:
    """Each key that the use looks at with each kind of value: a part of the table that turns with the use, or all of it
    (25,000 cases) with STRANGE_CASES=1.
    """
    step = int(os.environ.get("STRANGE_CASES", "5"))
    check(USES[name], work, cases(USES[name], work)[list(USES).index(name) % step :: step])
