"""The kinds of cases: which valid files are damaged, and which command reads them.

A kind is a function that fills a case from a `random.Random`; its name is what `scripts/fuzz --kind` takes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
from collections.abc import Callable
from typing import Any

import yaml

from ggufmerge.methods import NAMES, method
from ggufmerge.methods.parameters import Parameter
from ggufmerge.methods.spec import Base
from ggufmerge.types import FileType
from tests.attacks import command_line, damage, seeds
from tests.attacks.case import OPEN, Case, Special
from tests.ollama_store import CONFIG, IMAGE, MANIFEST

Tree = dict[str, Any]

_USUAL = ("q4", "q4", "q4", "q8", "f16", "f32", "bpe", "moe")
_FILE_TYPES = [str(t) for t in FileType]
_QUICK_TYPES = ("Q8_0", "Q4_0", "F16", "F32", "BF16", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q4_K_M")
_HEADERS = (
    "valid.gguf", "valid.gguf", "valid.gguf", "lora.gguf", "imatrix.gguf", "moe-a.gguf", "mmproj.gguf",
    "shard-00002-of-00003.gguf", "q4-a.gguf",
)  # fmt: skip


def make(kind: str, seed: int, number: int) -> Case:
    """The case of a kind with this number; the same for the same arguments and the same program."""
    name = f"{kind}/{seed}/{number}"
    case = Case(kind, [], name=name)
    if kind == "keys":
        _keys(random.Random(name), case, seed, number)
    else:
        KINDS[kind](random.Random(name), case)
    return case


# What reads a model -----------------------------------------------------------------------------------------------


def _beside(rng: random.Random, case: Case, family: str) -> None:
    """The valid relatives of the model x.gguf: base.gguf, b.gguf and, for the small llamas, adapters."""
    if family.startswith("wide"):
        case.add("base.gguf", f"{family}.gguf")
        case.add("b.gguf", f"{family}.gguf")
    else:
        case.add("base.gguf", f"{family}-base.gguf")
        case.add("b.gguf", f"{family}-b.gguf")


def _use_model(rng: random.Random, case: Case, family: str, use: int | None = None) -> None:
    """A command that reads x.gguf."""
    _beside(rng, case, family)
    use = rng.randrange(USES) if use is None else use
    _USES[use](rng, case)
    if rng.random() < 0.15 and case.command[0] not in ("models", "inspect", "schema"):
        case.command.append("--json")


def _recipe_of(rng: random.Random, case: Case, tree: Tree | None = None) -> None:
    tree = recipe(rng, "base.gguf", ["x.gguf", "b.gguf"]) if tree is None else tree
    case.put("r.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def _plan(rng: random.Random, case: Case) -> None:
    _recipe_of(rng, case)
    case.command = ["plan", "r.yaml", *_some(rng, ["--all"], ["--type", rng.choice(_FILE_TYPES)])]


def _build(rng: random.Random, case: Case) -> None:
    _recipe_of(rng, case)
    options = (
        ["--type", rng.choice(_QUICK_TYPES)], ["--no-modelfile"], ["--card", "card.md"], ["--split-max-tensors", "7"],
        ["--ollama", "mine"], ["--threads", "3"], ["--chunk", "1024"], ["--overwrite"],
    )  # fmt: skip
    case.command = ["build", "r.yaml", "-o", "out.gguf", *_some(rng, *options, odds=0.12)]


def _build_as_base(rng: random.Random, case: Case) -> None:
    """x.gguf is what differences are taken from."""
    tree = recipe(rng, "x.gguf", ["base.gguf", "b.gguf"])
    tree["base_model"] = "x.gguf"
    if method(tree["merge_method"]).base is Base.MODEL:
        del tree["base_model"]
        tree["models"][0]["model"] = "x.gguf"
    _recipe_of(rng, case, tree)
    case.command = ["build", "r.yaml", "-o", "out.gguf"]


def _build_vocabulary(rng: random.Random, case: Case) -> None:
    """Vocabularies are aligned."""
    tree: Tree = {"merge_method": "linear", "models": _weighted(["b.gguf", "x.gguf"])}
    tree["tokenizer_source"] = rng.choice(("union", "x.gguf", "base"))
    if tree["tokenizer_source"] == "base":
        tree["base_model"] = "x.gguf"
    if rng.random() < 0.5:
        tree["chat_template"] = rng.choice(("auto", "chatml"))
    if rng.random() < 0.3:
        token = {"source": {"kind": "model_token", "model": "x.gguf", "token_id": 5}, "force": True}
        tree["tokenizer"] = {"source": "union", "tokens": {"<new>": token}, "pad_to_multiple_of": 32}
        del tree["tokenizer_source"]
    _recipe_of(rng, case, tree)
    case.command = [rng.choice(("plan", "build", "build")), "r.yaml"]
    case.command += ["-o", "out.gguf"] if case.command[0] == "build" else []


def _build_slices(rng: random.Random, case: Case) -> None:
    layers = 1 if case.origins["x.gguf"].startswith(("wide", "moe", "scaled")) else 2
    _recipe_of(rng, case, _sliced(rng, "x.gguf", "b.gguf", layers))
    case.command = ["build", "r.yaml", "-o", "out.gguf"]


def _quantize(rng: random.Random, case: Case) -> None:
    kind = rng.choice((*_QUICK_TYPES, *_FILE_TYPES, "COPY"))
    options = (
        ["--pure"], ["--tensor-type", "ffn_down=Q8_0"], ["--leave-output-tensor"], ["--dry-run", "--all"],
        ["--output-tensor-type", "F16"], ["--split-max-size", "20K"],
    )  # fmt: skip
    case.command = ["quantize", "x.gguf", "out.gguf", kind, *_some(rng, *options, odds=0.12)]


def _quantize_like(rng: random.Random, case: Case) -> None:
    case.command = ["quantize", "b.gguf", "out.gguf", "--like", "x.gguf"]


def _bake(rng: random.Random, case: Case) -> None:
    adapter = _adapter(rng, case)
    options = (["--rounding", "nearest"], ["--dry-run"], ["--type", rng.choice(_QUICK_TYPES)], ["--all"])
    case.command = ["bake", "x.gguf", f"{adapter}{rng.choice(('', '=0.5', '=-2'))}", "-o", "out.gguf"]
    case.command += _some(rng, *options, odds=0.2)


def _adapter(rng: random.Random, case: Case) -> str:
    if rng.random() < 0.5:
        return case.add("lora.gguf", rng.choice(("lora.gguf", "embedding-lora.gguf")))
    case.add("peft/adapter_config.json", "adapter_config.json")
    case.add("peft/adapter_model.safetensors", "adapter_model.safetensors")
    return "peft"


def _extract(rng: random.Random, case: Case) -> None:
    pair = rng.choice((("x.gguf", "base.gguf"), ("b.gguf", "x.gguf")))
    options = (["--rank", rng.choice(("1", "4", "64"))], ["--embeddings"], ["--include", "attn"], ["--type", "F16"])
    case.command = ["extract-lora", pair[0], "--base", pair[1], "-o", "out.gguf", *_some(rng, *options)]


def _diff(rng: random.Random, case: Case) -> None:
    a, b = rng.choice((("x.gguf", "b.gguf"), ("b.gguf", "x.gguf")))
    case.command = ["diff", a, b, *_some(rng, ["--base", "base.gguf"], ["--all"])]


def _inspect(rng: random.Random, case: Case) -> None:
    case.command = ["inspect", "x.gguf", *_some(rng, ["--full"], ["--json"], ["--no-tensors"])]


def _split(rng: random.Random, case: Case) -> None:
    case.command = ["split", "x.gguf", "out", *rng.choice((["--split-max-tensors", "5"], ["--split-max-size", "20K"]))]


def _models(rng: random.Random, case: Case) -> None:
    case.command = ["models", ".", *_some(rng, ["--json"])]


def _push(rng: random.Random, case: Case) -> None:
    case.command = ["push", "x.gguf", "me/merged", "--dry-run"]


def _explain(rng: random.Random, case: Case) -> None:
    _recipe_of(rng, case)
    case.command = ["recipe", "explain", "r.yaml", rng.choice(("*", "attn_q", "blk.0.*"))]


def _projected(rng: random.Random, case: Case) -> None:
    """A projector beside the model, which is looked at."""
    case.add("mmproj.gguf", "mmproj.gguf")
    _recipe_of(rng, case)
    case.command = ["build", "r.yaml", "-o", "out.gguf", *_some(rng, ["--mmproj", "mmproj.gguf"])]


def _tokenizer_beside(rng: random.Random, case: Case) -> None:
    case.add("tokenizer.model", "tokenizer.model")
    _build_vocabulary(rng, case)


def _with_adapter(rng: random.Random, case: Case) -> None:
    adapter = _adapter(rng, case)
    tree: Tree = {"merge_method": "linear", "models": _weighted([f"x.gguf+{adapter}=0.5", "b.gguf"])}
    _recipe_of(rng, case, tree)
    case.command = [rng.choice(("plan", "build")), "r.yaml"]
    case.command += ["-o", "out.gguf"] if case.command[0] == "build" else []


_USES: tuple[Callable[[random.Random, Case], None], ...] = (
    _plan, _build, _build, _build, _build_as_base, _build_vocabulary, _build_slices, _quantize, _quantize,
    _quantize_like, _bake, _bake, _extract, _diff, _inspect, _split, _models, _push, _explain, _projected,
    _tokenizer_beside, _with_adapter,
)  # fmt: skip
USES = len(_USES)


# Recipes ----------------------------------------------------------------------------------------------------------


def recipe(rng: random.Random, base: str, models: list[str], name: str = "", *, plain: bool = False) -> Tree:
    """A valid recipe of some method for these models; all parameters may occur, in all forms.

    plain: only what the method needs, so that every weight counts.
    """
    name = name or rng.choice(NAMES)
    found = method(name)
    chosen = models[: found.max_models] if found.base is not Base.MODEL else [*models, base][: found.max_models]
    tree: Tree = {"merge_method": name, "models": [{"model": m} for m in chosen]}
    if found.base is Base.REQUIRED or (found.base is Base.OPTIONAL and rng.random() < 0.5):
        tree["base_model"] = base
        if found.max_models == 1 and name == "slerp":
            tree["models"] = [{"model": chosen[0]}]
    for parameter in found.parameters:
        required = not isinstance(parameter.default, (int, float, str, type(None)))
        if not required and (plain or rng.random() < 0.5):
            continue
        setting = _usual if plain else _setting
        if parameter.scope == "model":
            for entry in tree["models"]:
                entry.setdefault("parameters", {})[parameter.name] = setting(rng, parameter)
        else:
            tree.setdefault("parameters", {})[parameter.name] = setting(rng, parameter)
    for key, extra in _EXTRAS.items():
        if not plain and rng.random() < 0.06:
            tree[key] = extra(rng, models)
    return tree


def _setting(rng: random.Random, parameter: Parameter) -> Any:
    """A value, a gradient, or values by filter."""
    form = rng.randrange(6)
    if form == 0:
        return [_value(rng, parameter) for _ in range(rng.choice((1, 2, 3)))]
    if form == 1:
        return [{"filter": rng.choice(("mlp", "attn_q", "blk.0.*")), "value": _value(rng, parameter)},
                {"value": _value(rng, parameter)}]  # fmt: skip
    return _value(rng, parameter)


def _usual(rng: random.Random, parameter: Parameter) -> Any:
    """A number at which no weight counts for nothing."""
    return rng.choice((0.3, 0.45, 0.6)) if parameter.type is float else _value(rng, parameter)


def _value(rng: random.Random, parameter: Parameter) -> Any:
    if parameter.choices:
        return rng.choice(parameter.choices)
    if parameter.type is bool:
        return rng.random() < 0.5
    if parameter.type is str:
        return "x"
    low = 0.0 if parameter.low is None else parameter.low
    high = low + 1 if parameter.high is None else parameter.high
    number = rng.choice((low, high, 0.5 * (low + high), low + rng.random() * (high - low)))
    return int(number) if parameter.type is int else round(number, 4)


def _weighted(models: list[str]) -> list[Tree]:
    return [{"model": m, "parameters": {"weight": 0.5}} for m in models]


def _sliced(rng: random.Random, a: str, b: str, layers: int) -> Tree:
    runs = [[0, layers], [0, 1], [layers - 1, layers]]
    sources = [{"model": rng.choice((a, b)), "layer_range": rng.choice(runs)} for _ in range(rng.choice((1, 2, 3)))]
    sources[0]["model"] = a
    return {"merge_method": "passthrough", "slices": [{"sources": [source]} for source in sources]}


_EXTRAS: dict[str, Callable[[random.Random, list[str]], Any]] = {
    "out_type": lambda rng, _: rng.choice(_QUICK_TYPES),
    "dtype": lambda rng, _: rng.choice(("float16", "bfloat16", "float32")),
    "out_dtype": lambda rng, _: rng.choice(("float16", "bfloat16")),
    "like": lambda rng, models: models[0],
    "tensor_types": lambda rng, _: {rng.choice(("ffn_down", "attn_.*", "^blk")): rng.choice(_QUICK_TYPES[:6])},
    "exclude": lambda rng, _: rng.choice(("attn_q", ["mlp", "norm"])),
    "graft": lambda rng, models: [{"model": models[0], "tensors": ["attn_k"]}],
    "seed": lambda rng, _: rng.randrange(100),
    "name": lambda rng, _: "A name",
    "metadata": lambda rng, _: {"general.author": "me", "x.y": 5, "x.z": ["a"], "x.f": 0.5, "x.b": True},
    "tokenizer_source": lambda rng, models: rng.choice(("union", models[0])),
    "chat_template": lambda rng, _: rng.choice(("auto", "chatml", "{{ messages }}")),
    "int8_mask": lambda rng, _: True,
}


@functools.cache
def _recipe_words() -> tuple[str, ...]:
    """Keys, parameters, methods and types that a recipe may have, as the program's own schema lists them."""
    from ggufmerge.recipe.json_schema import json_schema

    words: set[str] = set()

    def walk(tree: Any) -> None:
        if isinstance(tree, dict):
            words.update(map(str, tree.get("properties", {})))
            words.update(w for w in tree.get("enum", []) if isinstance(w, str))
            for value in tree.values():
                walk(value)
        elif isinstance(tree, list):
            for value in tree:
                walk(value)

    walk(json_schema())
    return tuple(sorted(words))


