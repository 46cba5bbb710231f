"""What mkdocs does with our pages beyond rendering them (`hooks` in mkdocs.yml).

Pages link to files of the repository outside of docs/, which GitHub shows and the site does not have. With `repo_url`
in mkdocs.yml such links go there; without it only their texts are left.

A bar in a table's code is written `a\\|b`, which GitHub shows as a|b and mkdocs as it is written.
"""

from __future__ import annotations

import html
import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")
_BAR = re.compile(r"`([^`]*\\\|[^`]*)`")


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    url = (config.repo_url or "").rstrip("/")
    markdown = _OUTSIDE.sub(rf"[\1]({url}/blob/main/\2)" if url else r"\1", markdown)
    return "\n".join(_BAR.sub(_code, line) if line.startswith("|") else line for line in markdown.split("\n"))


def _code(match: re.Match[str]) -> str:
    return f"<code>{html.escape(match[1]).replace(chr(92) + '|', '&#124;')}</code>"
