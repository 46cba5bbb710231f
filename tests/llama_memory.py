"""What llama.cpp itself reserves for a model, in a process of its own: `LlamaMemory().ask(path, context=4096)`.

The parameters are those of llama.cpp's programs: a batch of 512 tokens, and caches of the size of a window.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from tests.llama_process import LlamaProcess

MIB = 1 << 20
_BUFFER = re.compile(r"(?:(KV|RS|compute|output)|DSV4 \w+ (state)) +buffer size = +([\d.]+) MiB")


class LlamaMemory(LlamaProcess):
    """The process; use it as a context manager."""

    program = "tests.llama_memory"

    def ask(self, path: Path, *, context: int, kv_type: int = 1) -> dict[str, float] | None:
        """Bytes by buffer ("KV", "RS", "compute", "output"), to 5 kB each; None when llama.cpp makes no context."""
        self.send([str(path), context, kv_type])
        line = self.line()
        if not line:  # an assertion of llama.cpp
            self.last_words()
            return None
        lines = json.loads(line)
        if lines is None:
            return None
        found = dict.fromkeys(("KV", "RS", "compute", "output"), 0.0)
        for kind, state, size in _BUFFER.findall("".join(lines)):
            found["RS" if state else kind] += float(size) * MIB
        return found


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
            params.n_ctx = context
            params.type_k = params.type_v = kv_type
            params.swa_full = False
            made = lib.llama_init_from_model(model, params)
            if made:
                lib.llama_free(made)
            lib.llama_model_free(model)
        print(json.dumps(lines if made else None), flush=True)


if __name__ == "__main__":
    main()
