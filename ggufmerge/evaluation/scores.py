"""Several models side by side, on texts and a question."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation.generate import chat_prompt, generate
from ggufmerge.evaluation.llama import LlamaModel
from ggufmerge.evaluation.metrics import KLDivergence, Perplexity, kl_divergence, perplexity
from ggufmerge.files.small import open_regular
from ggufmerge.places import references
from ggufmerge.recipe import ModelReference

Texts = Mapping[str, str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Score:
    """How one model predicts one text; `divergence` from the reference, where there is one."""

    model: str
    text: str
    perplexity: Perplexity
    divergence: KLDivergence | None = None


@dataclass(frozen=True)
class Evaluation:
    """The scores of every model on every text, model by model, and what each answered."""

    scores: tuple[Score, ...]
    answers: Mapping[str, str]

    def __repr__(self) -> str:
        lines = [f"{Path(s.model).name} on {Path(s.text).name}: {s.perplexity.value:.4g}" for s in self.scores[:6]]
        more = f", and {len(self.scores) - 6} more" if len(self.scores) > 6 else ""
        answers = f", {len(self.answers)} answers" if self.answers else ""
        return f"<Evaluation: perplexity {', '.join(lines)}{more}{answers}>"


def evaluate(
    models: Sequence[str | os.PathLike[str]],
    texts: Texts = (),
    *,
    reference: str | os.PathLike[str] | None = None,
    context: int = 256,
    tokens: int | None = None,
    prompt: str | None = None,
    chat: bool = True,
    answer_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    threads: int | None = None,
) -> Evaluation:
    """Measure models with llama.cpp: how well they predict texts, how far they are from a reference, what they answer.

    models: paths or names, with adapters if wanted: "base.gguf+adapter.gguf=0.5".
    texts: paths of UTF-8 files, or a mapping of names to texts.
    reference: a model from which the KL divergence of the others is measured; it is measured itself, before them.
    context: tokens of a window of text.  tokens: use only the first so many of a text; None for all.
    prompt: what each model is asked, in its chat format, or, without `chat`, has to go on with; `answer_tokens` is the
        longest answer, and above temperature 0 it is drawn by chance, the same for the same `seed`.
    threads: None for all cores.
    Needs the optional extra `llama`; GgufmergeError says so, and what else does not fit.
    """
    contents = dict(texts) if isinstance(texts, Mapping) else {os.fspath(path): read_text(path) for path in texts}
    if not contents and prompt is None:
        raise GgufmergeError("give texts to predict, or a prompt to answer")
    names = [os.fspath(model) for model in models]
    if reference is not None:
        names = [os.fspath(reference), *names]
    room = context if prompt is None else max(context, 512)
    scores: list[Score] = []
    answers: dict[str, str] = {}
    with ExitStack() as stack:
        other = stack.enter_context(open_model(names[0], room, threads)) if reference is not None else None
        for name in dict.fromkeys(names):
            with ExitStack() as own:
                is_reference = other is not None and name == names[0]
                model = other if is_reference else own.enter_context(open_model(name, room, threads))
                assert model is not None
                for title, content in contents.items():
                    if other is None or is_reference:
                        found = perplexity(model, content, context=context, limit=tokens)
                        scores.append(Score(name, title, found))
                    else:
                        far = kl_divergence(model, other, content, context=context, limit=tokens)
                        scores.append(Score(name, title, far.perplexity, far))
                if prompt is not None:
                    asked = chat_prompt(model, prompt) if chat else prompt
                    how = {"max_tokens": answer_tokens, "seed": seed}
                    answers[name] = generate(model, asked, temperature=temperature, **how)
    return Evaluation(tuple(scores), answers)


def open_model(name: str, context: int, threads: int | None) -> LlamaModel:
    """The model that `base.gguf+adapter.gguf=0.5` means; a file whose own name has a plus sign is that file."""
    model = ModelReference.from_argument(name)
    found = references.find(model.path)
    adapters = [(path, 1.0) for path in found.adapters]
    adapters += [(references.find(adapter.path).path, adapter.strength) for adapter in model.adapters]
    return LlamaModel(found.path, context=context, threads=threads, adapters=adapters)


def read_text(path: str | os.PathLike[str]) -> str:
    """A UTF-8 text with `\\n` as line break; GgufmergeError when it is none."""
    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise GgufmergeError(f"{path}: not a UTF-8 text (byte {error.start}): convert it, or give another") from None
