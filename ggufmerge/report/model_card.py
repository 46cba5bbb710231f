"""The model card of a result: README.md with YAML front matter, as the Hugging Face Hub shows it.

All of it comes out of the file itself: what it was merged from, the recipe, tensors and types; only an evaluation is
added. Source: "Model Cards" in the Hub's docs.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ggufmerge import keys
from ggufmerge.architectures.stacks import kind_of
from ggufmerge.errors import GgufmergeError, RecipeError
from ggufmerge.files import GGUFFile, describe
from ggufmerge.files.absent import absent
from ggufmerge.files.shards import model_name
from ggufmerge.files.small import read_json
from ggufmerge.recipe.document import parse
from ggufmerge.recipe.load import MAX_BYTES
from ggufmerge.text import count, printable, size, utf8

CARD = "README.md"
_MAX_EVALUATION = 1 << 24  # bytes
_MAX_WORDS, _MAX_LISTED = 500, 100  # letters of a line, texts of a list
_FIGURES = ("perplexity", "perplexity_error", "kl_divergence")  # null where a figure is no number
# what Markdown, as GitHub and the Hub read it, may take for markup, the beginning of HTML, a link or a mention
_MARKUP = re.compile(r"[\\`*\[\]|<>~$@]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|:(?=//)|(?<=www)\.", re.IGNORECASE)


def model_card(file: GGUFFile, names: Sequence[str] | None = None, evaluation: Mapping[str, Any] | None = None) -> str:
    """The text of a card. `names`: of the model's files where the card will be, None for those that they have.

    evaluation: what `ggufmerge eval --json` prints.
    """
    facts = describe(file)
    names = names or [path.name for path in file.paths]
    parts = [
        f"# {_cell(facts['name'] or file.path.stem)}",
        _summary(file, facts),
        "## Files\n\n"
        + _table(("file", "size"), zip(map(_cell, names), (size(p.stat().st_size) for p in file.paths), strict=True)),
        _models(file),
        _recipe(file),
        _lineage(file),
        _evaluation(evaluation),
        _types(facts),
        _tensors(file),
    ]
    return front_matter(file) + "\n" + "\n\n".join(part for part in parts if part) + "\n"


def front_matter(file: GGUFFile) -> str:
    """The YAML block at the head of a card."""
    parents = hub_parents(file)
    fields: dict[str, Any] = {}
    if parents:
        fields["base_model"] = parents
        fields["base_model_relation"] = "merge" if _is_merge(file) else "quantized"
    licence = _words(_text(file, keys.LICENSE)).lower()
    if licence:
        fields["license"] = licence
        more = {
            "license_name": _words(_text(file, keys.LICENSE_NAME)),
            "license_link": _words(_text(file, keys.LICENSE_LINK)),
        }
        fields |= {key: value for key, value in more.items() if value}
    if languages := _listed(_texts(file, keys.LANGUAGES)):
        fields["language"] = languages
    fields["library_name"] = "gguf"
    fields["pipeline_tag"] = "text-generation"
    fields["tags"] = list(dict.fromkeys([*_listed(_texts(file, keys.TAGS)), "gguf"]))
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _is_merge(file: GGUFFile) -> bool:
    """Whether it is a merge, or a file that was quantized from one."""
    own = keys.RECIPE in file.metadata
    return own or (keys.source(1, "file") not in file.metadata and keys.lineage(0, "recipe") in file.metadata)


def hub_parents(file: GGUFFile) -> list[str]:
    """The repositories on the Hub that a result comes from, as its recipe and the sources' metadata name them."""
    found = [repo for text in _strings(_parsed(_recipe_text(file))) for repo in _IN_RECIPE.findall(text)]
    urls = [_text(file, keys.base_model(index, "repo_url")) for index in _parents(file)]
    found += [match[1] for url in urls if (match := _URL.fullmatch(url))]
    return list(dict.fromkeys(found))


def _recipe_text(file: GGUFFile) -> str:
    """The recipe of a merge, or of the one that a file was quantized from."""
    own = _text(file, keys.RECIPE)
    return own or (_text(file, keys.lineage(0, "recipe")) if _is_merge(file) else "")


