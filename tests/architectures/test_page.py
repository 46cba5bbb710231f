"""The page about architectures names those that have rules."""

from __future__ import annotations

from pathlib import Path

from ggufmerge.architectures.layer_rules import layer_rules
from ggufmerge.architectures.rules import Further, HeadSize, Needed
from tests.architecture_models import tiny_models

PAGE = Path(__file__).parent.parent.parent / "docs" / "architectures.md"


def test_each_architecture_with_a_rule_of_its_own_is_on_the_page() -> None:
    """As often as it has rules, or more often where one rule has several lines."""
    text = PAGE.read_text("utf-8")
    for architecture in {model.architecture for model in tiny_models().values()}:
        kinds = {type(rule) for rule in layer_rules(architecture)} - {Further, HeadSize, Needed}
        assert text.count(f"`{architecture}`") >= len(kinds), architecture
