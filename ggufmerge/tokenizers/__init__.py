"""Vocabularies of GGUF models: reading, comparing, aligning; BPE and SentencePiece."""

from ggufmerge.tokenizers.align import Alignment, Settings, TokenRule, align
from ggufmerge.tokenizers.sentencepiece import difference, read_tokenizer_model, write_tokenizer_model
from ggufmerge.tokenizers.vocabulary import TokenType, Vocabulary, read_vocabulary

__all__ = [
    "Alignment",
    "Settings",
    "TokenRule",
    "TokenType",
    "Vocabulary",
    "align",
    "difference",
    "read_tokenizer_model",
    "read_vocabulary",
    "write_tokenizer_model",
]
