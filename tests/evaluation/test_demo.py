"""The recipes and adapters of the demo do what its README says."""

from __future__ import annotations

import functools
import pathlib
import shutil

import numpy as np
import pytest

import ggufmerge
from ggufmerge.chat.jinja import Message
from ggufmerge.chat.of_file import chat_format
from ggufmerge.engine.bake import plan_bake
from ggufmerge.evaluation import LlamaModel, perplexity
from ggufmerge.planning.plan import Rounding
from ggufmerge.recipe.reference import AdapterReference
from ggufmerge.running.run import run
from tests.models import smollm2

DEMO = pathlib.Path(__file__).parents[2] / "recipes" / "demo"
SUBJECTS = {"scripture": "kjv", "french": "fr", "python": "py"}
# of the kinds that chat.yaml was chosen by, but none of those
QUESTIONS = [
    "How many legs does a spider have?",
    "What is the capital of Italy?",
    "What colour is grass?",
    "What is 3 plus 4?",
    "What is 10 minus 2?",
    "Write one line about the rain.",
    "Write a Python function that squares a number.",
    "Translate to French: I am hungry.",
    "How do you say 'house' in Spanish?",
    "Good morning!",
]
LONGEST_ANSWER = 200
pytestmark = pytest.mark.slow


def adapter(subject: str) -> pathlib.Path:
    return DEMO / "adapters" / f"smollm2-135m-{SUBJECTS[subject]}-lora-r4.gguf"


def nll(model: LlamaModel, subject: str) -> float:
    return perplexity(model, (DEMO / "texts" / f"{subject}.txt").read_text(encoding="utf-8"), limit=512).nll


@functools.cache
def base_nll(subject: str) -> float:
    with LlamaModel(smollm2()) as model:
        return nll(model, subject)


def build(
    recipe: str, folder: pathlib.Path, *, own_type: bool = False, rounding: Rounding | None = None
) -> pathlib.Path:
    """What a recipe of the demo makes, with the base where scripts/demo puts it; own_type: in the types of the base."""
    shutil.copytree(DEMO, folder / "demo", ignore=shutil.ignore_patterns("base.gguf"), dirs_exist_ok=True)
    shutil.copy(smollm2(), folder / "demo" / "base.gguf")
    path = folder / "demo" / f"{recipe}.yaml"
    if own_type:
        path.write_text(path.read_text(encoding="utf-8").replace("out_type: Q8_0\n", ""), encoding="utf-8")
    ggufmerge.build(ggufmerge.load_recipe(path), folder / "merge.gguf", rounding=rounding, overwrite=True)
    return folder / "merge.gguf"


def whole_nll(model: LlamaModel, subject: str) -> float:
    """Of all of a text."""
    return perplexity(model, (DEMO / "texts" / f"{subject}.txt").read_text(encoding="utf-8")).nll


@pytest.mark.parametrize("subject", SUBJECTS)
def test_each_adapter_knows_its_subject(subject: str) -> None:
    """An adapter applied by llama.cpp predicts its own text better than the base does."""
    with LlamaModel(smollm2(), adapters=[(adapter(subject), 1.0)]) as model:
        assert nll(model, subject) < base_nll(subject) - 0.05


@pytest.mark.parametrize("recipe", ["ties", "dare_ties", "task_arithmetic", "linear", "slerp", "chat"])
def test_each_merge_is_better_than_its_base(recipe: str, tmp_path: pathlib.Path) -> None:
    """What a recipe of the demo makes predicts every text better than the base does."""
    with LlamaModel(build(recipe, tmp_path)) as model:
        for subject in SUBJECTS:
            assert nll(model, subject) < base_nll(subject), subject


def ends(model: LlamaModel, prompt: str) -> bool:
    """Whether the most likely answer to a prompt ends with the token that ends a turn before it is too long."""
    model.reset()
    logits = model.extend(model.tokenize(prompt, special=True))
    for _ in range(LONGEST_ANSWER):
        token = int(np.argmax(logits))
        if model.is_end(token):
            return True
        logits = model.extend([token])
    return False


def test_the_chat_merge_ends_its_answers(tmp_path: pathlib.Path) -> None:
    """Prompted with the chat template of its file, as in Ollama, chat.yaml's model answers and stops by itself."""
    path = build("chat", tmp_path)
    form = chat_format(ggufmerge.open(path).metadata)
    assert form is not None
    with LlamaModel(path) as model:
        endless = [text for text in QUESTIONS if not ends(model, form.write([Message("user", text)]))]
    assert endless == []


