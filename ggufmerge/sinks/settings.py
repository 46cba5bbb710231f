"""How a merged model is prompted in Ollama: what it takes over from parents that come from an Ollama store, and what
its own file tells. Also which files Ollama would not take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ggufmerge.errors import PlanError
from ggufmerge.files import GGUFFile
from ggufmerge.files.metadata import KeyValues, ValueKind
from ggufmerge.sources import Source
from ggufmerge.sources.ollama import OllamaSettings
from ggufmerge.types import TensorType

# What may stand behind PARAMETER. Source: `Options` in Ollama's `api/types.go`, without typical_p, which newer versions
# refuse in a model.
PARAMETERS = frozenset(
    {
        "draft_num_predict",
        "frequency_penalty",
        "main_gpu",
        "min_p",
        "num_batch",
        "num_ctx",
        "num_gpu",
        "num_keep",
        "num_predict",
        "num_thread",
        "presence_penalty",
        "repeat_last_n",
        "repeat_penalty",
        "seed",
        "stop",
        "temperature",
        "top_k",
        "top_p",
        "use_mmap",
    }
)
_CHAT_TEMPLATE = "tokenizer.chat_template"
_CONTROL = 3  # token_type of tokens that are no text
_MAX_STRING, _MAX_ARRAY = 16 << 20, 64 << 20  # bytes, elements; `fs/gguf/gguf.go`
# types whose size `fs/ggml/ggml.go` does not know
_UNKNOWN_TYPES = frozenset({TensorType.Q2_0, TensorType.TQ1_0, TensorType.TQ2_0})
# scalars that its `WriteGGUF` has no code for
_UNWRITABLE = frozenset({ValueKind.U8, ValueKind.I8, ValueKind.U16, ValueKind.I16, ValueKind.F64})


def inherited(sources: Sequence[Source], changes: Mapping[str, Any]) -> tuple[OllamaSettings, list[str]]:
    """What a result takes over from the parents that have settings of Ollama's, and warnings where they disagree.

    Each setting comes from the first parent that has it, as the tokenizer does; licences come from all of them.
    changes: the metadata that the merge changes. When it changes the chat template, the parents' templates, renderers
    and parsers do not fit any more and are left out.
    """
    parents = [(s.label, s.located.ollama) for s in sources if s.located.ollama is not None]
    taken: dict[str, Any] = {}
    warnings = []
    for what in ("template", "system", "parameters", "messages", "renderer", "parser", "requires"):
        having = [(label, value) for label, settings in parents if (value := getattr(settings, what))]
        if having and what in ("template", "renderer", "parser") and _CHAT_TEMPLATE in changes:
            warnings.append(f"the recipe sets a chat template, so the {what} of {having[0][0]} in Ollama is left out")
        elif having:
            taken[what] = having[0][1]
            others = [label for label, value in having[1:] if value != having[0][1]]
            if others:
                warnings.append(f"Ollama's {what} is taken from {having[0][0]}; {', '.join(others)} has another")
    taken["licenses"] = tuple(dict.fromkeys(text for _, settings in parents for text in settings.licenses))
    if unknown := sorted(set(taken.get("parameters", ())) - PARAMETERS):
        warnings.append(f"Ollama's parameters {', '.join(unknown)} can stand in no model today and are left out")
        taken["parameters"] = {k: v for k, v in taken["parameters"].items() if k in PARAMETERS}
    return OllamaSettings(**taken), warnings


def completed(settings: OllamaSettings, metadata: KeyValues) -> OllamaSettings:
    """Settings with what the metadata of the result tells, where no parent has said it: where to stop, the licence."""
    parameters = dict(settings.parameters)
    if "stop" not in parameters and (stops := _stops(metadata)):
        parameters["stop"] = stops
    licenses = settings.licenses
    if not licenses:
        texts = [metadata.text(f"general.license{part}") for part in (".name", "", ".link")]
        licenses = ("\n".join(filter(None, texts)),)
    return replace(settings, parameters=parameters, licenses=tuple(filter(None, licenses)))


def refusals(types: Mapping[str, TensorType], metadata: KeyValues) -> list[str]:
    """Why Ollama would not take a file with these tensors and this metadata; nothing when it would.

    llama.cpp takes all of it. Source: Ollama's `fs/ggml/gguf.go`, `fs/ggml/type.go`.
    """
    problems = []
    for kind in sorted(set(types.values()) & _UNKNOWN_TYPES):
        name = next(n for n, t in types.items() if t is kind)
        problems.append(f"{name} is {kind}, a type that Ollama does not know; choose another with --type")
    problems += _too_large(metadata)
    for key in metadata:
        if metadata.kind(key) in _UNWRITABLE:
            number = metadata.kind(key).name.lower()
            problems.append(f"the metadata key {key} is a number of type {number}, which Ollama cannot write")
    return problems


def check_file(file: GGUFFile) -> None:
    """PlanError when Ollama would refuse a file."""
    if len(file.paths) > 1:
        raise PlanError(f"{file.path}: is split into {len(file.paths)} shards; Ollama takes one file: write it in one")
    check_content({n: t.type for n, t in file.tensors.items()}, file.metadata)


def check_content(types: Mapping[str, TensorType], metadata: KeyValues) -> None:
    """PlanError when Ollama would refuse a file with these tensors and this metadata."""
    if problems := refusals(types, metadata):
        raise PlanError(*(f"Ollama would refuse the result: {problem}" for problem in problems))


def _too_large(metadata: KeyValues) -> Iterable[str]:
    for key in metadata:
        kind, span = metadata.kind(key), metadata.raw(key)
        if kind == ValueKind.ARRAY:
            if metadata.count(key) > _MAX_ARRAY:
                yield f"the metadata key {key} has {metadata.count(key)} elements; Ollama takes at most {_MAX_ARRAY}"
            if metadata.element_kind(key) != ValueKind.STRING or len(span) <= _MAX_STRING:
                continue
            longest = max(len(text.encode("utf-8", "surrogateescape")) for text in metadata[key])
        elif kind == ValueKind.STRING:
            longest = len(span) - 12  # behind the type and the length
        else:
            continue
        if longest > _MAX_STRING:
            yield f"the metadata key {key} holds a text of {longest} bytes; Ollama takes at most {_MAX_STRING}"


def _stops(metadata: KeyValues) -> list[str]:
    """The control tokens that end a turn or the text, as far as the chat template spells them out.

    Models end their turns with them anyway; as text they also stop a model that writes them letter by letter.
    """
    template = metadata.text(_CHAT_TEMPLATE)
    ids = [i for what in ("eot", "eos") if (i := metadata.integer(f"tokenizer.ggml.{what}_token_id")) is not None]
    if template is None or not ids:
        return []
    tokens, kinds = metadata.texts("tokenizer.ggml.tokens"), metadata.integers("tokenizer.ggml.token_type")
    if tokens is None or kinds is None:
        return []
    count = min(len(tokens), len(kinds))
    texts = [tokens[i] for i in ids if i < count and kinds[i] == _CONTROL]
    return list(dict.fromkeys(text for text in texts if text and text in template))
