"""The Hugging Face names of the tensors of each architecture: `model.layers.3.mlp.down_proj` for `blk.3.ffn_down`.

gguf's table (names.json, made by scripts/make_architecture_names.py) lists for each tensor the names that it has in the
checkpoints of all families. Of an architecture it holds for the tensors that the architecture has, and where a name is
listed for two of them, for the later one: that is how llama.cpp's converter reads it. renamed.py adds what converters
rename before.

A filter is a part of a name, and the names that other families have would mislead it: Falcon calls the norm before
attention `ln_mlp`, which a filter `mlp` for a Llama does not mean. So an architecture has names of its own, and a
filter that is part of one of these is looked for nowhere else.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from ggufmerge.architectures.renamed import BIASES, MULTIMODAL, PREFIXES, RENAMED

# Names that many families share, each for the tensor that gguf's table gives it in an architecture.
_COMMON = re.compile(
    r"model\.embed_tokens|model\.norm|lm_head|model\.layers\.\{bid\}\.("
    r"(?P<part>self_attn|linear_attn|mlp|block_sparse_moe|mamba|conv)\.(?!linear_attn).+|"
    r"input_layernorm|post_attention_layernorm|"
    r"(pre|post)_feedforward_layernorm(_\d)?)"
)
_FEW = 3  # architectures of a name that is not shared by many
_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)", re.ASCII)
_NUMBER = re.compile(r"(?<![A-Za-z0-9_])\d+", re.ASCII)
_PART = re.compile(r".*?\{bid\}\.\w+\.")
_GLOB = frozenset("*?[")
_NUMBERS_OF_GLOB = re.compile(r"(?<![A-Za-z0-9_])(\d|\?|\[!?[\d-]+\])+", re.ASCII)


class Names:
    """What the tensors of one architecture are called. One that is not known, as "", has the names of all.

    own: the Hugging Face names that its checkpoints have, by GGUF name, without weight or bias; {bid} is the layer.
    others: what else gguf's table and the converters would read as this tensor.
    """

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.is_known = architecture in architectures()
        self.own: dict[str, tuple[str, ...]] = {}
        self.others: dict[str, tuple[str, ...]] = {}
        self._listed, everywhere = listed(architecture), listed("")
        parts = _parts(architecture, self._listed)
        taken = {s for spelled in self._listed.values() for s in spelled} if self.is_known else set()
        for name in dict.fromkeys((*self._listed, *everywhere)):
            spelled = self._listed.get(name)
            if spelled is None:  # a tensor that gguf does not expect there; a file may have it all the same
                spelled = {s: said for s, said in everywhere[name].items() if s not in taken}
            renamed = RENAMED.get(architecture, {}).get(name, ())
            said = [s for s, users in spelled.items() if architecture in users.split()]
            common = _common(architecture, spelled, [*said, *renamed])
            said = [*(said or (s for s in spelled if _part(s) in parts)), *renamed]
            if said and (".ssm_" in name or name.endswith(".attn_norm_2")):  # elsewhere in a layer in each family
                common = []
            own = [*dict.fromkeys((*common, *said))] or list(spelled)
            self.own[name] = tuple(own)
            prefixed = [_put(prefix, s) for s in own for prefix in PREFIXES.get(architecture, ())]
            others = (*spelled, *prefixed, *(m for s in own for m in _multimodal(s)))
            self.others[name] = tuple(s for s in dict.fromkeys(others) if s not in own)

    def spellings(self, name: str) -> tuple[str, ...]:
        """All names that a tensor has: its own in GGUF first, then those of its checkpoints, then all others."""
        return tuple(dict.fromkeys((*self.own_spellings(name), *self._spelled(name, self.others))))

    def own_spellings(self, name: str) -> tuple[str, ...]:
        """The name of a tensor in GGUF, and those that it has in checkpoints of this architecture."""
        return (name, *self._spelled(name, self.own))

    def is_own(self, pattern: str) -> bool:
        """Whether a filter, a part of a name or a glob over one, is one of the names that the architecture has itself,
        whatever the number of the layer.
        """
        if _GLOB & set(pattern):
            glob = _NUMBERS_OF_GLOB.sub("?", pattern)  # and no more, or it would mean other parts, too
            return any(fnmatch.fnmatchcase(name, glob) for name in self._at_layer_0)
        part = _NUMBER.sub("0", pattern)
        return any(part in name for name in self._at_layer_0)

    def _spelled(self, name: str, table: Mapping[str, tuple[str, ...]]) -> list[str]:
        """The Hugging Face names that a table has for a tensor, with its layer, and weight or bias where it has one."""
        match = _LAYER.search(name)
        layer = match[0] if match else "0"  # some families keep in a layer what GGUF keeps once
        template = f"{name[: match.start()]}{{bid}}{name[match.end() :]}" if match else name
        stem, suffix = (template, "") if template in table else template.rpartition(".")[::2]
        found = []
        for spelling in table.get(stem, ()):
            plain = spelling.replace("{bid}", layer)
            if plain == spelling or plain not in self._numbered:
                found += [f"{plain}.{suffix}" if suffix else plain, *_otherwise(plain, suffix)]
        return found

    @cached_property
    def _numbered(self) -> frozenset[str]:
        """The names with a number that is not the layer's, which go before those of a layer of that number."""
        return frozenset(
            s for spelled in self._listed.values() for s in spelled if "{bid}" not in s and _LAYER.search(s)
        )

    @cached_property
    def _at_layer_0(self) -> list[str]:
        found = []
        for name, spelled in self.own.items():
            # others than the architecture is known to have: only what is not to be taken for another tensor
            for stem in (name, *spelled) if name in self._listed else filter(_COMMON.fullmatch, spelled):
                first = _NUMBER.sub("0", stem.replace("{bid}", "0"))
                found += [first, first + ".weight", first + ".bias", *_otherwise(first, "bias")]
        return found


