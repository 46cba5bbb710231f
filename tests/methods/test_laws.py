"""What holds for every merge method: chunks do not matter, ends are exact, order does not matter."""

from __future__ import annotations

import pickle

import numba
import numpy as np
import pytest

import ggufmerge
from ggufmerge.methods import NAMES, method
from ggufmerge.methods.api import problem, run
from ggufmerge.methods.chunks import chunks_of
from ggufmerge.methods.drive import Replay, readings
from ggufmerge.methods.spec import Base

ROWS, N = (12, 9) if numba.config.DISABLE_JIT else (61, 203)

# parameters that use all of a method's machinery; per-model ones for three models
PARAMETERS = {
    "linear": {"weight": [0.3, 0.6, -0.2]},
    "slerp": {"t": 0.3},
    "slerp chain": {"t": 0.3, "chain": True, "chain_t": [0.5, None, 0.7]},
    "task_arithmetic": {"weight": [0.3, 0.6, -0.2], "lambda": 0.8},
    "ties": {"weight": [0.3, 0.6, -0.2], "density": [0.3, 1.0, 0.5], "rescale": True},
    "dare_linear": {"weight": [0.3, 0.6, -0.2], "density": [0.3, 1.0, 0.5]},
    "dare_ties": {"weight": [0.3, 0.6, -0.2], "density": [0.3, 1.0, 0.5], "normalize": True},
    "nuslerp": {"weight": [0.3, 0.5]},
    "nuslerp rows": {"weight": [0.3, 0.5], "nuslerp_flatten": False},
    "nuslerp columns": {"weight": [0.3, 0.5], "nuslerp_flatten": False, "nuslerp_row_wise": True},
    "multislerp": {"weight": [0.3, 0.6, 0.2]},
    "karcher": {"weight": [0.3, 0.6, 0.2]},
    "della": {"weight": [0.3, 0.6, 0.2], "density": [0.3, 1.0, 0.5]},
    "della_linear": {"weight": [0.3, 0.6, -0.2], "density": [0.3, 1.0, 0.5], "rescale_by": "density"},
    "breadcrumbs": {"weight": [0.3, 0.6, -0.2], "density": [0.3, 1.0, 0.5], "gamma": 0.1},
    "breadcrumbs_ties": {"weight": [0.3, 0.6, -0.2], "density": [0.3, 1.0, 0.5], "rescale": True},
    "sce": {"select_topk": 0.4},
    "ram": {"epsilon": 0.3},
    "ramplus_tl": {"epsilon": 0.3, "alpha": 2.0},
    "model_stock": {},
    "model_stock rows": {"filter_wise": True},
    "nearswap": {"t": 0.1},
    "arcee_fusion": {},
    "passthrough": {"scale": [0.7]},
}


def stack(title, count=3, seed=0):
    """The method of this title, and a stack of inputs for it: a base and models that resemble it."""
    chosen = method(title.split()[0])
    if chosen.max_models is not None:
        count = chosen.max_models
    if title == "slerp":
        count = 1
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((ROWS, N))
    models = base + 0.5 * rng.standard_normal((count, ROWS, N))
    x = np.concatenate([base[None], models]).astype(np.float32)
    return chosen, np.round(x * 64) / 64  # on a grid, so that equal magnitudes occur


def merged(title, x, parameters=None, **options):
    chosen = method(title.split()[0])
    parameters = PARAMETERS[title] if parameters is None else parameters
    if chosen.base is Base.MODEL:
        return ggufmerge.merge(x[1:], chosen.name, parameters, **options)
    return ggufmerge.merge(x[1:], chosen.name, parameters, base=x[0], **options)


def test_all_methods_are_here():
    """A method that is added must obey these laws, too."""
    assert {title.split()[0] for title in PARAMETERS} == set(NAMES)


@pytest.mark.parametrize("title", PARAMETERS)
def test_chunks_change_nothing(title):
    """To the bit: one row at a time, odd groups of rows, or the whole tensor."""
    _, x = stack(title)
    whole = merged(title, x, _chunk=x.size)
    for rows in (1, 7, ROWS - 1):
        np.testing.assert_array_equal(merged(title, x, _chunk=rows * N), whole)


@pytest.mark.parametrize("title", PARAMETERS)
def test_what_the_passes_gathered_is_all_that_a_merge_needs(title):
    """Passes and the merge can be done elsewhere: from copies of what was gathered, by generators that are replayed."""
    chosen, x = method(title.split()[0]), stack(title)[1]
    x = x[1:].copy() if chosen.base is Base.MODEL else x
    p = problem(chosen, x.shape, chosen.base is not Base.MODEL, PARAMETERS[title])
    out = np.empty(x.shape[1:], np.float32)
    for reading in (driver := Gathered(readings(Replay(chosen, p)))):
        for chunk in chunks_of(*x.shape[1:], 7 * N):
            there = Replay(chosen, p).after(sent(reading.before))
            reading.fold(sent(there.map(x[:, chunk.row : chunk.end].copy(), chunk)))
    for chunk in chunks_of(*x.shape[1:], 7 * N):
        there = Replay(chosen, p).after(sent(driver.result))
        chosen.combine(x[:, chunk.row : chunk.end].copy(), p, there.value, chunk, out[chunk.row : chunk.end])
    np.testing.assert_array_equal(out, run(chosen, p, x))


