"""Which types a model could be written in, what each takes and what harm it is predicted to do: a table to choose from.

Every fixed mixture stands beside the choice of types that has the same size (`planning.fitting`). Who is on the Pareto
front: those that no smaller one and none of the same size does less harm than.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.errors import GgufmergeError
from ggufmerge.planning.fitting import Fitting, Market
from ggufmerge.recipe.budget import ByteBudget


@dataclass(frozen=True)
class Suggestion:
    """One way to write a model.

    name: of a file type; "fitted to" it for types that are chosen for the same size.
    nbytes: of tensor data.  bits: per weight.  harm: predicted KL divergence from the model as it is, nats.
    fitting: the types, for those that are chosen.
    """

    name: str
    nbytes: int
    bits: float
    harm: float
    on_front: bool = False
    fitting: Fitting | None = field(default=None, repr=False)

    @property
    def file_type(self) -> str:
        """The mixture's, or the one whose size is kept to."""
        return self.name.removeprefix(FITTED)


FITTED = "fitted to "


def suggest(
    path: str | os.PathLike[str],
    *,
    imatrix: Sequence[str | os.PathLike[str]] = (),
    budget: ByteBudget | None = None,
    threads: int | None = None,
) -> tuple[Market, list[Suggestion]]:
    """What there is to choose from for a model, by size, and the market that it comes from.

    budget: keep to what is no larger.  GgufmergeError says what does not fit, and that nothing does.
    """
    found: list[Market] = []

    def look(market: Market) -> Fitting:
        found.append(market)
        return market.unchanged()

    _, opened = plan_quantize(path, None, imatrix=imatrix, fitted=look, threads=threads)
    opened.close()
    market = found[0]
    return market, suggestions(market, budget)


def suggestions(market: Market, budget: ByteBudget | None = None) -> list[Suggestion]:
    """The fixed mixtures that a model can have, by size, and beside each the types that are chosen for its size."""
    limit = None if budget is None else budget.bytes_for(market.parameters)
    if limit is not None and market.least > limit:
        market.fit(budget)  # type: ignore[arg-type]  # says why not
    rows: list[Suggestion] = []
    for mixture in market.mixtures:
        if limit is not None and mixture.nbytes > limit:
            continue
        fitting = market.fit(ByteBudget(nbytes=mixture.nbytes))
        rows.append(_row(market, str(mixture.file_type), mixture.nbytes, mixture.harm))
        rows.append(_row(market, f"{FITTED}{mixture.file_type}", fitting.nbytes, fitting.harm, fitting))
    if limit is not None:
        fitting = market.fit(budget)  # type: ignore[arg-type]
        rows.append(_row(market, f"{FITTED}{budget}", fitting.nbytes, fitting.harm, fitting))
    if not rows:
        raise GgufmergeError("this model has no tensor that could be written in another type")
    return front(sorted(rows, key=lambda row: (row.nbytes, row.harm, row.name)))


def front(rows: Sequence[Suggestion]) -> list[Suggestion]:
    """Suggestions by size with a mark on those that no earlier one is as good as."""
    best, marked = float("inf"), []
    for row in rows:
        marked.append(
            Suggestion(row.name, row.nbytes, row.bits, row.harm, on_front=row.harm < best, fitting=row.fitting)
        )
        best = min(best, row.harm)
    return marked


def _row(market: Market, name: str, nbytes: int, harm: float, fitting: Fitting | None = None) -> Suggestion:
    return Suggestion(name, nbytes, 8 * nbytes / max(market.parameters, 1), harm, fitting=fitting)
