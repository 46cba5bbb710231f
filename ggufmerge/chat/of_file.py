"""The chat format of a GGUF file, as its metadata tell it."""

from __future__ import annotations

from collections.abc import Sequence

from ggufmerge import keys
from ggufmerge.chat.formats import ChatFormat, learn
from ggufmerge.chat.jinja import Conversation, render
from ggufmerge.chat.templates import TEMPLATE
from ggufmerge.files.metadata import KeyValues
from ggufmerge.tokenizers.vocabulary import TokenType

# Of a file that does not say it: ids of the first and last token of a text, and whether the first one is added.
# Source: llama.cpp's `llama_vocab::impl::load`.
_DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2}, "gpt2": {"bos": 11, "eos": 11}}
_ADD_BOS_MODELS = frozenset({"llama", "bert"})
_ADD_BOS_PRES = frozenset(
    {
        "chameleon",
        "falcon-h1",
        "falcon3",
        "gemma4",
        "jina-v5-nano",
        "lfm2",
        "llama-bpe",
        "llama-v3",
        "llama3",
        "midm-2.0",
        "pixtral",
        "tekken",
    }
)


def chat_format(metadata: KeyValues) -> ChatFormat | None:
    """What the Jinja template of a file writes; None where it has none, or one that writes in a way of its own.

    A beginning-of-sequence token that the tokenizer adds is no part of it. Thinking is switched on, as in llama.cpp.
    """
    template = metadata.text(TEMPLATE)
    if not template:
        return None
    bos, eos = (_special(metadata, what) for what in ("bos", "eos"))
    words: dict[str, str | bool] = {"bos_token": bos, "eos_token": eos, "enable_thinking": True}

    def rendered(conversations: Sequence[Conversation]) -> list[str | None] | None:
        texts = render(template, conversations, words)
        return texts and [text if text is not None and _is_text(text) else None for text in texts]

    return learn(rendered, bos if adds_bos(metadata) else "")


def adds_bos(metadata: KeyValues) -> bool:
    """Whether the tokenizer puts a beginning-of-sequence token in front of a prompt."""
    pre = metadata.text(keys.TOKENIZER_PRE)
    told = metadata.get(keys.ADD_BOS_TOKEN)
    if isinstance(told, bool) and pre != "gemma4":
        return told
    return metadata.text(keys.TOKENIZER_MODEL) in _ADD_BOS_MODELS or pre in _ADD_BOS_PRES


def stops(metadata: KeyValues, form: ChatFormat | None) -> list[str]:
    """The texts at which an answer is over: control tokens that end a turn, else the text that follows an answer.

    A model ends its turns with such a token anyway, if the file names the right one, which not all do. As text it also
    stops a model that writes it letter by letter.
    """
    ids = [i for what in ("eot", "eos") if (i := metadata.integer(keys.token_id(what))) is not None]
    template = metadata.text(TEMPLATE)
    tokens, kinds = metadata.texts(keys.TOKENS), metadata.integers(keys.TOKEN_TYPES)
    if template is None or tokens is None or kinds is None:
        return []
    special = {t for t, kind in zip(tokens, kinds, strict=False) if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)}
    found = [tokens[i] for i in ids if i < len(tokens) and tokens[i] in special and tokens[i] in template]
    if form is not None:
        end = form.assistant.after.strip()
        token = max((t for t in special if t and end.startswith(t)), key=len, default="")
        found.append(token or end or form.user.before.strip())
    return [text for text in dict.fromkeys(found) if text.strip() and _is_text(text)]


def _is_text(text: str) -> bool:
    """Whether no bytes that are no UTF-8 are in it, which can stand neither in a template of Ollama's nor in a stop."""
    return text.encode("utf-8", "replace").decode() == text


def _special(metadata: KeyValues, what: str) -> str:
    """The text of a token by its role, "" where the file has none."""
    default = _DEFAULT_IDS.get(metadata.text(keys.TOKENIZER_MODEL) or "", {}).get(what)
    number = metadata.integer(keys.token_id(what))
    number = default if number is None else number
    tokens = metadata.texts(keys.TOKENS)
    return tokens[number] if number is not None and tokens is not None and number < len(tokens) else ""