def sent(data):
    """What arrives in another process."""
    return pickle.loads(pickle.dumps(data))


class Gathered:
    """A generator to iterate over, which keeps what it returns."""

    def __init__(self, generator):
        self.generator = generator

    def __iter__(self):
        self.result = yield from self.generator


@pytest.mark.parametrize("title", PARAMETERS)
def test_inputs_are_not_written(title):
    """Read-only arrays are enough."""
    _, x = stack(title)
    x.setflags(write=False)
    copy = x.copy()
    merged(title, x)
    np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize("title", PARAMETERS)
def test_a_vector_is_one_row_and_a_cube_has_rows_along_its_last_axis(title):
    """The shape comes back, and a 1-D array merges as a matrix of one row."""
    _, x = stack(title)
    flat = x[:, :1].reshape(len(x), N)
    np.testing.assert_array_equal(merged(title, flat), merged(title, x[:, :1])[0])
    cube = x[:, :12].reshape(len(x), 3, 4, N)
    np.testing.assert_array_equal(merged(title, cube).reshape(12, N), merged(title, x[:, :12]))


@pytest.mark.parametrize(
    ("title", "parameters"),
    [
        ("linear", {"weight": [0.3, 0.6, 0.2]}),
        ("linear", {"weight": [0.25, 0.5, 0.25], "normalize": False}),
        ("slerp", {"t": 0.3}),
        ("slerp chain", {"t": 0.3, "chain": True}),
        ("task_arithmetic", {"weight": [0.3, 0.6, -0.2], "lambda": 0.8}),
        ("ties", {"weight": [0.3, 0.6, -0.2], "density": 0.3}),
        ("dare_linear", {"weight": [0.3, 0.6, -0.2], "density": 0.3}),
        ("dare_ties", {"weight": [0.3, 0.6, -0.2], "density": 0.3}),
        ("nuslerp", PARAMETERS["nuslerp"]),
        ("nuslerp rows", PARAMETERS["nuslerp rows"]),
        ("nuslerp columns", PARAMETERS["nuslerp columns"]),
        ("karcher", {}),
        ("della", PARAMETERS["della"]),
        ("breadcrumbs", PARAMETERS["breadcrumbs"]),
        ("sce", PARAMETERS["sce"]),
        ("ram", {}),
        ("ramplus_tl", {}),
        ("model_stock", {}),
        ("model_stock rows", {"filter_wise": True}),
        ("nearswap", {"t": 0.1}),
        ("arcee_fusion", {}),
    ],
)
def test_a_model_merged_with_itself_is_itself(title, parameters):
    """To the bit."""
    _, x = stack(title)
    same = np.broadcast_to(x[0], x.shape)
    np.testing.assert_array_equal(merged(title, same, parameters), x[0])


ANY_ORDER = [
    "linear", "task_arithmetic", "ties", "multislerp", "karcher", "breadcrumbs", "breadcrumbs_ties", "sce", "ram",
    "ramplus_tl", "model_stock", "model_stock rows",
]  # fmt: skip


