"""Lists for the site's API reference: a griffe extension, named in mkdocs.yml.

Our docstrings explain a parameter on a line of its own, `name: text`, with further lines set in or not. Markdown would
join such lines to a paragraph; here each becomes an entry of a list.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class Parameters(griffe.Extension):
    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        if func.docstring:
            func.docstring.value = _listed(func.docstring.value, {p.name for p in func.parameters})


def _listed(text: str, names: set[str]) -> str:
    """The text with an entry for each line that begins with a parameter's name, up to the next empty line."""
    text = re.sub(r"\.  (?=\w+: )", ".\n", text)  # two short ones share a line
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        found = re.match(r"(\w+): (.*)", line)
        if found and found[1] in names:
            lines += [*([] if inside else [""]), f"- **{found[1]}**: {found[2]}"]
            inside = True
        elif inside and line.strip() and not line.startswith(("GgufmergeError", "RecipeError", "Raises")):
            lines.append(f"  {line.strip()}")
        else:
            if inside and line.strip():
                lines.append("")
            inside = False
            lines.append(line)
    return "\n".join(lines)
