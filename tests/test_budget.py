"""Types under a budget: never above it, no better choice, and the same again from what was saved."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ggufmerge
from ggufmerge.architectures.memory import memory_need
from ggufmerge.architectures.stacks import part_of
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.engine.suggest import front, suggest
from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.evaluation.probes import Bench, scaled, sensitivities
from ggufmerge.planning.budget import Option, allot, smallest, total
from ggufmerge.planning.fitting import type_rules
from ggufmerge.planning.harm import predict
from ggufmerge.planning.plan import Plan
from ggufmerge.quants.correlations import Correlation
from ggufmerge.quants.importance import Imatrix, ImatrixEntry
from ggufmerge.recipe.budget import ByteBudget, parse_bits, parse_bytes
from ggufmerge.types import TensorType
from tests.tiny import write_tiny_llama

T = TensorType
OPTION = st.builds(Option, st.sampled_from([T.Q4_0, T.Q8_0]), st.integers(1, 40), st.floats(0, 10))
TENSORS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("budget") / "model.gguf"
    write_tiny_llama(path, embed=256, ff=512, layers=3)
    return path


def plan(model: Path, **budget: Any) -> Plan:
    made, opened = plan_quantize(model, None, budget=ByteBudget.parse(**budget))
    opened.close()
    return made


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ggufmerge", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@given(TENSORS, st.integers(1, 32), st.floats(0, 1))
def test_no_allotment_that_fits_does_less_harm(tensors: list[list[Option]], unit: int, share: float) -> None:
    """Compared with every allotment there is; and it never takes more than the budget."""
    options = {str(i): [Option(o.type, o.nbytes * unit, o.harm) for o in several] for i, several in enumerate(tensors)}
    least = smallest(options)
    budget = least + int(share * (sum(max(o.nbytes for o in s) for s in options.values()) - least))
    nbytes, harm = total(allot(options, budget))
    fitting = [c for c in itertools.product(*options.values()) if sum(o.nbytes for o in c) <= budget]
    assert nbytes <= budget
    assert harm <= min(sum(o.harm for o in c) for c in fitting) + 1e-9


@given(TENSORS, st.integers(0, 100), st.integers(0, 100))
def test_a_larger_budget_never_does_more_harm(tensors: list[list[Option]], first: int, more: int) -> None:
    options = {str(i): several for i, several in enumerate(tensors)}
    small = smallest(options) + first
    assert total(allot(options, small + more))[1] <= total(allot(options, small))[1] + 1e-9


def test_a_thousand_tensors_are_near_the_bound() -> None:
    """Where an exact search would take long, what is found is at most one option worse than the relaxed problem's."""
    rng = np.random.default_rng(3)
    bits = np.array([2.06, 3.44, 4.5, 5.5, 6.56, 8.5])
    options = {}
    for i in range(1000):
        weights = int(rng.integers(1, 200)) * 65536 + 32 * int(rng.integers(1, 1000))
        harms = rng.lognormal() * 4.0**-bits
        options[str(i)] = [Option(T.Q4_0, int(weights * b / 8), float(h)) for b, h in zip(bits, harms, strict=True)]
    budget = 2 * smallest(options)
    found = allot(options, budget)
    nbytes, harm = total(found)
    assert budget - max(o.nbytes for o in found.values()) < nbytes <= budget
    prices = np.logspace(-16, -6, 400)
    bound = max(
        sum(min(o.harm + p * o.nbytes for o in several) for several in options.values()) - p * budget for p in prices
    )
    assert harm <= bound * 1.02


@pytest.mark.parametrize(
    ("text", "nbytes"), [("3.5G", 3_500_000_000), ("800M", 800_000_000), ("1.5GiB", 3 << 29), ("12345", 12345), (7, 7)]
)
def test_sizes_are_read_as_people_write_them(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "G", "-3G", "3.5X", "0", "1e9", "iB", "3 5G", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(GgufmergeError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "four", "0", "-1", "nan", "inf", "65"])
def test_what_is_no_number_of_bits_is_refused(text: str) -> None:
    with pytest.raises(GgufmergeError, match="bits per weight"):
        parse_bits(text)


