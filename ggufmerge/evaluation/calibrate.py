"""Calibration statistics of a model: what its weights are multiplied with while llama.cpp reads texts.

For each weight the sums of its squared inputs, as llama-imatrix has them, and how its inputs go together
(`quants.correlations`). Weights with the same inputs (Q, K and V; gate and up) share what is gathered.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import GgufmergeError, RoleError
from ggufmerge.evaluation import texts as built_in
from ggufmerge.evaluation.checkpoint import Checkpoint
from ggufmerge.evaluation.inputs import MIN_TOKENS, Finder, Taker, Weight
from ggufmerge.evaluation.libllama import library
from ggufmerge.evaluation.llama import LlamaModel
from ggufmerge.evaluation.scores import BUILT_IN, Watcher, read_text
from ggufmerge.files import Tensor, facts, open_gguf
from ggufmerge.files.absent import absent
from ggufmerge.files.tensor import Stamp
from ggufmerge.files.writer import check_target
from ggufmerge.formats.imatrix import save_imatrix
from ggufmerge.places.references import find
from ggufmerge.quants.importance import Imatrix, ImatrixEntry
from ggufmerge.quants.sketch import Part, Sketch, Sums, Whole, sketch_width
from ggufmerge.text import counted, size

DEFAULT_TOKENS, DEFAULT_RANK, DEFAULT_CONTEXT = 16384, 64, 512
_FEW = 2048  # tokens, below which correlations are mostly chance
_ROOM = 512 << 20  # bytes that sketches may take
_HELD = 256 << 20  # bytes of inputs that are held until there is time for them
_INTERVAL = 20.0  # seconds between checkpoints
_RARELY = 20  # a checkpoint is written when so many times the time has passed that the last one took
_TURNS = 6  # messages of a conversation that a text is made into
_GOOD_BITS = 8.0  # per weight, below which a model's own rounding shows in its statistics

Texts = Mapping[str, str] | Sequence[str | os.PathLike[str] | tuple[str | os.PathLike[str], float]]


@dataclass(frozen=True)
class Text:
    """A text to read; each of its tokens counts `weight` times."""

    name: str
    content: str
    weight: float = 1.0


@dataclass(frozen=True)
class TextRead:
    """How much of a text was read."""

    name: str
    tokens: int
    weight: float


@dataclass(frozen=True)
class Calibration:
    """What was gathered, and written to `path`.

    weights: how many weights there are statistics of.  inputs: how many different inputs they have.
    rank: eigenvectors of the correlations that were kept; 0 for none, and for all when `full`.
    nbytes: size of the file.  warnings: what is doubtful about the statistics.
    """

    path: Path
    model: str
    texts: tuple[TextRead, ...]
    tokens: int
    chunks: int
    context: int
    rank: int
    full: bool
    weights: int
    inputs: int
    nbytes: int
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        kept = (
            "whole correlations" if self.full else f"correlations of rank {self.rank}" if self.rank else "importances"
        )
        return f"<Calibration {self.path.name}: {kept} of {self.weights} weights, {self.tokens:,} tokens>"


def calibrate(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    texts: Texts = (BUILT_IN,),
    *,
    rank: int = DEFAULT_RANK,
    full: bool = False,
    tokens: int = DEFAULT_TOKENS,
    context: int = DEFAULT_CONTEXT,
    chat: bool = False,
    process_output: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> Calibration:
    """Read texts with a model, and write what its weights are multiplied with: an importance matrix with correlations.

    model: a path or a name; the statistics are best of a model that is not quantized below 8 bits.
    texts: paths of UTF-8 files, each alone or with a weight, as ("prose.txt", 2) or "prose.txt=2", how often its tokens
        count; "builtin" for the text that comes with the program; or a mapping of names to texts.
    rank: how many eigenvectors of the correlations to keep; 0 for an importance matrix without correlations.
    full: keep the correlations whole instead.
    tokens: how many to read at most, of all texts alike; texts are read in pieces of `context` tokens.
    chat: make conversations of the paragraphs of the texts, in the model's chat format.
    process_output: also the weight that gives the probabilities of tokens.
    threads: None for all cores.  overwrite: replace an existing file.
    An interrupted call that is made again goes on where it was.  GgufmergeError for what does not fit.
    """
    path = Path(output)
    if context < MIN_TOKENS:
        raise GgufmergeError(f"--context {context}: a piece of text needs at least {MIN_TOKENS} tokens")
    if tokens < MIN_TOKENS:
        raise GgufmergeError(f"--tokens {tokens}: give at least {MIN_TOKENS}")
    if rank < 0:
        raise GgufmergeError(f"--rank {rank}: give 0 for an importance matrix without correlations, or more")
    check_target(path, overwrite=overwrite)
    found = read_texts(texts)
    library()
    source = find(os.fspath(model)).path
    with open_gguf(source) as file:
        if (kind := facts.kind(file)) != "model":
            what = f"{source}: this is {f'an {kind}' if kind else 'no model'}"
            raise RoleError(what, "give the model that is to be quantized", wanted="model", found=kind)
        warnings = _about_model(file.tensors)
    return _Run(
        os.fspath(model), source, path, found, rank=rank, full=full, tokens=tokens, context=context, chat=chat,
        process_output=process_output, threads=threads, overwrite=overwrite, watcher=watcher or Watcher(),
        warnings=warnings,
    ).run()  # fmt: skip


def read_texts(texts: Texts) -> list[Text]:
    """The texts with their weights; GgufmergeError for one that is not there, is empty, or has no weight above 0."""
    if isinstance(texts, Mapping):
        found = [Text(name, content) for name, content in texts.items()]
    else:
        found = [_read(*(t if isinstance(t, tuple) else _weighted(os.fspath(t)))) for t in texts]
    if not found:
        raise GgufmergeError("give a text to read")
    for text in found:
        if not text.content.strip():
            raise GgufmergeError(f"{text.name}: the text is empty: give another")
    return found


def _weighted(word: str) -> tuple[str, float]:
    """The path and the weight of `prose.txt=2`."""
    path, equals, weight = word.rpartition("=")
    if not equals or Path(word).exists():
        return word, 1.0
    try:
        return path, float(weight)
    except ValueError:
        raise GgufmergeError(f"{word}: the weight of a text is a number, as in {path}=2") from None


def _read(path: str | os.PathLike[str], weight: float) -> Text:
    name = os.fspath(path)
    if not (math.isfinite(weight) and weight > 0):
        raise GgufmergeError(f"{name}={weight:g}: the weight of a text is a number above 0")
    if name == BUILT_IN and not Path(name).exists():
        return Text(name, built_in.read(built_in.CALIBRATION), weight)
    try:
        return Text(name, read_text(name), weight)
    except FileNotFoundError:
        problem = absent(Path(name), (".txt",))
        raise GgufmergeError(f"{name}: {problem} ({BUILT_IN} is the text that comes with the program)") from None


def _about_model(tensors: Mapping[str, Tensor]) -> list[str]:
    """A warning when the matrices of a model are so coarse that its statistics show it."""
    matrices = [t for t in tensors.values() if len(t.shape) > 1]
    values = sum(t.size for t in matrices)
    bits = 8 * sum(t.nbytes for t in matrices) / values if values else 16.0
    if bits >= _GOOD_BITS:
        return []
    return [
        f"the model has {bits:.1f} bits per weight: statistics of the same model in F16 or Q8_0 are a little better"
    ]


@dataclass(frozen=True)
class _Chunk:
    text: int
    tokens: NDArray[np.int32]


class _Run:
    """One calibration, of texts that were read and a model that was found."""

    def __init__(
        self,
        label: str,
        source: Path,
        path: Path,
        texts: list[Text],
        *,
        rank: int,
        full: bool,
        tokens: int,
        context: int,
        chat: bool,
        process_output: bool,
        threads: int | None,
        overwrite: bool,
        watcher: Watcher,
        warnings: list[str],
    ) -> None:
        self.label, self.source, self.path, self.texts = label, source, path, texts
        self.rank, self.full, self.tokens, self.context, self.chat = 0 if full else rank, full, tokens, context, chat
        self.output, self.threads, self.overwrite, self.watcher = process_output, threads, overwrite, watcher
        self.warnings = warnings

    def run(self) -> Calibration:
        self.watcher.says(f"loading {self.source.name}")
        finder = Finder(output=self.output)
        with LlamaModel(self.source, context=self.context, threads=self.threads, watch=finder) as model:
            chunks = self._chunks(model)
            model.compute(np.resize(chunks[0].tokens, min(self.context, 2 * MIN_TOKENS)))
            weights = finder.weights
            if not weights:
                raise GgufmergeError(f"{self.source}: llama.cpp multiplies no weights of layers: give a language model")
            moments = self._moments(weights)
            factors = self._factors(chunks)
            checkpoint = Checkpoint(self.path, self._identity(chunks, factors))
            self._gather(model, chunks, factors, moments, checkpoint)
        self.watcher.says(f"writing {self.path.name}")
        imatrix = self._imatrix(weights, moments, len(chunks))
        save_imatrix(imatrix, self.path, overwrite=self.overwrite)
        checkpoint.remove()
        return self._report(weights, moments, chunks, imatrix)

    def _gather(
        self,
        model: LlamaModel,
        chunks: Sequence[_Chunk],
        factors: Sequence[float],
        moments: Mapping[str, Sums],
        checkpoint: Checkpoint,
    ) -> None:
        """Read all chunks, from where an earlier run was."""
        factor = 1.0
        taken: list[tuple[str, list[Part]]] = []
        held = 0

        def take(name: str, parts: Sequence[Part]) -> None:
            # llama.cpp's threads wait without sleeping while this runs, and NumPy's would get no processor
            nonlocal held
            taken.append((name, [(matrix, x if x.flags.owndata else x.copy()) for matrix, x in parts]))
            held += sum(x.nbytes for _, x in parts)
            if held > _HELD:
                add()

        def add() -> None:
            nonlocal held
            for name, parts in taken:
                moments[name].add(parts, factor)
            taken.clear()
            held = 0

        model.watch = Taker(list(moments), take, output=self.output)
        arrays = {f"{name} {key}": array for name, found in moments.items() for key, array in found.state.items()}
        done = checkpoint.load(arrays)
        self.watcher.expect(sum(len(chunk.tokens) for chunk in chunks[done:]))
        self.watcher.says(f"{self.source.name} reads")
        kept, cost = time.monotonic(), 0.0
        for i, chunk in enumerate(chunks[done:], done + 1):
            factor = factors[chunk.text]
            model.compute(chunk.tokens)
            add()
            self._check(moments)
            self.watcher.advance(len(chunk.tokens))
            began = time.monotonic()
            if began - kept > max(_INTERVAL, _RARELY * cost) and i < len(chunks):
                checkpoint.save(i, arrays)
                kept = time.monotonic()
                cost = kept - began

    def _chunks(self, model: LlamaModel) -> list[_Chunk]:
        """The pieces of the texts, one of each text after the other, as far as `tokens` go."""
        pieces = [[_Chunk(i, piece) for piece in self._pieces(model, text)] for i, text in enumerate(self.texts)]
        rows = itertools.zip_longest(*pieces)
        chunks, left = [], self.tokens
        for chunk in (chunk for row in rows for chunk in row if chunk is not None):
            if left < MIN_TOKENS:
                break
            chunks.append(_Chunk(chunk.text, chunk.tokens[:left]))
            left -= len(chunk.tokens)
        return chunks

    def _pieces(self, model: LlamaModel, text: Text) -> Iterator[NDArray[np.int32]]:
        """As llama-imatrix cuts a text: pieces of `context` tokens, of which BOS takes the place of the first one, and
        what is left at the end is not read. A text that is shorter than a piece is one.
        """
        ids = model.tokenize(_as_chat(model, text.content), special=True) if self.chat else model.tokenize(text.content)
        begin = model.begin_token
        tokens = np.array(ids if begin is None else [begin, *ids], np.int32)
        if len(tokens) < MIN_TOKENS:
            raise GgufmergeError(f"{text.name}: the text has only {counted(len(tokens), 'token')}: give a longer one")
        step = min(self.context, len(tokens))
        for start in range(0, len(tokens) - step + 1, step):
            piece = tokens[start : start + step].copy()
            if begin is not None:
                piece[0] = begin
            yield piece

    def _factors(self, chunks: Sequence[_Chunk]) -> list[float]:
        """How often tokens of each text count; all together count as many times as there are tokens."""
        weights = [text.weight for text in self.texts]
        if len(set(weights)) == 1:
            return [1.0] * len(weights)
        total = sum(len(chunk.tokens) for chunk in chunks)
        weighted = sum(len(chunk.tokens) * weights[chunk.text] for chunk in chunks)
        return [weight * total / weighted for weight in weights]

    def _moments(self, weights: Sequence[Weight]) -> dict[str, Sums]:
        """What gathers the inputs, by the name of the weight that stands for all that have them."""
        own = [weight for weight in weights if weight.inputs == weight.name]
        if self.full:
            room = sum(4 * w.matrices * w.n**2 for w in own)
            self.watcher.notes(f"whole correlations take {size(room)} of memory beside the model")
            return {w.name: Whole(w.n, w.matrices) for w in own}
        if not self.rank:
            return {w.name: Sums(w.n, w.matrices) for w in own}
        few = self.rank  # for experts, which are many
        while few > 1 and sum(_room(w, few if w.experts else self.rank) for w in own) > _ROOM:
            few //= 2
        if few < self.rank:
            self.warnings.append(
                f"correlations of experts are kept with rank {few} instead of {self.rank}, so that they take no "
                f"more than {size(_ROOM)} of memory"
            )
        return {w.name: Sketch(w.n, w.matrices, few if w.experts else self.rank) for w in own}

    def _identity(self, chunks: Sequence[_Chunk], factors: Sequence[float]) -> str:
        digest = hashlib.blake2b(digest_size=16)
        stamp = Stamp.of(self.source.stat())
        digest.update(repr((stamp, self.context, self.rank, self.full, self.output, _ROOM, factors)).encode())
        for chunk in chunks:
            digest.update(repr((chunk.text, len(chunk.tokens))).encode() + chunk.tokens.tobytes())
        return digest.hexdigest()

    def _check(self, moments: Mapping[str, Sums]) -> None:
        for name, found in moments.items():
            if not np.isfinite(found.sums).all():
                raise GgufmergeError(
                    f"{self.source} computes inputs of {name} that are NaN or infinite: its weights are broken"
                )

    def _imatrix(self, weights: Sequence[Weight], moments: Mapping[str, Sums], chunks: int) -> Imatrix:
        entries, correlations = {}, {}
        kept = {name: found.correlations() for name, found in moments.items()}
        for weight in weights:
            found = moments[weight.inputs]
            counts = np.floor(found.counts + 0.5).astype(np.int64)
            if not weight.experts:  # llama-imatrix has one count for all matrices of a weight
                counts = counts[:1]
            entries[weight.name] = ImatrixEntry(found.sums.astype(np.float32).reshape(-1), counts)
            if (own := kept[weight.inputs]) is not None:
                correlations[weight.name] = own
        return Imatrix(
            entries,
            datasets=[Path(text.name).name for text in self.texts],
            chunks=chunks,
            chunk_size=self.context,
            file=self.path.name,
            correlations=correlations,
        )

    def _report(
        self, weights: Sequence[Weight], moments: Mapping[str, Sums], chunks: Sequence[_Chunk], imatrix: Imatrix
    ) -> Calibration:
        tokens = sum(len(chunk.tokens) for chunk in chunks)
        widest = max(weight.n for weight in weights)
        if (self.rank or self.full) and tokens < max(_FEW, widest):
            self.warnings.append(
                f"{tokens:,} tokens are few for {widest:,} inputs: give more text, {max(8 * _FEW, widest):,} tokens or "
                "more"
            )
        missed = {w.name: imatrix.missed(w.name, w.matrices) for w in weights if w.experts}
        if any(missed.values()):
            worst = max(missed, key=lambda name: missed[name])
            of = next(w.matrices for w in weights if w.name == worst)
            self.warnings.append(
                f"no token reached some experts, {missed[worst]} of {of} of {worst}: give more text, of other kinds"
            )
        read = [sum(len(c.tokens) for c in chunks if c.text == i) for i in range(len(self.texts))]
        return Calibration(
            path=self.path,
            model=self.label,
            texts=tuple(TextRead(t.name, n, t.weight) for t, n in zip(self.texts, read, strict=True)),
            tokens=tokens,
            chunks=len(chunks),
            context=self.context,
            rank=self.rank,
            full=self.full,
            weights=len(weights),
            inputs=len(moments),
            nbytes=self.path.stat().st_size,
            warnings=tuple(self.warnings),
        )


def _room(weight: Weight, rank: int) -> int:
    """Bytes of the sketch of a weight's inputs."""
    return 4 * weight.matrices * weight.n * sketch_width(weight.n, rank)


def _as_chat(model: LlamaModel, text: str) -> str:
    """The paragraphs of a text as what a user and the assistant say in turn, in the model's chat format."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    conversations = []
    for start in range(0, len(parts), _TURNS):
        *before, last = parts[start : start + _TURNS]
        roles = itertools.cycle(("user", "assistant"))
        messages = [(role, part) for role, part in zip(roles, before, strict=False)]
        if len(messages) % 2 == 0:  # the user's turn
            messages.append(("user", last))
            last = ""
        shaped = model.format_chat(messages)
        if shaped is None:
            raise GgufmergeError(f"{model.path} has no chat template: leave --chat out")
        conversations.append(shaped + last)
    return "\n".join(conversations)