# The kinds --------------------------------------------------------------------------------------------------------


def header(rng: random.Random, case: Case) -> None:
    """The header of a GGUF file; the library opens it, and llama.cpp."""
    name = rng.choice(_HEADERS)
    where = rng.choice(("pic", "c", "c", "p", "p", "p", "i", "i"))
    data = damage.damage_gguf(rng, seeds.parsed(name), where=where)
    case.add("x.gguf", name, data)
    case.command = [OPEN, "x.gguf"]


def _keys(rng: random.Random, case: Case, seed: int, number: int) -> None:
    """Every key that the program looks at, with every kind of value, in every use; each once before any comes again."""
    keys = damage.known_keys()
    total = len(keys) * damage.VALUE_KINDS * USES
    step = 7919 * 2 + 1  # no common factor with the total, so all are met
    while total % step == 0:
        step += 2
    place = (number * step + seed * 104729) % total
    place, use = divmod(place, USES)
    which, kind = divmod(place, damage.VALUE_KINDS)
    key = keys[which]
    family = rng.choice(("q4", "q4", "bpe"))
    file = seeds.parsed(f"{family}-a.gguf").copy()
    file.put(key, *damage.value_of_kind(rng, kind))
    case.add("x.gguf", f"{family}-a.gguf", bytes(file.settle()))
    _use_model(rng, case, family, use)


