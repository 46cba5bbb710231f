"""Which programs keep models that a reference can name, and who finds them: `scheme:name` (see `references`).

Other packages add schemes by entry points of the group `ggufmerge.places`: see docs/plugins.md.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

from ggufmerge import plugins
from ggufmerge.errors import GgufmergeError
from ggufmerge.sources.located import Located
from ggufmerge.text import one_line, quoted

SCHEMES = {  # function in a module of this package
    "ollama": "ollama.store.find",
    "hf": "hub.download.find",
    "lmstudio": "folders.find_lmstudio",
    "llama.cpp": "folders.find_llama_cpp",
}

_SCHEME = re.compile(r"[a-z][a-z0-9.+-]+", re.ASCII)  # a single letter is a drive


def is_scheme(word: str) -> bool:
    """Whether this is the scheme of a place, built in or of a plug-in."""
    return word in SCHEMES or (_SCHEME.fullmatch(word) is not None and word in plugins.PLACES.names())


def finder(scheme: str) -> Callable[[str], Located] | None:
    """Who finds the models of a scheme by their names; None when it is the scheme of no place.

    PluginError when it is that of a plug-in that does not work.
    """
    if scheme in SCHEMES:
        module, _, function = SCHEMES[scheme].rpartition(".")
        found: Callable[[str], Located] = getattr(importlib.import_module(f"ggufmerge.places.{module}"), function)
        return found
    plugin = plugins.PLACES.find(scheme) if is_scheme(scheme) else None
    return _guarded(plugin) if plugin is not None else None


def _guarded(plugin: plugins.Plugin) -> Callable[[str], Located]:
    """What a plug-in finds, or an error that says which package to blame."""
    function = plugin.value
    if not callable(function):
        plugin.refuse(f"is no function but {type(function).__name__}")

    def find(name: str) -> Located:
        try:
            located = function(name)
        except GgufmergeError:
            raise
        except Exception as error:
            plugin.refuse(f"cannot look for {quoted(name)} ({type(error).__name__}: {one_line(str(error))})")
        if not isinstance(located, Located):
            plugin.refuse(f"gives {type(located).__name__} for {quoted(name)} where a Located is wanted")
        return located

    return find
