"""How arguments of the library are written on the command line, for messages (`ggufmerge.errors.option`)."""

from __future__ import annotations

_NAMES = {  # where the option is not called like the argument
    "out_type": "--type",
    "tensor_types": "--tensor-type",
    "max_size": "--split-max-size",
    "max_tensors": "--split-max-tensors",
    "ftype": "TYPE",
}


def spelling(name: str, value: object) -> str:
    """`--overwrite`, `--imatrix FILE`: an argument of the library as an option, with a value unless it is a switch."""
    written = _NAMES.get(name) or "--" + name.replace("_", "-")
    return written if value is None or value is True else f"{written} {value}"
