"""Where llama.cpp comes from, and its C functions with their types.

The wheels of xllamacpp for Linux and macOS carry all of llama.cpp. Its Python interface gives no logits, but the
extension module exports libllama's C functions, which are called through ctypes. Another build of llama.cpp, such as
the `llama.dll` of an official release, is used when the environment variable GGUFMERGE_LIBLLAMA has its path; on
Windows that is the only way, because the extension module exports nothing there.

Of the two parameter structs that move between releases only the head is declared, followed by an opaque tail that is
larger than any release needs. The defaults that llama.cpp fills in show whether the head is as expected. Who watches
what is computed needs more of them, and ggml's struct of a tensor: `operations` looks whether they are as expected.

Source: `llama.h` and `ggml.h` of llama.cpp v0.5.0.
"""

from __future__ import annotations

import collections
import ctypes as C
import functools
import importlib
import os
import pathlib
from typing import Any

from ggufmerge.errors import GgufmergeError

VARIABLE = "GGUFMERGE_LIBLLAMA"
RELEASES = "https://github.com/ggml-org/llama.cpp/releases"


@functools.cache
def library() -> C.CDLL:
    """libllama, started, with declared functions and a silent log; GgufmergeError when no usable one is found."""
    path = os.environ.get(VARIABLE)
    lib = _load(pathlib.Path(path)) if path else _load_wheel()
    _declare(lib)
    _check_layout(lib)
    lib.llama_log_set(_remember, None)
    if path:
        _load_backends(lib, pathlib.Path(path))
    lib.llama_backend_init()
    return lib


@functools.cache
def operations() -> dict[str, int]:
    """The numbers of the operations of ggml by name, MUL_MAT and so on, for who watches what is computed.

    GgufmergeError when this build of llama.cpp lays out its tensors or the parameters of a context in another way.
    """
    lib = library()
    params = lib.llama_context_default_params()
    switches = (params.embeddings, params.offload_kqv, params.no_perf, params.op_offload)
    expected = list(params.kinds) == [0, -1, -1, -1, -1] and (params.type_k, params.type_v) == (_F16, _F16)
    if not expected or params.cb_eval or params.abort_callback or switches != (False, True, True, True):
        raise _unusable("has another llama_context_params")
    ggml = _ggml(lib)
    ggml.ggml_op_name.restype, ggml.ggml_op_name.argtypes = C.c_char_p, [C.c_int]
    numbers = {ggml.ggml_op_name(number).decode(): number for number in range(_FIRST_OPERATIONS)}
    if not {"MUL_MAT", "MUL_MAT_ID"} <= set(numbers) or not _has_nodes(ggml, numbers["MUL_MAT"]):
        raise _unusable("has another ggml_tensor")
    return numbers


def forget_log() -> None:
    """Begin anew to listen to llama.cpp."""
    _log.clear()


def last_words() -> str:
    """What llama.cpp complained about since `forget_log`: its error lines without the names of its functions."""
    text = "".join(line for level, line in _log if level == _LOG_LEVEL_ERROR)
    lines = [line.partition(": ")[2] or line for line in text.splitlines() if line.strip()]
    return ": " + "; ".join(dict.fromkeys(lines)) if lines else ""


class ModelParams(C.Structure):
    _fields_ = [
        ("devices", C.c_void_p),
        ("tensor_buft_overrides", C.c_void_p),
        ("n_gpu_layers", C.c_int32),
        ("split_mode", C.c_int),
        ("load_mode", C.c_int),
        ("lazy_mode", C.c_int),
        ("main_gpu", C.c_int32),
        ("tensor_split", C.c_void_p),
        ("progress_callback", C.c_void_p),
        ("progress_callback_user_data", C.c_void_p),
        ("kv_overrides", C.c_void_p),
        ("vocab_only", C.c_bool),
        ("check_tensors", C.c_bool),
        ("use_extra_bufts", C.c_bool),
        ("_tail", C.c_uint8 * 512),
    ]


