"""The facts of a GGUF file that can be told from its header, as plain data that prints and goes into JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ggufmerge import keys
from ggufmerge.files.facts import file_type, parameters
from ggufmerge.files.metadata import Metadata, ValueKind
from ggufmerge.files.reader import GGUFFile
from ggufmerge.text import utf8

LONG = 64  # elements of an array that are shown when it is longer


def describe(file: GGUFFile, *, full: bool = False) -> dict[str, Any]:
    """Everything `ggufmerge inspect` shows, ready for `json.dumps`; no tensor is read.

    metadata: key -> {"kind", "value"}, for arrays also {"of", "count"}. Of an array longer than 64 only the first 64
    elements stand in "value", beside {"shortened": true}, unless `full`. Numbers that JSON does not know are strings
    ("nan", "inf"), and bytes that are not UTF-8 become U+FFFD.
    shards: {"path"} of each of its files; an unsplit model has one.
    file_type: as in `facts.file_type`.
    tensors: [{"name", "shape", "type", "nbytes", "file", "offset"}] in file order; shape in numpy's order.
    types: type -> {"tensors", "values", "nbytes", "bits_per_weight"}, by falling size.
    """
    kind = file_type(file)
    values = parameters(file)
    data = sum(tensor.nbytes for tensor in file.tensors.values())
    return {
        "path": utf8(str(file.path)),
        "shards": [{"path": utf8(str(path))} for path in file.paths],
        "nbytes": file.nbytes,
        "gguf_version": file.version,
        "alignment": file.alignment,
        "type": utf8(file.metadata.text(keys.TYPE) or "") or None,
        "name": utf8(file.metadata.text(keys.NAME) or "") or None,
        "architecture": utf8(file.architecture) or None,
        "file_type": None if kind is None else str(kind),
        "parameters": values,
        "bits_per_weight": _bits(data, values),
        "metadata": {utf8(key): _value(file.metadata, key, full) for key in file.metadata},
        "types": _types(file),
        "tensors": [
            {
                "name": utf8(tensor.name),
                "shape": list(tensor.shape),
                "type": tensor.type.value,
                "nbytes": tensor.nbytes,
                "file": utf8(tensor.path.name),
                "offset": tensor.offset,
            }
            for tensor in file.tensors.values()
        ],
    }


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
        return utf8(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
