"""Reports as web pages: one file that needs nothing else, tells what the facts say, and trusts none of them."""

from __future__ import annotations

import copy
import functools
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ggufmerge.errors import GgufmergeError
from ggufmerge.report.html import REPORTED, check_drawing, report
from ggufmerge.report.html.page import is_report
from ggufmerge.report.html.scales import Scale, ink_on
from tests.report import facts as made

SMALL = tuple(made.names(2, 4))
EVIL = "<img src=x onerror=alert(1)>\"'&amp;$x^2$\x1b[2J\u202e\n</script></svg></title>"


class Page(HTMLParser):
    """What is in a page: its tags with their attributes, and its text; AssertionError for a tag that is left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "link", "li", "th", "td", "tr"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "link", "li", "th", "td", "tr"):
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.words)


@functools.cache
def page_of(command: str, tensors: tuple[str, ...] = SMALL) -> str:
    return report(made.facts(command, tensors))


def test_every_command_with_a_report_is_tried() -> None:
    """`merge` gives the facts of `build`."""
    assert set(REPORTED) == {*made.COMMANDS, "merge"}
    assert report({**made.facts("build", SMALL), "command": "merge"}) == page_of("build")


@pytest.mark.parametrize("command", made.COMMANDS)
def test_a_page_needs_nothing_else(command: str) -> None:
    """No script, no file, no address, neither in tags nor in the style; the policy in its head forbids all of them."""
    page = page_of(command)
    tags = Page(page).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "base", "form", "a", "image"}
    links = [value for _, attributes in tags for name, value in attributes.items() if name in ("href", "src")]
    assert [link for link in links if not link.startswith("#")] == []
    assert [name for _, attributes in tags for name in attributes if name.startswith("on")] == []
    for word in ("url(", "@import", "http:", "https:", "//"):
        assert word not in page
    [policy] = [a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


@pytest.mark.parametrize("command", made.COMMANDS)
def test_ids_are_unique_and_links_lead_to_them(command: str) -> None:
    """A page has several drawings, whose shapes must not be mixed up."""
    tags = Page(page_of(command)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for tag, attributes in tags if tag == "use"} <= set(ids)


@pytest.mark.parametrize("command", made.COMMANDS)
def test_the_same_facts_give_the_same_bytes(command: str) -> None:
    """Also facts that went through JSON, as they are printed."""
    facts = made.facts(command, SMALL)
    assert report(json.loads(json.dumps(facts))) == report(copy.deepcopy(facts))


def evil(value: Any, key: str = "") -> Any:
    """Facts in which every text that could come from a file is hostile."""
    if isinstance(value, dict):
        return {k: evil(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [evil(v, key) for v in value]
    if not isinstance(value, str) or key in ("command", "type", "action", "role"):
        return value
    return value + EVIL


@pytest.mark.parametrize("command", made.COMMANDS)
def test_hostile_texts_stay_texts(command: str) -> None:
    """Whatever is in names, paths, warnings, answers: no tag more, no letter that does not print, and all is shown."""
    facts = made.facts(command, SMALL)
    page = report(evil(facts))
    plain, hostile = Page(report(facts)), Page(page)
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in plain.tags}
    assert {name for _, a in hostile.tags for name in a} == {name for _, a in plain.tags for name in a}
    assert "<img src=x onerror=alert(1)>" in hostile.text
    assert [c for c in page if not c.isprintable() and c != "\n"] == []


@pytest.mark.parametrize("command", made.COMMANDS)
def test_a_large_model_makes_a_small_page(command: str) -> None:
    """64 layers of 20 kinds of tensors: less than 2 MB."""
    assert len(page_of(command, tuple(made.names(64, 20))).encode()) < 2_000_000


@pytest.mark.parametrize("tunes", [3, 12])
def test_more_maps_than_have_room_are_left_out_by_name(tunes: int) -> None:
    """The page says which, and stays small; where the changes are stays in it."""
    facts = {**made.facts("diff", []), **made.diff(made.names(64, 20), tunes)}
    page = report(facts)
    assert len(page.encode()) < 2_000_000
    assert "left out, to keep this page small" in page
    assert "<figcaption>Change from the base to A" in page


@pytest.mark.parametrize("command", ["build", "diff", "quantize"])
@pytest.mark.parametrize(
    "tensors",
    [made.names(1, 3), made.names(0, 0), ["lonely"], made.names(2, 2, ()), ["enc.blk.0.a.b", "dec.blk.7.a.b"]],
)
def test_models_of_every_form_have_a_page(command: str, tensors: list[str]) -> None:
    """One layer, no layers, a single tensor, nothing outside the layers, two stacks: each tensor has its cell."""
    titles = " ".join(Page(page_of(command, tuple(tensors))).words)
    assert [name for name in tensors if f"{name}: " not in titles] == []


def test_no_tensor_is_left() -> None:
    """Models without a common tensor can be compared, too."""
    facts = {**made.facts("diff", ["x"]), "tensors": [], "layers": {}, "summary": ["A and B have no tensor in common"]}
    assert "A and B have no tensor in common" in report(facts)


def test_a_build_tells_what_it_made_and_decided() -> None:
    """First the result, then warnings and notes, types, what is left of the changes, the recipe."""
    page = Page(page_of("build")).text
    order = [
        "merged.gguf: Q4_K_M, 655.36K parameters, 368.6 kB, 12.3 s",
        "warning: Q4_K: 50 % of the change is lost: --type Q8_0 keeps 99 %",
        "note: token_embd.weight and 2 more: decided 0",
        "one.gguf",
        "0.3 to 0.7",
        "Q4_K, rule 0",
        "Q4_K: 50 % of the change survived (3 tensors)",
        "merge_method: ties",
    ]
    places = [page.index(line) for line in order]
    assert places == sorted(places)


def test_a_quantized_model_tells_the_error_of_each_tensor() -> None:
    """And what was copied."""
    page = Page(page_of("quantize")).text
    assert "blk.0.attn_q.weight: 0.0103" in page
    assert "blk.0.attn_norm.weight: copied byte for byte" in page
    assert "importance matrix: text.imatrix" in page


def test_a_comparison_tells_changes_noise_and_how_alike_they_are() -> None:
    """A map of each; changes that rounding hides have no colour, and say from where on they would be seen."""
    page = page_of("diff")
    for caption in ("Change from the base to A", "Noise of rounding from the base to B", "Cosine of the changes"):
        assert f"<figcaption>{caption}" in page
    assert "rounding hides changes below 2 %" in page
    three = report({**made.facts("diff", []), **made.diff(SMALL, 3)})
    assert "<figcaption>Signs that agree" in three
    without = report({**made.facts("diff", []), **made.diff(SMALL, base=False)})
    assert "<figcaption>Change from A to B" in without
    assert "How alike" not in without


def test_an_evaluation_has_bars_with_their_errors() -> None:
    """The loss of every model on every text, with the standard error that follows from that of the perplexity."""
    page = Page(page_of(made.EVAL)).text
    assert "3.00 ± 0.07" in page
    assert "+0.100 ± 0.040" in page
    assert "20.00 ± 1.50" in page
    assert "mine.txt" in page
    assert "Why is the sky blue?" in page
    assert "Light.\nScattered." in page


def test_colours_are_those_of_the_page() -> None:
    """Texts and axes of drawings have no colour of their own, so they are seen on a dark page as on a bright one."""
    for command in made.COMMANDS:
        for tag, attributes in Page(page_of(command)).tags:
            if tag == "text":
                assert "fill" not in attributes
                assert attributes.get("style", "fill:#ffffff") in ("fill:#000001", "fill:#ffffff")
            assert not {"#010203", "#030201"} & set(attributes.values())


def test_letters_on_colours_can_be_read() -> None:
    """Contrast of at least 4.5 (WCAG 2, AA), on every colour of the scales."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for colours in ("viridis", "coolwarm"):
        for i in range(51):
            colour = Scale(0, 1, colours=colours).at(i / 50)
            pair = sorted((light(colour), light(ink_on(colour))))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5