class ContextParams(C.Structure):
    _fields_ = [
        ("n_ctx", C.c_uint32),
        ("n_batch", C.c_uint32),
        ("n_ubatch", C.c_uint32),
        ("n_seq_max", C.c_uint32),
        ("n_rs_seq", C.c_uint32),
        ("n_outputs_max", C.c_uint32),
        ("n_outputs_max_per_seq", C.c_uint32),
        ("n_threads", C.c_int32),
        ("n_threads_batch", C.c_int32),
        ("kinds", C.c_int * 5),  # of the context, RoPE scaling, pooling, attention and flash attention
        ("rope", C.c_float * 6),
        ("yarn_orig_ctx", C.c_uint32),
        ("defrag_thold", C.c_float),
        ("cb_eval", C.c_void_p),
        ("cb_eval_user_data", C.c_void_p),
        ("type_k", C.c_int),
        ("type_v", C.c_int),
        ("moe_cache_size", C.c_size_t),
        ("abort_callback", C.c_void_p),
        ("abort_callback_data", C.c_void_p),
        ("embeddings", C.c_bool),
        ("offload_kqv", C.c_bool),
        ("no_perf", C.c_bool),
        ("op_offload", C.c_bool),
        ("swa_full", C.c_bool),
        ("_tail", C.c_uint64 * 64),
    ]


class Node(C.Structure):
    """A ggml_tensor: a weight, or a node of the graph that is computed."""


Node._fields_ = [
    ("type", C.c_int),
    ("buffer", C.c_void_p),
    ("ne", C.c_int64 * 4),  # the innermost dimension first
    ("nb", C.c_size_t * 4),  # steps of the dimensions, in bytes
    ("op", C.c_int),
    ("op_params", C.c_int32 * 16),
    ("flags", C.c_int32),
    ("src", C.POINTER(Node) * 10),
    ("view_src", C.c_void_p),
    ("view_offs", C.c_size_t),
    ("data", C.c_void_p),
    ("name", C.c_char * 64),
    ("extra", C.c_void_p),
    ("padding", C.c_char * 8),
]
NODE_CALLBACK = C.CFUNCTYPE(C.c_bool, C.POINTER(Node), C.c_bool, C.c_void_p)


class Batch(C.Structure):
    _fields_ = [
        ("n_tokens", C.c_int32),
        ("token", C.c_void_p),
        ("embd", C.c_void_p),
        ("pos", C.c_void_p),
        ("n_seq_id", C.c_void_p),
        ("seq_id", C.c_void_p),
        ("logits", C.c_void_p),
    ]


class ChatMessage(C.Structure):
    _fields_ = [("role", C.c_char_p), ("content", C.c_char_p)]


_F32, _F16 = 0, 1
_FIRST_OPERATIONS = 40  # MUL_MAT_ID is one of them; numbers that ggml does not have must not be asked for
_LOG_CALLBACK = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)
_LOG_LEVEL_ERROR = 4
_log: collections.deque[tuple[int, str]] = collections.deque(maxlen=64)


@_LOG_CALLBACK
def _remember(level: int, text: bytes | None, user_data: int | None) -> None:
    _log.append((level, (text or b"").decode("utf-8", "replace")))


def _load_wheel() -> C.CDLL:
    try:
        extension = importlib.import_module("xllamacpp.xllamacpp")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "xllamacpp"
        why = "" if missing else f" (xllamacpp does not load: {error})"
        raise GgufmergeError(f"evaluation needs llama.cpp{why}: pip install 'ggufmerge[llama]'") from None
    return C.CDLL(str(extension.__file__))


def _load(path: pathlib.Path) -> C.CDLL:
    try:
        return C.CDLL(str(path.resolve(strict=True)))
    except OSError as error:
        raise GgufmergeError(f"{VARIABLE}: cannot load {path}: {error}") from None


def _load_backends(lib: C.CDLL, path: pathlib.Path) -> None:
    """Load what computes (ggml-cpu-...), which in most builds of llama.cpp are files beside the library."""
    folder = path.resolve().parent
    beside = [folder / name for name in ("ggml.dll", "libggml.so", "libggml.dylib")]
    ggml = next((_load(file) for file in beside if file.exists()), lib)
    load = getattr(ggml, "ggml_backend_load_all_from_path", None)
    if load is not None:
        load.argtypes, load.restype = [C.c_char_p], None
        load(os.fsencode(folder))


