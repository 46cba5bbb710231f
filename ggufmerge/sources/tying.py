"""Models whose output head is their token embedding, one matrix for both, and what becomes of them when adapters change
only one of the two.

In training, PEFT adds a change of the embedding where tokens are looked up and nowhere else; the head goes on computing
with the frozen matrix (unless `ensure_weight_tying` is set). So the two part: the model gets a head of its own, with
the bytes of the embedding, and adapters change either.
"""

from __future__ import annotations

from dataclasses import replace

import gguf

from ggufmerge import keys
from ggufmerge.files.tensor import Tensor
from ggufmerge.formats.safetensors import FloatArray
from ggufmerge.formats.stored import StoredFile, StoredTensor
from ggufmerge.sources.side_tensors import side_names, side_tensors

_READ = {gguf.MODEL_ARCH_NAMES[arch] for arch, kinds in gguf.MODEL_TENSORS.items() if gguf.MODEL_TENSOR.OUTPUT in kinds}
_ENCODERS = {"bert", "clip", "eurobert", "modern-bert", "neo-bert", "t5encoder"}  # beside those that say so


def is_tied(file: StoredFile) -> bool:
    """Whether a model computes its output with its token embedding; not those that only encode and have no output."""
    arch = file.architecture
    if keys.HEAD in file.tensors or keys.EMBEDDING not in file.tensors:
        return False
    encodes = arch in _ENCODERS or arch.startswith(("nomic-bert", "jina-bert"))
    return not encodes and file.metadata.flag(keys.of(arch, "attention.causal")) is not False


def may_part(architecture: str) -> bool:
    """Whether llama.cpp reads a head from files of an architecture; in others it takes the embedding whatever they hold
    (llama.cpp's `src/llama-model.cpp`, after whose loaders the tables of gguf-py are written).
    """
    return architecture in _READ


def own_head(file: StoredFile) -> dict[str, StoredTensor]:
    """The head of a tied model as a tensor of its own, with the side tensors of the embedding."""
    names = {keys.EMBEDDING: keys.HEAD, **dict(zip(side_names(keys.EMBEDDING), side_names(keys.HEAD), strict=True))}
    beside = side_tensors(file.tensors).get(keys.EMBEDDING, [])
    return {names[own]: _renamed(file.tensors[own], names[own]) for own in (keys.EMBEDDING, *beside)}


def _renamed(tensor: StoredTensor, name: str) -> StoredTensor:
    if isinstance(tensor, FloatArray):
        return tensor.renamed(name)
    assert isinstance(tensor, Tensor), "matrices of checkpoints and of GGUF files are nothing else"
    return replace(tensor, name=name)