def model(rng: random.Random, case: Case) -> None:
    """A model whose header or weights are damaged, in every use."""
    if rng.random() < 0.15:
        family = f"wide-{rng.choice(seeds.WIDE_TYPES)}"
        origin = f"{family}.gguf"
    elif rng.random() < 0.05:
        family, origin = "q4", "scaled.gguf"
    else:
        family = rng.choice(_USUAL)
        origin = f"{family}-a.gguf"
    where = rng.choice(("d", "d", "p", "i", "pid", "pidc"))
    data = seeds.seed(origin) if rng.random() < 0.05 else damage.damage_gguf(rng, seeds.parsed(origin), where=where)
    case.add("x.gguf", origin, data)
    _use_model(rng, case, family)


def spoilt(rng: random.Random, case: Case) -> None:
    """One weight of a model is no finite number, and a command computes with it: that is an error."""
    if rng.random() < 0.3:
        family = f"wide-{rng.choice([t for t in seeds.WIDE_TYPES if t in damage.SCALES])}"
        origin = f"{family}.gguf"
    else:
        family = rng.choice(("q4", "q8", "f16", "f32", "bpe", "moe"))
        origin = f"{family}-a.gguf"
    file = seeds.parsed(origin).copy()
    name = damage.spoil(rng, file)
    case.add("x.gguf", origin, bytes(file))
    _beside(rng, case, family)
    case.refuse = True
    use = rng.randrange(10)
    if use == 0:
        kind = "F32" if family != "f32" else "Q8_0"
        case.command = ["quantize", "x.gguf", "out.gguf", kind, "--pure"]
    elif use == 1 and not name.startswith(b"output"):
        pair = rng.choice((("x.gguf", "base.gguf"), ("b.gguf", "x.gguf")))
        case.command = ["extract-lora", pair[0], "--base", pair[1], "-o", "out.gguf", "--rank", "2"]
    else:
        names = [n for n in NAMES if n != "passthrough"]
        tree = recipe(rng, "base.gguf", ["x.gguf", "b.gguf"], rng.choice(names), plain=True)
        if rng.random() < 0.3 and "base_model" in tree and family[:4] != "wide":
            tree = json.loads(
                json.dumps(tree).replace("base.gguf", "?").replace("x.gguf", "base.gguf").replace("?", "x.gguf")
            )
        _recipe_of(rng, case, tree)
        case.command = ["build", "r.yaml", "-o", "out.gguf"]


