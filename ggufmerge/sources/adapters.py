"""Opens a LoRA adapter, whatever form it has: a GGUF file, or the folder that Hugging Face's PEFT saves."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ggufmerge.formats.peft import PeftFile
from ggufmerge.formats.stored import StoredFile
from ggufmerge.sources.lora import LoraAdapter


def open_adapter(path: str | os.PathLike[str], base: StoredFile, strength: float = 1.0) -> LoraAdapter:
    """The adapter at a path, for this base: of PEFT if it is a folder or a safetensors file, else in GGUF form."""
    is_peft = Path(path).is_dir() or Path(path).suffix == ".safetensors"
    return (PeftAdapter if is_peft else LoraAdapter)(path, base, strength)


class PeftAdapter(LoraAdapter):
    """A checked PEFT adapter; see `LoraAdapter`."""

    file: PeftFile

    def _open(self, path: str | os.PathLike[str], base: StoredFile) -> PeftFile:
        return PeftFile(Path(path), base)

    def _scale(self, name: str, rank: int) -> float:
        return self.file.scales[name]

    def settings(self) -> bytes:
        return super().settings() + json.dumps(sorted(self.file.scales.items())).encode()
