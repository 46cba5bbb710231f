"""What a reference that is no file may mean: a model of the Hugging Face Hub, of Ollama, of LM Studio, or two files."""

from __future__ import annotations

import contextlib
import difflib
import re
from pathlib import Path

from ggufmerge.errors import GgufmergeError
from ggufmerge.places.schemes import is_scheme
from ggufmerge.types import FileType

_HUB = re.compile(
    r"(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/+([\w.-]+/[\w.-]+)(?:/(?:blob|resolve|tree|raw)/[^/]+)?/?(.*)"
)
_OLLAMA = re.compile(
    r"(?:https?:/+)?(?:www\.)?(?:ollama\.com|registry\.ollama\.ai)/+(?:library/)?([\w.-]+(?:/[\w.-]+)?(?::[\w.-]+)?)/?"
)
_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*?)(?:[:@]([\w.-]+))?")
_OLLAMA_ID = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?:[\w.-]+")
_QUOTES = "“”„‟‘’‚«»"
_SPELLINGS = {"ollama": "ollama", "hf": "hf", "huggingface": "hf", "lmstudio": "lmstudio", "llamacpp": "llama.cpp"}
_SHAPES = {  # what stands behind the colon
    "ollama": "model:tag",
    "hf": "owner/repo:Q4_K_M",
    "lmstudio": "publisher/model",
    "llama.cpp": "file.gguf",
}


def meaning(reference: str, folder: Path) -> str:
    """What to write instead, for a reference that is no file of `folder`; "" when it looks like a path."""
    return (
        _in_quotes(reference)
        or _from_hub_address(reference)
        or _from_ollama_address(reference)
        or _address(reference)
        or _scheme(reference)
        or _joined(reference, folder)
        or _hub_id(reference, folder)
        or _ollama_id(reference)
    )


def _in_quotes(reference: str) -> str:
    """For a name in the quotes of a text processor, which are letters like any other."""
    plain = reference.strip(_QUOTES)
    return f'the quotes are part of the name: write "{plain}", with straight ones or none' if plain != reference else ""


def _from_hub_address(reference: str) -> str:
    match = _HUB.fullmatch(reference.partition("?")[0])
    if match is None:
        return ""
    repo, file = match[1], match[2]
    return f"this is a file on the Hugging Face Hub: write hf:{repo}/{file}" if file else _repository(repo, "")


def _from_ollama_address(reference: str) -> str:
    match = _OLLAMA.fullmatch(reference)
    return _ollama(match[1]) if match else ""


def _address(reference: str) -> str:
    # one slash is what is left of two in a path; a single letter is a drive
    is_address = re.match(r"\w{2,}:/+\w", reference)
    return "web addresses are not read: download the file and give its path" if is_address else ""


def _scheme(reference: str) -> str:
    """For a scheme in another spelling."""
    word, colon, name = reference.partition(":")
    if not colon or len(word) < 2 or is_scheme(word):
        return ""
    letters = re.sub(r"[^a-z0-9]", "", word.lower())
    close = difflib.get_close_matches(letters, _SPELLINGS, n=1, cutoff=0.8)
    if not close or (letters not in _SPELLINGS and "." in word):
        return ""
    scheme = _SPELLINGS[close[0]]
    return f"did you mean {scheme}:{name.lstrip('/') or _SHAPES[scheme]}?"


def _joined(reference: str, folder: Path) -> str:
    """For a model with adapters where one file is wanted."""
    parts = reference.split("+")
    files = [folder / (part if (folder / part).is_file() else part.rpartition("=")[0]) for part in parts]
    if len(parts) == 1 or not all(path.is_file() for path in files):
        return ""
    files_named = f"one file is wanted here, and these are {len(parts)}"
    return f"{files_named}; ggufmerge bake {' '.join(parts)} makes one of a model and its adapters"


def _hub_id(reference: str, folder: Path) -> str:
    match = _ID.fullmatch(reference)
    if match is None or reference.lower().endswith((".gguf", ".safetensors", ".bin")):
        return ""
    owner = match[1].partition("/")[0]
    if (folder / owner).is_dir() or owner in (".", ".."):
        return ""
    tag = match[2] or ""
    return "" if tag and not _is_type(tag) and ":" in reference else _repository(match[1], tag)


def _repository(repo: str, file_type: str) -> str:
    if "gguf" in repo.lower():
        return f"this looks like a Hugging Face repository: write hf:{repo}:{file_type or 'Q4_K_M'}"
    name = repo.partition("/")[2]
    return (
        f"this looks like a Hugging Face repository: write hf:OWNER/{name}-GGUF:{file_type or 'Q4_K_M'} for one with "
        "GGUF files, or download the checkpoint and give its folder"
    )


def _ollama_id(reference: str) -> str:
    if _OLLAMA_ID.fullmatch(reference) and not re.match(r"[A-Za-z]:", reference):
        return _ollama(reference)
    if re.fullmatch(r"[\w-][\w.-]*", reference) and _in_ollama(reference):
        return _ollama(reference)
    return ""


def _ollama(name: str) -> str:
    there = _in_ollama(name)
    what = "which the store on this machine has" if there else f"which ollama pull {name} gets"
    return f"this looks like a model of Ollama: write ollama:{name}, {what}"


def _in_ollama(name: str) -> bool:
    from ggufmerge.places.ollama.names import OllamaName, lookup
    from ggufmerge.places.ollama.store import candidate_roots

    with contextlib.suppress(GgufmergeError, OSError):
        return any(lookup(root, OllamaName.parse(name)) is not None for root in candidate_roots())
    return False


def _is_type(word: str) -> bool:
    try:
        FileType.parse(word)
    except GgufmergeError:
        return False
    return True
