"""How Ollama reads a Modelfile: its parser told again, letter by letter and state by state (`parser/parser.go`)."""

from __future__ import annotations

_COMMANDS = ("from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message")


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """(instruction, value) pairs; a parameter is (its name, value), a message ("message", "role: content")."""
    commands: list[tuple[str, str]] = []
    state, name, role, buffer = "nil", "", "", ""

    def value_is_complete() -> str | None:
        return _unquote(buffer.strip())

    for letter in text:
        after, kept = _next(letter, state)
        if after != state:
            if state == "name":
                assert buffer.lower() in (*_COMMANDS, "requires"), f"{buffer!r} is no instruction"
                after = {"parameter": "parameter", "message": "message"}.get(buffer.lower(), after)
                name = "model" if buffer.lower() == "from" else buffer.lower()
            elif state == "parameter":
                name = buffer
            elif state == "message":
                role = buffer
            elif state == "value":
                value = value_is_complete()
                if value is None or letter in " \t":
                    buffer += letter
                    continue
                commands.append((name, f"{role}: {value}" if role else value))
                role = ""
            buffer, state = "", after
        if kept and (kept.isprintable()):
            buffer += kept
    if state == "value":
        value = value_is_complete()
        assert value is not None, "the last value is not closed"
        commands.append((name, f"{role}: {value}" if role else value))
    else:
        assert state in ("comment", "nil"), f"ends in the middle of a {state}"
    assert any(name == "model" for name, _ in commands), "no FROM line"
    return commands


def _next(letter: str, state: str) -> tuple[str, str]:
    """(next state, the letter to keep or nothing)."""
    space, newline = letter in " \t", letter in "\r\n"
    if state == "nil":
        return ("comment", "") if letter == "#" else ("nil", "") if space or newline else ("name", letter)
    if state == "comment":
        return ("nil", "") if newline else ("comment", "")
    if state == "value":
        return ("nil", letter) if space or newline else ("value", letter)
    allowed = (letter.isascii() and letter.isalnum()) or letter == "_" or space
    assert allowed, f"{letter!r} in a {state}"
    return ("value", "") if space else (state, letter)


def _unquote(text: str) -> str | None:
    for quote in ('"""', '"'):
        if text.startswith(quote):
            closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if closed else None
    return text
