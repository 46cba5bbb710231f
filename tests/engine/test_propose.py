"""A recipe out of models alone: what is recorded decides, else the weights; what is said wins; every choice has its
reason, and the recipe is one that can be built.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufmerge
from ggufmerge.engine import propose, relatives
from ggufmerge.engine.propose import Choice, Proposal, propose_merge
from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.places.inventory import described
from ggufmerge.places.opening import open_source
from ggufmerge.planning.survival import Survival, TypeSurvival
from ggufmerge.recipe import ModelReference
from ggufmerge.types import FileType
from tests.tiny import write_tiny_llama, write_tiny_lora

TUNE = 0.05


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without models but for those in the working folder: `base`, its tunes a, b, c, and a stranger."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, place in (("HF_HOME", "hf"), ("OLLAMA_MODELS", "ollama"), ("LLAMA_CACHE", "llama.cpp")):
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for number, name in enumerate("abc", start=1):
        tuned(f"{name}.gguf", number)
    tuned("base.gguf")
    return folder


def tuned(path: str, seed: int = 0, strength: float = TUNE, **how: Any) -> dict[str, np.ndarray]:
    """Write a tune of the base with this seed; 0 is the base."""
    how = {"layers": 1, "metadata": {"general.name": Path(path).stem}} | how
    return write_tiny_llama(path, tune=(seed, strength) if seed else None, **how)


def value(proposal: Proposal, what: str) -> str:
    found = proposal.find(what)
    return found.value if found else ""


def test_the_base_is_what_the_models_lie_around(machine: Path) -> None:
    """Among all relatives: not a third tune, not a copy of one of them in another type, not a stranger."""
    write_tiny_llama("stranger.gguf", layers=1, seed=7)
    ggufmerge.quantize_file("a.gguf", "a-Q8_0.gguf", "Q8_0")
    proposal = propose_merge(["a.gguf", "b.gguf"])
    assert (value(proposal, "base"), value(proposal, "method")) == ("base.gguf", "task_arithmetic")
    assert "the nearest relative of both" in str(proposal.find("base"))
    Path("base.gguf").unlink()
    without = propose_merge(["a.gguf", "b.gguf"])
    assert (value(without, "base"), value(without, "method")) == ("", "slerp")


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0"])
def test_a_base_is_found_for_quantized_tunes(machine: Path, type: str) -> None:  # noqa: A002
    """In full precision beside them, whatever rounding has done to the tunes."""
    for name in "abc":
        Path(f"{name}.gguf").unlink()
    tuned("x.gguf", 1, type=type)
    tuned("y.gguf", 2, type=type)
    proposal = propose_merge(["x.gguf", "y.gguf"])
    assert (value(proposal, "base"), value(proposal, "type")) == ("base.gguf", type)


def test_an_earlier_merge_is_no_base(machine: Path) -> None:
    """Though it lies among its models, whether it says what it was made from or not."""
    ggufmerge.build({"merge_method": "linear", "models": [{"model": m} for m in MODELS], "parameters": ONE}, "m.gguf")
    assert value(propose_merge(MODELS), "base") == "base.gguf"
    Path("base.gguf").rename("base.away")
    assert propose_merge(MODELS).warnings == ()  # it was looked at
    Path("base.away").rename("base.gguf")
    parts = [tuned(f"{name}2.gguf", number) for number, name in enumerate("ab", start=1)]
    for path in ("a2.gguf", "b2.gguf", "m.gguf"):
        Path(path).unlink()
    mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    write_tiny_llama("anonymous.gguf", layers=1, replace=mean)
    assert value(propose_merge(MODELS), "base") == "base.gguf"


MODELS = ["a.gguf", "b.gguf"]
ONE = {"weight": 1}


def test_what_files_record_comes_before_what_is_measured(machine: Path) -> None:
    """Both call another file their base, which is further away: it is taken."""
    tuned("far.gguf", 9, 0.5, metadata={"general.name": "The Base 1B"})
    for number, name in enumerate("ab", start=1):
        record = {"general.base_model.count": 1, "general.base_model.0.name": "the-base 1b", "general.name": name}
        tuned(f"{name}.gguf", number, metadata=record)
    proposal = propose_merge(MODELS)
    assert value(proposal, "base") == "far.gguf"
    assert "as they say" in str(proposal.find("base"))
    tuned("b.gguf", 2)
    assert value(propose_merge(MODELS), "base") == "base.gguf"  # one of two is no record of both


def test_what_was_baked_from_one_file_has_it_as_base(machine: Path) -> None:
    """By the sources that builds record."""
    weights = tuned("base.gguf", type="Q8_0")
    for name, seed in (("x", 1), ("y", 2)):
        write_tiny_lora(f"{name}.lora.gguf", weights, seed=seed)
        ggufmerge.bake("base.gguf", [f"{name}.lora.gguf"], f"{name}.gguf")
    base = propose_merge(["x.gguf", "y.gguf"]).find("base")
    assert base is not None
    assert (base.value, "as they say" in base.why) == ("base.gguf", True)


def test_the_base_may_be_among_the_models(machine: Path) -> None:
    """Of three or more: the others are its tunes. Of two there is none to be found out."""
    proposal = propose_merge(["a.gguf", "base.gguf", "b.gguf"])
    assert value(proposal, "base") == "base.gguf"
    assert [str(m.model) for m in proposal.recipe.models or ()] == ["a.gguf", "b.gguf"]
    assert value(propose_merge(["a.gguf", "base.gguf"]), "method") == "slerp"


def test_the_search_is_bounded(machine: Path) -> None:
    """When time is over the rest is not looked at, which is said."""
    sources = [open_source(ModelReference(path)) for path in MODELS]
    candidates = [described(path, Path(path)) for path in ("c.gguf", "base.gguf")]
    assert relatives.measured_base(sources, candidates, seconds=-1) == (None, 0)
    found, measured = relatives.measured_base(sources, candidates)
    assert (found and found.reference, measured) == ("base.gguf", 2)
    for source in sources:
        source.close()


@pytest.mark.parametrize(
    ("models", "options", "method", "parameters"),
    [
        (MODELS, {}, "task_arithmetic", {"weight": 1, "lambda": 0.71}),
        (["a.gguf", "b.gguf", "c.gguf"], {}, "task_arithmetic", {"weight": 1, "lambda": 0.58}),
        (MODELS, {"find_base": False}, "slerp", {"t": 0.5}),
        (MODELS, {"find_base": False, "weights": [0.6, 0.2]}, "slerp", {"t": 0.25}),
        (["a.gguf", "b.gguf", "c.gguf"], {"find_base": False}, "linear", {"weight": 1}),
        (MODELS, {"method": "linear"}, "linear", {"weight": 1}),
        (MODELS, {"method": "ties"}, "ties", {"weight": 1, "density": 0.5}),
        (MODELS, {"method": "dare_ties", "parameters": {"density": 0.7}}, "dare_ties", {"weight": 1, "density": 0.7}),
        (MODELS, {"method": "slerp", "parameters": {"t": 0.3}}, "slerp", {"t": 0.3}),
        (["b.gguf"], {"method": "slerp", "base": "a.gguf", "weights": [0.3]}, "slerp", {"t": 0.3}),
        (["b.gguf"], {"base": "a.gguf", "weights": [0.5]}, "task_arithmetic", {}),
        (MODELS, {"method": "nearswap", "parameters": {"t": 0.001}}, "nearswap", {"t": 0.001}),
        (MODELS, {"method": "model_stock"}, "model_stock", {}),
        (MODELS, {"method": "karcher"}, "karcher", {}),
        (MODELS, {"method": "arcee_fusion"}, "arcee_fusion", {}),
        (MODELS, {"method": "nuslerp", "base": "base.gguf"}, "nuslerp", {"weight": 1}),
    ],
)
def test_methods_get_what_they_need(
    machine: Path, models: list[str], options: Any, method: str, parameters: dict[str, Any]
) -> None:
    """And nothing that they do not know: the plan of every proposal is fine."""
    proposal = propose_merge(models, **options)
    found = {name: setting.rules[0].value for name, setting in proposal.recipe.parameters.items()}
    assert (value(proposal, "method"), found) == (method, parameters)
    assert ggufmerge.plan(proposal.recipe).method == method


def test_weights_stand_with_their_models(machine: Path) -> None:
    """As they were given, and nothing multiplies them."""
    proposal = propose_merge(["a.gguf", "b.gguf"], weights=[0.6, -0.4])
    weights = [m.parameters["weight"].rules[0].value for m in proposal.recipe.models or ()]
    assert (weights, dict(proposal.recipe.parameters)) == ([0.6, -0.4], {})


def test_adapters_alone_are_written_into_their_model(machine: Path) -> None:
    """The one that is named, or the only one that they fit; strengths and weights multiply."""
    write_tiny_lora("x.lora.gguf", tuned("base.gguf"))
    write_tiny_lora("y.lora.gguf", tuned("base.gguf"), seed=1)
    proposal = propose_merge(["base.gguf", "x.lora.gguf=0.5", "y.lora.gguf"], weights=[0.5, 1])
    assert value(proposal, "method") == "bake"
    [model] = proposal.recipe.models or ()
    assert str(model.model) == "base.gguf+x.lora.gguf=0.25+y.lora.gguf"
    with pytest.raises(PlanError, match=r"fit several models \(a\.gguf"):
        propose_merge(["x.lora.gguf", "y.lora.gguf"])
    for name in "abc":
        Path(f"{name}.gguf").unlink()
    assert value(propose_merge(["x.lora.gguf", "y.lora.gguf"]), "base") == "base.gguf"


def test_the_model_below_an_adapter_may_be_the_base(machine: Path) -> None:
    """Of a tune and the base with an adapter: both changes are taken from it."""
    write_tiny_lora("x.lora.gguf", tuned("base.gguf"))
    for other in ("c.gguf", "stranger.gguf"):
        Path(other).unlink(missing_ok=True)
    proposal = propose_merge(["a.gguf", "base.gguf+x.lora.gguf"])
    assert (value(proposal, "base"), value(proposal, "method")) == ("base.gguf", "task_arithmetic")


def test_all_models_that_are_missing_are_told_at_once(machine: Path) -> None:
    """A line for each."""
    with pytest.raises(PlanError) as caught:
        propose_merge(["aa-none.gguf", "a.gguf", "bb-none.gguf"])
    assert [line.partition(":")[0] for line in caught.value.lines] == ["aa-none.gguf", "bb-none.gguf"]


def test_an_adapter_among_models_is_a_model_of_the_base(machine: Path) -> None:
    """In its place among them."""
    write_tiny_lora("x.lora.gguf", tuned("base.gguf"))
    given = ["a.gguf", "x.lora.gguf=0.5", "b.gguf"]
    proposal = propose_merge(given, weights=[1, 2, 3])
    among = propose_merge(["base.gguf", *given], weights=[1, 2, 3])
    assert (among.recipe.models, among.recipe.base_model) == (proposal.recipe.models, proposal.recipe.base_model)
    assert [str(m.model) for m in proposal.recipe.models or ()] == ["a.gguf", "base.gguf+x.lora.gguf=0.5", "b.gguf"]


def test_the_type_is_that_of_the_models(machine: Path) -> None:
    """The widest if they differ, not that of the base; what was asked for wins."""
    tuned("x.gguf", 1, type="Q8_0")
    tuned("y.gguf", 2, type="Q5_0")
    assert value(propose_merge(["x.gguf", "y.gguf"], base="base.gguf"), "type") == "Q8_0"
    proposal = propose_merge(["x.gguf", "y.gguf"], base="base.gguf", out_type="q4_k")
    assert (value(proposal, "type"), proposal.recipe.out_type) == ("Q4_K_M", "Q4_K_M")


def test_a_coarse_type_keeps_a_small_change_by_chance(machine: Path) -> None:
    """Also one with steps of several sizes; its noise is told."""
    weights = tuned("coarse.gguf", type="IQ4_NL")
    write_tiny_lora("x.lora.gguf", weights, targets=("*",), strength=0.01)
    chosen = propose_merge(["coarse.gguf", "x.lora.gguf"]).find("type")
    assert chosen is not None
    assert chosen.value == "IQ4_NL"
    assert "rounded stochastically, with noise" in chosen.why
    assert "type Q8_0 has less noise" in chosen.why


def test_a_type_that_would_lose_the_change_is_not_taken(machine: Path) -> None:
    """Where the base has another one, so that nothing can be kept by chance: a wider one is taken and named."""
    tuned("even.gguf", type="Q4_1")
    tuned("coarse.gguf", type="Q4_0")
    tuned("coarse2.gguf", type="Q4_0")
    chosen = propose_merge(["coarse.gguf", "coarse2.gguf"], base="even.gguf", method="task_arithmetic").find("type")
    assert chosen is not None
    assert chosen.value in ("Q6_K", "Q8_0")
    assert "would survive in Q4_0" in chosen.why


@pytest.mark.parametrize(
    ("models", "options", "complaint"),
    [
        ([], {}, "name the models"),
        (["a.gguf"], {}, "one model alone"),
        (["a.gguf"], {"base": "base.gguf"}, "one model and its base"),
        (["a.gguf", "a.gguf"], {}, "is given twice"),
        (["a.gguf", "none.gguf"], {}, r"none\.gguf"),
        (MODELS, {"weights": [1]}, "1 weights for 2 models"),
        (MODELS, {"method": "tie"}, 'did you mean "ties"'),
        (MODELS, {"method": "ties", "find_base": False}, "takes differences from a base"),
        (MODELS, {"method": "linear", "base": "base.gguf"}, "leave the base out"),
        (MODELS, {"method": "slerp", "weights": [1, -1]}, "sum to zero"),
        (MODELS, {"method": "model_stock", "weights": [1, 2]}, "model_stock has no weights"),
        (MODELS, {"parameters": {"densty": 1}}, "densty"),
        (MODELS, {"method": "nearswap"}, "nearswap needs t"),
        (
            ["a.gguf", "b.gguf", "base.gguf"],
            {"method": "slerp", "weights": [1, 1, 1]},
            "goes from one model to another",
        ),
        (MODELS, {"out_type": "Q9"}, "unknown type"),
        (["a.gguf", "lora.gguf=x"], {}, "lora"),
        (["lora.gguf", "a.gguf", "b.gguf"], {"find_base": False}, "not known for which model"),
        (MODELS, {"base": "lora.gguf"}, "cannot be the base"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(machine: Path, models: list[str], options: Any, complaint: str) -> None:
    """Before anything is read that takes time."""
    write_tiny_lora("lora.gguf", tuned("base.gguf"))
    with pytest.raises(GgufmergeError, match=complaint):
        propose_merge(models, **options)


def test_models_of_different_origin_are_warned_of(machine: Path) -> None:
    """They can be merged, and the result talks nonsense."""
    write_tiny_llama("stranger.gguf", layers=1, seed=7)
    assert "talks nonsense" in propose_merge(["a.gguf", "stranger.gguf"]).warnings[0]
    assert propose_merge(MODELS).warnings == ()


def test_the_name_of_the_result_is_free(machine: Path) -> None:
    """And says what it is made of, without types and folders; neither it nor its Modelfile is there."""
    assert propose_merge(MODELS).output == Path("a-b-merged.gguf")
    Path("a-b-merged.Modelfile").touch()
    assert propose_merge(MODELS).output == Path("a-b-merged-2.gguf")
    Path("a-b-merged-2.gguf").touch()
    assert propose_merge(MODELS).output == Path("a-b-merged-3.gguf")
    long = [f"{letter * 40}.gguf" for letter in "xyz"]
    for number, name in enumerate(long, start=1):
        tuned(name, number)
    assert len(str(propose_merge(long).output)) < 90


def test_a_recipe_for_another_folder_finds_its_files(machine: Path) -> None:
    """With comments that say why, and the plan of what was proposed."""
    proposal = propose_merge(MODELS)
    Path("sub").mkdir()
    Path("sub/r.yaml").write_text(proposal.text("sub"))
    read = ggufmerge.load_recipe("sub/r.yaml")
    assert read.text.startswith("# base: base.gguf, the nearest relative of both")
    assert ggufmerge.plan(read).tensors == ggufmerge.plan(proposal.recipe).tensors
    assert proposal.text(".").endswith(proposal.recipe.text)


@pytest.mark.parametrize("name", ["a+b", "x=1", "two words", "\udcff", "中文", "#", "- a: b"])
def test_names_of_any_letters_become_a_recipe_that_reads_back(machine: Path, name: str) -> None:
    """Of models and of the base; comments hold nothing that a file's name could break out of."""
    Path("a.gguf").rename(f"{name}.gguf")
    Path("base.gguf").rename(f"{name} base.gguf")
    proposal = propose_merge([f"{name}.gguf", "b.gguf"])
    assert value(proposal, "base") == f"{name} base.gguf"
    Path("r.yaml").write_bytes(proposal.text(".").encode())
    plan = ggufmerge.plan("r.yaml")
    assert [source.path for source in plan.sources] == [f"{name} base.gguf", f"{name}.gguf", "b.gguf"]
    assert proposal.output.name.isprintable()


