"""A place of models: `shelf:name` is a file of that name in the folder $MODEL_SHELF."""

import os
from pathlib import Path

from ggufmerge import Located, PlanError


def find(name: str) -> Located:
    folder = Path(os.environ.get("MODEL_SHELF", "."))
    path = folder / f"{name}.gguf"
    if not path.is_file():
        here = ", ".join(sorted(p.stem for p in folder.glob("*.gguf"))) or "nothing"
        raise PlanError(f"shelf:{name}: no such model on the shelf, which has {here}")
    return Located(path)