def adapter(rng: random.Random, case: Case) -> None:
    """A LoRA adapter in GGUF form."""
    name = rng.choice(("lora.gguf", "lora.gguf", "embedding-lora.gguf"))
    where = rng.choice(("d", "p", "i", "pid", "pidc"))
    case.add("x.gguf", name, damage.damage_gguf(rng, seeds.parsed(name), where=where))
    _use_adapter(rng, case, "x.gguf")


def _use_adapter(rng: random.Random, case: Case, path: str) -> None:
    family = rng.choice(("q4", "q4", "q8"))
    case.add("base.gguf", f"{family}-base.gguf")
    strength = rng.choice(("", "", "=0.5", "=-1", "=0", "=1e30", "=1e-30", "=nan", "=x"))
    use = rng.randrange(7)
    if use <= 2:
        options = (["--rounding", "nearest"], ["--dry-run"], ["--type", "Q8_0"], ["--json"], ["--all"])
        case.command = ["bake", "base.gguf", f"{path}{strength}", "-o", "out.gguf", *_some(rng, *options)]
    elif use <= 4:
        case.add("b.gguf", f"{family}-b.gguf")
        tree: Tree = {"merge_method": "linear", "models": _weighted([f"base.gguf+{path}{strength}", "b.gguf"])}
        if rng.random() < 0.4:
            tree = {"merge_method": "ties", "base_model": "base.gguf", "models": _weighted([f"base.gguf+{path}"])}
        case.put("r.yaml", yaml.safe_dump(tree))
        case.command = [rng.choice(("build", "build", "plan")), "r.yaml"]
        case.command += ["-o", "out.gguf"] if case.command[0] == "build" else []
    elif use == 5:
        case.command = ["extract-lora", f"base.gguf+{path}{strength}", "--base", "base.gguf", "-o", "out.gguf"]
    else:
        case.command = ["diff", "base.gguf", f"base.gguf+{path}{strength}"]


