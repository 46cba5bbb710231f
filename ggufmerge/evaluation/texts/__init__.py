"""The texts that models are measured on when the user names none; their README says where they are from."""

from __future__ import annotations

from importlib.resources import files

NAMES = ("english", "chat", "facts", "french", "german", "spanish", "chinese", "python")
CALIBRATION = "calibration"  # what `ggufmerge calibrate` reads; models are not measured on it
QUICK = 256  # tokens of each text for a first impression


def read(name: str) -> str:
    """The text of one of `NAMES`, or `CALIBRATION`."""
    return files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
