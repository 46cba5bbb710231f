"""What mkdocs does with our pages beyond rendering them (`hooks` in mkdocs.yml).

Pages link to files of the repository outside of docs/, which GitHub shows and the site does not have. With `repo_url` in
mkdocs.yml such links go there; without it their texts stay, and no link.
"""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    url = (config.repo_url or "").rstrip("/")
    return _OUTSIDE.sub(rf"[\1]({url}/blob/main/\2)" if url else r"\1", markdown)