@cache
def names_of(architecture: str) -> Names:
    """The names of an architecture of llama.cpp, as general.architecture has it."""
    return Names(architecture)


@lru_cache(maxsize=65536)
def spellings(name: str, architecture: str) -> tuple[str, ...]:
    """All names a filter may mean a tensor by: its GGUF name first, then the Hugging Face ones."""
    return names_of(architecture).spellings(name)


@lru_cache(maxsize=65536)
def own_spellings(name: str, architecture: str) -> tuple[str, ...]:
    """The GGUF name of a tensor, and those that it has in checkpoints of this architecture."""
    return names_of(architecture).own_spellings(name)


@lru_cache(maxsize=4096)
def is_own(pattern: str, architecture: str) -> bool:
    """Whether a filter is part of one of the names that an architecture has itself; see `Names`."""
    return names_of(architecture).is_own(pattern)


@cache
def known_words() -> frozenset[str]:
    """Names of layer 0 and of what lies outside the layers that exist in some model, in both vocabularies.

    A filter that matches no tensor of the models at hand, but one of these, may rightly stand in a recipe that was
    written for several models (`shared_expert`, or `lm_head` where the head is tied).
    """
    everywhere = names_of("")
    found = set[str]()
    # not of the models that only see and hear, which have words for everything
    for stem in dict.fromkeys(stem for known in architectures() if known != "clip" for stem in listed(known)):
        for suffix in ("weight", "bias"):
            found.update(everywhere.spellings(f"{stem.replace('{bid}', '0')}.{suffix}"))
    for renamed in RENAMED.values():
        found.update(f"{s.replace('{bid}', '0')}.weight" for spelled in renamed.values() for s in spelled)
    return frozenset(found)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("names.json").read_text("utf-8"))
    return table


def architectures() -> list[str]:
    """The architectures that the table knows, sorted."""
    return list(_table()["architectures"])


@cache
def listed(architecture: str) -> Mapping[str, Mapping[str, str]]:
    """GGUF name to the Hugging Face names that gguf's table lists for it, each with the architectures that use it.

    For an architecture, each name stands only with the tensor that the converter reads it as; for one that is not
    known, with every tensor that it may be.
    """
    table = _table()
    tensors, special = table["tensors"], table["special"].get(architecture, {})
    names = {**{t: entry["name"] for t, entry in tensors.items()}, **table["without"]}
    has = table["architectures"].get(architecture)
    chosen = names if has is None else dict.fromkeys(has.split())
    order = [t for t in dict.fromkeys((*tensors, *special, *table["without"])) if t in chosen and t in names]
    spelled: dict[str, dict[str, str]] = {}
    holders: dict[str, str] = {}
    for tensor in order:
        name = names[tensor]
        own = spelled.setdefault(name, {})
        for spelling, said in special.get(tensor, tensors.get(tensor, {}).get("spellings", {})).items():
            if has is not None and holders.get(spelling, name) != name:
                del spelled[holders[spelling]][spelling]
            holders[spelling] = name
            own[spelling] = f"{own.get(spelling, '')} {said} {architecture if special.get(tensor) else ''}"
    return spelled


def _otherwise(stem: str, suffix: str) -> list[str]:
    """How checkpoints end the name of a bias that converters rename."""
    return [stem.removesuffix(a) + b for a, b in BIASES if suffix == "bias" and stem.endswith(a)]


def _part(spelling: str) -> str:
    """The part of a layer that a name is in, with all before it: `model.layers.{bid}.mlp.`; empty outside of parts."""
    match = _PART.match(spelling)
    return match[0] if match else ""


def _parts(architecture: str, spelled: Mapping[str, Mapping[str, str]]) -> set[str]:
    """The parts that the layers of an architecture have, as far as the table names it, without those of many families.
    What the table does not name it for, and is in these, is its own, too.
    """
    said = (s for own in spelled.values() for s, users in own.items() if architecture in users.split())
    return {part for s in said if (part := _part(s)) and not _COMMON.fullmatch(part + "x")}


def _common(architecture: str, spelled: Mapping[str, str], said: Sequence[str]) -> list[str]:
    """The names among those of a tensor that many families share; of one part of the layer, where it is said in which
    part an architecture has the tensor: the gate of Qwen 3.5's linear_attn is in no self_attn. Beside a name of many
    architectures those that the table has for a few others are no common ones: self_attn.out_proj is LFM2's.
    """
    parts = {match["part"] for s in said if (match := _COMMON.fullmatch(s))}
    found = [(s, match["part"]) for s in spelled if (match := _COMMON.fullmatch(s))]
    spread = {part for s, part in found if part and len(spelled[s].split()) > _FEW}
    return [
        s
        for s, part in found
        if (not parts or part in parts)
        and (part not in spread or architecture in spelled[s].split() or not 0 < len(spelled[s].split()) <= _FEW)
    ]


def _put(prefix: str, spelling: str) -> str:
    return spelling if spelling.startswith(prefix) else prefix + spelling


def _multimodal(spelling: str) -> list[str]:
    """What a name of the language model is within a model that also sees or hears."""
    return [
        new + spelling.removeprefix(old) for old, all_ in MULTIMODAL.items() if spelling.startswith(old) for new in all_
    ]
