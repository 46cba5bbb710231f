"""LM Studio: `PUBLISHER/NAME/NAME-TYPE.gguf` below its models folder, with shards and projector in the same folder.

It looks for models in that folder when it starts and whenever something there changes, so a model is listed at once.
A file with `mmproj` in its name belongs to the models beside it. Settings are kept elsewhere and need no entry.

Sources: "Import Models" in LM Studio's documentation for the layout; `src/subcommands/importCmd.ts` of lms for the
rules of folder names and for `downloadsFolder` of its settings, which says where the folder is. That names differing
in case only are one model to it is not documented; the spelling that is there is taken, which is right either way.
"""

from __future__ import annotations

from pathlib import Path

from ggufmerge.errors import PlanError
from ggufmerge.places.folders import lmstudio_folder
from ggufmerge.places.homes.home import Home, Model
from ggufmerge.places.homes.names import check_part, check_stem


def lmstudio_home(name: str, file_type: str, *, shards: int | None = None, projector: bool = False) -> Home:
    """Where a model `PUBLISHER/NAME` of this file type goes; the rest as in `Model`.

    PlanError for other names, and where there is no LM Studio.
    """
    label = f"--lmstudio {name}"
    publisher, slash, model = name.partition("/")
    if not slash or "/" in model:
        raise PlanError(f"{label}: write PUBLISHER/NAME, such as me/merged")
    for part in (publisher, model):
        check_part(part, label)
    root, why = lmstudio_folder()
    folder = _spelt(_spelt(root, publisher), model)
    model = folder.name
    ours = Model(f"{model.removesuffix('-GGUF').removesuffix('-gguf') or model}-{file_type}", shards, projector)
    check_stem(ours.stem, label)
    return Home(
        program="LM Studio",
        why=why,
        root=root,
        files=tuple(ours.files(folder)),
        projector=ours.projector_in(folder),
        listed=f"lms ls and My Models list it as {folder.relative_to(root).as_posix()}",
    )


def _spelt(folder: Path, name: str) -> Path:
    """A folder of this name in another, as it is spelt there if there is one."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError:
        names = []
    twins = [found for found in names if found.casefold() == name.casefold()]
    return folder / (name if name in twins or not twins else twins[0])
