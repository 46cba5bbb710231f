"""The plan: what happens to every tensor, decided before any weight is read. Plain data that prints, compares and
round-trips to JSON.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, Literal

from ggufmerge.methods.parameters import Value
from ggufmerge.text import counted, size
from ggufmerge.types import FileType, TensorType

Action = Literal["copy", "convert", "merge"]
Rounding = str  # the name of an encoder (`quants.encoders`): "nearest", "stochastic"
PlannedRounding = str  # or "auto"


@dataclass(frozen=True)
class PlannedSource:
    """A model of the recipe. `label` is what tables and messages call it."""

    label: str
    path: str
    adapters: tuple[tuple[str, float], ...]  # (path, strength)
    name: str  # general.name, or the file's name
    architecture: str
    file_type: str
    nbytes: int


@dataclass(frozen=True)
class PlannedVocabulary:
    """The vocabulary of the result, when the recipe asks for one (`tokenizers.align`).

    source: "union", or the model whose vocabulary is taken.  tokens: its size.  added: tokens that this model, for a
    union the first, does not have.
    filled: for each model how many rows come from elsewhere, by rule: "copied", "averaged", "zero", "padding".
    dropped: for each model how many of its tokens the result lacks.
    digest: of the vocabulary and of where each row comes from.
    """

    source: str
    tokens: int
    added: int
    filled: dict[str, dict[str, int]]
    dropped: dict[str, int]
    digest: str


@dataclass(frozen=True)
class Opening:
    """What it takes to open a plan's files again, beside their names (`opened.Opened.from_plan`). It plays no part in
    what the result is.

    fingerprints: of each source, then of the importance matrix: by them other weights are noticed.
    stages: the files of the documents of the recipe that the plan reads from, by the names of these.
    include, exclude: which entries of the importance matrix are used (`Imatrix.select`).
    """

    fingerprints: tuple[str, ...] = ()
    stages: dict[str, str] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """One input of a tensor: the tensor `tensor` of source number `source`."""

    source: int
    tensor: str


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the result.

    action: "copy" takes the stored bytes of its single input; "convert" dequantizes its single input and writes it in
        another type; "merge" combines the inputs, which stand in the method's order (base first if it has one).
    shared, models: the parameters that hold for this tensor, as in `methods.spec.Problem`.
    experts: number of matrices stacked in the tensor that are merged one by one (1 for ordinary tensors).
    scale: the input whose scale (`planning.side_tensors`) the values are divided by before they are quantized.
    offset: what the stored values are larger by than the weights that the method is about (see `stored_form`).
    rounding: "stochastic" rounds the change onto the grid of the blocks that it is a change of (`quants.encoders`);
        "auto" does so where rounding to the nearest would lose the change (`running.survey`).
    keeps_type: whether the type is that of an input which the result may be a change of.
    noise_aware: whether the method is told how much of the differences is a change of weights (`running.signal`), and
        may take other values than `models` has.
    calibrated: whether it is written with the correlations of its inputs (`quants.calibrated`).
    why_type: the rule that chose the type.
    decisions: what was decided automatically for this tensor and may surprise, in words.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    action: Action
    inputs: tuple[Input, ...]
    method: str = ""
    has_base: bool = False
    shared: dict[str, Value] = field(default_factory=dict)
    models: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    experts: int = 1
    offset: float = 0.0
    scale: Input | None = None
    rounding: PlannedRounding = "nearest"
    keeps_type: bool = False
    noise_aware: bool = False
    calibrated: bool = False
    why_type: str = ""
    decisions: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Values in a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def matrices(self) -> int:
        """Number of matrices stacked in the tensor (experts, mostly); an importance matrix has a row for each."""
        return prod(self.shape[:-2])

    @property
    def nbytes(self) -> int:
        return self.rows * self.type.row_bytes(self.n)


@dataclass(frozen=True)
class Plan:
    """Everything `run` needs to know. The result takes over the metadata and tokenizer of the first source."""

    method: str
    architecture: str
    file_type: FileType
    seed: int
    folder: str  # where relative paths start
    recipe: str  # the text of the recipe in effect
    sources: tuple[PlannedSource, ...]
    tensors: tuple[PlannedTensor, ...]
    imatrix: tuple[str, ...]  # importance matrices, whose sums and counts add up
    metadata: dict[str, Any]  # keys to set in the result; None removes the key of the first source
    taken: dict[str, int] = field(
        default_factory=dict
    )  # keys that it lacks -> the number of the source that gives them
    warnings: tuple[str, ...] = ()
    vocabulary: PlannedVocabulary | None = None
    expectations: tuple[str, ...] = ()  # what rounding will do to the changes, as far as headers tell
    opening: Opening = Opening()

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data in the result, without padding."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def parameters(self) -> int:
        """Number of weights in the result."""
        return sum(prod(t.shape) for t in self.tensors)

    def __repr__(self) -> str:
        models = counted(len(self.sources), "model")
        facts = f"{self.file_type}, {len(self.tensors)} tensors, {size(self.nbytes)}"
        warned = f", {counted(len(self.warnings), 'warning')}" if self.warnings else ""
        return f"<Plan {self.method or 'copy'} of {models} ({self.architecture}): {facts}{warned}>"

    def count(self, action: Action) -> int:
        return sum(t.action == action for t in self.tensors)

    def types(self) -> Counter[TensorType]:
        return Counter(t.type for t in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """As values that `json.dumps` takes; `Plan.from_json` gives an equal plan back."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        fields = dict(data)
        fields["file_type"] = FileType.parse(data["file_type"])
        fields["warnings"] = tuple(data["warnings"])
        fields["imatrix"] = tuple(data["imatrix"])
        fields["expectations"] = tuple(data["expectations"])
        fields["sources"] = tuple(
            PlannedSource(**{**s, "adapters": tuple((path, strength) for path, strength in s["adapters"])})
            for s in data["sources"]
        )
        fields["tensors"] = tuple(_tensor_from_json(t) for t in data["tensors"])
        fields["vocabulary"] = PlannedVocabulary(**data["vocabulary"]) if data["vocabulary"] else None
        opening = data["opening"]
        lists = {key: tuple(opening[key]) for key in ("fingerprints", "include", "exclude")}
        fields["opening"] = Opening(stages=opening["stages"], **lists)
        return cls(**fields)


def _tensor_from_json(data: dict[str, Any]) -> PlannedTensor:
    return PlannedTensor(
        **{
            **data,
            "type": TensorType.parse(data["type"]),
            "shape": tuple(data["shape"]),
            "inputs": tuple(Input(**i) for i in data["inputs"]),
            "scale": Input(**data["scale"]) if data["scale"] else None,
            "models": {k: tuple(v) for k, v in data["models"].items()},
            "decisions": tuple(data["decisions"]),
        }
    )
