"""What methods make of differences that hold rounding errors: nothing of exact ones, and more the larger the errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufmerge.methods import method
from ggufmerge.methods.api import problem
from ggufmerge.methods.spec import Base, Method, Problem
from tests.methods.test_laws import PARAMETERS, stack

HEEDING = {
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "nearswap",
}
SHARES = st.floats(0, 1)


def problem_of(title: str) -> tuple[Method, Problem]:
    chosen, x = stack(title)
    has_base = chosen.base is not Base.MODEL
    return chosen, problem(chosen, x[int(not has_base) :].shape, has_base, PARAMETERS[title])


def pruned(name: str, density: float, **more: float) -> tuple[Method, Problem]:
    chosen = method(name)
    return chosen, problem(chosen, (2, 4, 32), True, {"weight": 1.0, "density": density, **more})


@pytest.mark.parametrize("title", PARAMETERS)
def test_an_exact_difference_changes_no_parameter(title: str) -> None:
    """And a method that says nothing of rounding errors does nothing about them."""
    chosen, p = problem_of(title)
    for share in (1.0, 0.01):
        found = chosen.with_signal(p, np.full(p.others, share))
        assert bool(chosen.heeded(p)) == (chosen.name in HEEDING)
        same = found.shared == p.shared and all(np.array_equal(found.models[k], p.models[k], True) for k in p.models)
        assert same == (share == 1 or chosen.name not in HEEDING)


@given(st.floats(0.01, 0.99), SHARES)
def test_dropping_adds_as_much_chance_as_for_the_change_alone(density: float, share: float) -> None:
    """To drop at density p and to rescale adds d^2 (1 - p) / p: with all of d^2 as much as with the change's share."""
    chosen, p = pruned("dare_linear", density)
    [used] = chosen.with_signal(p, np.array([share])).models["density"]
    assert (1 - used) / used == pytest.approx(share * (1 - density) / density, abs=1e-12)


@pytest.mark.parametrize("name", sorted(HEEDING - {"nearswap", "breadcrumbs", "breadcrumbs_ties"}))
@given(st.floats(0.01, 0.99), SHARES, SHARES)
def test_the_density_grows_with_the_noise(name: str, density: float, one: float, other: float) -> None:
    """Never below what was asked for, and never above 1."""
    chosen, p = pruned(name, density, **({"epsilon": 0} if "della" in name else {}))
    low, high = (chosen.with_signal(p, np.array([s])).models["density"][0] for s in sorted((one, other), reverse=True))
    assert density <= low <= high <= 1 or low == pytest.approx(density)


@pytest.mark.parametrize("name", ["dare_ties", "ties"])
def test_nothing_is_kept_of_what_is_left_out(name: str) -> None:
    """A density of 0 stays 0, one of 1 stays 1."""
    for density in (0.0, 1.0):
        chosen, p = pruned(name, density)
        assert chosen.with_signal(p, np.array([0.01])).models["density"] == [density]
        assert chosen.heeded(p) == ""


@given(st.floats(0.01, 0.99), st.floats(0, 1, exclude_max=True), SHARES)
def test_probabilities_of_della_stay_probabilities(density: float, part: float, share: float) -> None:
    """However much density is raised."""
    chosen, p = pruned("della", density, epsilon=part * 0.999 * min(density, 1 - density))
    found = chosen.with_signal(p, np.array([share]))
    chosen.check(found)  # raises nothing


def test_magnitudes_that_tell_changes_are_trusted() -> None:
    """TIES and breadcrumbs go by them where at least half of a difference is change; else TIES trims nothing."""
    for name in ("ties", "breadcrumbs"):
        chosen, p = pruned(name, 0.2)
        found = chosen.with_signal(p, np.array([0.5])).models
        assert all(np.array_equal(found[key], values) for key, values in p.models.items())
    chosen, p = pruned("ties", 0.2)
    assert chosen.with_signal(p, np.array([0.4])).models["density"] == [1]


def test_breadcrumbs_drop_few_of_the_jumps() -> None:
    """Of the hundredth part of the elements that jumps a tenth, and never more than was asked for."""
    chosen, p = pruned("breadcrumbs", 0.9, gamma=0.03)
    assert chosen.with_signal(p, np.array([0.01])).models["gamma"] == pytest.approx(0.001)
    assert chosen.with_signal(p, np.array([0.4])).models["gamma"] == [0.03]


def test_nearswap_goes_as_far_on_average() -> None:
    """With a tenth of the elements that go ten times as far; and never beyond the other model."""
    chosen = method("nearswap")
    p = problem(chosen, (2, 4, 32), True, {"t": 0.01})
    assert chosen.with_signal(p, np.array([0.1])).shared["t"] == pytest.approx(0.1)
    assert np.isfinite(chosen.with_signal(p, np.array([0.0])).number("t"))


def test_the_problem_itself_stays() -> None:
    """Another one is made of it."""
    chosen, p = pruned("dare_ties", 0.1)
    before = replace(p, models={name: values.copy() for name, values in p.models.items()})
    chosen.with_signal(p, np.array([0.1]))
    assert p.models["density"] == before.models["density"]