def peft(rng: random.Random, case: Case) -> None:
    """A PEFT folder: its configuration and its weights."""
    more, part = rng.choice(("", "more_")), rng.randrange(3)
    config = seeds.MORE_PEFT_CONFIG if more else seeds.PEFT_CONFIG
    weights = seeds.safetensors(f"{more}adapter_model.safetensors")
    case.add("x/adapter_model.safetensors", f"{more}adapter_model.safetensors")
    case.add("x/adapter_config.json", f"{more}adapter_config.json")
    if part != 1:
        words = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "fan_in_fan_out", "layers_pattern",
                 "(.+)+!", "q_proj", "all", "use_rslora", "init_lora_weights", "trainable_token_indices",
                 "modules_to_save", "norm", "embed_tokens", "lm_head", "ensure_weight_tying")  # fmt: skip
        data = damage.damage_json(rng, config, words)
        case.add("x/adapter_config.json", f"{more}adapter_config.json", data)
    if part != 0:
        data = damage.damage_safetensors(rng, weights)
        case.add("x/adapter_model.safetensors", f"{more}adapter_model.safetensors", data)
    if rng.random() < 0.05:
        case.put("x/README.md", damage.damage_text(rng, b"---\nlicense: mit\ntags: [a]\n---\n# x\n"))
    if rng.random() < 0.04:
        _put_special(rng, case, rng.choice(("x/adapter_config.json", "x/adapter_model.safetensors", "x/README.md")))
    _use_adapter(rng, case, rng.choice(("x", "x", "x/adapter_model.safetensors")))


def checkpoint(rng: random.Random, case: Case) -> None:
    """A Hugging Face checkpoint in the place of a model."""
    part = rng.randrange(4)
    case.add("x/config.json", "config.json")
    weights = seeds.safetensors("model.safetensors")
    case.add("x/model.safetensors", "model.safetensors")
    if part in (0, 1):
        words = ("model_type", "architectures", "num_key_value_heads", "head_dim", "rope_scaling", "rope_parameters",
                 "num_hidden_layers", "tie_word_embeddings", "partial_rotary_factor", "text_config",
                 "Qwen2ForCausalLM", "GemmaForCausalLM", "quantization_config")  # fmt: skip
        case.add("x/config.json", "config.json", damage.damage_json(rng, seeds.CONFIG, words))
    if part in (1, 2):
        case.add("x/model.safetensors", "model.safetensors", damage.damage_safetensors(rng, weights))
    if part == 3:
        places = {name: "model.safetensors" for name in weights.header if name != "__metadata__"}
        names = ("weight_map", "model.safetensors", "../q/model.safetensors", "a" * 300, "config.json", "")
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        case.put("x/model.safetensors.index.json", damage.damage_json(rng, index, names))
    if rng.random() < 0.1:
        card = b"---\nlicense: mit\nbase_model: a/b\ntags:\n- a\n---\n# x\n"
        case.put("x/README.md", damage.damage_yaml_text(rng, card))
    if rng.random() < 0.04:
        _put_special(rng, case, rng.choice(("x/config.json", "x/model.safetensors", "x/README.md")))
    case.add("base.gguf", "q4-base.gguf")
    case.add("b.gguf", "q4-b.gguf")
    tree: Tree = {"merge_method": "linear", "models": _weighted(["b.gguf", "x"])}
    use = rng.randrange(5)
    if use == 0:
        tree = {"merge_method": "ties", "base_model": "x", "models": _weighted(["b.gguf", "base.gguf"])}
    if use == 1:
        case.command = ["bake", "x", _adapter(rng, case), "-o", "out.gguf"]
        return
    if use == 2:
        case.command = ["extract-lora", "x", "--base", "base.gguf", "-o", "out.gguf"]
        return
    case.put("r.yaml", yaml.safe_dump(tree))
    case.command = [rng.choice(("build", "build", "plan")), "r.yaml"]
    case.command += ["-o", "out.gguf"] if case.command[0] == "build" else []