@pytest.mark.parametrize("recipe", ["ties", "linear"])
def test_a_merge_in_the_type_of_its_base_is_nearly_as_good_as_in_a_wide_one(
    recipe: str, tmp_path: pathlib.Path
) -> None:
    """In Q4_1 three quarters and more of what the merge gains in Q8_0 are left on every text, where rounding to the
    nearest leaves a quarter at most.
    """
    losses = {}
    for name, options in {"wide": {}, "own": {"own_type": True}}.items():
        with LlamaModel(build(recipe, tmp_path / name, **options)) as model:
            losses[name] = {subject: whole_nll(model, subject) for subject in SUBJECTS}
    with LlamaModel(build(recipe, tmp_path / "own", own_type=True, rounding="nearest")) as model:
        losses["nearest"] = {subject: whole_nll(model, subject) for subject in SUBJECTS}
    with LlamaModel(smollm2()) as model:
        base = {subject: whole_nll(model, subject) for subject in SUBJECTS}
    for subject in SUBJECTS:
        gain = base[subject] - losses["wide"][subject]
        assert base[subject] - losses["own"][subject] > 0.75 * gain, subject
        assert base[subject] - losses["nearest"][subject] < 0.25 * gain, subject


def test_a_linear_merge_in_the_type_of_its_base_is_as_good_as_baking_it(tmp_path: pathlib.Path) -> None:
    """The mean of three adapted models is the base with each adapter at a third, whichever command writes it."""
    plan, opened = plan_bake(smollm2(), [AdapterReference(str(adapter(s)), 1 / 3) for s in SUBJECTS])
    run(plan, opened, tmp_path / "baked.gguf")
    with LlamaModel(build("linear", tmp_path, own_type=True)) as merged, LlamaModel(tmp_path / "baked.gguf") as baked:
        for subject in SUBJECTS:
            assert whole_nll(merged, subject) < whole_nll(baked, subject) + 0.01, subject


def test_a_linear_merge_is_what_llama_cpp_computes_with_adapters(tmp_path: pathlib.Path) -> None:
    """The mean of three adapted models predicts what the base with three adapters at a third predicts."""
    thirds = [(adapter(subject), 1 / 3) for subject in SUBJECTS]
    with LlamaModel(build("linear", tmp_path)) as merged, LlamaModel(smollm2(), adapters=thirds) as adapted:
        tokens = merged.tokenize((DEMO / "texts" / "scripture.txt").read_text(encoding="utf-8"))[:128]
        ours, theirs = merged.logits(tokens), adapted.logits(tokens)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.9


def test_dare_of_coarse_files_is_as_good_as_of_the_originals(tmp_path: pathlib.Path) -> None:
    """At density .1, written in the type of the sources; with noise_aware: off it is far worse."""
    files = {"base": tmp_path / "base.gguf"}
    ggufmerge.quantize_file(smollm2(), files["base"], "F16")
    for subject in ("scripture", "french"):
        files[subject] = tmp_path / f"{subject}.gguf"
        ggufmerge.bake(smollm2(), [adapter(subject)], files[subject], out_type="F16")
    losses = []
    for kind, aware in (("F16", "auto"), ("Q4_0", "auto"), ("Q4_0", "off")):
        if kind == "Q4_0" and aware == "auto":
            for name, path in files.items():
                files[name] = tmp_path / f"{name}-Q4_0.gguf"
                ggufmerge.quantize_file(path, files[name], kind)
        base, *tunes = map(str, files.values())
        recipe = {
            "merge_method": "dare_ties",
            "base_model": base,
            "models": [{"model": tune} for tune in tunes],
            "parameters": {"weight": 0.5, "density": 0.1},
            "out_type": "Q4_0",
            "noise_aware": aware,
        }
        ggufmerge.build(recipe, tmp_path / "merge.gguf", overwrite=True)
        with LlamaModel(tmp_path / "merge.gguf") as model:
            losses.append(float(np.mean([nll(model, subject) for subject in SUBJECTS])))
    original, aware_loss, off = losses
    assert aware_loss < original + 0.03
    assert off > aware_loss + 0.1
