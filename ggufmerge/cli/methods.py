"""`ggufmerge methods`: the ways to merge, from their own descriptions, each with a recipe to begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.completion import complete_methods
from ggufmerge.cli.options import Json

if TYPE_CHECKING:
    from ggufmerge.methods.parameters import Parameter
    from ggufmerge.methods.spec import Method

HELP = """List the merge methods, or describe one: when to use it, its parameters, a recipe to begin with.

[bold]Examples[/bold]

  ggufmerge methods

  ggufmerge methods ties

  ggufmerge methods ties --json | jq -r ".methods[].recipe"

Which to begin with: task_arithmetic for fine-tunes of one base that you have, linear without the base, slerp for two
models, passthrough to stack layers.
"""


def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A method.", show_default=False, autocompletion=complete_methods),
    ] = None,
    json: Json = False,
) -> None:
    from ggufmerge import plugins
    from ggufmerge.cli.terminal import print_json, show_table, show_warnings, tell
    from ggufmerge.errors import PluginError
    from ggufmerge.methods import NAMES, method
    from ggufmerge.methods import names as method_names

    if name is not None:
        found = method(name.lower())
        if json:
            print_json({"methods": [_facts(found)]})
        else:
            _show(found)
        return
    every, amiss = [], list(plugins.METHODS.clashes(NAMES).values())
    for known in method_names():
        try:
            every.append(method(known))
        except PluginError as error:
            amiss += error.lines
    show_warnings(amiss)
    if json:
        print_json({"methods": [_facts(one) for one in every]})
        return
    show_table(("method", "merges", "what it does"), [(one.name, _short_needs(one), _summary(one)) for one in every])
    tell(["ggufmerge methods NAME tells when to use one, its parameters, and a recipe to begin with"])


def _summary(found: Method) -> str:
    from ggufmerge.methods import package_of

    package = package_of(found.name)
    return f"{found.summary} ({package})".lstrip() if package else found.summary


def _facts(found: Method) -> dict[str, Any]:
    from ggufmerge.methods import package_of
    from ggufmerge.methods.parameters import REQUIRED

    return {
        "name": found.name,
        "summary": found.summary,
        "advice": found.advice,
        "reference": found.reference,
        "package": package_of(found.name) or None,
        "base": found.base.value,
        "min_models": found.min_models,
        "max_models": found.max_models,
        "parameters": [
            {
                "name": p.name,
                "scope": p.scope,
                "type": p.type.__name__,
                "meaning": p.doc,
                "required": p.default is REQUIRED,
                "default": None if p.default is REQUIRED else p.default,
                "low": p.low,
                "high": p.high,
                "choices": list(p.choices),
            }
            for p in found.parameters
        ],
        "recipe": example_recipe(found),
    }


def _show(found: Method) -> None:
    import textwrap

    from ggufmerge.cli.facts import space
    from ggufmerge.cli.terminal import console, say, show_table
    from ggufmerge.methods import package_of

    width = min(console().width, 100)

    def folded(label: str, text: str) -> None:
        say(*textwrap.wrap(text, width, initial_indent=f"{label:7}", subsequent_indent=" " * 7))

    say(*textwrap.wrap(f"{found.name}: {found.summary}", width))
    if found.advice:
        folded("when", found.advice)
    folded("needs", _needs(found))
    if found.reference:
        folded("source", found.reference)
    if package := package_of(found.name):
        folded("from", f"the package {package}")
    if found.parameters:
        rows = [(p.name, _place(p), _default(p), _values(p), p.doc) for p in found.parameters]
        show_table(("parameter", "given", "default", "values", "meaning"), rows)
    space()
    say("A recipe to begin with:", "", *(f"  {line}" for line in example_recipe(found).splitlines()))


def _needs(found: Method) -> str:
    """`base_model and 2 or more models`."""
    from ggufmerge.methods.spec import Base

    low, high = found.min_models, found.max_models
    if found.name == "slerp":  # further models only in a chain
        return "base_model, which is the first of the two, and 1 other model (more with chain: true)"
    if high == 1 and found.base is Base.REQUIRED:
        return "base_model, which is the first of the two, and 1 other model"
    count = (
        f"{low} model{'s' * (low > 1)}" if low == high else f"{low} or more models" if low > 1 else "1 or more models"
    )
    return {
        Base.REQUIRED: f"base_model, the model that the others were tuned from, and {count}",
        Base.OPTIONAL: f"{count}; with base_model their differences from it are merged",
        Base.MODEL: f"{count}; base_model would be one more",
    }[found.base]


def _short_needs(found: Method) -> str:
    from ggufmerge.methods.spec import Base

    if found.name == "passthrough":
        return "layers"
    if found.base is Base.REQUIRED and found.example_models == 1:
        return "two models"
    return {Base.REQUIRED: "tunes + base", Base.OPTIONAL: "models (+ base)", Base.MODEL: "models"}[found.base]


def _place(p: Parameter) -> str:
    return "per model" if p.scope == "model" else "once"


def _default(p: Parameter) -> str:
    from ggufmerge.cli.terminal import value_text
    from ggufmerge.methods.parameters import REQUIRED

    if p.default is REQUIRED:
        return "required"
    return str(p.default).lower() if isinstance(p.default, bool) else value_text(p.default)


def _values(p: Parameter) -> str:
    """What it may be: `0..1`, `0 or more`, `true, false`."""
    if p.choices:
        return ", ".join(p.choices)
    if p.type is bool:
        return "true, false"
    word = "whole number" if p.type is int else "number"
    if p.low is not None and p.high is not None:
        return f"{p.low:g}..{p.high:g}"
    return f"{word}, {p.low:g} or more" if p.low is not None else word


def example_recipe(found: Method) -> str:
    """A recipe in YAML that uses the method with the parameters that matter first."""
    from ggufmerge.methods.spec import Base

    if found.name == "passthrough":
        return _SLICES
    pair = found.base is Base.REQUIRED and found.example_models == 1
    names = ["b.gguf"] if pair else ["a.gguf", "b.gguf", "c.gguf"][: found.example_models]
    values = dict(found.example)
    own = {p.name: values[p.name] for p in found.parameters if p.scope == "model" and p.name in values}
    shared = {p.name: values[p.name] for p in found.parameters if p.scope == "shared" and p.name in values}
    lines = [f"merge_method: {found.name}"]
    if found.base is Base.REQUIRED:
        lines.append(f"base_model: {'a.gguf' if pair else 'base.gguf'}")
    lines.append("models:")
    for name in names:
        lines.append(f"  - model: {name}")
        if own:
            lines.append(f"    parameters: {_mapping(own)}")
    if shared:
        lines.append(f"parameters: {_mapping(shared)}")
    return "\n".join([*lines, "out_type: Q6_K  # without it: the types of the base, or of the first model", ""])


def _mapping(values: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


_SLICES = """\
merge_method: passthrough
slices:  # layers as the result shall have them; the second number of a range is not part of it
  - sources: [{model: a.gguf, layer_range: [0, 2]}]
  - sources: [{model: b.gguf, layer_range: [1, 2]}]
"""
