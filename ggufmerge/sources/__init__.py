"""Where models come from: files, shards, LoRA adapters."""

from ggufmerge.sources.model import Source, SourceTensor, locate, open_source

__all__ = ["Source", "SourceTensor", "locate", "open_source"]
