"""YAML with positions: what is read, where it stands, and what is refused with one clear line."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ggufmerge.errors import RecipeError
from ggufmerge.recipe.document import MAX_DEPTH, Document
from ggufmerge.recipe.document import parse as parse_all
from ggufmerge.text import shown


def parse(text: str) -> Document:
    """The only document in a text."""
    [document] = parse_all(text)
    return document


PLACE = re.compile(r"recipe(:\d+:\d+|:\d+)?: ")


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert PLACE.match(message), message
    return message


def test_marks_point_at_keys_and_items():
    """Lines and columns count from 1; a key stands for its pair, an item for itself."""
    document = parse("a: 1\nmodels:\n  - model: x\n    parameters: {weight: 0.5}\n")
    assert document.position(("a",)) == (1, 1)
    assert document.position(("models", 0)) == (3, 5)
    assert document.position(("models", 0, "parameters", "weight")) == (4, 18)
    assert document.where(("models", 0, "model")) == "recipe:3:5"


def test_unknown_location_falls_back_to_the_closest_known_one():
    """A missing key is reported at the mapping that lacks it."""
    document = parse("models:\n  - {model: x}\n")
    assert document.position(("models", 0, "absent", "deeper")) == (2, 5)
    assert document.position(("nothing",)) == (1, 1)


def test_anchors_and_merge_keys_work():
    """Own keys win over merged ones, the first of several merged mappings wins over the later ones."""
    text = "x: &x {k: 1, l: 1}\ny: &y {k: 2, m: 2}\nz: {<<: [*x, *y], l: 3}\nw: *x\nv: {<<: *x}\n"
    expected = yaml.safe_load(text)
    assert parse(text).data == expected
    assert expected["z"] == {"k": 1, "l": 3, "m": 2}


def test_an_alias_of_a_mapping_that_overrides_a_merged_key_has_no_duplicates():
    """The overridden key of the merged mapping is no second key."""
    text = "a: &x {k: 1}\nb: &y\n  <<: *x\n  k: 2\nc: *y\n"
    assert parse(text).data == {"a": {"k": 1}, "b": {"k": 2}, "c": {"k": 2}}


def test_aliased_data_is_not_shared():
    """Whoever changes one place of the data leaves the others alone."""
    data = parse("a: &x [1]\nb: *x\n").data
    assert data["a"] is not data["b"]


def test_duplicate_keys_are_refused_at_the_second():
    """YAML forbids them; PyYAML would silently take the last."""
    assert refusal("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n") == (
        'recipe:5:3: the key "c" appears twice in one mapping; remove one'
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-1E3", -1000.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("yes", True),
        ("~", None),
        ("", None),
        ("2024-05-01", "2024-05-01"),
        ("=", "="),
        ("'1'", "1"),
        ("Über", "Über"),
        ("1e5x", "1e5x"),
    ],
)
def test_plain_words(text, value):
    """PyYAML's meanings, but for `1e-5`, which is a number, and dates, which are texts."""
    got = parse(f"a: {text}\n").data["a"]
    assert got == value
    assert type(got) is type(value)


def test_keys_are_texts_as_written():
    """A recipe has no number or switch as a key, so an unknown one can be named as it stands."""
    assert parse("1: a\ntrue: b\n~: c\n").data == {"1": "a", "true": "b", "~": "c"}


def test_a_byte_order_mark_is_no_part_of_the_text():
    """Windows editors write one."""
    assert parse("\ufeffa: 1\n").data == {"a": 1}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("a: !!python/object/apply:os.system [x]\n", "tag"),
        ("a: !mine 1\n", "tag"),
        ("a: !!set {x, y}\n", "tag"),
        ("a: !!timestamp never\n", "tag"),
        ("a: !!int x\n", "not a valid int"),
        ("a: !!bool x\n", "not a valid bool"),
        ("a: 0b_\n", "not a valid int"),
        ("a: " + "1" * 5000 + "\n", "not a valid int"),
        ("a: &a [*a]\n", "alias that contains itself"),
        ("&a {b: {<<: *a}}\n", "alias that contains itself"),
        ("a: {<<: 5}\n", "takes a mapping"),
        ("a: *b\n", '"*" begins an alias'),
        ("? [a]\n: b\n", "a key is a word"),
        ("a:\n\tb: 1\n", "indent with spaces"),
        ("a: b: c\n", "not valid YAML"),
        ("a: [1, 2\n", "not valid YAML"),
        ('a: "\\0"\n', "a character that texts cannot have"),
        ('a: "\\ud800"\n', "a character that texts cannot have"),
        ("a: \x07\n", "U+0007"),
        ("[" * 5000, "nested deeper"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested deeper"),
    ],
)
def test_what_a_recipe_may_not_hold(text, complaint):
    """One line that says where and what; nothing but RecipeError."""
    assert complaint in refusal(text)


@pytest.mark.parametrize(
    "item", ["[*{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}]", "{{<<: [*{0}, *{0}, *{0}, *{0}]}}"]
)
def test_aliases_that_multiply_are_refused(item):
    """A few lines that stand for billions of values end with a message, not with the memory."""
    lines = ["a0: &a0 {k: 1}"] + [f"a{i}: &a{i} {item.format(f'a{i - 1}')}" for i in range(1, 15)]
    assert "aliases written out" in refusal("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x: [" + "a," * 500_000 + "]", "more than 20000 words and values"),
        ("".join(f"k{i}: 1\n" for i in range(90_000)), "more than 20000 words and values"),
        ("a: 1\n---\n" * 50_000, "at most 100 documents"),
        ("[" * 5000, ":1:22: nested deeper"),
        ("{a: " * 5000, "nested deeper"),
        ("- " * 5000, "nested deeper"),
        ("? " * 5000, "nested deeper"),
    ],
)
def test_large_documents_are_refused_while_they_are_read(text, complaint):
    """At the first word that is too much, since PyYAML needs a minute for a megabyte."""
    assert complaint in refusal(text)


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "1" + ":59" * 5000, "1" + ":59" * 500 + ".5", "9" * 5000])
def test_numbers_that_python_would_not_write_are_refused(number):
    """Also those that YAML writes in hexadecimal or in minutes and seconds."""
    assert "is not a valid" in refusal(f"seed: {number}")


NEAR_YAML = st.text(alphabet="{}[]&*!|>-?:,'\"#%@`<~=ab1. \n\t\\", max_size=60)


@given(st.one_of(st.text(), NEAR_YAML))
def test_any_text_is_read_or_refused(text):
    """No text raises anything but RecipeError, and that has one line."""
    try:
        parse(text)
        lines = 1
    except RecipeError as error:
        lines = len(str(error).splitlines())
    assert lines == 1


@pytest.mark.parametrize(
    "value",
    ["a\nb", "\x1b[31mred", "x" * 500, "\ud800", ["\u202e" * 500] * 50, {"a": [[[]]]}, [1 << 20_000], [[-1 << 20_000]]],
)
def test_values_in_messages_are_short_and_on_one_line(value):
    """A hostile value cannot break a message into lines, flood the terminal or steer it."""
    text = shown(value)
    assert text.isprintable()
    assert len(text) < 300
