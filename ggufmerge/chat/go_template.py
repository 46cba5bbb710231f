"""A chat format in Ollama's template language, which is Go's `text/template` with `.Messages` in it.

Every Ollama that knows messages (2024 and later) renders it. The text is written without the trimming marks of the
language, so that what stands between two actions is what is written.
Source: Ollama's `template/template.go`, `docs/template.mdx`.
"""

from __future__ import annotations

from ggufmerge.chat.formats import ChatFormat


def go_template(form: ChatFormat) -> str:
    """The template that writes as `form.write` does. Tools, images and thinking take no part in it."""
    user, system = _text(form.user.before), _text(form.system.before) + "{{ .Content }}" + _text(form.system.after)
    start, opener = _text(form.start), ""
    if form.system_last:
        asked = _text(form.system.before) + "{{ $.System }}" + _text(form.system.after)
        user += _if("and $last $.System", asked)
        start, system = _if("eq $i 0", start), ""
    else:
        start = _if('and (eq $i 0) (ne .Role "system")', start)
    if form.joined:
        opener = "{{ $joined := false }}"
        system += "{{ $joined = true }}"
        user = _if("not $joined", user) + "{{ $joined = false }}"
    user += "{{ .Content }}" + _text(form.user.after)
    assistant = _text(form.assistant.before) + "{{ .Content }}" + _if("not $last", _text(form.assistant.after))
    turns = {"system": system, "user": user, "assistant": assistant}
    branches = "{{ else ".join(f'if eq .Role "{role}" }}}}{text}' for role, text in turns.items() if text)
    return (
        opener
        + "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        + start
        + "{{ "
        + branches
        + "{{ end }}"
        + _if('and $last (ne .Role "assistant")', _text(form.opening))
        + "{{ end }}"
    )


def _if(condition: str, text: str) -> str:
    return f"{{{{ if {condition} }}}}{text}{{{{ end }}}}" if text else ""


def _text(text: str) -> str:
    """A text as it stands in a template: as it is where that is possible, else as a string of Go's."""
    if "{{" not in text and not text.endswith("{") and all(c.isprintable() or c in "\t\n" for c in text):
        return text
    return "{{ " + _quoted(text) + " }}"


def _quoted(text: str) -> str:
    """A string of Go's; characters that a Modelfile cannot hold are escaped."""
    pieces = []
    for c in text:
        if c in '"\\':
            pieces.append("\\" + c)
        elif c.isprintable():
            pieces.append(c)
        else:
            pieces.append(f"\\u{ord(c):04x}" if ord(c) < 1 << 16 else f"\\U{ord(c):08x}")
    return '"' + "".join(pieces) + '"'
