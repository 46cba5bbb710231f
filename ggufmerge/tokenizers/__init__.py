"""Vocabularies of GGUF models: reading, comparing, aligning; BPE and SentencePiece."""

from ggufmerge.tokenizers.align import Alignment, Settings, TokenRule, align
from ggufmerge.tokenizers.vocabulary import TokenType, Vocabulary, read_vocabulary

__all__ = ["Alignment", "Settings", "TokenRule", "TokenType", "Vocabulary", "align", "read_vocabulary"]
