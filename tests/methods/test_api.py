"""`ggufmerge.merge`: results as promised, and errors that tell what to do."""

from __future__ import annotations

import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import GgufmergeError, RecipeError

A = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_takes_lists_and_any_number_type():
    """The result is float32 whatever came in."""
    merged = ggufmerge.merge([[3, 5], np.array([1.0, 1.0])], "linear", {"weight": [1, 3]})
    assert merged.dtype == np.float32
    np.testing.assert_array_equal(merged, [1.5, 2.0])


def test_base_counts_as_the_last_model_where_a_method_has_none():
    """mergekit's rule for linear."""
    merged = ggufmerge.merge([A], "linear", {"weight": [1.0, 3.0], "normalize": False}, base=10 * A)
    np.testing.assert_array_equal(merged, 31 * A)


def test_an_untouched_result_is_a_copy():
    """Writing to it leaves the input alone."""
    merged = ggufmerge.merge([A], "passthrough")
    merged += 1
    np.testing.assert_array_equal(A, np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("dare-ties", {}, 'did you mean "dare_ties"'),
        ("ties", {"weight": 1.0, "densty": 0.5}, 'did you mean "density"'),
        ("ties", {}, "model 0 has no weight, which ties needs"),
        ("ties", {"weight": [1.0, 2.0, 3.0]}, "3 values for 2 models"),
        ("slerp", {}, r'no t is given, which slerp needs .*: give parameters={"t": 0.5}'),
        ("ties", {"weight": 1.0, "lambda": [1.0, 2.0]}, '"lambda" of ties is one value for all models'),
        ("ties", {"weight": 1.0, "density": 1.5}, '"density" is 0 to 1, not 1.5; for 1.5 % write 0.015'),
        ("ties", {"weight": "0,5"}, '"weight" is a number, not "0,5": write 0.5'),
        ("ties", {"weight": 1.0, "rescale": 2}, '"rescale" is true or false, not 2'),
        ("ties", {"weight": 1.0, "consensus": "summ"}, 'did you mean "sum"'),
        ("ties", {"weight": 1.0, "consensus": 3}, "is one of sum, count, not 3"),
        ("ties", {"weight": "heavy"}, 'is a number, not "heavy"'),
        ("ties", {"weight": True}, "is a number, not True"),
        ("ties", {"weight": float("nan")}, "finite"),
        ("linear", {"weight": [0.1, 0.2, -0.3]}, "sum to zero"),
    ],
)
def test_parameter_errors_tell_what_to_do(method, parameters, words):
    """Unknown names with the nearest one, missing and impossible values with their bounds."""
    with pytest.raises(RecipeError, match=words.replace("(", r"\(")):
        ggufmerge.merge([A, A], method, parameters, base=A)


def test_input_errors_tell_what_to_do():
    """Missing base, wrong number of models, unequal shapes, a lone number."""
    with pytest.raises(GgufmergeError, match="give base=ARRAY"):
        ggufmerge.merge([A], "ties", {"weight": 1.0})
    with pytest.raises(GgufmergeError, match="takes at most 1 model, not 2"):
        ggufmerge.merge([A, A], "passthrough")
    with pytest.raises(GgufmergeError, match="needs at least 1 model besides the base, not 0"):
        ggufmerge.merge([], "ties", {"weight": []}, base=A)
    with pytest.raises(GgufmergeError, match=r"number 1 is \(3, 2\), not \(2, 3\)"):
        ggufmerge.merge([A, A.T], "linear", {"weight": 1.0})
    with pytest.raises(GgufmergeError, match="single number"):
        ggufmerge.merge([1.0], "linear", {"weight": 1.0})


def test_empty_tensors_merge_to_empty_tensors():
    """No rows, no values, no error."""
    for shape in ((0,), (0, 4)):
        empty = np.empty(shape, np.float32)
        for method in ("linear", "ties", "dare_ties"):
            parameters = {"weight": [0.5, 0.3]} | ({} if method == "linear" else {"density": 0.5})
            base = None if method == "linear" else empty
            assert ggufmerge.merge([empty, empty], method, parameters, base=base).shape == shape
