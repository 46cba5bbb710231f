"""The GGUF container: a memory-mapped reader, a streaming atomic writer, metadata and shards."""

from ggufmerge.files.describe import describe
from ggufmerge.files.metadata import Metadata, MetadataEditor, ValueKind
from ggufmerge.files.reader import GGUFFile, open_gguf
from ggufmerge.files.shards import ShardName, shard_paths
from ggufmerge.files.tensor import Tensor, TensorInfo
from ggufmerge.files.writer import GGUFWriter, Layout, check_target, partial_path, same_file

__all__ = [
    "GGUFFile",
    "GGUFWriter",
    "Layout",
    "Metadata",
    "MetadataEditor",
    "ShardName",
    "Tensor",
    "TensorInfo",
    "ValueKind",
    "check_target",
    "describe",
    "open_gguf",
    "partial_path",
    "same_file",
    "shard_paths",
]