def test_comments_are_one_line_each(machine: Path) -> None:
    """Whatever a file is called: nothing in a name ends the comment that it stands in."""
    proposal = propose_merge(MODELS)
    evil = replace(proposal, choices=(Choice("base", "x\nmerge_method: ties", "\x1b[2J\u2028seed: 1"),))
    read = ggufmerge.load_recipe(evil.text())
    assert (read.methods, read.seed) == (proposal.recipe.methods, 0)


def test_merging_is_building_the_proposal(machine: Path) -> None:
    """Byte by byte, under a free name when none is given."""
    report = ggufmerge.merge_models(MODELS, parameters={"lambda": 0.5})
    assert report.output == Path("a-b-merged.gguf")
    proposal = propose_merge(MODELS, parameters={"lambda": 0.5})
    ggufmerge.build(proposal.recipe, "again.gguf")
    assert Path("again.gguf").read_bytes() == report.output.read_bytes()


def test_a_change_that_rounding_makes_larger_is_told() -> None:
    """On the grid of one of the models rounding can go all the way to it: no "about 100 %", and a way out."""
    kept = [TypeSurvival("Q4_0", 210, 0, Survival(kept=2.0, energy=1.0))]
    told = propose._remains(kept, FileType.parse("Q4_0"))
    assert told == ": the change comes out up to 2 times as large as asked in it; type Q8_0 is closer"


def test_noise_as_large_as_the_change_is_called_so() -> None:
    """Not "1 times as large"; and it says of what a wider type has less."""
    kept = [TypeSurvival("Q4_K", 16, 3, Survival(kept=1.0, energy=1.0, error=1.03))]
    told = propose._remains(kept, FileType.parse("Q4_K_M"))
    assert told.endswith(", with noise as large; type Q8_0 has less noise")
    assert kept[0].line() == (
        "Q4_K: 100 % of the change survived, with noise as large (16 tensors, 3 of them rounded stochastically)"
    )
