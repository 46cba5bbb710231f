"""A model in llama.cpp: load it, tokenize, get logits."""

from __future__ import annotations

import ctypes as C
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggufmerge.architectures.fused import of_expert
from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation.libllama import (
    NODE_CALLBACK,
    Batch,
    ChatMessage,
    ContextParams,
    ModelParams,
    Node,
    forget_log,
    last_words,
    library,
    operations,
)
from ggufmerge.files import open_gguf
from ggufmerge.files.small import open_regular

Watch = Callable[[Node, bool], bool]

_LONG = 0.5  # seconds of one computation that tell how busy the processors are


class LlamaModel:
    """A GGUF model in llama.cpp on the CPU, with one sequence in its memory. Use it as a context manager, or close it.

    path: a model file, or the first shard of a split model.
    context: the most tokens one sequence can have.
    threads: computing threads; None for all processors, or fewer while other programs keep these busy.
    adapters: LoRA adapters (GGUF files) with their strengths, applied at run time as `llama-cli --lora-scaled` does.
    watch: called with each node of the graph: before it is computed, with True, to say whether it is of interest; if
        so, again when it is computed, with False. Its operands are there then. What it raises leaves `logits`. Another
        one may be put in its place later.

    Raises GgufmergeError when llama.cpp is not installed or refuses a file, with what llama.cpp said.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        context: int = 512,
        threads: int | None = None,
        adapters: Sequence[tuple[str | os.PathLike[str], float]] = (),
        watch: Watch | None = None,
    ) -> None:
        self.path = pathlib.Path(path)
        self.context = context
        self._length = 0
        self._fixed = threads is not None
        self.threads = min(threads or os.cpu_count() or 1, os.cpu_count() or 1)  # ggml ends the process for 513
        self._model: int | None = None
        self._context: int | None = None
        self.watch = watch
        self._failure: BaseException | None = None  # of `watch`
        self._callback = None if watch is None else NODE_CALLBACK(self._see)
        lib = library()
        try:
            self._model = _checked(
                lib.llama_model_load_from_file(_readable(self.path), _model_params(lib)), f"llama.cpp refuses {path}"
            )
            self._vocab = lib.llama_model_get_vocab(self._model)
            self.vocabulary_size: int = lib.llama_vocab_n_tokens(self._vocab)
            self._context = _checked(
                lib.llama_init_from_model(self._model, self._params(lib)),
                f"llama.cpp has no memory for {path} with a context of {context} tokens",
            )
            self._set_adapters(adapters)
        except GgufmergeError as error:
            loaded = self._model is not None
            self.close()
            if not loaded and _has_old_experts(self.path):
                todo = "each expert has tensors of its own, an old layout; write it anew with ggufmerge quantize"
                raise GgufmergeError(f"{error}: {todo} {path} NEW.gguf COPY") from None
            raise
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
            library().llama_free(context)
        if model is not None:
            library().llama_model_free(model)

    @property
    def begin_token(self) -> int | None:
        """The token that llama.cpp puts before a text of this model (BOS), or None when it puts none."""
        lib, vocabulary = library(), self._opened_vocabulary()
        return lib.llama_vocab_bos(vocabulary) if lib.llama_vocab_get_add_bos(vocabulary) else None

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text, without BOS. special: read the names of control tokens in it, such as <|im_start|>."""
        raw = text.encode()
        size = len(raw) + 8
        while True:
            tokens = (C.c_int32 * size)()
            n = library().llama_tokenize(self._opened_vocabulary(), raw, len(raw), tokens, size, False, special)
            if n >= 0:
                return tokens[:n]
            size = -n

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, control tokens left out; bytes that are not UTF-8 become U+FFFD."""
        ids = (C.c_int32 * len(tokens))(*tokens)
        size = 16 * len(tokens) + 16
        while True:
            text = C.create_string_buffer(size)
            n = library().llama_detokenize(self._opened_vocabulary(), ids, len(tokens), text, size, True, False)
            if n >= 0:
                return text.raw[:n].decode("utf-8", "replace")
            size = -n

    def format_chat(self, messages: Sequence[tuple[str, str]]) -> str | None:
        """Messages (role, content) in the model's chat format, up to where the assistant speaks.

        llama.cpp recognizes the well-known formats in the chat template and writes them itself; the template's code is
        never run. None when the file has no template, GgufmergeError when llama.cpp does not recognize it.
        """
        template = library().llama_model_chat_template(self._opened(), None)
        if template is None:
            return None
        chat = (ChatMessage * len(messages))(*(ChatMessage(role.encode(), text.encode()) for role, text in messages))
        size = 0
        while True:
            text = C.create_string_buffer(size)
            n = library().llama_chat_apply_template(template, chat, len(messages), True, text, size)
            if n < 0:
                raise GgufmergeError(f"llama.cpp does not know the chat template of {self.path}: use a plain prompt")
            if n <= size:
                return text.raw[:n].decode("utf-8", "replace")
            size = n

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation (end of sequence or of turn)."""
        return library().llama_vocab_is_eog(self._opened_vocabulary(), token)

    def logits(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """float32 [n_tokens, vocabulary_size] of a sequence from its beginning; what stood in the memory is dropped."""
        self.reset()
        n = self._decode(tokens, every=True)
        return self._copied(library().llama_get_logits(self._context), (n, self.vocabulary_size))

    def compute(self, tokens: ArrayLike) -> None:
        """Compute a sequence from its beginning, each token in all layers, for `watch`."""
        self.reset()
        self._decode(tokens, every=True)

    def reset(self) -> None:
        """Forget the sequence in the memory."""
        self._opened()
        lib = library()
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        self._length = 0

    def extend(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """Append tokens to the sequence in the memory; float32 [vocabulary_size], the logits after the last one."""
        self._decode(tokens, every=False)
        return self._copied(library().llama_get_logits_ith(self._context, -1), (self.vocabulary_size,))

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
        batch = Batch(ids.size, ids.ctypes.data, None, None, None, None, wanted.ctypes.data if every else None)
        forget_log()
        wall, busy = time.monotonic(), time.process_time()
        code = library().llama_decode(self._context, batch)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if code:
            raise GgufmergeError(f"llama.cpp cannot compute {self.path} (code {code}){last_words()}")
        self._length = length
        self._make_room(time.monotonic() - wall, time.process_time() - busy)
        return ids.size

    def _params(self, lib: C.CDLL) -> ContextParams:
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.context
        params.n_outputs_max = params.n_outputs_max_per_seq = self.context
        params.n_threads = params.n_threads_batch = self.threads
        if self._callback is not None:
            operations()  # looks whether the parameters are where they are thought to be
            params.cb_eval = C.cast(self._callback, C.c_void_p)
            params.offload_kqv = params.op_offload = False  # a GPU's memory cannot be looked into
        return params

    def _see(self, node: Any, ask: bool, _: int | None) -> bool:
        """Calls `watch`. An exception cannot go through C: it ends the computation, and `_decode` raises it."""
        assert self.watch is not None, "the context has no callback without"
        if self._failure is not None:
            return False
        try:
            return self.watch(node.contents, ask)
        except BaseException as failure:
            self._failure = failure
            return False

    def _make_room(self, wall: float, busy: float) -> None:
        """Take fewer threads when they got less than half of their processors: llama.cpp's threads wait for each other
        all the time without sleeping, so those that are waited for get even less.
        """
        if self._fixed or self.threads == 1 or wall < _LONG or busy > 0.5 * wall * self.threads:
            return
        self.threads = max(1, round(busy / wall))
        library().llama_set_n_threads(self._context, self.threads, self.threads)

    def _copied(self, pointer: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if not pointer:
            raise GgufmergeError(f"{self.path} gives no logits: it is not a model that continues text")
        logits = np.ctypeslib.as_array(pointer, shape).copy()
        if not np.isfinite(logits).all():
            raise GgufmergeError(f"{self.path} computes logits that are NaN or infinite: its weights are broken")
        return logits

    def _set_adapters(self, adapters: Sequence[tuple[str | os.PathLike[str], float]]) -> None:
        if not adapters:
            return
        lib = library()
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
            raise GgufmergeError(f"llama.cpp cannot apply the adapters to {self.path}{last_words()}")

    def _opened(self) -> int:
        if self._model is None:
            raise ValueError(f"{self.path} is closed")
        return self._model

    def _opened_vocabulary(self) -> int:
        self._opened()
        return self._vocab


def _model_params(lib: C.CDLL) -> ModelParams:
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.check_tensors = True  # NaN and infinity in scales are refused, not computed with
    return params


def _has_old_experts(path: pathlib.Path) -> bool:
    with suppress(GgufmergeError), open_gguf(path) as file:
        return any(of_expert(name) for name in file.tensors)
    return False


def _readable(path: pathlib.Path) -> bytes:
    """The path as llama.cpp takes it (UTF-8 on Windows too); the system's own error when it cannot be read."""
    with open_regular(path):
        forget_log()
    return os.fsencode(path)


def _checked(pointer: int | None, problem: str) -> int:
    if pointer is None:
        raise GgufmergeError(problem + last_words())
    return pointer