@pytest.mark.parametrize("bits", [3.5, 4.6, 5.5, 7.0, 16.0, 40.0])
def test_a_file_keeps_to_its_budget_in_bits(model: Path, bits: float) -> None:
    """Of all weights, norms included; and no tensor is wider than it was."""
    made = plan(model, max_bpw=bits)
    assert made.nbytes * 8 <= bits * made.parameters
    with ggufmerge.open(model) as source:
        assert all(t.type.bits_per_weight <= source.tensors[t.name].type.bits_per_weight for t in made.tensors)


def test_more_room_does_less_predicted_harm(model: Path) -> None:
    """And room for all of the model leaves it as it is."""
    market, _ = suggest(model)
    sizes = np.linspace(market.least, market.unchanged().nbytes, 12).astype(int)
    fits = [market.fit(ByteBudget(nbytes=int(size))) for size in sizes]
    assert all(fit.nbytes <= size for fit, size in zip(fits, sizes, strict=True))
    assert [fit.harm for fit in fits] == sorted((fit.harm for fit in fits), reverse=True)
    assert fits[-1].harm == 0
    assert fits[-1].types == market.unchanged().types


def test_a_budget_that_is_too_small_names_the_smallest_size(model: Path) -> None:
    """Which then can be reached."""
    with pytest.raises(PlanError, match=r"too small.* bytes.*at least.*--imatrix") as caught:
        plan(model, max_size="1K")
    least = int(str(caught.value).split("(")[1].split(" bytes")[0])
    assert plan(model, max_size=least).nbytes == least
    with pytest.raises(PlanError, match="too small"):
        plan(model, max_size=least - 1)


def test_types_that_were_asked_for_stay(model: Path) -> None:
    """The budget is spent on the other tensors; norms are nobody's to choose."""
    made, opened = plan_quantize(
        model,
        None,
        budget=ByteBudget.parse(max_bpw=6),
        tensor_types=[("attn_v", "Q8_0")],
        token_embedding_type="Q6_K",
    )
    opened.close()
    types = {t.name: t.type for t in made.tensors}
    assert {kind for name, kind in types.items() if "attn_v" in name} == {T.Q8_0}
    assert types["token_embd.weight"] == T.Q6_K
    assert types["output_norm.weight"] == T.F32
    assert made.nbytes * 8 <= 6 * made.parameters


def test_code_books_need_an_importance_matrix(model: Path) -> None:
    """With one a model becomes smaller than without."""
    with ggufmerge.open(model) as opened:
        entries = {
            name: ImatrixEntry(np.ones(t.shape[-1], np.float32), np.ones(1, np.int64))
            for name, t in opened.tensors.items()
            if name.startswith("blk") and len(t.shape) == 2
        }
    made, source = plan_quantize(model, None, budget=ByteBudget(bits=40))
    with source:
        tensors = [t for t in made.tensors if t.name.startswith("blk") and len(t.shape) == 2]
        without = predict(tensors, source.sources, None)
        with_matrix = predict(tensors, source.sources, Imatrix(entries))
    assert without.statistics == "none"
    assert with_matrix.statistics == "importance"
    assert smallest(with_matrix.options) < smallest(without.options)
    assert all(not str(o.type).startswith(("IQ1", "IQ2", "IQ3")) for s in without.options.values() for o in s)


