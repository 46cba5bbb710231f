"""What people type who know other programs: their words for our commands and options, in tables.

A word that means the same here is taken; one that means nothing here is put aside with a note; any other is answered by
a line that holds the right command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ggufmerge.errors import GgufmergeError


class UsageError(GgufmergeError):
    """A command line that makes no sense; its line says which one does. Exit code 2."""


@dataclass(frozen=True)
class Same:
    """Another name of an option of ours; of an argument when `option` is "".

    last: whether the argument is the last one, wherever the option stands.
    """

    option: str
    last: bool = False


@dataclass(frozen=True)
class Idle:
    """An option that changes nothing here. why: for the note.  values: how many words it takes."""

    why: str
    values: int = 0


@dataclass(frozen=True)
class Told:
    """An option of which `line` says what to do instead; `{value}` in it is the word behind it."""

    line: str
    value: str = "..."


Habit = Same | Idle | Told

_CPU = Idle("everything is computed on the CPU")
_CPU_1 = Idle(_CPU.why, 1)
_MAPPED = Idle("GGUF files are mapped, there is nothing to unpickle or to cache")
_MAPPED_1 = Idle(_MAPPED.why, 1)
_THREADS, _OVERWRITE, _OUTPUT, _TYPE = Same("--threads"), Same("--overwrite"), Same("--output"), Same("--type")
_DRY, _WORD, _LAST = Same("--dry-run"), Same(""), Same("", last=True)
_OUTPUTS = ("--out", "--outfile", "--out-file", "--output-file", "--out-path", "--out_path")

# of all commands, where the option that is meant is one of theirs
_EVERYWHERE: Mapping[str, Habit] = {
    **dict.fromkeys(("--nthread", "--nthreads", "--n-threads", "--num-threads", "--jobs", "-j"), _THREADS),
    **dict.fromkeys(("--force", "--force-overwrite", "-f"), _OVERWRITE),
    **dict.fromkeys(_OUTPUTS, _OUTPUT),
    **dict.fromkeys(("--outtype", "--out-type", "--ftype", "--quant", "--quantization"), _TYPE),
    **dict.fromkeys(("--dryrun", "-n"), _DRY),
    **dict.fromkeys(("--verbose", "-v"), Idle("nothing is held back: all that is decided is shown")),
}
_OF: Mapping[str, Mapping[str, Habit]] = {
    "build": {
        **dict.fromkeys(("--cuda", "--no-cuda", "--gpu-rich", "--read-to-gpu", "--multi-gpu"), _CPU),
        "--device": _CPU_1,
        "--low-cpu-memory": Idle("memory is threads times --chunk, whatever the size of the models"),
        **dict.fromkeys(("--lazy-unpickle", "--no-lazy-unpickle", "--lazy-loader"), _MAPPED),
        **dict.fromkeys(("--transformers-cache", "--lora-merge-cache", "--lora-merge-dtype"), _MAPPED_1),
        **dict.fromkeys(
            ("--copy-tokenizer", "--no-copy-tokenizer"),
            Idle("a GGUF file has its tokenizer inside; see tokenizer_source"),
        ),
        **dict.fromkeys(
            ("--allow-crimes", "--no-allow-crimes"),
            Idle("models that do not fit each other are reported before the work"),
        ),
        **dict.fromkeys(("--trust-remote-code", "--no-trust-remote-code"), Idle("no code of a model's is run")),
        **dict.fromkeys(("--clone-tensors", "--safe-serialization", "--async-write"), Idle("a GGUF file is written")),
        "--no-safe-serialization": Idle("a GGUF file is written"),
        "--write-threads": Idle("--threads are for all of the work", 1),
        "--no-write-model-card": Idle("a model card is only written with --card"),
        "--write-model-card": Told("give the card a name: --card README.md"),
        "--random-seed": Told('write "seed: {value}" into the recipe', "42"),
        "--out-shard-size": Told("that counts weights; give bytes: --split-max-size 4G"),
        "--max-shard-size": Same("--split-max-size"),
        "--all": Told("all tensors are listed by: ggufmerge plan RECIPE --all"),
        "--config": _WORD,
        **dict.fromkeys(
            ("--method", "--merge-method", "--weight", "--base", "--base-model", "--density"),
            Told(
                "that is said in the recipe: ggufmerge methods METHOD shows one; without a recipe: ggufmerge merge "
                "A.gguf B.gguf --method METHOD"
            ),
        ),
    },
    "plan": {"--dry-run": Idle("a plan writes nothing")},
    "quantize": {
        "--allow-requantize": Idle("a file that is quantized already is taken, with a warning"),
        "--override-kv": Told(
            "metadata are set by a recipe (merge_method: passthrough, models: [{model: IN.gguf}], "
            "metadata: {KEY: VALUE}): ggufmerge build RECIPE -o OUT.gguf"
        ),
        "--prune-layers": Told(
            "layers are left out by a recipe with slices of those that stay: ggufmerge methods passthrough shows one, "
            "ggufmerge build RECIPE -o OUT.gguf carries it out"
        ),
    },
    "bake": {
        **dict.fromkeys(
            ("--lora", "--lora-scaled", "--adapter"), Told("write: ggufmerge bake BASE ADAPTER=1.0 -o OUT.gguf")
        ),
        **dict.fromkeys(
            ("--model", "-m", "--base", "--base-model"), Told("write: ggufmerge bake BASE ADAPTER -o OUT.gguf")
        ),
        **dict.fromkeys(
            ("--scale", "--lora-scale", "--strength", "--weight", "--alpha"),
            Told("the strength follows the adapter: ggufmerge bake BASE ADAPTER={value} -o OUT.gguf", "0.5"),
        ),
    },
    "extract-lora": {
        **dict.fromkeys(("--model", "--tune", "--finetuned", "-m"), _WORD),
        "--base-model": Same("--base"),
        **dict.fromkeys(("--max-rank", "--lora-rank"), Same("--rank")),
        **dict.fromkeys(("--device", "--sv-epsilon"), _CPU_1),
        **dict.fromkeys(("--cuda", "--no-lazy-unpickle"), _CPU),
    },
    "split": {
        "--split": Idle("that is what this command does"),
        "--merge": Told("write: ggufmerge join FIRST OUTPUT"),
        **dict.fromkeys(("-o", "--output", *_OUTPUTS), _LAST),
    },
    "join": {"--merge": Idle("that is what this command does"), **dict.fromkeys(("-o", "--output", *_OUTPUTS), _LAST)},
    "eval": {
        **dict.fromkeys(("--model", "-m"), _WORD),
        **dict.fromkeys(("--file", "-f"), Same("--text")),
        **dict.fromkeys(("--ctx-size", "-c"), Same("--context")),
        "-p": Same("--prompt"),
        **dict.fromkeys(("--n-predict", "--predict", "-n"), Same("--answer-tokens")),
        "--temp": Same("--temperature"),
        "-s": Same("--seed"),
        **dict.fromkeys(("--n-gpu-layers", "--gpu-layers", "-ngl"), _CPU_1),
        "--chunks": Told("give tokens: --tokens N"),
        "--kl-divergence": Told("name the model to compare with: --reference MODEL"),
    },
    "inspect": {"--no-metadata": Told("metadata are all of a header; as JSON: ggufmerge inspect FILE --json")},
    "push": {"--repo": _WORD, "--repo-id": _WORD, "--public": Idle("that is what a new repository is")},
}

# commands whose output may stand among the arguments: at this place; -1: behind all others, if there is no such file
OUTPUT_AT = {"build": 1, "extract-lora": 1, "bake": -1}


@dataclass(frozen=True)
class Switches:
    """The options of a command: name -> whether a value follows it."""

    takes_value: Mapping[str, bool]

    def __contains__(self, name: object) -> bool:
        return name in self.takes_value


def translate(command: str, words: Sequence[str], switches: Switches, note: Callable[[str], None]) -> list[str]:
    """The words of a command line as its parser knows them; `note` is told of those that were put aside.

    command: its name.  words: what stands behind it.  UsageError for an option that only looks like one of ours.
    """
    habits = {**_EVERYWHERE, **_OF.get(command, {})}
    out: list[str] = []
    arguments: list[int] = []  # where they are in `out`
    rest, last = list(words), list[str]()
    while rest:
        word = rest.pop(0)
        if word == "--":
            out += [word, *rest]
            break
        name, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            arguments.append(len(out))
            out.append(word)
        elif name in switches:
            out.append(word)
            if switches.takes_value[name] and not equals and rest:
                out.append(rest.pop(0))
        elif name == "-t" and "--threads" in switches:  # where it is no --type
            out += ["--threads", *([value] if equals else [rest.pop(0)] if rest else [])]
        elif (habit := habits.get(name)) is None:
            out.append(word)
        elif isinstance(habit, Told):
            behind = value or next((w for w in rest[:1] if not w.startswith("-")), "") or habit.value
            raise UsageError(f"{name}: {habit.line.replace('{value}', behind)}")
        elif isinstance(habit, Idle):
            del rest[: 0 if equals else habit.values]
            note(f"{name} is not needed: {habit.why}")
        elif habit.option and habit.option not in switches:
            out.append(word)
        elif habit.last:
            last += [value] if equals else rest[:1]
            del rest[: 0 if equals else 1]
        elif not habit.option:
            arguments.append(len(out))
            out += [value] if equals else rest[:1]
            del rest[: 0 if equals else 1]
        else:
            out.append(habit.option + equals + value)
            if switches.takes_value[habit.option] and not equals and rest:
                out.append(rest.pop(0))
    return _with_output(command, out, arguments) if not last else [*out, *last]


def _with_output(command: str, words: list[str], arguments: list[int]) -> list[str]:
    """An output that stands among the arguments becomes one of --output."""
    place = OUTPUT_AT.get(command)
    if place is None or any(w.startswith(("-o", "--output")) for w in words):
        return words
    if place > 0 and len(arguments) == place + 1:
        at = arguments[place]
    elif place < 0 and len(arguments) > 2 and _is_new_file(words[arguments[-1]]):
        at = arguments[-1]
    else:
        return words
    return [*words[:at], "--output", *words[at:]]


def _is_new_file(word: str) -> bool:
    from pathlib import Path

    return word.lower().endswith(".gguf") and ":" not in word and not Path(word).exists()


# ---- commands

# first words that mean a command of ours
SAME_COMMAND: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("ls", "list", "model"), ("models",)),
    **dict.fromkeys(("info", "show", "view", "dump", "describe", "gguf-dump"), ("inspect",)),
    **dict.fromkeys(("compare", "cmp"), ("diff",)),
    **dict.fromkeys(("evaluate", "perplexity", "ppl", "llama-perplexity", "measure"), ("eval",)),
    **dict.fromkeys(("imatrix", "llama-imatrix", "calibration"), ("calibrate",)),
    **dict.fromkeys(("quant", "quantise", "requantize", "llama-quantize"), ("quantize",)),
    **dict.fromkeys(("apply-lora", "bake-lora", "merge-lora", "export-lora", "llama-export-lora"), ("bake",)),
    **dict.fromkeys(("extract", "extract_lora", "lora-extract", "mergekit-extract-lora"), ("extract-lora",)),
    **dict.fromkeys(("mix", "blend", "combine"), ("merge",)),
    **dict.fromkeys(("mergekit-yaml", "mergekit", "make"), ("build",)),
    **dict.fromkeys(("unsplit", "merge-shards", "concat"), ("join",)),
    **dict.fromkeys(("upload", "publish"), ("push",)),
    **dict.fromkeys(("method", "algorithms"), ("methods",)),
    **dict.fromkeys(("type", "quants", "formats", "ftypes"), ("types",)),
    "explain": ("recipe", "explain"),
}
_RUN = 'put it into Ollama and run it there: "ggufmerge build RECIPE --ollama NAME", then "ollama run NAME"'
_GET = (
    'a model is fetched where it is named: "ggufmerge inspect hf:OWNER/REPO:Q4_K_M"; those of Ollama are named '
    "ollama:NAME"
)
_FILES = 'models are files: "rm FILE.gguf", or "ollama rm NAME" for those of Ollama; "ggufmerge models" lists them'
_CHECK = 'a recipe is checked by "ggufmerge plan RECIPE", which writes nothing'
_BEGIN = '"ggufmerge new" asks and writes a recipe, "ggufmerge methods METHOD" prints one to begin with'
# first words that mean none of ours, and what to do; "recipe" is what stands behind that command
TOLD_COMMAND: Mapping[str, Mapping[str, str]] = {
    "": {
        **dict.fromkeys(("run", "chat", "generate", "ask", "complete", "llama-cli"), _RUN),
        **dict.fromkeys(("pull", "download", "get", "fetch", "add"), _GET),
        **dict.fromkeys(("rm", "remove", "delete", "cp", "copy", "mv", "rename", "clean", "prune-models"), _FILES),
        **dict.fromkeys(("check", "validate", "lint", "verify", "dry-run", "test"), _CHECK),
        **dict.fromkeys(("init", "start", "template", "example", "examples", "config"), _BEGIN),
        "create": '"ggufmerge build RECIPE --ollama NAME" makes a model of Ollama',
        "serve": '"ollama serve" or "llama-server -m FILE.gguf" serves what "ggufmerge build" writes',
        "convert": 'another type is written by "ggufmerge quantize IN OUT TYPE"; of a Hugging Face checkpoint, '
        "convert_hf_to_gguf.py of llama.cpp makes a GGUF file",
        "export": 'another type is written by "ggufmerge quantize IN OUT TYPE"',
        "dequantize": 'full precision is a type, too: "ggufmerge quantize IN OUT F16"',
        "compress": 'a smaller type is written by "ggufmerge quantize IN OUT Q4_K_M"',
        **dict.fromkeys(
            ("train", "finetune", "fine-tune", "sft", "distill"),
            'models are trained by other programs; their adapters are applied by "ggufmerge bake BASE ADAPTER -o OUT"',
        ),
        **dict.fromkeys(
            ("lora", "adapter", "peft"),
            'an adapter is applied by "ggufmerge bake BASE ADAPTER -o OUT", and made by '
            '"ggufmerge extract-lora TUNE --base BASE -o ADAPTER"',
        ),
        **dict.fromkeys(
            ("gguf-split", "llama-gguf-split", "shard"),
            '"ggufmerge split INPUT OUTPUT --split-max-size 4G" makes shards, "ggufmerge join FIRST OUTPUT" one file',
        ),
        "prune": 'layers are left out by a recipe with slices: "ggufmerge methods passthrough" shows one',
        "stack": 'layers are stacked by a recipe with slices: "ggufmerge methods passthrough" shows one',
        **dict.fromkeys(
            ("tokenizer", "mergekit-tokensurgeon"),
            'a recipe says what becomes of tokenizers (tokenizer_source: union): "ggufmerge build RECIPE -o OUT"',
        ),
        **dict.fromkeys(
            ("moe", "mergekit-moe"),
            'experts are merged as other weights are: "ggufmerge build RECIPE -o OUT"; models do not become experts',
        ),
        **dict.fromkeys(
            ("frankenmerge", "passthrough-merge"), '"ggufmerge methods passthrough" shows a recipe that stacks layers'
        ),
        **dict.fromkeys(("search", "find", "ps"), '"ggufmerge models" lists what is on this machine'),
        "login": '"hf auth login" does that, for "ggufmerge push FILE OWNER/NAME"',
        **dict.fromkeys(("update", "upgrade", "install"), '"pip install -U ggufmerge" does that'),
        "completion": '"ggufmerge --install-completion" does that',
        **dict.fromkeys(("python", "api"), '"import ggufmerge" in Python; "ggufmerge help" lists the commands'),
    },
    "recipe": {
        **dict.fromkeys(("check", "plan", "validate", "lint", "show", "test"), _CHECK),
        **dict.fromkeys(("new", "init", "create", "template", "example"), _BEGIN),
        **dict.fromkeys(("build", "run", "merge"), 'a recipe is carried out by "ggufmerge build RECIPE -o OUT.gguf"'),
        **dict.fromkeys(("methods", "list"), '"ggufmerge methods" lists the methods'),
    },
}
