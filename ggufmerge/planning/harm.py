"""How much writing a tensor in a type harms a model, predicted from a sample of its rows.

The sample is encoded as the whole would be, with the importance matrix where there is one. What counts is the error of
the tensor's product with its inputs, relative to that product: tr(E H E^T) / tr(W H W^T) with E = W - Q and
H = D^1/2 C D^1/2, the second moments of the inputs. D comes from an importance matrix and C from a calibration file
(`quants.correlations`); without the first D is the identity, without the second C is.

What a relative error of the same size does to the predictions of the model differs by kind of tensor. The factors here
were measured with llama.cpp on two families (docs/fitting.md), which agree within a factor of two. So the harms of all
tensors add up to a KL divergence, in nats, of the right order; its ratios are nearer than its size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ggufmerge.architectures.stacks import layer_of, part_of
from ggufmerge.planning.budget import Option
from ggufmerge.planning.plan import PlannedTensor
from ggufmerge.quants import codec
from ggufmerge.quants.calibrated.moments import SHRINKAGE
from ggufmerge.quants.correlations import Correlation
from ggufmerge.quants.importance import Imatrix
from ggufmerge.quants.mixture import needs_imatrix
from ggufmerge.sources import Source
from ggufmerge.types import TensorType

T = TensorType
Floats = NDArray[np.float32]

# From coarse to fine. Those of 1 to 3 bits with code books are tried with an importance matrix only.
_CODE_BOOKS = (T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S)
_PLAIN = (T.Q2_K, T.Q3_K, T.IQ4_XS, T.IQ4_NL, T.Q4_0, T.Q4_K, T.Q4_1, T.Q5_0, T.Q5_K, T.Q5_1, T.Q6_K, T.Q8_0)
_FLOATS = (T.F16, T.BF16)

_VALUES = 16384  # of a tensor in its sample, in whole rows
_FEWEST, _MOST = 8, 64  # rows of a sample

# Nats of KL divergence for a relative error of 1 in all tensors of a kind, had all layers the sensitivity of the first,
# the middle or the last third: the geometric mean of two families, by what the error is weighed with.
_INSIDE: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "correlations": {
        "attn_q.": (2.6, 2.4, 1.5),
        "attn_k.": (3.7, 1.9, 1.4),
        "attn_v.": (5.9, 2.9, 2.6),
        "attn_output.": (6.7, 3.4, 3.1),
        "ffn_gate": (14.3, 5.2, 9.2),
        "ffn_up": (10.0, 4.0, 10.0),
        "ffn_down": (21.3, 14.6, 20.6),
    },
    "importance": {
        "attn_q.": (1.4, 1.3, 0.9),
        "attn_k.": (2.3, 1.3, 1.0),
        "attn_v.": (5.5, 3.1, 3.0),
        "attn_output.": (4.0, 3.0, 1.5),
        "ffn_gate": (10.7, 3.7, 6.9),
        "ffn_up": (9.7, 3.7, 8.8),
        "ffn_down": (14.9, 11.3, 15.0),
    },
    "none": {
        "attn_q.": (0.94, 1.0, 0.83),
        "attn_k.": (1.4, 0.9, 0.74),
        "attn_v.": (9.5, 6.9, 4.8),
        "attn_output.": (3.7, 2.9, 1.6),
        "ffn_gate": (8.7, 2.6, 5.8),
        "ffn_up": (12.0, 4.4, 9.8),
        "ffn_down": (12.7, 9.8, 12.2),
    },
}
_OTHER = (6.0, 3.5, 4.5)
# Token embeddings and output head, by the error of their weights alone: 6 in one family, 14 to 17 in the other. They
# are the largest tensors of small models, and cut too short they cost more than is won elsewhere.
_OUTSIDE = 16.0
_FIRST, _LAST = 2.5, 2.0  # times as sensitive as the others of their third are the first and the last layer
_CLEAR = 4  # layers of a third, from which on that is heeded
_DIGITS = 6  # of a harm: what sums of another processor differ by must not change a choice


@dataclass(frozen=True)
class Prediction:
    """What each tensor may be written in, and what that would cost.

    options: by name, for every tensor that has a choice.
    statistics: "correlations", "importance" or "none": what most tensors were weighed with.
    scale: what harms were multiplied with to be KL divergences of this model, by kind (`part_of`); empty unless probed.
    """

    options: Mapping[str, tuple[Option, ...]]
    statistics: str
    scale: Mapping[str, float] = field(default_factory=dict)


def ladder(tensor: PlannedTensor, stored: TensorType, *, importance: bool) -> list[TensorType]:
    """The types that a tensor may be written in, coarse ones first: those whose blocks fill its rows and that are no
    larger than what is stored, which is one of them.

    importance: whether there is an importance matrix for the tensor.
    """
    tried = [*(_CODE_BOOKS if importance else ()), *_PLAIN, *_FLOATS]
    fitting = [
        kind
        for kind in tried
        if tensor.n % kind.block_size == 0
        and kind.bits_per_weight < stored.bits_per_weight
        and (importance or not needs_imatrix(tensor.name, kind))
    ]
    return [*sorted(fitting, key=lambda kind: kind.bits_per_weight), *([stored] if codec(stored).writable else [])]


def predict(
    tensors: Sequence[PlannedTensor],
    sources: Sequence[Source],
    imatrix: Imatrix | None,
    *,
    only: Mapping[str, Sequence[TensorType]] | None = None,
    threads: int | None = None,
) -> Prediction:
    """The options of each tensor and the harm of each, from a sample of what its first input holds.

    only: by name, other types to try than those of `ladder`.  GgufmergeError (DamageError, PlanError) for weights and
    matrices that no quantizer takes.
    """
    layers = 1 + max((n for t in tensors if (n := layer_of(t.name)) is not None), default=0)

    def of(tensor: PlannedTensor) -> tuple[tuple[Option, ...], str]:
        return _options(tensor, sources, imatrix, None if only is None else only[tensor.name], layers)

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        found = list(pool.map(of, tensors))
    used = [statistics for _, statistics in found]
    most = max(("none", "importance", "correlations"), key=used.count) if used else "none"
    return Prediction({t.name: options for t, (options, _) in zip(tensors, found, strict=True)}, most)


def factor(name: str, layers: int, statistics: str) -> float:
    """Nats of KL divergence for a relative error of 1 in the product of one tensor, by small errors.

    layers: of the model.  statistics: what the error is weighed with, see `Prediction`.
    A kind of tensor that was not measured counts as the middle of those of a layer.
    """
    part, layer = part_of(name), layer_of(name)
    if layer is None:
        return _OUTSIDE
    table = _INSIDE[statistics]
    thirds = next((value for text, value in table.items() if text in part), _OTHER)
    third = layer * 3 // layers
    return thirds[third] * _at_the_ends(layer, third, layers) / layers


def _at_the_ends(layer: int, third: int, layers: int) -> float:
    """How much more a layer matters than the others of its third, which as a whole keeps its weight."""
    several = sum(n * 3 // layers == third for n in range(layers))
    end, more = {0: (0, _FIRST), 2: (layers - 1, _LAST)}.get(third, (-1, 1.0))
    if several < _CLEAR or end < 0:
        return 1.0
    return more if layer == end else (several - more) / (several - 1)


def _options(
    tensor: PlannedTensor,
    sources: Sequence[Source],
    imatrix: Imatrix | None,
    kinds: Sequence[TensorType] | None,
    layers: int,
) -> tuple[tuple[Option, ...], str]:
    given = tensor.inputs[0]
    source = sources[given.source]
    stored = source.file.tensors[given.tensor].type
    weights = imatrix.get(tensor.name, tensor.n, tensor.matrices) if imatrix else None
    correlations = imatrix.correlation(tensor.name, tensor.n, tensor.matrices) if imatrix else None
    statistics = "none" if weights is None else "importance" if correlations is None else "correlations"
    weighed = "none" if layer_of(tensor.name) is None else statistics
    sample = _sample(tensor, source, weights, correlations)
    options = []
    for kind in kinds if kinds is not None else ladder(tensor, stored, importance=weights is not None):
        harm = 0.0
        if kind != stored or tensor.action == "merge":
            harm = _rounded(factor(tensor.name, layers, weighed) * sample.error(kind, weighed))
        options.append(Option(kind, tensor.rows * kind.row_bytes(tensor.n), harm))
    return tuple(options), statistics


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


@dataclass(frozen=True)
class _Sample:
    """Rows of a tensor, float32 [rows, n] for each matrix that is looked at, with what its inputs are like."""

    parts: Sequence[tuple[Floats, Floats | None, Correlation | None]]

    def error(self, kind: TensorType, statistics: str) -> float:
        """The relative error of the product in a type, weighed with the inputs or ("none") without; infinite for a
        type that cannot hold the weights.
        """
        error = energy = 0.0
        for rows, weights, correlation in self.parts:
            raw = np.empty((len(rows), kind.row_bytes(rows.shape[1])), np.uint8)
            back = np.empty_like(rows)
            codec(kind).encode(rows, raw, weights)
            if codec(kind).decode(raw, back) >= 0:
                return math.inf
            inputs = None if statistics == "none" else weights
            error += _moment(rows - back, inputs, correlation if inputs is not None else None)
            energy += _moment(rows, inputs, correlation if inputs is not None else None)
        return error / energy if energy else 0.0


def _sample(
    tensor: PlannedTensor, source: Source, weights: Floats | None, correlations: Sequence[Correlation] | None
) -> _Sample:
    """Rows spread evenly over a tensor, the same on every machine."""
    wanted = min(tensor.rows, max(_FEWEST, min(_MOST, _VALUES // max(1, tensor.n))))
    per_matrix = tensor.rows // max(1, tensor.matrices)
    numbers = [(2 * k + 1) * tensor.rows // (2 * wanted) for k in range(wanted)]
    reader = source.open_tensor(tensor.inputs[0].tensor, tensor.name)
    by_matrix: dict[int, list[int]] = {}
    for number in numbers:
        by_matrix.setdefault(number // per_matrix, []).append(number)
    parts = []
    for matrix, several in by_matrix.items():
        rows = np.empty((len(several), tensor.n), np.float32)
        for i, number in enumerate(several):
            reader.read(number, rows[i : i + 1])
        seen = None if weights is None or not weights[matrix].any() else np.ascontiguousarray(weights[matrix])
        parts.append((rows, seen, None if correlations is None else correlations[matrix]))
    return _Sample(parts)


def _moment(x: Floats, weights: Floats | None, correlation: Correlation | None) -> float:
    """tr(X H X^T) of rows X."""
    values = x.astype(np.float64)
    if weights is not None:
        values *= np.sqrt(weights.astype(np.float64))
    own = float(np.square(values).sum())
    if correlation is None:
        return own
    if correlation.loadings is not None:
        loadings = correlation.loadings.astype(np.float64)
        rest = 1 - np.square(loadings).sum(axis=0)
        together = float(np.square(values @ loadings.T).sum() + (np.square(values) @ rest).sum())
    else:
        together = float(((values @ correlation.matrix()) * values).sum())
    return SHRINKAGE * own + (1 - SHRINKAGE) * together