def read_evaluation(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The output of `ggufmerge eval --json`, checked; GgufmergeError when it is something else."""
    try:
        facts = read_json(path, _MAX_EVALUATION)
    except ValueError:
        facts = {}
    except FileNotFoundError:
        raise GgufmergeError(f"{path}: {absent(path, ('.json',))}") from None
    except OSError as error:
        raise GgufmergeError(f"{path}: the evaluation cannot be read ({error.strerror}): check the path") from None
    scores = facts.get("scores")
    if not isinstance(scores, list) or not all(map(_is_score, scores)):
        raise GgufmergeError(f"{path}: this is not an evaluation: give a file with what `ggufmerge eval --json` prints")
    return facts


def _is_score(score: Any) -> bool:
    return (
        isinstance(score, dict)
        and all(isinstance(score.get(key), str) for key in ("model", "text"))
        and {"perplexity", "perplexity_error"} <= score.keys()
        and all(isinstance(score.get(key), (int, float, type(None))) for key in _FIGURES)
    )


def _summary(file: GGUFFile, facts: Mapping[str, Any]) -> str:
    kind = f"{count(facts['parameters'])} parameters, architecture {_cell(facts['architecture'] or 'unknown')}"
    if facts["file_type"]:
        kind += f", type {facts['file_type']}"
    if facts["bits_per_weight"]:
        kind += f" ({facts['bits_per_weight']:.2f} bits per weight)"
    version = _text(file, keys.OWN + "version")
    made = (
        f"Made with ggufmerge {_cell(version)}, which merges quantized GGUF models without their originals. "
        if version
        else ""
    )
    text = f"{made}{kind}. It runs in llama.cpp, Ollama and whatever else reads GGUF."
    if not _text(file, keys.LICENSE):
        text += "\n\nNo licence is stated: those of the models it was made from differ or are not known."
    return text


def _models(file: GGUFFile) -> str:
    rows = []
    for index in _parents(file):
        key = keys.base_model(index, "")
        name, url = _cell(_text(file, key + "name")), _text(file, key + "repo_url")
        linked = f"[{name}]({url})" if re.fullmatch(r"https://[\w./-]+", url) else name
        rows.append((linked, _cell(_text(file, key + "organization")), _cell(_text(file, key + "version"))))
    files, index = [], 0
    while keys.source(index, "file") in file.metadata:
        key = keys.source(index, "")
        digest = _text(file, key + "sha256")
        files.append((_cell(_text(file, key + "file")), _code(digest) if digest else ""))
        index += 1
    text = ""
    if rows:
        title = "Merged models" if keys.RECIPE in file.metadata else "Base models"
        text = f"## {title}\n\n" + _table(("model", "organization", "version"), rows)
    if files:
        text += "\n\n" if text else ""
        text += "The files that were read:\n\n" + _table(("file", "SHA-256"), files)
    return text


def _recipe(file: GGUFFile) -> str:
    recipe = _text(file, keys.RECIPE)
    if not recipe:
        return ""
    if len(recipe) > MAX_BYTES:
        return ""
    fence = _fence(recipe, 3)
    options = _text(file, keys.OPTIONS)  # of a version whose recipes were not the ones in effect
    command = f"\n\nBuilt with the options {_code(options)}." if options else ""
    found = [(key, file.metadata.get(keys.OWN + key)) for key in ("type", "rounding", "seed", "imatrix")]
    settings = ", ".join(f"{key} {_cell(shown)}" for key, value in found if (shown := _setting(value)))
    effect = f"\n\nSettings in effect: {settings}." if settings else ""
    lines = (printable(line) for line in recipe.strip().replace("\r\n", "\n").expandtabs().split("\n"))
    return "\n".join(("## Recipe\n", f"{fence}yaml", *lines, f"{fence}{command}{effect}"))


def _setting(value: Any) -> str:
    """A setting out of a file in words; empty for what is none."""
    if isinstance(value, list):
        return " and ".join(text for text in value if isinstance(text, str))
    return str(value) if isinstance(value, str | int) else ""


def _lineage(file: GGUFFile) -> str:
    """The models that a result's parents were made from, as their own files told."""
    rows: list[tuple[str, ...]] = []
    number = 0
    while any(keys.lineage(number, key) in file.metadata for key in ("file", "name", "version")):
        key = keys.lineage(number, "")
        into = file.metadata.get(key + "into")
        texts = [_cell(_text(file, key + part)) for part in ("file", "name", "type", "rounding", "options")]
        rows.append((str(number), *texts, str(into) if isinstance(into, int) else "this file"))
        number += 1
    if not rows:
        return ""
    heads: tuple[str, ...] = ("", "file", "name", "type", "rounding", "options", "went into")
    if not any(row[5] for row in rows):  # only files of older versions have options beside their recipe
        heads, rows = (*heads[:5], heads[6]), [(*row[:5], row[6]) for row in rows]
    return f"## Lineage\n\nHow the files that were merged came about:\n\n{_table(heads, rows)}"


def _evaluation(evaluation: Mapping[str, Any] | None) -> str:
    if not evaluation or not evaluation.get("scores"):
        return ""
    scores = evaluation["scores"]
    heads = ["text", "model", "perplexity", "KL divergence"]
    rows = [
        [
            _cell(Path(str(score["text"])).name),
            _cell(model_name("+".join(Path(part).name for part in str(score["model"]).split("+")))),
            f"{_figure(score['perplexity'], 3)} ± {_figure(score['perplexity_error'], 3)}",
            _figure(score["kl_divergence"], 4) if "kl_divergence" in score else "",
        ]
        for score in scores
    ]
    if not any(row[3] for row in rows):
        heads, rows = heads[:3], [row[:3] for row in rows]
    reference = evaluation.get("reference")
    note = f"\n\nKL divergence is from {_cell(model_name(Path(str(reference)).name))}." if reference else ""
    return f"## Evaluation\n\n{_table(heads, rows)}{note}"


def _types(facts: Mapping[str, Any]) -> str:
    rows = [
        (kind, str(row["tensors"]), count(row["values"]), size(row["nbytes"]), f"{row['bits_per_weight']:.2f}")
        for kind, row in facts["types"].items()
    ]
    return "## Types\n\n" + _table(("type", "tensors", "weights", "size", "bits per weight"), rows)


def _tensors(file: GGUFFile) -> str:
    kinds = Counter((kind_of(t.name), " x ".join(map(str, t.shape)), t.type.value) for t in file.tensors.values())
    rows = [(_cell(name), str(count), shape, kind) for (name, shape, kind), count in kinds.items()]
    return "## Tensors\n\n" + _table(("tensor", "number", "shape", "type"), rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(number: float | None, digits: int) -> str:
    return "-" if number is None else f"{number:.{digits}f}"


def _words(text: str) -> str:
    """A text out of a file on one line, without characters that do not print, and not too long."""
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_WORDS]).strip()


