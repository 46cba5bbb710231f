"""Options and arguments that several commands have: the same name, meaning and words everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.completion import complete_models, complete_types

if TYPE_CHECKING:
    from ggufmerge.recipe import Recipe

NAMES_WORK = "a GGUF file, or a name: ollama:llama3.2:3b, hf:owner/repo:Q4_K_M, lmstudio:..., llama.cpp:..."


def model_argument(metavar: str, what: str) -> Any:
    """An argument that is a model: `what` it is, then how it may be named."""
    return typer.Argument(
        metavar=metavar, help=f"{what}: {NAMES_WORK}", show_default=False, autocompletion=complete_models
    )


def model_option(name: str, metavar: str, what: str) -> Any:
    """An option that is a model."""
    return typer.Option(name, metavar=metavar, help=f"{what}: {NAMES_WORK}", autocompletion=complete_models)


def read_recipe(recipe: Path | Recipe) -> Recipe:
    """The recipe that an argument names: of a file, or of standard input."""
    import sys

    from ggufmerge.errors import RecipeError
    from ggufmerge.recipe import load_recipe
    from ggufmerge.recipe.load import MAX_BYTES, recipe_text

    if recipe != Path("-"):
        return load_recipe(recipe)
    if sys.stdin is None:
        raise RecipeError("-: standard input is closed: give the file of the recipe")
    stream = getattr(sys.stdin, "buffer", None)
    data = stream.read(MAX_BYTES + 1) if stream is not None else sys.stdin.read(MAX_BYTES + 1).encode()
    return load_recipe(recipe_text(data, recipe) + "\n")


def type_option(text: str, **more: Any) -> Any:
    """`--type`: a type that `ggufmerge types` lists; `text` says of what."""
    return typer.Option("--type", "-t", metavar="TYPE", help=text, autocompletion=complete_types, **more)


RecipeFile = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="A recipe in mergekit's YAML; - for standard input.", show_default=False),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The GGUF file to write.")]
Imatrix = Annotated[
    list[Path] | None,
    typer.Option("--imatrix", metavar="FILE", help="Importance matrix to quantize with; several are added up."),
]
Calibration = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibration", metavar="FILE", help="Statistics of ggufmerge calibrate to round with; several are added up."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done and stop.")]
All = Annotated[bool, typer.Option("--all", help="List every tensor.")]
Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON on standard output.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", help="Threads to work with.", show_default="all cores"),
]
Chunk = Annotated[
    int | None,
    typer.Option(
        "--chunk",
        min=1024,
        metavar="VALUES",
        help="Values of a tensor that a thread works on at a time; memory grows with it.",
        show_default="262144",  # engine.run.DEFAULT_CHUNK, which a test compares
    ),
]
