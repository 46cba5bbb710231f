"""`ggufmerge types`: what Q4_K_M and the others are, how large they make a model, who takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.completion import complete_types
from ggufmerge.cli.options import Json

if TYPE_CHECKING:
    from ggufmerge.types import FileType, TensorType

HELP = """List the types that files and tensors can have, or describe one: its size, its use, which programs take it.

[bold]Examples[/bold]

  ggufmerge types

  ggufmerge types Q4_K_M

  ggufmerge types Q4_K_L

  ggufmerge types --json

Which to take: Q4_K_M when memory is short, Q6_K or Q8_0 for a merge that should lose nothing, F16 for further work.
"""


def types(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A type.", show_default=False, autocompletion=complete_types)
    ] = None,
    json: Json = False,
) -> None:
    from ggufmerge.cli.terminal import print_json, show_table, tell
    from ggufmerge.types import FileType, TensorType

    if name is not None:
        _one(name, json=json)
        return
    files = [kind for kind in FileType if kind is not FileType.NVFP4]
    if json:
        tensors = [_tensor_facts(kind) for kind in TensorType if _is_for_weights(kind)]
        print_json({"file_types": [_file_facts(kind) for kind in FileType], "tensor_types": tensors})
        return
    facts = sorted((_file_facts(kind) for kind in files), key=lambda f: f["bits_per_weight"])
    rows = [
        (f["name"], f"{f['bits_per_weight']:.2f}", f"{f['gigabytes_8b']:.1f}", _marks(f), f["for"])
        for f in reversed(facts)
    ]
    show_table(("type", "bits", "8B, GB", "", "what for"), rows)
    tell(
        [
            "bits per weight and size: of a model like Llama 3 8B.  i: needs --imatrix",
            "o: Ollama does not take it.  ggufmerge types NAME tells more, also of Q4_K_L and the like",
        ]
    )


def _one(name: str, *, json: bool) -> None:
    from ggufmerge.cli.terminal import print_json, say
    from ggufmerge.errors import GgufmergeError
    from ggufmerge.types import FileType, TensorType, community_name

    if (told := community_name(name)) is not None:
        if json:
            print_json({"file_types": [], "tensor_types": [], "meaning": told})
        else:
            say(f"{name}: {told}")
        return
    tensor: TensorType | None = next((t for t in TensorType if t == name.upper() and _is_for_weights(t)), None)
    try:
        kind: FileType | None = FileType.parse(name)
    except GgufmergeError:
        if tensor is None:
            raise
        kind = None
    if kind is not None and tensor is not None and kind != tensor and kind.default is not tensor:
        kind = None
    if json:
        print_json(
            {
                "file_types": [_file_facts(kind)] if kind is not None else [],
                "tensor_types": [_tensor_facts(tensor)] if tensor is not None else [],
            }
        )
        return
    if kind is not None:
        _show_file(_file_facts(kind))
    if tensor is not None:
        t = _tensor_facts(tensor)
        say(
            f"{t['name']} as the type of a tensor: {t['bits_per_weight']:.4g} bits per weight, "
            f"{t['block_size']} values in {t['block_bytes']} bytes"
        )


def _show_file(facts: dict[str, Any]) -> None:
    from ggufmerge.cli.terminal import say

    say(f"{facts['name']}: {facts['for']}")
    say(
        f"  size       {facts['bits_per_weight']:.2f} bits per weight, {facts['gigabytes_8b']:.1f} GB for a model of 8B"
    )
    mixture = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in facts["mixture"].items())
    say(f"  tensors    {mixture}")
    say(f"  imatrix    {facts['imatrix']}", f"  Ollama     {'takes it' if facts['ollama'] else 'does not know it'}")
    say(f"  number     {facts['number']}, as llama-quantize counts")


def _marks(facts: dict[str, Any]) -> str:
    return "i" * (facts["imatrix"] == "required") + "o" * (not facts["ollama"])


def _file_facts(kind: FileType) -> dict[str, Any]:
    """Facts of a file type; those of size are of a model in the shapes of Llama 3 8B, by the real rules."""
    from ggufmerge.quants.guide import PURPOSE, mixture, needs_matrix, uses_matrix

    shares, bits, nbytes = mixture(kind)
    return {
        "name": str(kind),
        "number": kind.id,
        "for": PURPOSE[kind],
        "bits_per_weight": bits,
        "gigabytes_8b": nbytes / 1e9,
        "mixture": {str(t): share for t, share in shares.items()},
        "imatrix": "required" if needs_matrix(kind) else "helps" if uses_matrix(kind) else "not used",
        "ollama": _ollama_takes(list(shares)),
    }


def _tensor_facts(kind: TensorType) -> dict[str, Any]:
    return {
        "name": str(kind),
        "number": kind.id,
        "bits_per_weight": kind.bits_per_weight,
        "block_size": kind.block_size,
        "block_bytes": kind.block_bytes,
        "ollama": _ollama_takes([kind]),
    }


def _ollama_takes(kinds: list[TensorType]) -> bool:
    from ggufmerge.files.metadata import MetadataEditor
    from ggufmerge.places.ollama.settings import refusals

    return not refusals({str(kind): kind for kind in kinds}, MetadataEditor())


def _is_for_weights(kind: TensorType) -> bool:
    return (kind.is_float or kind.is_quantized) and kind not in ("Q8_1", "Q8_K")
