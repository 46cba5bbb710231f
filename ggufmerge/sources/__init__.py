"""Where models come from: files, shards, LoRA adapters."""

from ggufmerge.sources.model import Source, SourceTensor, open_source

__all__ = ["Source", "SourceTensor", "open_source"]
