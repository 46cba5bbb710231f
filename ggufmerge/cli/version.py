"""`ggufmerge --version` and `ggufmerge version`: what is running, for reports of faults."""

from __future__ import annotations

from typing import Any

import typer

from ggufmerge.cli.options import Json

HELP = """Print the versions of the program and of the libraries that it uses.

[bold]Examples[/bold]

  ggufmerge version

  ggufmerge --version
"""
_LIBRARIES = ("numba", "numpy", "gguf", "typer", "xllamacpp", "huggingface_hub")


def show_version(wanted: bool) -> None:
    """The callback of --version."""
    if wanted:
        import ggufmerge

        typer.echo(f"ggufmerge {ggufmerge.__version__}")
        raise typer.Exit


def version(json: Json = False) -> None:
    from ggufmerge.cli.terminal import print_json, say, tell

    facts = _facts()
    if json:
        print_json(facts)
        return
    say(f"ggufmerge {facts['ggufmerge']}")
    say(f"Python {facts['python']} on {facts['system']}, {facts['cores']} cores")
    tell([", ".join(f"{name} {number or 'not installed'}" for name, number in facts["libraries"].items())])


def _facts() -> dict[str, Any]:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    import ggufmerge

    libraries: dict[str, str | None] = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = version_of(name)
        except PackageNotFoundError:
            libraries[name] = None
    return {
        "ggufmerge": ggufmerge.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "libraries": libraries,
    }