def _listed(texts: Sequence[str]) -> list[str]:
    return [words for text in texts[:_MAX_LISTED] if (words := _words(text))]


def _cell(text: str) -> str:
    """A text out of a file as one line of Markdown without any meaning of its own: no markup, HTML, links, mentions."""
    return _MARKUP.sub(r"\\\g<0>", _words(text))


def _code(text: str) -> str:
    """A text out of a file as code within a line, also of a table."""
    words = _words(text).replace("|", "\\|")
    fence = _fence(words, 1)
    space = " " if words[:1] == "`" or words[-1:] == "`" or not words else ""
    return f"{fence}{space}{words}{space}{fence}"


def _fence(text: str, least: int) -> str:
    """More backticks than there are side by side in a text."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def _text(file: GGUFFile, key: str) -> str:
    return utf8(file.metadata.text(key) or "")


def _texts(file: GGUFFile, key: str) -> list[str]:
    return [utf8(text) for text in file.metadata.texts(key) or []]


def _parents(file: GGUFFile) -> list[int]:
    """The numbers of the models that the metadata names as parents, in order: those of which something is said."""
    count = file.metadata.integer(keys.BASE_MODEL_COUNT) or 0
    numbers = {int(match[1]) for key in file.metadata if (match := _PARENT.match(key))}
    return sorted(number for number in numbers if number < count)


def _parsed(recipe: str) -> Any:
    try:
        return [document.data for document in parse(recipe)] if len(recipe) <= MAX_BYTES else []
    except RecipeError:
        return []


def _strings(value: Any) -> Iterator[str]:
    """All texts within lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


_PARENT = re.compile(r"general\.base_model\.(\d{1,9})\.", re.ASCII)
_IN_RECIPE = re.compile(r"(?:^|\+)(?:hf:|ollama:(?:hf\.co|huggingface\.co)/)([\w.-]+/[\w.-]+)", re.ASCII)
_URL = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+?)/?", re.ASCII)
