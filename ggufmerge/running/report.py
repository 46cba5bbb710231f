"""What a build did and found out, for whoever asked for it and for the journal of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from ggufmerge.errors import OutputError
from ggufmerge.files.output import Output
from ggufmerge.planning.plan import PlannedTensor
from ggufmerge.planning.survival import Survival, TypeSurvival, by_type, total
from ggufmerge.running.encode import Figures
from ggufmerge.running.signal import Heeded
from ggufmerge.running.survey import Finding
from ggufmerge.text import count, size


@dataclass(frozen=True)
class BuildReport:
    """What a build did. `output` is the file to open, `files` are all that were written: that one, or the shards of
    which it is the first. `notes`: decisions that only the weights could bring about, as (tensor, text).
    """

    output: Path
    nbytes: int
    seconds: float
    merged: int
    converted: int
    copied: int
    resumed: int
    sources: dict[str, str]  # file -> sha256
    errors: dict[str, float]  # tensor -> relative RMS error of writing it in its type, when measured
    survival: dict[str, Survival]  # tensor -> what is left of its change, of quantized tensors and when measured
    kept: tuple[TypeSurvival, ...] = ()  # the same for each quantized type, and what a wider one would keep
    heeded: dict[str, list[Heeded]] = field(default_factory=dict)  # tensor -> what its method made of rounding errors
    notes: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    resumption: str = ""  # what became of the work of an interrupted build; empty when there was none
    file_type: str = ""
    parameters: int = 0
    source_bytes: int = 0  # size of the source files together

    def __repr__(self) -> str:
        made = (("merged", self.merged), ("converted", self.converted), ("copied", self.copied))
        what = ", ".join(f"{number} {verb}" for verb, number in made if number)
        facts = f"{self.file_type}, {count(self.parameters)} parameters, {size(self.nbytes)}; {what}; "
        warned = f"; {len(self.warnings)} warning{'s' * (len(self.warnings) > 1)}" if self.warnings else ""
        return f"<BuildReport {self.output}: {facts}{self.seconds:.1f} s{warned}>"


@dataclass(frozen=True)
class Facts:
    """What a run found out, as its journal keeps it for the report of a run that goes on after everything was written.

    See `BuildReport`; `survival` has the sums of each tensor, `wider` the same for wider file types, `stochastic` the
    tensors that were rounded so, `warnings` those that only the run could give.
    """

    nbytes: int
    sources: dict[str, str]
    errors: dict[str, float]
    survival: dict[str, list[float]]
    wider: dict[str, dict[str, list[float]]]
    stochastic: list[str]
    heeded: dict[str, list[dict[str, Any]]]
    notes: list[list[str]]
    warnings: list[str]

    @classmethod
    def of(cls, output: Output) -> Facts:
        """Those of a sealed output. OutputError when its journal has others."""
        try:
            return cls(**output.record.facts)
        except TypeError:
            raise OutputError(f"{output.journal_path}: was not written by this program: remove it") from None

    @classmethod
    def gathered(
        cls,
        tensors: Sequence[PlannedTensor],
        *,
        nbytes: int,
        sources: Mapping[Path, str],
        figures: Mapping[str, Figures],
        findings: Mapping[str, Sequence[Finding]],
        adapted: Callable[[PlannedTensor], bool],
        heeded: Mapping[str, Sequence[Heeded]],
        notes: Iterable[tuple[str, str]],
        warnings: Sequence[str],
    ) -> Facts:
        """Those of a run, in the order of the plan, not as the threads came to their ends.

        figures: of the tensors that were measured.  findings: of those that were surveyed, one for each matrix.
        adapted: whether adapters change the only input of a converted tensor.
        heeded: of the tensors of which a method made something of rounding errors.
        """
        order = {t.name: place for place, t in enumerate(tensors)}
        found = {name: findings[name] for name in order if name in findings}
        survival = {name: total(f.survival for f in parts) for name, parts in found.items()}
        wider = {
            name: {of: total(f.wider.get(of, f.survival) for f in parts) for one in parts for of in one.wider}
            for name, parts in found.items()
        }
        for t in tensors:
            exact = figures.get(t.name)
            if exact and t.action == "convert" and adapted(t):
                plain = survival[t.name].plain if t.name in survival else 0.0
                survival[t.name] = Survival(exact.kept, exact.change, exact.error, plain)
        return cls(
            nbytes=nbytes,
            sources={str(path): digest for path, digest in sources.items()},
            errors={name: figures[name].relative_error for name in order if name in figures},
            survival={name: list(astuple(s)) for name, s in survival.items()},
            wider={name: {of: list(astuple(s)) for of, s in tried.items()} for name, tried in wider.items()},
            stochastic=[name for name, parts in found.items() if any(f.rounding == "stochastic" for f in parts)],
            heeded={name: [asdict(one) for one in heeded[name]] for name in order if name in heeded},
            notes=sorted((list(note) for note in notes), key=lambda note: order.get(note[0], len(order))),
            warnings=list(warnings),
        )

    def kept(self, tensors: Sequence[PlannedTensor], sizes: Mapping[str, int]) -> list[TypeSurvival]:
        """What is left of the changes, for each quantized type. sizes: of the file in wider types."""
        wider = {
            name: {of: Survival(*sums) for of, sums in by_file_type.items()}
            for name, by_file_type in self.wider.items()
        }
        return by_type(tensors, self.survivals(), self.stochastic, wider, sizes)

    def survivals(self) -> dict[str, Survival]:
        """What is left of the change of each tensor."""
        return {name: Survival(*sums) for name, sums in self.survival.items()}

    def heard(self) -> dict[str, list[Heeded]]:
        """What the methods made of the rounding errors in the inputs of each tensor."""
        return {name: [Heeded.from_json(one) for one in found] for name, found in self.heeded.items()}
