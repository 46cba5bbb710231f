"""ggml itself, from the wheel of libggml-python (IQ1: of xllamacpp), as the oracle of codecs and of GGUF."""

from __future__ import annotations

import ctypes as C
import functools
import importlib.util
import pathlib

import numpy as np

from ggufmerge.types import TensorType


@functools.cache
def lib() -> C.CDLL:
    spec = importlib.util.find_spec("libggml")
    assert spec, "pip install libggml-python"
    assert spec.submodule_search_locations
    folder = pathlib.Path(spec.submodule_search_locations[0])
    places = ("lib64/libggml-base.so", "lib/libggml-base.dylib", "bin/ggml-base.dll")  # Linux, macOS, Windows
    ggml = C.CDLL(str(next(folder / place for place in places if (folder / place).exists())))
    ggml.ggml_quantize_chunk.argtypes = [C.c_int, C.c_void_p, C.c_void_p, C.c_int64, C.c_int64, C.c_int64, C.c_void_p]
    ggml.ggml_quantize_chunk.restype = C.c_size_t
    ggml.ggml_get_type_traits.argtypes = [C.c_int]
    ggml.ggml_get_type_traits.restype = C.POINTER(_Traits)
    ggml.ggml_quantize_requires_imatrix.argtypes = [C.c_int]
    ggml.ggml_quantize_requires_imatrix.restype = C.c_bool
    # tables that ggml's own quantizers build lazily
    ggml.ggml_quantize_init.argtypes = [C.c_int]
    ggml.ggml_quantize_init.restype = None
    return ggml


@functools.cache
def llama() -> C.CDLL:
    """The ggml inside xllamacpp, as new as llama.cpp v0.5.0, whose search for IQ1_M adds in another order than before
    and so rounds differently: the wheel of libggml-python is older and has other bytes in some blocks of that type.
    IQ1_S comes along because ggml takes ten seconds to sort the neighbours in the grid that both share.
    """
    spec = importlib.util.find_spec("xllamacpp.xllamacpp")
    assert spec, "pip install xllamacpp"
    assert spec.origin
    ggml = C.CDLL(spec.origin)
    ggml.ggml_quantize_chunk.argtypes = lib().ggml_quantize_chunk.argtypes
    ggml.ggml_quantize_chunk.restype = C.c_size_t
    return ggml


_TO_FLOAT = C.CFUNCTYPE(None, C.c_void_p, C.c_void_p, C.c_int64)


class _Traits(C.Structure):
    _fields_ = [
        ("name", C.c_char_p),
        ("block_size", C.c_int64),
        ("interleave", C.c_int64),
        ("block_bytes", C.c_size_t),
        ("is_quantized", C.c_bool),
        ("to_float", _TO_FLOAT),
        ("from_float_ref", C.c_void_p),
    ]


def dequantize(raw: np.ndarray, type: TensorType, n: int) -> np.ndarray:  # noqa: A002
    """uint8 [rows, row_bytes] to float32 [rows, n] by ggml's to_float."""
    raw = np.ascontiguousarray(raw, np.uint8)
    out = np.empty((raw.size // type.row_bytes(n), n), np.float32)
    lib().ggml_get_type_traits(type.id).contents.to_float(raw.ctypes.data, out.ctypes.data, out.size)
    return out


def quantize(x: np.ndarray, type: TensorType, imatrix: np.ndarray | None = None) -> np.ndarray:  # noqa: A002
    """float32 [rows, n] to uint8 [rows, row_bytes] by ggml_quantize_chunk."""
    x = np.ascontiguousarray(x, np.float32)
    rows, n = x.shape
    out = np.zeros((rows, type.row_bytes(n)), np.uint8)
    weights = None if imatrix is None else np.ascontiguousarray(imatrix, np.float32)
    pointer = None if weights is None else weights.ctypes.data
    assert pointer is not None or not lib().ggml_quantize_requires_imatrix(type.id), f"{type} aborts without imatrix"
    ggml = llama() if type in (TensorType.IQ1_S, TensorType.IQ1_M) else lib()
    size = ggml.ggml_quantize_chunk(type.id, x.ctypes.data, out.ctypes.data, 0, rows, n, pointer)
    assert size == out.size
    return out


def version() -> str:
    lib().ggml_version.restype = lib().ggml_commit.restype = C.c_char_p
    return f"{lib().ggml_version().decode()} (commit {lib().ggml_commit().decode()})"