def test_a_few_large_figures_do_not_hide_the_others() -> None:
    """A scale is in powers then, and even otherwise; its ends are those of the figures."""
    even, steep = Scale.of([0.1, 0.2, 0.3, None]), Scale.of([0.01, 0.012, 0.02, 5.0])
    assert (even.low, even.high, even.log) == (0, 0.3, False)
    assert (steep.low, steep.high, steep.log) == (0.01, 5, True)
    assert len({steep.colour(x) for x in (0.01, 0.02, 5.0)}) == 3
    assert 2 <= len(even.ticks()) <= 6
    assert 2 <= len(steep.ticks()) <= 6


def test_facts_of_other_commands_have_no_report() -> None:
    """Nor have those of an error or of a dry run."""
    for facts in ({"command": "inspect"}, {"command": "build", "error": "no"}, {"command": "build", "forecast": {}}):
        with pytest.raises(ValueError, match="no report is made"):
            report(facts)


def test_without_matplotlib_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any work is done."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(GgufmergeError, match=re.escape("pip install 'ggufmerge[report]'")):
        check_drawing()


def test_the_settings_of_the_user_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody has set for own drawings stays theirs, before and after."""
    import matplotlib

    facts = made.facts(made.EVAL, SMALL)
    wanted = report(facts)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True, "svg.hashsalt": None}):
        assert report(facts) == wanted
        assert matplotlib.rcParams["font.size"] == 30


def test_a_report_knows_its_own(tmp_path: Path) -> None:
    """Other files, folders and what is not there are none."""
    (tmp_path / "a.html").write_text(page_of(made.EVAL), encoding="utf-8")
    (tmp_path / "b.html").write_text("<!doctype html><title>mine</title>")
    assert is_report(tmp_path / "a.html")
    assert not any(map(is_report, (tmp_path / "b.html", tmp_path, tmp_path / "c.html")))
