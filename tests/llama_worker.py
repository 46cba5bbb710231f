"""llama.cpp in a process of its own: what it refuses with an assertion ends that process, not the tests.

`LlamaWorker().ask(path)` gives what llama.cpp says of a file, and its logits for some tokens.
"""

from __future__ import annotations

import ctypes as C
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from tests.llama_process import LlamaProcess

if TYPE_CHECKING:
    from ggufmerge.evaluation.llama import LlamaModel


@dataclasses.dataclass(frozen=True)
class Answer:
    """words: why a file was refused, or why nothing was computed; "" when all went well.

    logits: float32 [tokens, vocabulary]; of encoders, which have none, what they make of the text, [1, width]; None
    when nothing was computed.
    """

    loads: bool
    words: str
    logits: np.ndarray | None


class LlamaWorker(LlamaProcess):
    """The process; use it as a context manager."""

    program = "tests.llama_worker"

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        super().__exit__(kind, error, at)
        self._folder.cleanup()

    def ask(self, path: Path, tokens: list[int] | None = None) -> Answer:
        """Load a model; with tokens, compute their logits as well."""
        out = Path(self._folder.name) / "logits.npy"
        out.unlink(missing_ok=True)
        self.send({"path": str(path.resolve()), "tokens": tokens, "out": str(out)})
        loads = False
        while line := self.line():
            found = json.loads(line)
            loads = loads or found["loads"]
            if found["done"]:
                return Answer(loads, found["words"], np.load(out) if out.exists() else None)
        return Answer(loads, self.last_words()[-300:] or "llama.cpp ended", None)


def main() -> None:
    """Answer questions of standard input, a line each."""
    from ggufmerge.errors import GgufmergeError
    from ggufmerge.evaluation.llama import LlamaModel

    for line in sys.stdin:
        asked = json.loads(line)
        loads, words = False, ""
        try:
            if not asked["tokens"]:
                load(asked["path"])
                loads = True
            else:
                with LlamaModel(asked["path"], context=64, threads=1) as model:
                    loads = True
                    print(json.dumps({"loads": True, "words": "", "done": False}), flush=True)
                    logits = model.logits(asked["tokens"])
                    np.save(asked["out"], logits if logits.any() else encoded(model, asked["tokens"]))
        except GgufmergeError as error:
            words = str(error)
        print(json.dumps({"loads": loads, "words": words, "done": True}), flush=True)


def load(path: str) -> None:
    """Only load a model: those that draft for others can do nothing alone. GgufmergeError says why it is refused."""
    from ggufmerge.errors import GgufmergeError
    from ggufmerge.evaluation.libllama import forget_log, last_words, library

    forget_log()
    params = library().llama_model_default_params()
    params.n_gpu_layers = 0
    model = library().llama_model_load_from_file(os.fsencode(path), params)
    if model is None:
        raise GgufmergeError(f"llama.cpp refuses {path}{last_words()}")
    library().llama_model_free(model)


def encoded(model: LlamaModel, tokens: list[int]) -> np.ndarray:
    """float32 [1, width]: what an encoder makes of a text."""
    from ggufmerge.evaluation.libllama import library

    lib = library()
    lib.llama_set_embeddings.argtypes, lib.llama_set_embeddings.restype = [C.c_void_p, C.c_bool], None
    lib.llama_get_embeddings_seq.argtypes = [C.c_void_p, C.c_int32]
    lib.llama_get_embeddings_seq.restype = C.POINTER(C.c_float)
    lib.llama_model_n_embd_out.argtypes, lib.llama_model_n_embd_out.restype = [C.c_void_p], C.c_int32
    lib.llama_set_embeddings(model._context, True)
    model.extend(tokens)
    pointer = lib.llama_get_embeddings_seq(model._context, 0)
    return np.ctypeslib.as_array(pointer, (1, lib.llama_model_n_embd_out(model._model))).copy()


if __name__ == "__main__":
    main()
