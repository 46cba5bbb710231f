"""Which programs keep models that a reference can name, and who finds them: `scheme:name` (see `references`)."""

from __future__ import annotations

SCHEMES = {  # function in a module of this package
    "ollama": "ollama.store.find",
    "hf": "hub.download.find",
    "lmstudio": "folders.find_lmstudio",
    "llama.cpp": "folders.find_llama_cpp",
}
