"""Where the reference of a model leads, and what is known there of the model besides its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Located:
    """Where a reference leads.

    path: the GGUF file, the first one of a split model.
    adapters: LoRA files that belong to the model, to be applied in full.
    settings: what the place keeps beside the weights, which only that place understands; None for nothing.
    warnings: what the user should know, one line each.
    """

    path: Path
    adapters: tuple[Path, ...] = ()
    settings: object | None = None
    warnings: tuple[str, ...] = ()
