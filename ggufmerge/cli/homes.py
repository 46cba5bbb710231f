"""The options of `ggufmerge build` for LM Studio, llama.cpp, KoboldCpp and text-generation-webui."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LmStudio = Annotated[
    str | None, typer.Option("--lmstudio", metavar="PUBLISHER/NAME", help="Put it among the models of LM Studio.")
]
To = Annotated[
    list[Path] | None,
    typer.Option(
        "--to",
        metavar="PLACE",
        help="Put it into a folder as its program wants it: of KoboldCpp, text-generation-webui, llama-server "
        "--models-dir, or of none; or into a preset file of llama-server's (.ini). May be given several times.",
    ),
]
LlamaCpp = Annotated[bool, typer.Option("--llama-cpp", help="Print the llama-server command that runs the result.")]
