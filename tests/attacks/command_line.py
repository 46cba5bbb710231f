"""Commands, arguments and options as the program itself declares them, so that new ones join by themselves."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import random
import typing
from collections.abc import Iterator
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

from tests.attacks import damage


@dataclasses.dataclass(frozen=True)
class Value:
    """An argument (`flags` empty) or an option of a command."""

    name: str
    metavar: str
    flags: tuple[str, ...]
    type: type[Any]
    many: bool
    required: bool
    low: float | None


@dataclasses.dataclass(frozen=True)
class Command:
    words: tuple[str, ...]
    values: tuple[Value, ...]


@functools.cache
def commands() -> tuple[Command, ...]:
    from ggufmerge.cli.app import app

    return tuple(_commands(app, ()))


def _commands(app: typer.Typer, words: tuple[str, ...]) -> Iterator[Command]:
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        parameters = inspect.signature(command.callback, eval_str=True).parameters.values()
        yield Command((*words, name), tuple(map(_value, parameters)))
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from _commands(group.typer_instance, (*words, str(group.name)))


def _value(parameter: inspect.Parameter) -> Value:
    kind, *extras = typing.get_args(parameter.annotation)
    info = next(e for e in extras if isinstance(e, (ArgumentInfo, OptionInfo)))
    members = (
        [t for t in typing.get_args(kind) if t is not type(None)] if type(None) in typing.get_args(kind) else [kind]
    )
    many = typing.get_origin(members[0]) is list
    element = typing.get_args(members[0])[0] if many else members[0]
    flags: list[str] = []
    if isinstance(info, OptionInfo):
        # in an annotation typer takes the first name for a default, and moves it when it makes the command
        first = (info.default,) if isinstance(info.default, str) else ()
        declared = (*first, *(info.param_decls or ())) or (f"--{parameter.name.replace('_', '-')}",)
        flags = [flag for text in declared for flag in text.split("/")]
    required = parameter.default is inspect.Parameter.empty
    return Value(parameter.name, info.metavar or "", tuple(flags), element, many, required, info.min)


def chance(rng: random.Random, files: dict[str, list[str]]) -> list[str]:
    """A command with some of its options, and values that mostly are of the right sort.

    files: paths by what they are: "gguf", "adapter", "recipe", "imatrix", "text", "other".
    """
    command = rng.choice(commands())
    line = list(command.words)
    for value in command.values:
        if value.flags:
            odds = 0.95 if value.name == "output" else 0.5 if value.required else 0.15
            if rng.random() < odds:
                for _ in range(rng.choice((1, 1, 1, 2)) if value.many else 1):
                    line += _option(rng, value, files)
        elif value.required or rng.random() < 0.8:
            line += [_one(rng, value, files) for _ in range(rng.choice((1, 1, 2)) if value.many else 1)]
    if rng.random() < 0.1:
        line.insert(
            rng.randrange(len(line) + 1), rng.choice(("--", "-", "--json", "-h", "--help", "-x", "", "--type="))
        )
    if rng.random() < 0.05:
        line.pop(rng.randrange(len(line)))
    return line


def _option(rng: random.Random, value: Value, files: dict[str, list[str]]) -> list[str]:
    flag = rng.choice(value.flags)
    if value.type is bool:
        return [flag]
    text = _one(rng, value, files)
    return [f"{flag}={text}"] if flag.startswith("--") and rng.random() < 0.3 else [flag, text]


def _one(rng: random.Random, value: Value, files: dict[str, list[str]]) -> str:
    """The text of a value."""
    if isinstance(value.type, type) and issubclass(value.type, enum.Enum):
        return rng.choice((*(str(member.value) for member in value.type), "x"))
    if value.type in (int, float):
        if value.name == "threads":
            return str(rng.choice((1, 2, 3, 64, 0, -1, 10**30, "x")))
        near = int(value.low or 0)
        numbers = (near, near + 1, near + 7, near + 100, near - 1, 2**31, 2**63, 10**30, 1.5, "nan", "inf", "", "x")
        return str(rng.choice((rng.choice(numbers), near + rng.randrange(300))))
    if rng.random() < 0.12:
        return argument(rng)
    return str(rng.choice(_candidates(value, files)))


def argument(rng: random.Random) -> str:
    """Any text that the system passes to a program and that leads to no file outside of the case."""
    text = damage.text(rng).decode("utf-8", "surrogateescape").replace("\0", "")
    return text[:4000].replace("/", "_").replace("..", "_") or rng.choice(("", ".", "a.gguf+", "x=", "+", "x/y/z.gguf"))


def _candidates(value: Value, files: dict[str, list[str]]) -> list[str]:
    """What a value of this name is for."""
    every = [path for paths in files.values() for path in paths]
    words = {
        "recipe": files["recipe"],
        "imatrix": files["imatrix"],
        "text": files["text"],
        "evaluation": files["text"],
        "out_type": ["Q8_0", "Q4_K_M", "F16", "F32", "bf16", "COPY", "Q4_0", "IQ2_XS", "Q9"],
        "ftype": ["Q8_0", "Q4_K_M", "F16", "COPY", "IQ4_NL", "Q9"],
        "output_tensor_type": ["Q8_0", "F16", "Q6_K", "x"],
        "token_embedding_type": ["Q8_0", "F16", "Q6_K", "x"],
        "tensor_type": ["ffn_down=Q8_0", "attn=F16", "(=Q8_0", "x", "=", ".*=F32", "([a-z0-9._]+)+!=Q8_0"],
        "max_size": ["1M", "40K", "1G", "0", "-1M", "1e3", "K", "99999999999999999999G"],
        "ollama": ["mine", "mine:q4", "a/b:c", "x y", ":", "registry.ollama.ai/library/other:1"],
        "repo": ["me/merged", "merged", "a/b/c"],
        "push": ["me/merged", "merged"],
        "card": ["card.md", "out.gguf"],
        "output": ["out.gguf", "out.gguf", "out.gguf", "deep/out.gguf", "a.gguf", "folder", "pipe", ".", "out"],
        "include": ["attn", "mlp", "blk.*", "nothing"],
        "exclude": ["attn", "mlp", "blk.*", "nothing"],
        "tensor": ["attn_q", "*", "blk.0.*", "mlp", "["],
        "folder": ["folder", ".", "nowhere"],
        "adapters": [*files["adapter"], *(f"{path}=0.5" for path in files["adapter"]), "lora.gguf=nan"],
    }
    fitting = words.get(value.name)
    if fitting is None:
        models = files["gguf"]
        fitting = [*models, *models, f"{models[0]}+{files['adapter'][0]}", "ollama:tiny"]
    return [*fitting * 3, *every]
