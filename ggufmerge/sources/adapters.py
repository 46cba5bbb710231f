"""Opens a LoRA adapter, whatever form it has: a GGUF file, or the folder that Hugging Face's PEFT saves."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ggufmerge.formats.peft import CONFIG, PeftFile
from ggufmerge.formats.stored import StoredFile, StoredTensor
from ggufmerge.sources.lora import LoraAdapter


def open_adapter(path: str | os.PathLike[str], base: StoredFile, strength: float = 1.0) -> LoraAdapter:
    """The adapter at a path, for this base: of PEFT if it is a folder or a safetensors file, else in GGUF form."""
    is_peft = Path(path).is_dir() or Path(path).suffix == ".safetensors"
    return (PeftAdapter if is_peft else LoraAdapter)(path, base, strength)


class PeftAdapter(LoraAdapter):
    """A checked PEFT adapter; see `LoraAdapter`."""

    file: PeftFile

    @property
    def _left_out(self) -> Mapping[str, list[str]]:
        return self.file.ignored

    @property
    def _wholes(self) -> Mapping[str, StoredTensor]:
        return self.file.wholes

    @property
    def _rows(self) -> Mapping[str, tuple[Sequence[int], StoredTensor]]:
        return self.file.rows

    @property
    def _shared(self) -> tuple[bool, bool, bool]:
        return self.file.shared

    @property
    def _to_share(self) -> str:
        return f'set "ensure_weight_tying": true in {CONFIG} to change both, or train an adapter that leaves both alone'

    def _open(self, path: str | os.PathLike[str], base: StoredFile) -> PeftFile:
        return PeftFile(Path(path), base)

    def _scale(self, name: str, rank: int) -> float:
        return self.file.scales[name]

    def settings(self) -> bytes:
        rows = {name: (numbers, rows.raw.tobytes().hex()) for name, (numbers, rows) in self.file.rows.items()}
        about = json.dumps([sorted(self.file.scales.items()), sorted(rows.items())])
        return super().settings() + about.encode()