def imatrix(rng: random.Random, case: Case) -> None:
    """An importance matrix of either format."""
    if rng.random() < 0.6:
        where = rng.choice(("d", "p", "i", "pid", "pidc"))
        data = damage.damage_gguf(rng, seeds.parsed("imatrix.gguf"), where=where)
        case.add("x.imatrix", "imatrix.gguf", data)
    else:
        case.add("x.imatrix", "imatrix.dat", damage.damage_bytes(rng, seeds.seed("imatrix.dat")))
    if rng.random() < 0.04:
        _put_special(rng, case, "x.imatrix")
    case.add("a.gguf", rng.choice(("q4-a.gguf", "q8-a.gguf", "f16-a.gguf")))
    kind = rng.choice(("Q4_K_M", "IQ2_XS", "IQ4_NL", "Q4_0", "Q8_0", "Q5_1"))
    use = rng.randrange(4)
    if use <= 1:
        options = (["--include-weights", "attn"], ["--exclude-weights", "ffn"], ["--dry-run"], ["--pure"])
        case.command = ["quantize", "a.gguf", "out.gguf", kind, "--imatrix", "x.imatrix", *_some(rng, *options)]
    elif use == 2:
        case.add("lora.gguf", "lora.gguf")
        case.command = ["bake", "a.gguf", "lora.gguf", "-o", "out.gguf", "-t", kind, "--imatrix", "x.imatrix"]
    else:
        tree: Tree = {"merge_method": "linear", "models": _weighted(["a.gguf"]), "out_type": kind}
        tree["imatrix"] = rng.choice(("x.imatrix", ["x.imatrix", "x.imatrix"]))
        case.put("r.yaml", yaml.safe_dump(tree))
        case.command = [rng.choice(("build", "plan")), "r.yaml"]
        case.command += ["-o", "out.gguf"] if case.command[0] == "build" else []


def shards(rng: random.Random, case: Case) -> None:
    """A split model, of which one shard or more are damaged, missing or misnamed."""
    names = [f"shard-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for name in names:
        case.add(name, name)
    for name in rng.sample(names, rng.choice((1, 1, 1, 2))):
        where = rng.choice(("p", "p", "i", "pidc"))
        case.add(name, name, damage.damage_gguf(rng, seeds.parsed(name), where=where))
    change = rng.randrange(8)
    if change == 0:
        del case.files[rng.choice(names)]
    elif change == 1:
        a, b = rng.sample(names, 2)
        case.files[a], case.files[b] = case.files[b], case.files[a]
    elif change == 2:
        case.files[names[0].replace("00003", "00002")] = case.files.pop(names[0])
    case.add("b.gguf", "q4-b.gguf")
    use = rng.randrange(6)
    first = rng.choice((names[0], names[0], names[0], names[0], names[1]))
    if use <= 1:
        case.command = ["join", first, "out.gguf"]
    elif use == 2:
        case.command = ["split", first, "out", "--split-max-tensors", "4"]
    elif use == 3:
        case.command = ["quantize", first, "out.gguf", rng.choice(("Q8_0", "COPY"))]
    elif use == 4:
        case.command = ["inspect", first, *_some(rng, ["--json"])]
    else:
        case.put("r.yaml", yaml.safe_dump({"merge_method": "linear", "models": _weighted([first, "b.gguf"])}))
        case.command = ["build", "r.yaml", "-o", "out.gguf", *_some(rng, ["--split-max-tensors", "9"])]


def recipes(rng: random.Random, case: Case) -> None:
    """A recipe, damaged as a tree or as a text."""
    case.add("a.gguf", "q4-a.gguf")
    case.add("b.gguf", "q4-b.gguf")
    case.add("base.gguf", "q4-base.gguf")
    tree: Tree = recipe(rng, "base.gguf", ["a.gguf", "b.gguf"])
    if rng.random() < 0.2:
        tree = _sliced(rng, "a.gguf", "b.gguf", 2)
    if rng.random() < 0.15:
        case.add("lora.gguf", "lora.gguf")
        tree["graft"] = [{"model": {"model": "a.gguf", "lora": "lora.gguf"}, "tensors": ["attn_k"]}]
    damaged = tree
    if rng.random() < 0.85:
        words = (*_recipe_words(), "a.gguf", "b.gguf+lora.gguf=1e9", "blk.0.*", "([a-z0-9._]+)+!", "nan", "ollama:x",
                 "hf:a/b/../c", "lmstudio:x", "~x/y", "general.architecture", "llama.block_count", "Q4_K_M",
                 "a.gguf")  # fmt: skip
        damaged = damage.damage_tree(rng, tree, words)
    try:
        text = yaml.safe_dump(damaged, sort_keys=False, allow_unicode=rng.random() < 0.5).encode("utf-8", "replace")
    except (yaml.YAMLError, ValueError):  # what YAML has no form for
        text = json.dumps(damaged, default=str).encode()
    if rng.random() < 0.08:
        text += b"---\n" + yaml.safe_dump({**_sliced(rng, "a.gguf", "b.gguf", 2), "name": "r"}).encode()
    if rng.random() < 0.25:
        text = damage.damage_yaml_text(rng, text)
    case.put("r.yaml", text)
    if rng.random() < 0.01:
        _put_special(rng, case, "r.yaml")
    use = rng.randrange(8)
    if use <= 2:
        case.command = ["plan", "r.yaml", *_some(rng, ["--json"], ["--all"])]
    elif use == 3:
        case.command = ["recipe", "explain", "r.yaml", *_some(rng, ["blk.*"], ["--json"])]
    elif use == 4:
        case.command = ["build", "r.yaml", "-o", "out.gguf", "--dry-run"]
    else:
        case.command = ["build", "r.yaml", "-o", "out.gguf", *_some(rng, ["--json"], odds=0.1)]


def ollama(rng: random.Random, case: Case) -> None:
    """An Ollama store: manifests, configurations, parameters, templates."""
    weights = case.add("weights.gguf", rng.choice(("q4-a.gguf", "bpe-a.gguf")))
    layers: list[tuple[str, bytes]] = [
        ("model", _bytes_of(case, weights)),
        ("template", b"{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ .Prompt }}"),
        ("system", b"Be short."),
        ("params", json.dumps({"stop": ["<|im_end|>"], "temperature": 0.5, "num_ctx": 512}).encode()),
        ("license", b"MIT"),
        ("messages", json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]).encode()),
    ]
    config: Tree = {"model_format": "gguf", "model_family": "llama", "architecture": "amd64", "os": "linux"}
    config |= {"model_families": ["llama"], "model_type": "1B", "file_type": "Q4_0"}
    if rng.random() < 0.2:
        layers.append(("adapter", seeds.seed("lora.gguf")))
    part = rng.randrange(4)
    manifest_words = (IMAGE + "model", IMAGE + "adapter", IMAGE + "projector", IMAGE + "tensor", "digest", "layers",
                      "sha256:" + "0" * 64, "sha256:../../x", "from")  # fmt: skip
    packed_config = json.dumps(config).encode()
    if part == 0:
        packed_config = damage.damage_json(
            rng, config, ("renderer", "parser", "requires", "safetensors", "model_format")
        )
    if part == 1:
        at = rng.randrange(1, len(layers))
        kind, content = layers[at]
        if kind in ("params", "messages"):
            words = ("stop", "num_ctx", "temperature", "role", "content", "system")
            content = damage.damage_json(rng, json.loads(content), words)
        else:
            content = damage.damage_text(rng, content)
        layers[at] = (kind, content)
    entries = [_blob(case, data, IMAGE + kind) for kind, data in layers]
    manifest: Any = {"schemaVersion": 2, "mediaType": MANIFEST, "config": _blob(case, packed_config, CONFIG)}
    manifest["layers"] = entries
    text = json.dumps(manifest).encode()
    if part >= 2:
        text = damage.damage_json(rng, manifest, manifest_words)
    path = rng.choice(("registry.ollama.ai/library/tiny/latest",) * 9 + ("registry.ollama.ai/library/tiny",))
    case.put(f"ollama/manifests/{path}", text)
    if rng.random() < 0.04:
        _put_special(rng, case, f"ollama/manifests/{path}")
    del case.files[weights]
    case.add("b.gguf", "q4-b.gguf")
    use = rng.randrange(5)
    if use == 0:
        case.command = ["models", *_some(rng, ["--json"])]
    elif use == 1:
        case.command = ["inspect", "ollama:tiny", *_some(rng, ["--json"])]
    elif use == 2:
        case.add("lora.gguf", "lora.gguf")
        case.command = ["bake", "ollama:tiny", "lora.gguf", "-o", "out.gguf"]
    else:
        models = ["ollama:tiny", "b.gguf"] if b"gpt2" not in layers[0][1] else ["ollama:tiny"]
        case.put("r.yaml", yaml.safe_dump({"merge_method": "linear", "models": _weighted(models)}))
        place = rng.choice(
            (["-o", "out.gguf"], ["--ollama", "mine"], ["-o", "out.gguf", "--ollama", "tiny", "--overwrite"])
        )
        case.command = ["build", "r.yaml", *place, *_some(rng, ["--json"])]


