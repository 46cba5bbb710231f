"""Models that take part in a merge: their weights with adapters applied, their vocabulary, what is known of them."""

from ggufmerge.sources.model import Source, SourceTensor, TensorReader

__all__ = ["Source", "SourceTensor", "TensorReader"]
