"""How a merged model is prompted in Ollama: what it takes over from parents that come from an Ollama store, and what
its own file tells. Also which files Ollama would not take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ggufmerge import keys
from ggufmerge.chat.go_template import go_template
from ggufmerge.chat.of_file import chat_format, stops
from ggufmerge.chat.templates import TEMPLATE
from ggufmerge.errors import PlanError
from ggufmerge.files import GGUFFile, facts
from ggufmerge.files.metadata import KeyValues, ValueKind
from ggufmerge.places.ollama.store import OllamaSettings, settings_of
from ggufmerge.sources import Source
from ggufmerge.text import quoted
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
_MAX_STRING, _MAX_ARRAY = 16 << 20, 64 << 20  # bytes, elements; `fs/gguf/gguf.go`
# types whose size `fs/ggml/ggml.go` does not know
_UNKNOWN_TYPES = frozenset({TensorType.Q2_0, TensorType.TQ1_0, TensorType.TQ2_0})
_RUNS_JINJA = (0, 30)  # the first version of Ollama that uses the chat template of the file
# Architectures that Ollama prompts with code of its own: renderer, parser, stops; as `server/create.go` sets them.
_RENDERED: Mapping[str, tuple[str | None, str | None, tuple[str, ...]]] = {
    "gemma4": ("gemma4", "gemma4", ("<turn|>",)),
    "laguna": ("laguna", "laguna", ()),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe", "nemotron_h_omni"), ("nemotron-3-nano", "nemotron-3-nano", ())),
}


def inherited(sources: Sequence[Source], changes: Mapping[str, Any]) -> tuple[OllamaSettings, list[str]]:
    """What a result takes over from the parents that have settings of Ollama's, and warnings where they disagree.

    Template, renderer, parser and stop strings belong together and come from one parent: the first one that says how it
    is prompted, in Ollama or, where it is the first source, by a chat template in its file. System prompt, example
    messages and the other parameters each come from the first parent that has them, licences from all of them.
    changes: the metadata that the merge changes. When it changes the chat template, nothing that belongs to the
    templates of the parents fits any more.
    """
    parents = [(s.label, settings) for s in sources if (settings := settings_of(s)) is not None]
    taken, warnings = _prompting(sources, TEMPLATE in changes)
    for what in ("system", "messages", "requires"):
        having = [(label, value) for label, settings in parents if (value := getattr(settings, what))]
        if having:
            taken[what] = having[0][1]
            warnings += _differing(what, having)
    plain = [(label, {k: v for k, v in s.parameters.items() if k != "stop"}) for label, s in parents]
    plain = [(label, parameters) for label, parameters in plain if parameters]
    if plain:
        taken["parameters"] = taken["parameters"] | plain[0][1]
        warnings += _differing("parameters", plain)
    taken["licenses"] = tuple(dict.fromkeys(text for _, settings in parents for text in settings.licenses))
    if unknown := sorted(set(taken["parameters"]) - PARAMETERS):
        warnings.append(f"Ollama's parameters {', '.join(unknown)} cannot be part of a model today and are left out")
        taken["parameters"] = {k: v for k, v in taken["parameters"].items() if k in PARAMETERS}
    return OllamaSettings(**taken), warnings


def _prompting(sources: Sequence[Source], replaced: bool) -> tuple[dict[str, Any], list[str]]:
    """What one parent says of how it is prompted, as keywords of `OllamaSettings`, and a warning for what others say.

    replaced: whether the result has a chat template of its own.
    """
    first = sources[0]
    saying = [s for s in sources if _words(s)]
    donor: Source | None = None
    if replaced:
        why = "the recipe sets a chat template"
    elif first in saying or not first.metadata.text(TEMPLATE):
        donor = next(iter(saying or [s for s in sources if settings_of(s)]), None)
        why = f"the prompt format is that of {donor.label}" if donor else ""
    else:
        donor, why = first, f"the prompt format is that of {first.label}, by the chat template in its file"
    words = _words(donor)
    others = {s.label: theirs for s in saying if (theirs := _words(s)) != words}
    warnings = [
        f"{why}; the {' and '.join(left)} of {label} in Ollama {'is' if len(left) == 1 else 'are'} left out"
        for label, left in others.items()
    ]
    kept = settings_of(donor) if donor else None
    found = kept.parameters if kept else {}
    return {**words, "parameters": {"stop": found["stop"]} if "stop" in found else {}}, warnings


def _words(source: Source | None) -> dict[str, str]:
    """How Ollama prompts a parent: what it keeps of that beside the file."""
    settings = settings_of(source) if source else None
    names = ("template", "renderer", "parser")
    return {name: value for name in names if (value := getattr(settings, name, None))}


def _differing(what: str, having: Sequence[tuple[str, Any]]) -> list[str]:
    others = [label for label, value in having[1:] if value != having[0][1]]
    return [f"Ollama's {what} is taken from {having[0][0]}; {', '.join(others)} has another"] if others else []


def completed(settings: OllamaSettings, metadata: KeyValues) -> OllamaSettings:
    """Settings with what the metadata of the result tells, where no parent has said it: how it is prompted, where to
    stop, the licence.

    The template is that of the file in Ollama's language, so that every version of Ollama prompts the model alike, and
    `ollama show --modelfile` gives a whole Modelfile. None where it cannot be said in that language.
    """
    architecture = metadata.text(keys.ARCHITECTURE) or ""
    renderer, parser, ends = _RENDERED.get(architecture, (None, None, ()))
    renderer, parser = settings.renderer or renderer, settings.parser or parser
    form = chat_format(metadata) if settings.template is None and renderer is None and parser is None else None
    parameters = dict(settings.parameters)
    if "stop" not in parameters and (found := list(ends) or stops(metadata, form)):
        parameters["stop"] = found
    licenses = settings.licenses
    if not licenses:
        texts = [metadata.text(key) for key in (keys.LICENSE_NAME, keys.LICENSE, keys.LICENSE_LINK)]
        licenses = ("\n".join(filter(None, texts)),)
    return replace(
        settings,
        template=settings.template if form is None else go_template(form),
        renderer=renderer,
        parser=parser,
        parameters=parameters,
        licenses=tuple(filter(None, licenses)),
    )


def prompt_warnings(settings: OllamaSettings, metadata: KeyValues, version: tuple[int, ...] | None = None) -> list[str]:
    """What the user should know of how Ollama will prompt a model with these (completed) settings.

    version: of the Ollama that will run it, None where that is not known.
    """
    if settings.template is not None or settings.renderer or settings.parser:
        return []
    if not metadata.text(TEMPLATE):
        return [
            "the result has no chat template, so Ollama makes up a format that the model may not know; a recipe can "
            "set one, such as chat_template: chatml, or auto for that of most models"
        ]
    if version is not None and version >= _RUNS_JINJA:
        return []
    return [
        "the chat template of the result cannot be said in Ollama's template language: Ollama 0.30 and newer use the "
        "one in the file, older ones pass questions on without it"
    ]


def refusals(types: Mapping[str, TensorType], metadata: KeyValues) -> list[str]:
    """Why Ollama would not take a file with these tensors and this metadata; nothing when it would.

    llama.cpp takes all of it. Source: Ollama's `fs/ggml/gguf.go`, `fs/ggml/type.go`.
    """
    problems = []
    if (said := metadata.text(keys.TYPE) or "model") != "model":
        problems.append(f'{keys.TYPE} is {quoted(said)}, not "model"; set it under metadata: of the recipe')
    for kind in sorted(set(types.values()) & _UNKNOWN_TYPES):
        name = next(n for n, t in types.items() if t is kind)
        problems.append(f"{name} is {kind}, a type that Ollama does not know; choose another with --type")
    problems += _too_large(metadata)
    return problems


def check_file(file: GGUFFile) -> None:
    """PlanError when Ollama would refuse a file."""
    if len(file.paths) > 1:
        raise PlanError(f"{file.path}: is split into {len(file.paths)} shards; Ollama takes one file: write it in one")
    kind = facts.kind(file)
    if kind == "adapter":
        raise PlanError(
            f"{file.path}: is an adapter, which Ollama runs on a model: write a Modelfile with the lines FROM BASE and "
            f"ADAPTER ./{file.path.name}, then ollama create NAME -f Modelfile; or bake it into its base"
        )
    if kind not in ("model", ""):
        what = f"is not a model but of type {quoted(kind)}"
        raise PlanError(f"{file.path}: {what}; give the file with the model's weights")
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
