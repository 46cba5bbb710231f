"""The texts that models are measured on when the user names none; their README says where they are from."""

from __future__ import annotations

from importlib.resources import files

NAMES = ("english", "chat", "facts", "french", "german", "spanish", "chinese", "python")
QUICK = 256  # tokens of each text for a first impression


def read(name: str) -> str:
    """The text of one of `NAMES`."""
    return files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
