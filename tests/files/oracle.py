"""llama.cpp's own opinion of a GGUF file: `gguf_init_from_file`, out of the wheel of xllamacpp.

(The older ggml in libggml-python accepts shapes of more than 2^63 values.)
"""

from __future__ import annotations

import ctypes as C
import functools
import os
import pathlib

import xllamacpp.xllamacpp


def accepts(path: pathlib.Path) -> bool:
    """Whether llama.cpp reads the header of the file without complaint."""
    context = _library().gguf_init_from_file(os.fsencode(path), _Params(True, None))
    if not context:
        return False
    _library().gguf_free(context)
    return True


class _Params(C.Structure):
    _fields_ = [("no_alloc", C.c_bool), ("ctx", C.c_void_p)]


@functools.cache
def _library() -> C.CDLL:
    lib = C.CDLL(xllamacpp.xllamacpp.__file__)
    lib.gguf_init_from_file.argtypes = [C.c_char_p, _Params]
    lib.gguf_init_from_file.restype = C.c_void_p
    lib.gguf_free.argtypes = [C.c_void_p]
    lib.gguf_free.restype = None
    return lib