@pytest.mark.parametrize("title", ANY_ORDER)
def test_order_of_models_does_not_matter(title):
    """Models permuted with their weights and densities give the same result, to float32 rounding."""
    _, x = stack(title)
    turned = {k: v[::-1] if isinstance(v, list) else v for k, v in PARAMETERS[title].items()}
    reference = merged(title, x)
    np.testing.assert_allclose(
        merged(title, np.concatenate([x[:1], x[:0:-1]]), turned), reference, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("title", ["linear", "task_arithmetic", "ties", "dare_ties"])
def test_scaling_all_weights_changes_nothing_when_normalized(title):
    """Only the ratio of the weights counts, to float32 rounding."""
    _, x = stack(title)
    parameters = {**PARAMETERS[title], "weight": np.array([0.3, 0.6, 0.2]), "normalize": True}
    scaled = {**parameters, "weight": 8 * parameters["weight"]}
    np.testing.assert_allclose(merged(title, x, scaled), merged(title, x, parameters), rtol=1e-6, atol=1e-7)


UNTOUCHED = [
    ("linear", {"weight": [0.0, 0.3, 0.0]}, 2),
    ("linear", {"weight": [0.0, 1.0, 0.0], "normalize": False}, 2),
    ("slerp", {"t": 0.0}, 0),
    ("slerp", {"t": 1.0}, 1),
    ("slerp chain", {"t": 0.0, "chain": True}, 0),
    ("slerp chain", {"t": 0.0, "chain": True, "chain_t": [None, 1.0, None]}, 2),
    ("slerp chain", {"t": 0.5, "chain": True, "chain_t": [None, 1.0, 0.0]}, 2),
    ("task_arithmetic", {"weight": 0.7, "lambda": 0.0}, 0),
    ("task_arithmetic", {"weight": 0.0}, 0),
    ("task_arithmetic", {"weight": [0.0, 0.0, 1.0]}, 3),
    ("task_arithmetic", {"weight": [0.0, 0.0, 0.5], "lambda": 2.0}, 3),
    ("task_arithmetic", {"weight": [0.0, 0.0, 0.3], "normalize": True}, 3),
    ("ties", {"weight": [0.0, 0.3, 0.0]}, 2),
    ("ties", {"weight": [0.5, 0.3, 0.1], "density": [0.0, 1.0, 0.0]}, 2),
    ("ties", {"weight": [0.5, 0.3, 0.1], "density": 0.0}, 0),
    ("dare_linear", {"weight": 0.7, "density": 0.0}, 0),
    ("dare_linear", {"weight": [0.7, 1.0, 0.2], "density": [0.0, 1.0, 0.0]}, 2),
    ("dare_ties", {"weight": [0.7, 1.0, 0.0], "density": [0.0, 1.0, 0.5]}, 2),
    ("dare_ties", {"weight": 0.7, "lambda": 0.0}, 0),
    ("nuslerp", {"weight": [0.7, 0.0]}, 1),
    ("nuslerp", {"weight": [0.0, -0.7]}, 2),
    ("multislerp", {"weight": [0.0, 0.7, 0.0]}, 2),
    ("karcher", {"weight": [0.0, 0.7, 0.0]}, 2),
    ("della", {"weight": [0.7, 0.3, 0.2], "density": [0.0, 1.0, 0.0]}, 2),
    ("della_linear", {"weight": 0.7, "density": 0.0}, 0),
    ("breadcrumbs", {"weight": [0.0, 1.0, 0.0]}, 2),
    ("breadcrumbs_ties", {"weight": [0.7, 0.3, 0.2], "density": 0.0}, 0),
    ("sce", {"select_topk": 0.0}, 0),
    ("nearswap", {"t": 0.0}, 0),
    ("passthrough", {}, 1),
    ("passthrough", {"scale": 1.0}, 1),
]


@pytest.mark.parametrize(("title", "parameters", "expected"), UNTOUCHED)
def test_untouched_names_the_input_that_comes_out(title, parameters, expected):
    """`untouched` tells it beforehand, and computing gives it, too: to the bit or, for differences, to rounding."""
    chosen, x = stack(title)
    based = chosen.base is Base.REQUIRED
    inputs = x if based else x[1:]
    p = problem(chosen, inputs.shape, based, parameters)
    place = expected if based else expected - 1
    assert chosen.untouched(p) == place
    np.testing.assert_allclose(run(chosen, p, inputs), inputs[place], rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("title", PARAMETERS)
def test_a_true_merge_is_not_called_untouched(title):
    """The parameters of these tests change every tensor."""
    chosen, x = stack(title)
    based = chosen.base is Base.REQUIRED
    inputs = x if based else x[1:]
    assert chosen.untouched(problem(chosen, inputs.shape, based, PARAMETERS[title])) is None


@pytest.mark.parametrize("title", PARAMETERS)
@pytest.mark.parametrize("hostile", ["any bits", "negative NaN", "infinities", "largest", "subnormal"])
def test_no_values_lead_out_of_the_arrays(title, hostile):
    """Models with NaN are refused before they are merged, but the kernels do not rely on it. With NUMBA_BOUNDSCHECK=1
    every index is checked.
    """
    chosen, x = stack(title)
    rng = np.random.default_rng(5)
    if hostile == "any bits":
        x[1] = rng.integers(0, 2**32, x[1].shape, np.uint64).astype(np.uint32).view(np.float32)
    elif hostile == "subnormal":
        x *= np.float32(1e-42)
    else:
        values = {
            "negative NaN": [np.uint32(0xFFC00000).view(np.float32), np.nan],
            "infinities": [np.inf, -np.inf],
            "largest": [np.finfo(np.float32).max, np.finfo(np.float32).min],
        }[hostile]
        for place in x.reshape(len(x), -1):
            place[rng.integers(0, place.size, 9)] = rng.choice(np.float32(values), 9)
    inputs = x if chosen.base is Base.REQUIRED else x[1:]
    p = problem(chosen, inputs.shape, chosen.base is Base.REQUIRED, PARAMETERS[title])
    with np.errstate(all="ignore"):
        assert run(chosen, p, inputs).shape == x.shape[1:]


WEIGHTED = [
    title for title in PARAMETERS if {"lambda", "normalize"} & {q.name for q in method(title.split()[0]).parameters}
]


@pytest.mark.parametrize("title", WEIGHTED)
def test_an_infinity_in_a_model_of_weight_zero_stays_out(title):
    """A model that takes no part cannot spoil the result."""
    _, x = stack(title)
    x[2] = np.inf
    assert np.isfinite(merged(title, x, {**PARAMETERS[title], "weight": [0.3, 0.0, 0.7]})).all()
