"""The options of `ggufmerge build` for LM Studio, llama.cpp, KoboldCpp and text-generation-webui."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LmStudio = Annotated[
    str | None,
    typer.Option("--lmstudio", metavar="PUBLISHER/NAME", help="Put the result into LM Studio's models folder."),
]
To = Annotated[
    list[Path] | None,
    typer.Option(
        "--to",
        metavar="PLACE",
        help="Put the result into a folder of KoboldCpp, text-generation-webui or llama-server (--models-dir), as that "
        "program expects it, or into any other folder; or add it to a preset file of llama-server (.ini). Repeatable.",
    ),
]
LlamaCpp = Annotated[bool, typer.Option("--llama-cpp", help="Print the llama-server command that runs the result.")]
