"""The GGUF container: a memory-mapped reader, a streaming atomic writer, metadata and shards."""

from ggufmerge.files.metadata import Metadata, MetadataEditor, ValueKind
from ggufmerge.files.reader import GGUFFile, open_gguf
from ggufmerge.files.shards import ShardName, shard_paths
from ggufmerge.files.tensor import Tensor, TensorInfo

__all__ = [
    "GGUFFile",
    "Metadata",
    "MetadataEditor",
    "ShardName",
    "Tensor",
    "TensorInfo",
    "ValueKind",
    "open_gguf",
    "shard_paths",
]
