"""The GGUF container: a memory-mapped reader, a streaming atomic writer, metadata and shards."""
