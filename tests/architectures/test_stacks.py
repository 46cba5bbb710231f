"""The layers that the names of tensors tell."""

from __future__ import annotations

import pytest

from ggufmerge.architectures.stacks import STACKS, layer_of, stack_of, with_layer


@pytest.mark.parametrize(
    ("name", "stack", "layer"),
    [
        ("blk.0.attn_q.weight", "", 0),
        ("blk.107.ffn_down_exps.weight", "", 107),
        ("blk.3.ssm_a", "", 3),
        ("enc.blk.3.attn_q.weight", "enc.", 3),
        ("dec.blk.11.cross_attn_q.weight", "dec.", 11),
        ("token_embd.weight", "", None),
        ("dec.output_norm.weight", "", None),
        ("v.blk.3.attn_q.weight", "", None),
        ("blk.x.attn_q.weight", "", None),
    ],
)
def test_layers(name, stack, layer):
    """A tensor changes its layer and nothing else, its stack neither; one outside the layers stays what it is."""
    assert layer_of(name) == layer
    assert stack_of(name) == stack
    assert stack in STACKS
    moved = with_layer(name, 42)
    if layer is None:
        assert moved == name
    else:
        assert layer_of(moved) == 42
        assert with_layer(moved, layer) == name