def _bytes_of(case: Case, path: str) -> bytes:
    content = case.files[path]
    assert isinstance(content, bytes)
    return content


def _blob(case: Case, data: bytes, media_type: str) -> Tree:
    digest = hashlib.sha256(data).hexdigest()
    path = f"ollama/blobs/sha256-{digest}"
    case.put(path, data)
    for origin in ("q4-a.gguf", "bpe-a.gguf", "lora.gguf"):
        if data == seeds.seed(origin):
            case.origins[path] = origin
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def tokenizer(rng: random.Random, case: Case) -> None:
    """A SentencePiece model beside a model."""
    case.add("tokenizer.model", "tokenizer.model", damage.damage_pieces(rng, seeds.pieces("tokenizer.model")))
    if rng.random() < 0.04:
        _put_special(rng, case, "tokenizer.model")
    case.add("x.gguf", "q4-a.gguf")
    if rng.random() < 0.3:
        file = seeds.parsed("q4-a.gguf").copy()
        damage.damage_vocabulary(rng, file)
        case.add("x.gguf", "q4-a.gguf", bytes(file.settle()))
    _beside(rng, case, "q4")
    _build_vocabulary(rng, case)


def leftovers(rng: random.Random, case: Case) -> None:
    """What an earlier build or a stranger left beside the output: the result is that of a clean folder, or an error."""
    case.add("a.gguf", "q4-a.gguf")
    case.add("b.gguf", "q4-b.gguf")
    tree: Tree = {
        "merge_method": rng.choice(("linear", "slerp", "task_arithmetic")),
        "models": _weighted(["a.gguf", "b.gguf"]),
    }
    if tree["merge_method"] == "slerp":
        tree = {
            "merge_method": "slerp",
            "base_model": "a.gguf",
            "models": [{"model": "b.gguf"}],
            "parameters": {"t": 0.5},
        }
    if tree["merge_method"] == "task_arithmetic":
        tree = {"merge_method": "task_arithmetic", "base_model": "a.gguf", "models": _weighted(["b.gguf"])}
    text = yaml.safe_dump(tree)
    if rng.random() < 0.3:
        text = yaml.safe_dump({**tree, "name": "first"}) + "---\n"
        text += yaml.safe_dump({"merge_method": "linear", "models": _weighted(["first", "b.gguf"])})
    case.put("r.yaml", text)
    case.command = [
        "build",
        "r.yaml",
        "-o",
        "out.gguf",
        *_some(rng, ["--overwrite"], ["--split-max-tensors", "9"], odds=0.2),
    ]
    case.same = True
    if rng.random() < 0.6:
        case.interrupt = rng.randrange(1, 20)
        case.command += ["--threads", "1"]  # the journal has the same lines every time
        case.leftovers = rng.choice((0, rng.randrange(1, 10**6)))
        return
    kept = case.put("precious.txt", "Do not write here.\n")
    for name in rng.sample((".out.gguf.journal", ".out.gguf.partial", ".out.gguf.stages", ".out.Modelfile.partial"), 2):
        change = rng.randrange(7)
        if change == 0:
            case.put(name, Special("link", kept))
        elif change == 1:
            _put_special(rng, case, name)
        elif change == 2:
            case.put(f"{name}/x", "x")
        elif change == 3:
            case.put(name, seeds.seed("q4-b.gguf"))
        elif change == 4:
            case.put(name, damage.damage_json_text(rng, b'{"build": "x"}\n{"tensor": "output.weight", "crc32": 5}\n'))
        else:
            case.put(name, damage.text(rng))


