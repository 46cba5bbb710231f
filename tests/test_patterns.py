"""Regular expressions of strangers: they match what `re` matches, in bounded time."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ggufmerge.patterns import Budget, Pattern, PatternError

NAMES = [
    "",
    "a",
    "ab",
    "aB\n",
    "a-b a_b",
    "token_embd.weight",
    "output.weight",
    *(f"blk.{i}.{part}.weight" for i in (0, 1, 9, 10, 21) for part in ("attn_q", "attn_k_norm", "ffn_down_exps")),
    "model.layers.11.self_attn.q_proj",
    "model.layers.0.mlp.down_proj",
    "\udcff\u0130ſß",
]


def assert_as_re(text: str, flags: int = 0, names: list[str] = NAMES) -> None:
    wanted, pattern = re.compile(text, flags), Pattern(text, flags)
    for name in names:
        assert pattern.search(name) == bool(wanted.search(name)), (text, name)
        assert pattern.fullmatch(name) == bool(wanted.fullmatch(name)), (text, name)


@pytest.mark.parametrize(
    "text",
    [
        "ffn_down",
        r"attn_(q|k|v)",
        "(ffn_)?(up|down)?_?exps?",
        "(a|ab)(c|bc|)(b|.)?",
        r"\.(attn_q|ffn_.*)\.weight$",
        r"^blk\.(0|1|[2-9]|1[0-9])\.ffn_(up|gate|down)(_exps)?\.weight",
        r"blk\.([0-9]|1[0-5])\..*exps",
        r"blk\.(?!0\.|1\.)\d+\.attn",
        r"(?<=blk\.)1\d?(?!\d)",
        r"(?<!\d)0\.",
        r"(.*\.)?(q_proj)",
        r"(.*\.)?(layers\.\d+\.mlp\.down_proj)",
        r"(.*\.)?(^model\.layers\.(0|11)\.)",
        r"\bblk\b|\Bembd\b",
        r"(a|b)+?.{0,3}$",
        r"(?i:TOKEN)_(?-i:embd)",
        r"a{2,}|b{,2}|[^\W\d_]{3}",
        r"\Aa\Z|x*|",
        "(?s)a.b|(?m:^b$)",
        "(?!)",
        "(?:)*",
        "(?:){5,}",
        "(a?)*(b?)+",
        "((a*)*)*",
    ],
)
@pytest.mark.parametrize("flags", [0, re.IGNORECASE, re.ASCII, re.MULTILINE | re.DOTALL])
def test_what_people_write_matches_as_in_re(text: str, flags: int) -> None:
    """In tensor types of llama-quantize, in patterns of PEFT, and around their corners."""
    assert_as_re(text, flags)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    leaf = st.sampled_from(
        ["a", "b", ".", r"\d", r"\w", "[ab]", "[^a]", "[A-C]", "^", "$", r"\b", r"\B", "", r"\.", "_", "1", r"\Z"]
    )
    if not depth:
        return draw(leaf)
    inner = expressions(depth - 1)
    kind = draw(st.integers(0, 7))
    a, b = draw(inner), draw(inner)
    if kind == 0:
        return draw(leaf)
    if kind in (1, 2):
        return a + b
    if kind == 3:
        return f"(?:{a}|{b})"
    if kind in (4, 5):
        return f"(?:{a})" + draw(st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*?", "{2,}"])) + b
    return f"(?{draw(st.sampled_from(['=', '!']))}{a}){b}"


@settings(max_examples=300, deadline=None)
@given(expressions(), st.lists(st.text("abAB1._ -\n", max_size=6), max_size=5), st.sampled_from([0, re.IGNORECASE]))
@example("(?:a|b)*$", ["ab\n"], 0)
@example(r"(?=.*\b)b*^", ["b"], 0)
def test_any_expression_matches_as_in_re(text: str, names: list[str], flags: int) -> None:
    """Short texts, so that `re` comes to an end."""
    assert_as_re(text, flags, names)


@pytest.mark.parametrize(
    "text",
    [
        "(.+)+!",
        "([a-z0-9._]+)+!",
        "(a|a)*!",
        "(?:(?:[a-z.]*)*)*!",
        ".*.*.*.*.*.*.*.*.*.*.*.*!",
        "(a?){50}a{50}!",
        "(?=(.+)+!)x",
        "(?=.*(?=.*(?=.*(?=.*!))))",
        "(x+x+)+y|(.|.)+z!",
        "(a|b|ab)*(?!.*x)!",
    ],
)
def test_expressions_that_would_take_re_for_ever(text: str) -> None:
    """They do not match, or say that they take too long, as those with look-aheads do."""
    pattern = Pattern(text, re.IGNORECASE, Budget(500_000))
    try:
        for i in range(1000):
            name = f"blk.{i}." + "aaaaaaa_xx" * 5 + ".weight"
            assert not pattern.search(name)
            assert not pattern.fullmatch(name)
    except PatternError as error:
        assert "(?" in text and "takes too long" in str(error)  # noqa: PT017, PT018 - either is fine


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("(", "not a regular expression: missing"),
        ("a**", "not a regular expression: multiple repeat"),
        ("(?<=a*)b", "not a regular expression: look-behind requires fixed-width"),
        ("a{99999999999999999999}", "not a regular expression"),
        ("(a|" * 240 + ")" * 240, "nested too deeply"),
        ("a" * 1001, "too long"),
        ("(a{1000}){1000}", "too large"),
        ("((a{0,99}){0,99}){0,99}", "too large"),
        (r"(a)\1", "a reference back to a group"),
        ("(a)?(?(1)b|c)", "a condition on a group"),
        ("(?>a*)b", "an atomic group"),
        ("a*+b", "a possessive repetition"),
        ("\x1b[2J(", r'"\\x1b\[2J\("'),
    ],
)
def test_refused(text: str, complaint: str) -> None:
    """When the expression is read, in one printable line."""
    with pytest.raises(PatternError, match=complaint) as caught:
        Pattern(text)
    assert str(caught.value).isprintable()


def test_a_spent_budget_is_an_error() -> None:
    """The expressions of one list share it."""
    budget = Budget(2000)
    first, second = (Pattern(f"(?=.*{letter}.*z).*", 0, budget) for letter in "ab")
    with pytest.raises(PatternError, match="takes too long"):
        [pattern.search("ab" * 60) for pattern in (first, second) for _ in range(4)]