def test_errors_that_inputs_make_up_for_count_less(model: Path) -> None:
    """An error along a direction that inputs hardly have does little harm: correlations are heeded, in both forms."""
    name = "blk.0.attn_q.weight"
    rng = np.random.default_rng(2)
    loadings = np.zeros((1, 256), np.float32)
    loadings[0] = rng.choice([-1.0, 1.0], 256)
    made, source = plan_quantize(model, None, budget=ByteBudget(bits=40))
    triangle = np.rint(127 * np.outer(loadings[0], loadings[0]))[np.tril_indices(256)].astype(np.int8)
    entry = {name: ImatrixEntry(np.ones(256, np.float32), np.ones(1, np.int64))}
    harms = []
    with source:
        tensor = [next(t for t in made.tensors if t.name == name)]
        for kept in (Correlation(loadings=loadings), Correlation(triangle=triangle)):
            matrix = Imatrix(entry, correlations={name: (kept,)})
            found = predict(tensor, source.sources, matrix, only={name: [T.Q4_0]})
            assert found.statistics == "correlations"
            harms.append(found.options[name][0].harm)
    assert harms[0] == pytest.approx(harms[1], rel=1e-4)


def test_rules_match_their_tensors_and_no_others() -> None:
    """Layer 1 is not layer 11, and a dot is a dot."""
    types = {f"blk.{i}.ffn_up.weight": T.Q4_K if i % 5 else T.Q6_K for i in range(12)}
    types |= {"token_embd.weight": T.Q8_0, "enc.blk.3.attn_q.weight": T.Q5_K}
    rules = type_rules(types)
    for name, kind in types.items():
        assert [k for pattern, k in rules if re.search(pattern, name)] == [kind]
    assert not any(re.search(pattern, "blk.1.ffn_up_weight") for pattern, _ in rules)


def test_saved_types_give_the_same_file_again(model: Path, tmp_path: Path) -> None:
    """As a file of pairs, and as a recipe's."""
    (tmp_path / "model.gguf").write_bytes(model.read_bytes())
    said = run(tmp_path, "quantize", "model.gguf", "a.gguf", "--max-bpw", "5", "--save-types", "t.txt", "--json")
    facts = json.loads(said.stdout)
    assert facts["fitting"]["nbytes"] == sum(t["nbytes"] for t in facts["tensors"]) <= facts["parameters"] * 5 / 8
    assert facts["fitting"]["predicted_damage"] < facts["fitting"]["best_mixture"]["predicted_damage"]
    again = run(
        tmp_path, "quantize", "model.gguf", "b.gguf", facts["file_type"], "--tensor-type-file", "t.txt", "--json"
    )
    assert [t["type"] for t in json.loads(again.stdout)["tensors"]] == [t["type"] for t in facts["tensors"]]
    run(tmp_path, "quantize", "model.gguf", "--max-bpw", "5", "--save-types", "t.yaml", "--dry-run")
    (tmp_path / "r.yaml").write_text(
        "models:\n  - model: model.gguf\nmerge_method: linear\nparameters: {weight: 1}\n"
        + (tmp_path / "t.yaml").read_text(encoding="utf-8"),
        encoding="utf-8",
    )
    planned = {t["name"]: t["type"] for t in json.loads(run(tmp_path, "plan", "r.yaml", "--json").stdout)["tensors"]}
    assert planned == {t["name"]: t["type"] for t in facts["tensors"]}


def test_memory_to_run_in_is_a_budget(model: Path, tmp_path: Path) -> None:
    """What is needed beside the weights is taken off: the weights and the rest are no more than what was given."""
    with ggufmerge.open(model) as file:
        need = memory_need(file.metadata, file.tensors, 256)
        weights = sum(t.nbytes for t in file.tensors.values())
    assert need is not None
    most = need.beside_weights + weights // 2
    said = run(tmp_path, "quantize", str(model), "--fits", f"{most // 1000}K,ctx=256", "--dry-run", "--json")
    facts = json.loads(said.stdout)
    nbytes = sum(t["nbytes"] for t in facts["tensors"])
    assert 0 < nbytes <= most - need.beside_weights


