"""The metadata of a result: taken from one source, freed of what no longer holds, with the merge's own provenance.

Follows GGUF's conventions for merged models (`general.base_model.*`) and the list of stale keys of llama-quantize.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ggufmerge.engine import provenance
from ggufmerge.engine.layout import Slice, layers_of_result
from ggufmerge.files import MetadataEditor
from ggufmerge.sources import Source
from ggufmerge.sources.stored import StoredFile
from ggufmerge.types import FileType

_STALE_PREFIXES = ("quantize.imatrix.", "split.", "general.source.", "general.base_model.", "general.dataset.")
_STALE = (
    "general.alignment",
    "general.author",
    "general.description",
    "general.doi",
    "general.organization",
    "general.quantized_by",
    "general.repo_url",
    "general.url",
    "general.uuid",
    "general.version",
)
_INHERITED = ("author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
DIGEST_PLACEHOLDER = "0" * 64


def display_name(source: Source) -> str:
    """What a source and its adapters call themselves, else their files' names."""
    return " + ".join(map(_own_name, (source.file, *(adapter.file for adapter in source.adapters))))


def digest_key(index: int) -> str:
    """The key under which the result keeps the sha256 of source file number `index`."""
    return f"ggufmerge.source.{index}.sha256"


def result_metadata(
    *,
    name: str,
    recipe: str,
    options: str,
    settings: Mapping[str, Any],
    file_type: FileType,
    quantized: bool,
    sources: Sequence[Source],
    layout: Sequence[Slice],
    tokenizer: Mapping[str, Any],
    imatrix: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """(changes to the first source's metadata, warnings). A change is a value to set, or None to remove the key.

    options: what the command line changed.  settings: keys and values of those in effect (`provenance.settings`).
    """
    donor = sources[0]
    changes: dict[str, Any] = {k: None for k in donor.metadata if k in _STALE or k.startswith(_STALE_PREFIXES)}
    changes |= {"general.name": name, "general.finetune": "merge", "general.file_type": file_type.id}
    if quantized:
        changes["general.quantization_version"] = QUANTIZATION_VERSION
    changes |= tokenizer
    changes |= imatrix
    changes |= _parents(sources)
    tags = donor.metadata.get("general.tags") or []
    changes["general.tags"] = [*tags, *(t for t in ("merge", "ggufmerge") if t not in tags)]
    licence, warnings = _licence(sources, overrides)
    changes |= licence
    changes |= layer_metadata(donor, sources, layout)
    changes |= provenance.without_inherited(donor.metadata)
    changes |= settings
    changes["ggufmerge.recipe"] = recipe
    changes["ggufmerge.recipe.sha256"] = hashlib.sha256(recipe.encode()).hexdigest()
    if options:
        changes["ggufmerge.options"] = options
    changes |= provenance.files(sources)
    changes |= {digest_key(i): DIGEST_PLACEHOLDER for i in range(len(source_files(sources)))}
    changes |= provenance.lineage(sources)
    return changes | dict(overrides), warnings


def source_files(sources: Sequence[Source]) -> list[Path]:
    """Every file that the result is made from, once, in the order of their `ggufmerge.source.N` keys."""
    return provenance.source_files(sources)


def apply(changes: Mapping[str, Any], editor: MetadataEditor) -> MetadataEditor:
    """The donor's metadata with the changes made."""
    for key, value in changes.items():
        if value is not None:
            editor.set(key, value)
        elif key in editor:
            editor.remove(key)
    return editor


def layer_metadata(donor: Source, sources: Sequence[Source], layout: Sequence[Slice]) -> dict[str, Any]:
    """block_count and the arrays with one value per layer, for the layers that the result has."""
    arch = donor.file.architecture
    count_key = f"{arch}.block_count"
    count = donor.metadata.get(count_key)
    layers = [(piece.parts[piece.base or 0], i) for piece, i in layers_of_result(layout)]
    if [(part.source, part.start + i) for part, i in layers] == [(sources.index(donor), i) for i in range(count or 0)]:
        return {}
    changes: dict[str, Any] = {count_key: len(layers)}
    for key in donor.metadata:
        value = donor.metadata[key]
        if (
            key.startswith(arch + ".")
            and not isinstance(value, str)
            and hasattr(value, "__len__")
            and len(value) == count
        ):
            picked = []
            for part, i in layers:
                own = sources[part.source].metadata.get(key, value)
                picked.append(own[part.start + i] if hasattr(own, "__len__") else own)
            changes[key] = [v.item() if hasattr(v, "item") else v for v in picked]
    return changes


def _parents(sources: Sequence[Source]) -> dict[str, Any]:
    """`general.base_model.*`: each model and each adapter once."""
    parents = {file.path: file for source in sources for file in (source.file, *(a.file for a in source.adapters))}
    changes: dict[str, Any] = {"general.base_model.count": len(parents)}
    for i, file in enumerate(parents.values()):
        changes[f"general.base_model.{i}.name"] = _own_name(file)
        for field in _INHERITED:
            value = file.metadata.get(f"general.{field}")
            if isinstance(value, str) and value:
                changes[f"general.base_model.{i}.{field}"] = value
    return changes


def _own_name(file: StoredFile) -> str:
    name = file.metadata.get("general.name")
    return name if isinstance(name, str) and name else file.path.stem


def _licence(sources: Sequence[Source], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The licence when all sources agree on it; otherwise it is dropped, with a warning."""
    key = "general.license"
    licences = {s.label: s.metadata.get(key) for s in sources}
    if len(set(licences.values())) <= 1 or key in overrides:
        return {}, []
    listed = ", ".join(f"{label}: {licence or 'not stated'}" for label, licence in licences.items())
    keys = (key, key + ".name", key + ".link")
    return dict.fromkeys(keys), [
        f"the licences differ ({listed}): none is written; set general.license under metadata:"
    ]
