"""File names by the GGUF naming convention: `<BaseName>-<SizeLabel>-<FineTune>-<Version>-<Encoding>-<Shard>.gguf`.

Source: "GGUF Naming Convention" of ggml's `docs/gguf.md`.
"""

from __future__ import annotations

import re

from gguf.utility import naming_convention, size_label

from ggufmerge import keys
from ggufmerge.files import GGUFFile, facts
from ggufmerge.types import FileType


def conventional_names(file: GGUFFile) -> list[str]:
    """The names that a model's files should have, in the order of `file.paths`; several for a split model."""
    stem = conventional_stem(file)
    count = len(file.paths)
    if count == 1:
        return [f"{stem}.gguf"]
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def conventional_stem(file: GGUFFile) -> str:
    """The name without shard and suffix, out of the metadata; what that does not say is counted or assumed (v1.0)."""
    label = _text(file, keys.SIZE_LABEL) or _size_label(file)
    base, finetune = _base(file), _text(file, keys.FINETUNE) or None
    words = [word.lower() for word in base.split("-")]
    if finetune and all(word in words for word in finetune.lower().split()):
        finetune = None
    version = _text(file, keys.VERSION) or "1.0"
    return naming_convention(
        None,
        base,
        _plain(finetune) if finetune else None,
        _plain(version if version.lower().startswith("v") else f"v{version}"),
        None if label.lower() in words else _plain(label),
        str(facts.file_type(file) or FileType.F32),
    )


def _base(file: GGUFFile) -> str:
    """The name that the model goes by, or that of its family when its own only adds to it."""
    name, family = _plain(_text(file, keys.NAME)), _plain(_text(file, keys.BASENAME))
    if family and name.lower().startswith(family.lower()):
        return family
    return name or family or _plain(file.path.stem)


def _size_label(file: GGUFFile) -> str:
    """The number of weights, rounded: 135M; with experts that of a model with one of them: 8x7B."""
    total = facts.parameters(file)
    experts = [t for t in file.tensors.values() if "_exps." in t.name and len(t.shape) == 3]
    stacked = sum(tensor.size for tensor in experts)
    # counted, not taken from the metadata: a stranger's number there could be anything
    count = max((tensor.shape[0] for tensor in experts), default=0)
    label: str = size_label(total, total - stacked, stacked // count if count else 0, count)
    return label


def _text(file: GGUFFile, key: str) -> str:
    return (file.metadata.text(key) or "").strip()


def _plain(text: str) -> str:
    """Without letters that would mean something in a path or to the Hub."""
    return re.sub(r"-{2,}", "-", re.sub(r"[^\w.-]+", "-", text)).strip("-.")
