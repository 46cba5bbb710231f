"""`--max-size`, `--max-bpw`, `--save-types`: types for a budget, as they are asked for, shown and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ggufmerge.planning.fitting import Fitting, Market
    from ggufmerge.recipe.budget import ByteBudget

MaxBytes = Annotated[
    str | None,
    typer.Option(
        "--max-size", metavar="SIZE", help="Choose types so that the tensors take no more: 3.5G, 800M, 3.2GiB."
    ),
]
MaxBits = Annotated[
    str | None,
    typer.Option("--max-bpw", metavar="BITS", help="The same in bits per weight: 4.6."),
]
FitsMemory = Annotated[
    str | None,
    typer.Option(
        "--fits",
        metavar="SIZE[,ctx=N][,kv=TYPE]",
        help="The same for the memory to run it in, keys, values and buffers included: 8G,ctx=8192.",
    ),
]
SaveTypes = Annotated[
    Path | None,
    typer.Option(
        "--save-types",
        metavar="FILE",
        help="Write the chosen types for --tensor-type-file; as tensor_types of a recipe if it ends in .yaml.",
    ),
]

_WITHOUT = (
    "types were chosen without an importance matrix, by the error of the weights alone: with one (--imatrix) a model "
    "of the same size is clearly better"
)


class Chooser:
    """What chooses the types of a plan for a budget, and keeps what it chose."""

    def __init__(self, budget: ByteBudget) -> None:
        self.budget = budget
        self.fitting: Fitting | None = None
        self.look: Callable[[Market], Market] = lambda market: market  # what probes make of it

    def __call__(self, market: Market) -> Fitting:
        market = self.look(market)
        self.fitting = market.fit(self.budget)
        return self.fitting


def chooser(max_size: str | int | None, max_bpw: str | None, save: Path | None, *, overwrite: bool) -> Chooser | None:
    """What the options ask for, if anything. GgufmergeError for what is no size, and for a file that is there."""
    from ggufmerge.files import check_target
    from ggufmerge.recipe.budget import ByteBudget

    budget = ByteBudget.parse(max_size, max_bpw)
    if save is not None:
        if budget is None:
            raise typer.BadParameter(
                "needs --max-size or --max-bpw, for which types are chosen", param_hint="--save-types"
            )
        check_target(save, overwrite=overwrite)
    return Chooser(budget) if budget is not None else None


def size_that_fits(source: str, text: str) -> int:
    """Bytes that the tensors of a model may take where it is to run in so much memory, for `chooser`."""
    from ggufmerge.files import open_gguf
    from ggufmerge.places.references import find
    from ggufmerge.planning.fits import budget_for_weights, parse_fits

    fits = parse_fits(text)
    with open_gguf(find(source).path) as file:
        return budget_for_weights(fits, file.metadata, file.tensors)


def without_statistics(market: Market) -> list[str]:
    """A warning when types are judged by the error of the weights alone."""
    return [_WITHOUT] if market.prediction.statistics == "none" and market.prediction.options else []


def facts_of(fitting: Fitting) -> dict[str, Any]:
    """The choice, for JSON."""
    near = fitting.rival
    return {
        "budget": fitting.limit,
        "nbytes": fitting.nbytes,
        "predicted_damage": fitting.harm,
        "statistics": fitting.market.prediction.statistics,
        "best_mixture": None
        if near is None
        else {"file_type": str(near.file_type), "nbytes": near.nbytes, "predicted_damage": near.harm},
        "types": [{"pattern": pattern, "type": str(kind)} for pattern, kind in fitting.rules()],
    }


def show(fitting: Fitting) -> None:
    """The choice as a table of kinds by types, and what it is predicted to be worth."""
    from ggufmerge.architectures.stacks import kind_of
    from ggufmerge.cli.terminal import show_table, tell
    from ggufmerge.text import size

    kinds: dict[str, dict[Any, int]] = {}
    for name, option in fitting.allotted.items():
        found = kinds.setdefault(kind_of(name), {})
        found[option.type] = found.get(option.type, 0) + 1
    used = sorted({kind for found in kinds.values() for kind in found}, key=lambda t: (t.bits_per_weight, str(t)))
    rows = [(name, *(str(found[t]) if t in found else "" for t in used)) for name, found in kinds.items()]
    show_table(("chosen", *map(str, used)), rows, numbers=len(used))
    bits = 8 * fitting.nbytes / max(fitting.market.parameters, 1)
    line = f"{size(fitting.nbytes)} of {size(fitting.limit)}, {bits:.3f} bits per weight"
    tell([f"{line}: predicted damage {figure(fitting.harm)}{_compared(fitting)}"])


def figure(harm: float) -> str:
    return f"{harm:.3g}"


def _compared(fitting: Fitting) -> str:
    from ggufmerge.text import size

    near = fitting.rival
    if near is None:
        return ""
    where = "the best mixture within it" if near.nbytes <= fitting.limit else "the smallest mixture"
    return f"; {where}, {near.file_type} ({size(near.nbytes)}): {figure(near.harm)}"


def save_types(path: Path | None, fitting: Fitting, *, overwrite: bool, quiet: bool) -> None:
    """Write the choice to a file, if one was asked for."""
    from ggufmerge.cli.terminal import tell
    from ggufmerge.files.writer import write_new

    if path is None:
        return
    write_new(path, types_text(fitting, recipe=path.suffix.lower() in (".yaml", ".yml")).encode(), overwrite=overwrite)
    if not quiet:
        tell([f"{path}: types; use them with file type {fitting.file_type}"])


def types_text(fitting: Fitting, *, recipe: bool) -> str:
    """The choice as lines of REGEX=TYPE, which llama-quantize reads, too; or as keys of a recipe."""
    rules = fitting.rules()
    if not recipe:
        return "".join(f"{pattern}={kind}\n" for pattern, kind in rules)
    lines = (f"  '{pattern}': {kind}\n" for pattern, kind in rules)
    return "".join([f"out_type: {fitting.file_type}\n", "tensor_types:\n", *lines])


def merged(facts: Mapping[str, Any], fitting: Fitting | None) -> dict[str, Any]:
    """The facts of a command, with those of a choice where there was one."""
    return {**facts, "fitting": facts_of(fitting)} if fitting is not None else dict(facts)
