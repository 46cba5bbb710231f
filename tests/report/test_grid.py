"""Where tensors stand when they are drawn."""

from __future__ import annotations

from ggufmerge.report.grid import Grid
from ggufmerge.report.notes import noted


def test_kinds_are_rows_and_layers_columns() -> None:
    """Kinds in the order of the file, layers by their numbers whatever gaps there are, the rest by itself."""
    grid = Grid.of(["token_embd.weight", "blk.7.b.weight", "blk.2.a.bias", "blk.7.a.bias", "output.weight"])
    assert (grid.kinds, grid.layers) == (("b", "a.bias"), (2, 7))
    assert grid.outside == ("token_embd.weight", "output.weight")
    assert grid.rows({"blk.7.a.bias": 1, "blk.7.b.weight": 2, "output.weight": 3}) == [[None, 2], [None, 1]]


def test_no_two_tensors_share_a_place() -> None:
    """Whatever a file calls them."""
    grid = Grid.of(["blk.7.a.weight", "blk.07.a.weight", "blk.7.a"])
    assert grid.places == {"blk.7.a.weight": (0, 0)}
    assert grid.outside == ("blk.07.a.weight", "blk.7.a")


def test_the_stacks_of_a_model_are_apart() -> None:
    """An encoder's layer 0 is not its decoder's."""
    grid = Grid.of(["enc.blk.0.attn_q.weight", "dec.blk.0.attn_q.weight"])
    assert grid.kinds == ("enc.attn_q", "dec.attn_q")
    assert grid.layers == (0,)


def test_decisions_that_differ_in_figures_are_one_line() -> None:
    """With the span of these figures, and of how many tensors."""
    notes = [("a", "kept 0.50 of it"), ("b", "kept 0.75 of it"), ("c", "other")]
    assert noted(notes) == ["note: a and 1 more: kept 0.50..0.75 of it", "note: c: other"]
    assert noted(notes[:2], 9) == ["note: 2 of 9 tensors (a, ...): kept 0.50..0.75 of it"]
