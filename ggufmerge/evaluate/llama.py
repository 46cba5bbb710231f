"""A small ctypes binding to llama.cpp: load a model, tokenize, get logits.

The wheel of xllamacpp carries all of llama.cpp for Linux, macOS and Windows, but its Python interface gives no logits.
Its extension module also exports libllama's C functions, which are called here. Of the two parameter structs that move
between releases only the stable head is declared, followed by an opaque tail that is larger than any release needs;
the defaults that llama.cpp fills in show whether the head still has the expected layout.

Source: `llama.h` of llama.cpp v0.5.0.
"""

from __future__ import annotations

import collections
import ctypes as C
import functools
import importlib
import os
import pathlib
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggufmerge.errors import GgufmergeError


class LlamaModel:
    """A GGUF model in llama.cpp on the CPU, with one sequence in its memory. Use it as a context manager, or close it.

    path: a model file, or the first shard of a split model.
    context: the most tokens one sequence can have.
    threads: computing threads; all processors when None.
    adapters: LoRA adapters (GGUF files) with their strengths, applied at run time as `llama-cli --lora-scaled` does.

    Raises GgufmergeError when llama.cpp is not installed or refuses a file, with what llama.cpp said.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        context: int = 512,
        threads: int | None = None,
        adapters: Sequence[tuple[str | os.PathLike[str], float]] = (),
    ) -> None:
        self.path = pathlib.Path(path)
        self.context = context
        self._length = 0
        self._model: int | None = None
        self._context: int | None = None
        lib = _library()
        try:
            self._model = _checked(
                lib.llama_model_load_from_file(_readable(self.path), _model_params(lib)), f"llama.cpp refuses {path}"
            )
            self._vocab = lib.llama_model_get_vocab(self._model)
            self.vocabulary_size: int = lib.llama_vocab_n_tokens(self._vocab)
            self._context = _checked(
                lib.llama_init_from_model(self._model, _context_params(lib, context, threads or os.cpu_count() or 1)),
                f"llama.cpp has no memory for {path} with a context of {context} tokens",
            )
            self._set_adapters(adapters)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the model; it cannot be used afterwards. Closing twice is fine."""
        context, self._context = self._context, None
        model, self._model = self._model, None
        if context is not None:
            _library().llama_free(context)
        if model is not None:
            _library().llama_model_free(model)

    @property
    def begin_token(self) -> int | None:
        """The token that llama.cpp puts before a text of this model (BOS), or None when it puts none."""
        lib = _library()
        return lib.llama_vocab_bos(self._vocab) if lib.llama_vocab_get_add_bos(self._vocab) else None

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text, without BOS. special: read the names of control tokens in it, such as <|im_start|>."""
        raw = text.encode()
        size = len(raw) + 8
        while True:
            tokens = (C.c_int32 * size)()
            n = _library().llama_tokenize(self._opened_vocabulary(), raw, len(raw), tokens, size, False, special)
            if n >= 0:
                return tokens[:n]
            size = -n

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, control tokens left out; bytes that are not UTF-8 become U+FFFD."""
        ids = (C.c_int32 * len(tokens))(*tokens)
        size = 16 * len(tokens) + 16
        while True:
            text = C.create_string_buffer(size)
            n = _library().llama_detokenize(self._opened_vocabulary(), ids, len(tokens), text, size, True, False)
            if n >= 0:
                return text.raw[:n].decode("utf-8", "replace")
            size = -n

    def format_chat(self, messages: Sequence[tuple[str, str]]) -> str | None:
        """Messages (role, content) in the model's chat format, up to where the assistant speaks.

        llama.cpp recognizes the well-known formats in the chat template and writes them itself; the template's code is
        never run. None when the file has no template, GgufmergeError when llama.cpp does not recognize it.
        """
        template = _library().llama_model_chat_template(self._opened(), None)
        if template is None:
            return None
        chat = (_ChatMessage * len(messages))(*(_ChatMessage(role.encode(), text.encode()) for role, text in messages))
        size = 0
        while True:
            text = C.create_string_buffer(size)
            n = _library().llama_chat_apply_template(template, chat, len(messages), True, text, size)
            if n < 0:
                raise GgufmergeError(f"llama.cpp does not know the chat template of {self.path}: use a plain prompt")
            if n <= size:
                return text.raw[:n].decode("utf-8", "replace")
            size = n

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation (end of sequence or of turn)."""
        return _library().llama_vocab_is_eog(self._opened_vocabulary(), token)

    def logits(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """float32 [n_tokens, vocabulary_size] of a sequence from its beginning; what stood in the memory is dropped."""
        self.reset()
        n = self._decode(tokens, every=True)
        pointer = _library().llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (n, self.vocabulary_size)).copy()

    def reset(self) -> None:
        """Forget the sequence in the memory."""
        self._opened()
        lib = _library()
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        self._length = 0

    def extend(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """Append tokens to the sequence in the memory; float32 [vocabulary_size], the logits after the last one."""
        self._decode(tokens, every=False)
        pointer = _library().llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self.vocabulary_size,)).copy()

    def _decode(self, tokens: ArrayLike, *, every: bool) -> int:
        self._opened()
        ids = np.ascontiguousarray(tokens, np.int32)
        if ids.ndim != 1 or not ids.size:
            raise ValueError(f"tokens must be a sequence of ids, not an array of shape {ids.shape}")
        length = self._length + ids.size
        if length > self.context:  # llama.cpp itself rounds the context up
            raise GgufmergeError(f"{length} tokens do not fit the context of {self.context}: ask for a larger one")
        if ids.min() < 0 or ids.max() >= self.vocabulary_size:
            raise ValueError(f"token ids must be within 0..{self.vocabulary_size - 1}")
        wanted = np.ones(ids.size, np.int8)
        # positions and the sequence's number are left to llama.cpp, which continues what is in the memory
        batch = _Batch(ids.size, ids.ctypes.data, None, None, None, None, wanted.ctypes.data if every else None)
        _log.clear()
        code = _library().llama_decode(self._context, batch)
        if code:
            raise GgufmergeError(f"llama.cpp cannot compute {self.path} (code {code}){_last_words()}")
        self._length = length
        return ids.size

    def _set_adapters(self, adapters: Sequence[tuple[str | os.PathLike[str], float]]) -> None:
        if not adapters:
            return
        lib = _library()
        loaded = [  # the model owns them and frees them with itself
            _checked(
                lib.llama_adapter_lora_init(self._model, _readable(pathlib.Path(path))),
                f"llama.cpp refuses the adapter {path}",
            )
            for path, _ in adapters
        ]
        n = len(adapters)
        strengths = (C.c_float * n)(*(strength for _, strength in adapters))
        if lib.llama_set_adapters_lora(self._context, (C.c_void_p * n)(*loaded), n, strengths):
            raise GgufmergeError(f"llama.cpp cannot apply the adapters to {self.path}{_last_words()}")

    def _opened(self) -> int:
        if self._model is None:
            raise ValueError(f"{self.path} is closed")
        return self._model

    def _opened_vocabulary(self) -> int:
        self._opened()
        return self._vocab


class _ModelParams(C.Structure):
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


class _ContextParams(C.Structure):
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
        ("_tail", C.c_uint64 * 64),
    ]


class _Batch(C.Structure):
    _fields_ = [
        ("n_tokens", C.c_int32),
        ("token", C.c_void_p),
        ("embd", C.c_void_p),
        ("pos", C.c_void_p),
        ("n_seq_id", C.c_void_p),
        ("seq_id", C.c_void_p),
        ("logits", C.c_void_p),
    ]


class _ChatMessage(C.Structure):
    _fields_ = [("role", C.c_char_p), ("content", C.c_char_p)]


_LOG_CALLBACK = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)
_LOG_LEVEL_ERROR = 4
_log: collections.deque[tuple[int, str]] = collections.deque(maxlen=64)


@_LOG_CALLBACK
def _remember(level: int, text: bytes | None, user_data: int | None) -> None:
    _log.append((level, (text or b"").decode("utf-8", "replace")))


@functools.cache
def _library() -> C.CDLL:
    """libllama with declared functions and a silent log; GgufmergeError when there is none."""
    try:
        extension = importlib.import_module("xllamacpp.xllamacpp")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "xllamacpp"
        why = "" if missing else f" (xllamacpp does not load: {error})"
        raise GgufmergeError(f"evaluation needs llama.cpp{why}: pip install 'ggufmerge[llama]'") from None
    lib = C.CDLL(str(extension.__file__))
    pointer, i32, string = C.c_void_p, C.c_int32, C.c_char_p
    i32s, floats = C.POINTER(i32), C.POINTER(C.c_float)
    functions: dict[str, tuple[Any, ...]] = {
        "llama_adapter_lora_init": (pointer, pointer, string),
        "llama_backend_init": (None,),
        "llama_chat_apply_template": (i32, string, C.POINTER(_ChatMessage), C.c_size_t, C.c_bool, string, i32),
        "llama_context_default_params": (_ContextParams,),
        "llama_decode": (i32, pointer, _Batch),
        "llama_detokenize": (i32, pointer, i32s, i32, string, i32, C.c_bool, C.c_bool),
        "llama_free": (None, pointer),
        "llama_get_logits": (floats, pointer),
        "llama_get_logits_ith": (floats, pointer, i32),
        "llama_get_memory": (pointer, pointer),
        "llama_init_from_model": (pointer, pointer, _ContextParams),
        "llama_log_set": (None, _LOG_CALLBACK, pointer),
        "llama_memory_clear": (None, pointer, C.c_bool),
        "llama_model_chat_template": (string, pointer, string),
        "llama_model_default_params": (_ModelParams,),
        "llama_model_free": (None, pointer),
        "llama_model_get_vocab": (pointer, pointer),
        "llama_model_load_from_file": (pointer, string, _ModelParams),
        "llama_set_adapters_lora": (i32, pointer, C.POINTER(pointer), C.c_size_t, floats),
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
    model, context = lib.llama_model_default_params(), lib.llama_context_default_params()
    head = (model.n_gpu_layers, model.vocab_only, model.check_tensors, model.use_extra_bufts)
    if head != (-1, False, False, True):
        raise _unusable("has another llama_model_params")
    if not (0 < context.n_ubatch <= context.n_batch and context.n_seq_max == 1 and context.n_threads > 0):
        raise _unusable("has another llama_context_params")
    lib.llama_log_set(_remember, None)
    lib.llama_backend_init()
    return lib


def _unusable(what: str) -> GgufmergeError:
    version = getattr(sys.modules.get("xllamacpp"), "__version__", "of unknown version")
    return GgufmergeError(f"xllamacpp {version} {what}: pip install --force-reinstall 'xllamacpp==2026.10.11549'")


def _model_params(lib: C.CDLL) -> _ModelParams:
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.check_tensors = True  # NaN and infinity in scales are refused, not computed with
    return params


def _context_params(lib: C.CDLL, context: int, threads: int) -> _ContextParams:
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = context
    params.n_outputs_max = params.n_outputs_max_per_seq = context
    params.n_threads = params.n_threads_batch = threads
    return params


def _readable(path: pathlib.Path) -> bytes:
    """The path as llama.cpp takes it (UTF-8 on Windows too); the system's own error when it cannot be read."""
    with path.open("rb"):
        _log.clear()
    return os.fsencode(path)


def _checked(pointer: int | None, problem: str) -> int:
    if pointer is None:
        raise GgufmergeError(problem + _last_words())
    return pointer


def _last_words() -> str:
    """What llama.cpp said last before it gave up: its error lines without the names of its functions."""
    text = "".join(line for level, line in _log if level == _LOG_LEVEL_ERROR)
    lines = [line.partition(": ")[2] or line for line in text.splitlines() if line.strip()]
    return ": " + "; ".join(dict.fromkeys(lines)) if lines else ""
