"""Golden merges: what is asked for stands in `vendor/golden-merges/NAME.yaml`, what came of it in `NAME.json`.

The inputs are models of `tests/tiny.py` with numbers and blocks that are the same on every processor: the raw stream of
PCG64, whose values NumPy promises never to change, and this project's own codecs, which have ggml's bytes. A golden
keeps the sha256 of each input, so that a change of these is not taken for a change of the merge.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import types
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
import yaml

import ggufmerge
from ggufmerge.types import TensorType
from tests.quants.test_imatrix import write_gguf as write_imatrix
from tests.tiny import write_tiny_llama, write_tiny_lora

FOLDER = Path(__file__).parents[1] / "vendor" / "golden-merges"
LATER = FOLDER / "effective-recipes"  # digests of whole files whose own keys have changed since the record
PROGRAM = "ggufmerge."  # keys of the metadata that say how the program made the file
LONG = 200  # characters of a value of the metadata; of longer ones the digest is kept


def names() -> list[str]:
    """All that is asked for, recorded or not."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recorded(name: str) -> dict[str, Any]:
    """What `made` gave when the golden was recorded; digests of whole files since their own keys changed."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    later = LATER / f"{name}.json"
    return found | (json.loads(later.read_text(encoding="utf-8")) if later.exists() else {})


def made(name: str, folder: Path) -> dict[str, Any]:
    """Make the inputs of a golden and its result in an empty folder, and describe them.

    inputs: sha256 of each file.  files: sha256 of each file of the result, by name, as a program whose version is 0
    writes it.  metadata: of the result, without the program's own keys.  tensors: [type, shape as in the file, file,
    offset in the data of the file, sha256 of the bytes] by name, in the order of the file.
    """
    asked = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    inputs = {file: _digest(_write(file, folder / file).read_bytes()) for file in asked.pop("inputs")}
    call, recipe = asked.pop("call"), asked.pop("recipe", None)
    arguments: dict[str, Any] = {"threads": 2, "output": Path("out", f"{name}.gguf"), **asked}
    if recipe is not None:
        (folder / f"{name}.yaml").write_text(recipe, encoding="utf-8", newline="\n")
        arguments["recipe"] = Path(f"{name}.yaml")
    if "split" in arguments:
        arguments["split"] = ggufmerge.SplitLimit(**arguments["split"])
    (folder / "out").mkdir()
    with _version("0"), contextlib.chdir(folder):  # a recipe that a command makes has the paths that it was given
        files = [path.resolve() for path in getattr(ggufmerge, call)(**arguments).files]
    described: dict[str, Any] = {"inputs": inputs, "files": {}, "metadata": {}, "tensors": {}}
    for file in files:
        described["files"][file.name] = _digest(file.read_bytes())
        reader = gguf.GGUFReader(file)
        own = (PROGRAM, "GGUF.", "split.")  # of the program, of the reader, of the shard
        described["metadata"] |= {k: _value(field) for k, field in reader.fields.items() if not k.startswith(own)}
        start = reader.data_offset
        described["tensors"] |= {
            t.name: [
                t.tensor_type.name,
                [int(n) for n in t.shape],
                file.name,
                int(t.data_offset) - start,
                _digest(np.ascontiguousarray(t.data).tobytes()),
            ]
            for t in reader.tensors
        }
        del reader  # it maps the file
    return described


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _value(field: gguf.ReaderField) -> list[Any]:
    """[type, or types of a list from the outside in, and the value]; the digest of a long value."""
    value = field.contents()
    text = json.dumps(value, ensure_ascii=False)
    kind = "/".join(kind.name for kind in field.types)
    return [kind, value if len(text) <= LONG else "sha256:" + _digest(text.encode("utf-8", "surrogateescape"))]


@contextlib.contextmanager
def _version(text: str) -> Iterator[None]:
    """While it lasts, the program's version is another, as its metadata in the file tell: files of different versions
    can be compared."""
    real = importlib.metadata.distribution

    def distribution(name: str) -> Any:
        return types.SimpleNamespace(version=text) if name == "ggufmerge" else real(name)

    with mock.patch.object(importlib.metadata, "distribution", distribution):
        yield


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float32 of about a normal distribution, from whole numbers: sums of four 16-bit numbers, scaled once."""
    raw = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(math.prod(shape)).astype("<u8")
    sums = raw.view("<u2").reshape(-1, 4).sum(axis=1, dtype=np.int32) - 4 * 65535 // 2
    return (sums.astype(np.float32) / np.float32(37837)).reshape(shape)


