"""Reports in a real browser: what a reader sees, on a screen, on a telephone, in the dark and on paper.

They are written by the commands themselves, of small models. `scripts/browser` installs a browser where there is none.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ggufmerge.cli.app import app
from ggufmerge.report.html import report
from tests.report import facts as made
from tests.tiny import write_tiny_llama

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
RECIPE = """\
merge_method: ties
base_model: base.gguf
models:
  - {model: writer.gguf, parameters: {weight: 0.5}}
  - {model: coder.gguf, parameters: {weight: [0.2, 0.8]}}
parameters: {density: 0.6}
out_type: Q4_0
"""
COMMANDS = {
    "build": "build recipe.yaml -o merged.gguf",
    "diff": "diff writer.gguf coder.gguf merged.gguf --base base.gguf",
    "eval": "eval merged.gguf --text text.txt --context 32 --prompt hello --answer-tokens 8",
    "quantize": "quantize writer.gguf small.gguf Q4_K_M",
}
LARGE = "large"  # a page of 64 layers and names of no end
PAGES = (*COMMANDS, LARGE)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a report of each command, and of a large model."""
    folder: Path = tmp_path_factory.mktemp("reports")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for seed, name in enumerate(("base", "writer", "coder")):
            write_tiny_llama(f"{name}.gguf", embed=256, ff=256, layers=3, tune=(seed, 0.05) if seed else None)
        Path("recipe.yaml").write_text(RECIPE)
        Path("text.txt").write_text("the history of the wind and that which was in it, as he said to the others. " * 4)
        for name, line in COMMANDS.items():
            CliRunner().invoke(app, [*line.split(), "--report", f"{name}.html"], catch_exceptions=False)
            assert Path(f"{name}.html").exists(), name
        strange = ["x" * 300, "W" * 40, "\u202e" * 30, "\u6a21\u578b" * 30, "blk.3." + "\u6a21" * 26]
        facts = made.facts("build", [*made.names(64, 20), *strange])
        for tensor in facts["tensors"]:
            tensor["why"] += ", and every third layer of those in the middle" * 3
        facts["warnings"] = ["w" * 600, "a/very/long/path/" * 40]
        Path(f"{LARGE}.html").write_text(report(facts), encoding="utf-8")
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, as it is installed on this machine; there is no test without one."""
    from playwright.sync_api import sync_playwright

    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    assert path is not None, f"none of {', '.join(BROWSERS)} is installed: run scripts/browser"
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=path)
        yield started
        started.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, pages: Path) -> Iterator[Open]:
    """Opens a page of so many pixels in a colour scheme; AssertionError for what it asks for or complains about."""
    contexts, requests, complaints = [], [], []

    def open_page(name: str, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda line: complaints.append(line.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((pages / f"{name}.html").as_uri())
        return page

    yield open_page
    assert complaints == []
    assert all(url.startswith("file:") and url.endswith(".html") for url in requests)
    assert len(requests) == len(contexts)
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_for_nothing_and_complains_of_nothing(name: str, opened: Open) -> None:
    """One request, for the page itself; the console stays empty; its result is what one sees first."""
    page = opened(name)
    assert page.locator("p.result").is_visible()
    assert page.locator("p.result").bounding_box()["y"] < 200
    assert page.locator("svg").count() >= 2


CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const part = (x) => x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = numbers(colour);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const cell = (element) => {  // of a drawing, that a text is written on; undefined for most texts
    element.scrollIntoView({block: "center"});
    const {left, right, top, bottom} = element.getBoundingClientRect();
    const under = document.elementsFromPoint((left + right) / 2, (top + bottom) / 2);
    return under.find((other) => other.matches("use, path.cell, path.none"));
  };
  const behind = (element) => {
    const on = element.tagName === "text" ? cell(element) : undefined;
    if (on) return getComputedStyle(on).fill;
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || element.tagName === "title") continue;
    const style = getComputedStyle(element);
    const ink = element.tagName === "text" ? style.fill : style.color;
    const pair = [light(ink), light(behind(element))].sort((a, b) => a - b);
    found.push([(pair[1] + 0.05) / (pair[0] + 0.05), element.textContent.slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_text_can_be_read(name: str, scheme: str, opened: Open) -> None:
    """Its contrast is at least 4.5 (WCAG 2, AA) on a bright page as on a dark one, and the two differ."""
    page = opened(name, scheme=scheme)
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert [words for contrast, words in contrasts if contrast < 4.5] == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_not_wider_than_the_window(name: str, width: int, opened: Open) -> None:
    """Tables and drawings that are wider move in a frame of their own, and the keyboard reaches it."""
    page = opened(name, width=width)
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= width
    assert page.evaluate("[...document.querySelectorAll('.wide')].every((frame) => frame.tabIndex === 0)")


@pytest.mark.parametrize("name", PAGES)
def test_texts_of_drawings_stay_within_them(name: str, opened: Open) -> None:
    """Whatever font the browser has."""
    outside = opened(name).evaluate(
        """() => [...document.querySelectorAll("svg text")].filter((text) => {
          const own = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
          return own.left < all.left - 1 || own.right > all.right + 1 || own.bottom > all.bottom + 2;
        }).map((text) => text.textContent)"""
    )
    assert outside == []


@pytest.mark.parametrize("name", PAGES)
def test_cells_tell_what_they_are(name: str, opened: Open) -> None:
    """The text of a cell is what a browser shows when one points at it."""
    titles = opened(name).evaluate("[...document.querySelectorAll('svg title')].map((title) => title.textContent)")
    if name == "eval":
        assert titles == []
    else:
        assert any(title.startswith("blk.2.") and ": " in title for title in titles)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_prints(name: str, scheme: str, opened: Open) -> None:
    """On a few pages, dark on white, and no table is cut off at its right side."""
    page = opened(name, scheme=scheme)
    printed = page.pdf(format="A4")
    sheets = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 1 <= sheets <= (9 if name == LARGE else 6)
    page.set_viewport_size({"width": 672, "height": 900})  # what is left of A4 at 96 pixels an inch
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 672
    cut = "[...document.querySelectorAll('.wide')].filter((frame) => frame.scrollWidth > frame.clientWidth + 1).length"
    assert page.evaluate(cut) == 0
