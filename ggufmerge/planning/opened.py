"""What a plan reads from: its sources, in one vocabulary, and its importance matrix; opened for it, or opened again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ggufmerge.errors import PlanError
from ggufmerge.files import MetadataEditor, TensorInfo
from ggufmerge.files.watch import Watch
from ggufmerge.formats.imatrix import load_together
from ggufmerge.places.opening import open_source
from ggufmerge.places.references import locate
from ggufmerge.planning import header, vocabulary
from ggufmerge.planning.plan import Plan, PlannedSource, PlannedTensor
from ggufmerge.quants.importance import Imatrix
from ggufmerge.recipe import ModelReference, load_recipe
from ggufmerge.recipe.reference import AdapterReference
from ggufmerge.sources import Source, TensorReader
from ggufmerge.sources.aligned import aligned
from ggufmerge.sources.layouts import to_one_layout
from ggufmerge.tokenizers import Alignment


@dataclass(frozen=True)
class Opened:
    """What a plan reads from: its sources in order, in one vocabulary, and its importance matrix if it has one.

    others: files that were read besides: the recipe, importance matrices, the file whose types are followed.
    """

    sources: list[Source]
    imatrix: Imatrix | None = None
    others: tuple[Path, ...] = ()

    @classmethod
    def from_plan(cls, plan: Plan) -> Opened:
        """What a plan reads from, opened again: in another process, whose working folder is that of the planner, or in
        this one. What was read besides (`others`) is left out.

        PlanError when a file is not there any more, or has other weights than it had for the plan.
        """
        opening, sources = plan.opening, list[Source]()
        with ExitStack() as on_failure:
            for planned in plan.sources:
                reference = _reference_of(planned)
                path = opening.stages.get(reference.path, reference.path)
                source = open_source(replace(reference, path=path), plan.folder)
                on_failure.callback(source.close)
                source.reference = str(reference)
                sources.append(source)
            to_one_layout(sources)
            matrix = load_together([str(locate(path, ".")) for path in plan.imatrix])
            if matrix is not None and (opening.include or opening.exclude):
                matrix = matrix.select(opening.include, opening.exclude)
            alignment = _alignment_of(plan, sources)
            opened = cls(sources if alignment is None else aligned(sources, alignment), matrix)
            names = [*(source.label for source in sources), "the importance matrix"]
            for name, was, now in zip(names, opening.fingerprints, opened.fingerprints(), strict=False):
                if was != now:
                    raise PlanError(f"{name}: has other weights than when the plan was made: make the plan again")
            on_failure.pop_all()
        return opened

    def files(self) -> list[Path]:
        """Every file that the plan was made from, none of which may be written."""
        return [*(path for source in self.sources for path in source.files()), *self.others]

    def fingerprints(self) -> list[str]:
        """What tells these weights from others: of each source, then of the importance matrix; as they were when this
        was asked first (`files.watch` notices what changes later).
        """
        return list(self._fingerprints)

    @cached_property
    def _fingerprints(self) -> list[str]:
        matrix = [self.imatrix.fingerprint()] if self.imatrix else []
        return [source.fingerprint() for source in self.sources] + matrix

    def close(self) -> None:
        """Close the files of the sources; leaving a `with` block does so, too."""
        for source in self.sources:
            source.close()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_adapted(self, tensor: PlannedTensor) -> bool:
        """Whether an adapter changes an input of a tensor."""
        return any(self.sources[i.source].changed_by_adapter(i.tensor) for i in tensor.inputs)

    def inputs(self, tensor: PlannedTensor) -> list[TensorReader]:
        """A reader of each input of a tensor."""
        return [self.sources[i.source].open_tensor(i.tensor, tensor.name) for i in tensor.inputs]


def watched(sources: Sequence[Source]) -> Watch:
    """The files of some sources, to notice when they change."""
    mapped = (file for source in sources for file in source.mapped())
    return Watch(mapped, (path for source in sources for path in source.files()))


def header_of(plan: Plan, opened: Opened) -> tuple[MetadataEditor, list[TensorInfo]]:
    """What stands in the header of a plan's result: its metadata and its tensors."""
    editor = opened.sources[0].editor()
    for key, number in plan.taken.items():
        editor.set_raw(key, opened.sources[number].metadata.raw(key))
    return header.apply(plan.metadata, editor), [TensorInfo(t.name, t.shape, t.type) for t in plan.tensors]


def _reference_of(planned: PlannedSource) -> ModelReference:
    """What the recipe calls a planned source."""
    return ModelReference(planned.path, tuple(AdapterReference(*adapter) for adapter in planned.adapters))


def _alignment_of(plan: Plan, sources: Sequence[Source]) -> Alignment | None:
    """How the vocabularies of a plan's sources become one, found out from its recipe again."""
    if plan.vocabulary is None:
        return None
    recipe = load_recipe(f"{plan.recipe}\n")
    wanted = [_reference_of(source) for source in plan.sources]
    for stage in (recipe, *recipe.stages):
        document = stage.with_files(plan.opening.stages).in_folder(plan.folder)
        references = document.references()
        if references != wanted:
            continue
        alignment = vocabulary.alignment_of(document, references, sources)
        if vocabulary.planned_vocabulary(document, sources, alignment) == plan.vocabulary:
            return alignment
    labels = " and ".join(source.label for source in plan.sources)
    raise PlanError(f"the vocabularies of {labels} are others than when the plan was made: make it again")
