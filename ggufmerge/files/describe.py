"""The facts of a GGUF file that can be told from its header, as plain data that prints and goes into JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ggufmerge.files.metadata import Metadata, ValueKind
from ggufmerge.files.reader import GGUFFile
from ggufmerge.types import FileType

LONG = 64  # elements of an array that are shown when it is longer


def describe(file: GGUFFile, *, full: bool = False) -> dict[str, Any]:
    """Everything `ggufmerge inspect` shows, ready for `json.dumps`; no tensor is read.

    metadata: key -> {"kind", "value"}, for arrays also {"of", "count"}. Of an array longer than 64 only the first 64
    elements stand in "value", beside {"shortened": true}, unless `full`. Numbers that JSON does not know are strings
    ("nan", "inf"), and bytes that are not UTF-8 become U+FFFD.
    tensors: [{"name", "shape", "type", "nbytes", "file", "offset"}] in file order; shape in numpy's order.
    types: type -> {"tensors", "values", "nbytes", "bits_per_weight"}, by falling size.
    """
    values = sum(tensor.size for tensor in file.tensors.values())
    data = sum(tensor.nbytes for tensor in file.tensors.values())
    return {
        "path": _text(str(file.path)),
        "files": [_text(path.name) for path in file.paths],
        "nbytes": file.nbytes,
        "version": file.version,
        "alignment": file.alignment,
        "type": _text(file.metadata.get("general.type", "")) or None,
        "name": _text(file.metadata.get("general.name", "")) or None,
        "architecture": _text(file.architecture) or None,
        "file_type": _file_type(file.metadata),
        "parameters": values,
        "bits_per_weight": _bits(data, values),
        "metadata": {_text(key): _value(file.metadata, key, full) for key in file.metadata},
        "types": _types(file),
        "tensors": [
            {
                "name": _text(tensor.name),
                "shape": list(tensor.shape),
                "type": tensor.type.value,
                "nbytes": tensor.nbytes,
                "file": _text(tensor.path.name),
                "offset": tensor.offset,
            }
            for tensor in file.tensors.values()
        ],
    }


def _file_type(metadata: Metadata) -> str | None:
    """Name of `general.file_type`, its number when it has none, None when there is no such key."""
    number = metadata.get("general.file_type")
    if not isinstance(number, int):
        return None
    known = FileType.from_id(number)
    return known.value if known else str(number)


def _value(metadata: Metadata, key: str, full: bool) -> dict[str, Any]:
    kind = metadata.kind(key)
    if kind != ValueKind.ARRAY:
        return {"kind": kind.name.lower(), "value": _plain(metadata[key])}
    count = metadata.count(key)
    shortened = count > LONG and not full
    items = metadata.first(key, LONG if shortened else count)
    return {
        "kind": kind.name.lower(),
        "of": metadata.element_kind(key).name.lower(),
        "count": count,
        "value": [_plain(item) for item in (items.tolist() if isinstance(items, np.ndarray) else items)],
        **({"shortened": True} if shortened else {}),
    }


def _types(file: GGUFFile) -> dict[str, dict[str, Any]]:
    types: dict[str, dict[str, Any]] = {}
    for tensor in file.tensors.values():
        row = types.setdefault(tensor.type.value, {"tensors": 0, "values": 0, "nbytes": 0})
        row["tensors"] += 1
        row["values"] += tensor.size
        row["nbytes"] += tensor.nbytes
    for row in types.values():
        row["bits_per_weight"] = _bits(row["nbytes"], row["values"])
    return dict(sorted(types.items(), key=lambda item: -item[1]["nbytes"]))


def _bits(nbytes: int, values: int) -> float | None:
    return round(8 * nbytes / values, 4) if values else None


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _text(value: Any) -> str:
    """A string as valid Unicode; "" for a value that should be a string but is none."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(value, str) else ""