def test_a_recipe_may_have_a_budget(model: Path, tmp_path: Path) -> None:
    """In its own words or by an option, which says the same."""
    data = {"models": [{"model": str(model), "parameters": {"weight": 1.0}}], "merge_method": "linear"}
    own = ggufmerge.plan({**data, "max_bpw": 5})
    assert own.nbytes * 8 <= 5 * own.parameters
    assert [t.type for t in ggufmerge.plan(data, max_bpw=5).tensors] == [t.type for t in own.tensors]
    done = ggufmerge.build({**data, "max_bpw": 5}, tmp_path / "out.gguf")
    with ggufmerge.open(done.output) as made:
        assert {n: t.type for n, t in made.tensors.items()} == {t.name: t.type for t in own.tensors}
    with pytest.raises(GgufmergeError, match='either "max_size" or "out_type"'):
        ggufmerge.plan({**data, "max_size": "1G", "out_type": "Q8_0"})
    with pytest.raises(GgufmergeError, match="is not a size"):
        ggufmerge.plan({**data, "max_size": "big"})


def test_the_front_has_no_choice_that_another_beats(model: Path) -> None:
    """By size and harm; and chosen types are never worse than the mixture of their size."""
    _, rows = suggest(model)
    assert rows == front(rows)
    marked = [row for row in rows if row.on_front]
    assert all(a.nbytes <= b.nbytes and a.harm > b.harm for a, b in itertools.pairwise(marked))
    by_name = {row.name: row for row in rows}
    for row in rows:
        if row.fitting is not None:
            assert row.harm <= by_name[row.file_type].harm + 1e-12
            assert row.nbytes <= by_name[row.file_type].nbytes


def test_probes_say_how_sensitive_a_model_is(model: Path) -> None:
    """What is as it was is not harmed; a kind's factor multiplies the harm of its tensors and of the mixtures."""
    market, _ = suggest(model)
    with Bench(model, limit=24, threads=1) as bench:
        assert bench.measure("all", market.unchanged()).kl == pytest.approx(0, abs=1e-6)
        factors = sensitivities(bench, market)
    assert set(factors) == {part_of(name) for name in market.prediction.options}
    assert all(0.25 <= factor <= 4 for factor in factors.values())
    there = scaled(market, factors)
    for name, several in market.prediction.options.items():
        expected = [o.harm * factors[part_of(name)] for o in several]
        assert [o.harm for o in there.prediction.options[name]] == pytest.approx(expected)
    same = scaled(market, dict.fromkeys(factors, 2.0))
    assert [m.harm for m in same.mixtures] == pytest.approx([2 * m.harm for m in market.mixtures])


def test_suggestions_have_a_report_with_plots(model: Path, tmp_path: Path) -> None:
    """And their JSON has every row of it; nothing else is written."""
    done = run(tmp_path, "quantize", str(model), "--suggest", "--max-bpw", "9", "--report", "s.html", "--json")
    facts = json.loads(done.stdout)
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "Predicted damage by size" in page
    assert page.count("<svg") == 1
    for row in facts["suggestions"]:
        assert row["nbytes"] * 8 <= 9 * facts["parameters"]
        assert row["name"] in page
    assert [path.name for path in tmp_path.iterdir()] == ["s.html"]
    assert "importance matrix" in facts["warnings"][0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--max-size", "5Q"), "is not a size"),
        (("--max-bpw", "many"), "bits per weight"),
        (("--max-size", "1K"), "too small"),
        (("--max-bpw", "5", "--pure"), "--pure"),
        (("Q4_K_M", "--max-bpw", "5"), "either a type or a budget"),
        (("Q4_K_M", "--save-types", "t.txt"), "--max-size"),
        (("Q4_K_M", "--measure"), "--suggest"),
        (("out.gguf", "--suggest"), "writes nothing"),
        (("--fits", "much"), "is no size of memory"),
        (("--fits", "100K"), "is left for weights"),
        (("--fits", "1G", "--max-size", "1G"), "give this or --max-size"),
    ],
)
def test_bad_budgets_get_one_line(model: Path, tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    """And nothing is written."""
    done = run(tmp_path, "quantize", str(model), *arguments)
    assert done.returncode != 0
    assert complaint in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