def commands(rng: random.Random, case: Case) -> None:
    """Any command with any options."""
    for path, origin in (
        ("a.gguf", "q4-a.gguf"),
        ("b.gguf", "q4-b.gguf"),
        ("lora.gguf", "lora.gguf"),
        ("m.dat", "imatrix.dat"),
    ):
        case.add(path, origin)
    case.add("peft/adapter_config.json", "adapter_config.json")
    case.add("peft/adapter_model.safetensors", "adapter_model.safetensors")
    case.put("r.yaml", yaml.safe_dump({"merge_method": "linear", "models": _weighted(["a.gguf", "b.gguf"])}))
    case.put("text.txt", "the history of the wind\n")
    case.put("scores.json", '{"context": 256, "reference": null, "scores": [], "answers": []}')
    case.put("folder", Special("folder"))
    case.put("loop", Special("link", "loop"))
    case.put("nowhere.gguf", Special("link", "gone.gguf"))
    other = [
        "folder",
        "loop",
        "nowhere.gguf",
        "gone.gguf",
        "text.txt",
        "r.yaml",
        "a.gguf",
        "-",
        "",
        "~nobody/x",
        "hf:a/b",
    ]
    if hasattr(os, "mkfifo"):
        other.append(case.put("pipe", Special("pipe")))
    if rng.random() < 0.1:
        other.append(case.put("zeros", Special("zeros", str(800 << 20))))
    files = {
        "gguf": ["a.gguf", "b.gguf"],
        "adapter": ["lora.gguf", "peft"],
        "recipe": ["r.yaml"],
        "imatrix": ["m.dat"],
        "text": ["text.txt", "scores.json"],
        "other": other,
    }
    case.command = command_line.chance(rng, files)


def _put_special(rng: random.Random, case: Case, path: str) -> None:
    """A pipe, a folder, a link to nowhere or to itself, or very many zeros in the place of a file."""
    kinds = [Special("folder"), Special("link", "nowhere"), Special("link", path.rpartition("/")[2])]
    if not path.endswith("imatrix"):  # which may be large
        kinds.append(Special("zeros", str(800 << 20)))
    if hasattr(os, "mkfifo"):
        kinds += [Special("pipe")] * 2
    case.origins.pop(path, None)
    case.put(path, rng.choice(kinds))


def _some(rng: random.Random, *options: list[str], odds: float = 0.25) -> list[str]:
    return [word for option in options if rng.random() < odds for word in option]


KINDS: dict[str, Callable[[random.Random, Case], None]] = {
    "header": header,
    "keys": model,  # made by `make`, which knows the number
    "model": model,
    "spoilt": spoilt,
    "adapter": adapter,
    "peft": peft,
    "checkpoint": checkpoint,
    "imatrix": imatrix,
    "shards": shards,
    "recipe": recipes,
    "ollama": ollama,
    "tokenizer": tokenizer,
    "leftovers": leftovers,
    "command": commands,
}
SHARES = {  # how often a kind comes when all are hunted
    "header": 30, "keys": 8, "model": 20, "spoilt": 4, "adapter": 6, "peft": 8, "checkpoint": 6, "imatrix": 4,
    "shards": 4, "recipe": 10, "ollama": 4, "tokenizer": 3, "leftovers": 3, "command": 6,
}  # fmt: skip
