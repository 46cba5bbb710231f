"""What GGUF calls things: the keys of its metadata, and the two tensors that rules know by name.

Source: "Standardized key-value pairs" of ggml's `docs/gguf.md`, and `gguf-py/gguf/constants.py` of llama.cpp.
What the values under these keys mean is in `files/facts.py`.
"""

from __future__ import annotations

GENERAL = "general."
ARCHITECTURE = "general.architecture"
TYPE = "general.type"
FILE_TYPE = "general.file_type"
QUANTIZATION_VERSION = "general.quantization_version"
ALIGNMENT = "general.alignment"
NAME = "general.name"
BASENAME = "general.basename"
FINETUNE = "general.finetune"
SIZE_LABEL = "general.size_label"
VERSION = "general.version"
TAGS = "general.tags"
LANGUAGES = "general.languages"
LICENSE = "general.license"
LICENSE_NAME = "general.license.name"
LICENSE_LINK = "general.license.link"
QUANTIZED_BY = "general.quantized_by"
ORIGIN = (  # who made a model, and where it is
    "general.author",
    "general.version",
    "general.organization",
    "general.description",
    "general.url",
    "general.doi",
    "general.uuid",
    "general.repo_url",
)
BASE_MODEL = "general.base_model."
BASE_MODEL_COUNT = "general.base_model.count"

TOKENIZER = "tokenizer."
TOKENIZER_MODEL = "tokenizer.ggml.model"
TOKENIZER_PRE = "tokenizer.ggml.pre"
TOKENS = "tokenizer.ggml.tokens"
TOKEN_SCORES = "tokenizer.ggml.scores"
TOKEN_TYPES = "tokenizer.ggml.token_type"
ADD_BOS_TOKEN = "tokenizer.ggml.add_bos_token"
ADD_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
HUGGINGFACE_JSON = "tokenizer.huggingface.json"

ADAPTER_TYPE = "adapter.type"
LORA_ALPHA = "adapter.lora.alpha"
TIED_CHANGE = "ggufmerge.adapter.tied"  # whether what an adapter says of the embedding holds for a tied head, too
INVOCATION_TOKENS = "adapter.alora.invocation_tokens"

SPLIT = "split."
SPLIT_NUMBER = "split.no"
SPLIT_COUNT = "split.count"
SPLIT_TENSORS = "split.tensors.count"

IMATRIX = "quantize.imatrix."
IMATRIX_FILE = "quantize.imatrix.file"
IMATRIX_DATASET = "quantize.imatrix.dataset"
IMATRIX_ENTRIES = "quantize.imatrix.entries_count"
IMATRIX_CHUNKS = "quantize.imatrix.chunks_count"

OWN = "ggufmerge."  # what a result says of how it was made (`planning/provenance.py`)
RECIPE = "ggufmerge.recipe"
RECIPE_DIGEST = "ggufmerge.recipe.sha256"
OPTIONS = "ggufmerge.options"  # only read: in files of older versions, whose recipe it won over
LINEAGE = "ggufmerge.lineage."

EMBEDDING = "token_embd.weight"  # a row per token
PER_LAYER_EMBEDDING = "per_layer_token_embd.weight"
# vision and sound, which Ollama keeps in the file of the language model and llama.cpp in one of their own
OTHER_SENSES = ("a.", "mm.", "s.", "v.")
HEAD = "output.weight"  # a row per token; a model without one computes its output with EMBEDDING


def base_model(number: int, field: str) -> str:
    """A field, such as "name", of one of the models that a model was made from."""
    return f"{BASE_MODEL}{number}.{field}"


def source(number: int, field: str) -> str:
    """A field, "file" or "sha256", of one of the files that a result was made from."""
    return f"{OWN}source.{number}.{field}"


def lineage(number: int, field: str) -> str:
    """A field, such as "file", of one of the files that those of a result were made from."""
    return f"{LINEAGE}{number}.{field}"


def token_id(role: str) -> str:
    """The id of the token with a role, such as "eos"."""
    return f"tokenizer.ggml.{role}_token_id"


def is_token_id(key: str) -> bool:
    """Whether the value under a key is the id of a token."""
    start, end = token_id("|").split("|")
    return key.startswith(start) and key.endswith(end)


def of(architecture: str, what: str) -> str:
    """A number of the architecture, such as "attention.head_count"."""
    return f"{architecture}.{what}"


def block_count(architecture: str) -> str:
    """The number of layers."""
    return of(architecture, "block_count")


def vocab_size(architecture: str) -> str:
    """The number of tokens."""
    return of(architecture, "vocab_size")


def embedding_length(architecture: str) -> str:
    """The number of values in a row of the embedding."""
    return of(architecture, "embedding_length")


def context_length(architecture: str) -> str:
    """The number of tokens that the model was trained to look back on."""
    return of(architecture, "context_length")


def prediction_layers(architecture: str) -> str:
    """How many of the layers, the last ones, predict further tokens."""
    return of(architecture, "nextn_predict_layers")