def blocks(rows: np.ndarray, kind: TensorType) -> np.ndarray:
    return ggufmerge.quantize(rows, kind, np.ones(rows.shape[1], np.float32))


def _write(name: str, path: Path) -> Path:
    _INPUTS[name](path)
    return path


_model = partial(write_tiny_llama, draw=draw, quantize=blocks)
# rows of whole super-blocks; rows of 64 for types with blocks of 32, which are quicker
_WIDE: dict[str, Any] = {"embed": 256, "ff": 256, "heads": 8, "kv_heads": 2, "vocab": 288, "words": ()}
_NARROW: dict[str, Any] = {"embed": 64, "ff": 96, "layers": 3}
_MIXED = {"*attn_k*": "Q5_1", "*attn_v*": "Q8_0", "*ffn_up*": "Q3_K", "*ffn_down*": "IQ4_XS", "token_embd*": "Q6_K"}
_TUNES = {"base": None, "a": (1, 0.05), "b": (2, 0.08), "c": (3, 0.03)}
_SCALES = {f"blk.{i}.ffn_down_exps.scale": np.array([0.5, 2, 1, 0.25], np.float32) for i in range(2)}
_EXPERTS: dict[str, Any] = {
    "embed": 64,
    "ff": 64,
    "experts": 4,
    "type": "Q5_0",
    "extra": _SCALES,
    "types": {"*ffn_down_exps*": "NVFP4", "*ffn_up_exps*": "MXFP4", "output*": "BF16"},
}
_BPE: dict[str, Any] = {**_NARROW, "tokenizer": "bpe", "type": "Q8_0"}


def _adapter(path: Path, *, like: dict[str, Any], **options: Any) -> None:
    weights = _model(path, **like)
    write_tiny_lora(path, weights, draw=draw, quantize=blocks, **options)


def _importance(path: Path) -> None:
    """A matrix for the wide models, of which a column that the model never uses, and a tensor is missing."""
    entries = {}
    for layer in range(2):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"):
            sums = draw(f"{layer}.{part}", (1, 256), 77) ** 2 * np.float32(8)
            sums[0, 3] = 0
            entries[f"blk.{layer}.{part}.weight"] = (sums, [8.0])
    entries["blk.0.ffn_down.weight"] = (draw("ffn_down", (1, 256), 78) ** 2, [1.0])
    entries["blk.1.ffn_down.weight"] = (draw("ffn_down", (1, 256), 79) ** 2, [1.0])
    write_imatrix(path, entries)


_INPUTS: dict[str, Callable[[Path], Any]] = {
    **{f"{n}.narrow.gguf": partial(_model, type="Q8_0", tune=t, **_NARROW) for n, t in _TUNES.items()},
    **{f"{n}.q4_0.gguf": partial(_model, type="Q4_0", tune=t, **_NARROW) for n, t in _TUNES.items()},
    **{f"{n}.f16.gguf": partial(_model, type="F16", tune=t, **_NARROW) for n, t in _TUNES.items()},
    **{f"{n}.q4_k.gguf": partial(_model, type="Q4_K", tune=t, **_WIDE) for n, t in _TUNES.items()},
    **{f"{n}.q6_k.gguf": partial(_model, type="Q6_K", tune=t, **_WIDE) for n, t in _TUNES.items()},
    **{f"{n}.mixed.gguf": partial(_model, type="Q5_K", types=_MIXED, tune=t, **_WIDE) for n, t in _TUNES.items()},
    **{f"{n}.experts.gguf": partial(_model, tune=t, **_EXPERTS) for n, t in _TUNES.items()},
    "tools.bpe.gguf": partial(
        _model, vocab=352, tune=(4, 0.05), added={"<|call|>": 3, "<|result|>": 3, "<|pad|>": 3}, **_BPE
    ),
    "roles.bpe.gguf": partial(_model, vocab=360, tune=(5, 0.05), added={"<|user|>": 3, "<|call|>": 4}, **_BPE),
    "plain.bpe.gguf": partial(_model, vocab=352, **_BPE),
    "style.narrow.gguf": partial(
        _adapter, like=_NARROW, factor=0.002, targets=("*attn_q.weight", "*ffn_down.weight", "token_embd.weight")
    ),
    "style.wide.gguf": partial(_adapter, like=_WIDE, factor=0.002, rank=8, type="F16"),
    "topic.wide.gguf": partial(_adapter, like=_WIDE, factor=0.004, seed=9, targets=("*attn_output.weight",)),
    "matrix.wide.gguf": _importance,
}
