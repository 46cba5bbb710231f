"""The layers of a model as llama.cpp counts them, and what it reads about them in the metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufmerge import keys

# Keys of an architecture that may have one value per layer, and those outside of it: what llama.cpp v0.5.0 reads with
# `get_key_or_arr(..., n_layer)` or `get_arr` and indexes by layer (`src/models/*.cpp`, `src/llama-model.cpp`).
PER_LAYER = (
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_count",
    "expert_used_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.sliding_window_pattern",
    "attention.rope_pattern",
    "attention.recurrent_layers",
    "attention.compress_ratios",
    "attention.indexer.types",
    "activation_sparsity_scale",
    "swiglu_clamp_exp",
    "swiglu_clamp_shexp",
    "deepstack_mapping",
)
PER_LAYER_ANYWHERE = ("xielu.alpha_n", "xielu.alpha_p", "xielu.beta", "xielu.eps")
# Numbers that any model may state for each layer, and the architectures in which llama.cpp goes by them when it looks
# for the tensors of a layer (`n_ff(i)`, `n_head(i)`, `n_head_kv(i)` in `load_arch_tensors`); in all others every layer
# has the sizes of layer 0.
SIZES = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")
SIZED_PER_LAYER = frozenset({"deci", "gemma4", "nemotron_h", "nemotron_h_moe", "openelm", "plamo3"})
# Lists of the architecture of which each is about something else than layers, however long it is.
NOT_PER_LAYER = ("rope.dimension_sections", "classifier.output_labels", "target_layers", "adapters.", "ple.")


class Changed(Mapping[str, Any]):
    """Metadata with some keys set, or removed where the value is None."""

    def __init__(self, metadata: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
        self._metadata, self._changes = metadata, changes

    def __getitem__(self, key: str) -> Any:
        if key not in self._changes:
            return self._metadata[key]
        if self._changes[key] is None:
            raise KeyError(key)
        return self._changes[key]

    def __iter__(self) -> Iterator[str]:
        yield from (key for key in self._metadata if key not in self._changes)
        yield from (key for key, value in self._changes.items() if value is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class Layers:
    """A model's layers.

    count: all of them, `block_count`; those at the end that predict further tokens (MTP) are among them.
    """

    architecture: str
    count: int
    metadata: Mapping[str, Any]

    def key(self, what: str) -> str:
        """The whole key of something that the architecture has, such as "attention.sliding_window"."""
        return keys.of(self.architecture, what)

    def integer(self, what: str) -> int | None:
        """The whole number under a key of the architecture; None when there is none."""
        value = self.metadata.get(self.key(what))
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            return None
        return int(value) if value >= 0 else None

    def values(self, what: str) -> list[Any] | None:
        """The list under a key of the architecture; None when there is none."""
        value = self.metadata.get(self.key(what))
        if isinstance(value, np.ndarray):
            return list(value.tolist())
        return value if isinstance(value, list) else None

    @property
    def further(self) -> int:
        """How many layers, the last ones, predict further tokens."""
        return min(self.integer("nextn_predict_layers") or 0, self.count)

    @property
    def main(self) -> int:
        """How many layers there are before those (`n_layer()` of llama.cpp)."""
        return self.count - self.further