def _declare(lib: C.CDLL) -> None:
    pointer, i32, string = C.c_void_p, C.c_int32, C.c_char_p
    i32s, floats = C.POINTER(i32), C.POINTER(C.c_float)
    functions: dict[str, tuple[Any, ...]] = {
        "llama_adapter_lora_init": (pointer, pointer, string),
        "llama_backend_init": (None,),
        "llama_chat_apply_template": (i32, string, C.POINTER(ChatMessage), C.c_size_t, C.c_bool, string, i32),
        "llama_context_default_params": (ContextParams,),
        "llama_decode": (i32, pointer, Batch),
        "llama_detokenize": (i32, pointer, i32s, i32, string, i32, C.c_bool, C.c_bool),
        "llama_free": (None, pointer),
        "llama_get_logits": (floats, pointer),
        "llama_get_logits_ith": (floats, pointer, i32),
        "llama_get_memory": (pointer, pointer),
        "llama_init_from_model": (pointer, pointer, ContextParams),
        "llama_log_set": (None, _LOG_CALLBACK, pointer),
        "llama_memory_clear": (None, pointer, C.c_bool),
        "llama_model_chat_template": (string, pointer, string),
        "llama_model_default_params": (ModelParams,),
        "llama_model_free": (None, pointer),
        "llama_model_get_vocab": (pointer, pointer),
        "llama_model_load_from_file": (pointer, string, ModelParams),
        "llama_set_adapters_lora": (i32, pointer, C.POINTER(pointer), C.c_size_t, floats),
        "llama_set_n_threads": (None, pointer, i32, i32),
        "llama_tokenize": (i32, pointer, string, i32, i32s, i32, C.c_bool, C.c_bool),
        "llama_vocab_bos": (i32, pointer),
        "llama_vocab_get_add_bos": (C.c_bool, pointer),
        "llama_vocab_is_eog": (C.c_bool, pointer, i32),
        "llama_vocab_n_tokens": (i32, pointer),
    }
    try:
        for name, (result, *arguments) in functions.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError:
        raise _unusable(f"does not export {name}") from None


def _check_layout(lib: C.CDLL) -> None:
    model, context = lib.llama_model_default_params(), lib.llama_context_default_params()
    head = (model.n_gpu_layers, model.vocab_only, model.check_tensors, model.use_extra_bufts)
    if head != (-1, False, False, True):
        raise _unusable("has another llama_model_params")
    if not (0 < context.n_ubatch <= context.n_batch and context.n_seq_max == 1 and context.n_threads > 0):
        raise _unusable("has another llama_context_params")


def _ggml(lib: C.CDLL) -> C.CDLL:
    """The library with the functions of ggml, which Windows does not find through the one that uses it."""
    if hasattr(lib, "ggml_op_name"):
        return lib
    beside = pathlib.Path(os.environ.get(VARIABLE, "")).resolve().parent / "ggml-base.dll"
    if not beside.exists():
        raise _unusable("does not export ggml_op_name")
    return _load(beside)


def _has_nodes(ggml: C.CDLL, mul_mat: int) -> bool:
    """Whether ggml's tensors are as `Node` says, looked up in a product of two that is never computed."""
    pointer, node = C.c_void_p, C.POINTER(Node)
    functions: dict[str, tuple[Any, ...]] = {
        "ggml_init": (pointer, _InitParams),
        "ggml_new_tensor_2d": (node, pointer, C.c_int, C.c_int64, C.c_int64),
        "ggml_set_name": (node, node, C.c_char_p),
        "ggml_mul_mat": (node, pointer, node, node),
        "ggml_get_data": (pointer, node),
        "ggml_free": (None, pointer),
    }
    for name, (result, *arguments) in functions.items():
        if not hasattr(ggml, name):
            raise _unusable(f"does not export {name}")
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    context = ggml.ggml_init(_InitParams(1 << 16, None, False))
    try:
        weight, inputs = ggml.ggml_new_tensor_2d(context, _F16, 64, 3), ggml.ggml_new_tensor_2d(context, _F32, 64, 5)
        ggml.ggml_set_name(weight, b"weight")
        product = ggml.ggml_mul_mat(context, weight, inputs).contents
        of_weight, of_inputs = product.src[0].contents, product.src[1].contents
        return (
            product.op == mul_mat
            and list(product.ne) == [3, 5, 1, 1]
            and of_weight.name == b"weight"
            and (of_weight.type, list(of_weight.ne), list(of_weight.nb)) == (_F16, [64, 3, 1, 1], [2, 128, 384, 384])
            and (of_inputs.type, list(of_inputs.ne), list(of_inputs.nb)) == (_F32, [64, 5, 1, 1], [4, 256, 1280, 1280])
            and of_inputs.data == ggml.ggml_get_data(inputs)
        )
    except ValueError:  # NULL where an operand should be
        return False
    finally:
        ggml.ggml_free(context)


class _InitParams(C.Structure):
    _fields_ = [("mem_size", C.c_size_t), ("mem_buffer", C.c_void_p), ("no_alloc", C.c_bool)]


def _unusable(what: str) -> GgufmergeError:
    return GgufmergeError(
        f"this build of llama.cpp {what}: install xllamacpp 2026.10.11549 (Linux, macOS), or set {VARIABLE} to the "
        f"path of the llama library of release v0.5.0 from {RELEASES}"
    )
