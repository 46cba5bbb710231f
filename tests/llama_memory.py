"""What llama.cpp itself reserves for a model, in a process of its own: `LlamaMemory().ask(path, context=4096)`.

The parameters are those of llama.cpp's programs: a batch of 512 tokens, and caches of the size of a window.
"""

from __future__ import annotations

import ctypes as C
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parent.parent
MIB = 1 << 20
_BUFFER = re.compile(r"(?:(KV|RS|compute|output)|DSV4 \w+ (state)) +buffer size = +([\d.]+) MiB")


class LlamaMemory:
    """The process, started when it is first asked and again after it ended. Use it as a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> LlamaMemory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def ask(self, path: Path, *, context: int, kv_type: int = 1) -> dict[str, float] | None:
        """Bytes by buffer ("KV", "RS", "compute", "output"), to 5 kB each; None when llama.cpp makes no context."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.llama_memory"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"GGML_NO_BACKTRACE": "1", "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(path), context, kv_type]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:  # an assertion of llama.cpp
            self._process.communicate()
            self._process = None
            return None
        lines = json.loads(line)
        if lines is None:
            return None
        found = dict.fromkeys(("KV", "RS", "compute", "output"), 0.0)
        for kind, state, size in _BUFFER.findall("".join(lines)):
            found["RS" if state else kind] += float(size) * MIB
        return found


class _ContextParams(C.Structure):
    """`llama_context_params` of v0.5.0 as far as it is set here."""

    _fields_ = [
        ("n", C.c_uint32 * 9),
        ("kinds", C.c_int * 5),
        ("floats", C.c_float * 6),
        ("yarn_orig_ctx", C.c_uint32),
        ("defrag_thold", C.c_float),
        ("cb_eval", C.c_void_p * 2),
        ("type_k", C.c_int),
        ("type_v", C.c_int),
        ("moe_cache_size", C.c_size_t),
        ("abort", C.c_void_p * 2),
        ("flags", C.c_bool * 6),  # embeddings, offload_kqv, no_perf, op_offload, swa_full, kv_unified
    ]


def main() -> None:
    """Answer questions of standard input, a line each: [path, context, type of keys and values]."""
    from ggufmerge.evaluation import libllama

    lib = libllama.library()
    lines: list[str] = []

    @libllama._LOG_CALLBACK
    def keep(level: int, text: bytes | None, user_data: int | None) -> None:
        lines.append((text or b"").decode("utf-8", "replace"))

    lib.llama_log_set(keep, None)
    for line in sys.stdin:
        path, context, kv_type = json.loads(line)
        lines.clear()
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = 0
        model = lib.llama_model_load_from_file(os.fsencode(path), model_params)
        made = None
        if model:
            params = lib.llama_context_default_params()
            fields = _ContextParams.from_buffer(params)
            fields.n[0] = context
            fields.type_k = fields.type_v = kv_type
            fields.flags[4] = False
            made = lib.llama_init_from_model(model, params)
            if made:
                lib.llama_free(made)
            lib.llama_model_free(model)
        print(json.dumps(lines if made else None), flush=True)


if __name__ == "__main__":
    main()
