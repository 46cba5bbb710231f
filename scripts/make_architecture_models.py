"""Make vendor/architectures/models.json.gz: the header of a tiny model of each architecture that llama.cpp knows.

    python scripts/make_architecture_models.py LLAMA_CPP LIBRARIES [ARCHITECTURE ...] [--output FILE]

LLAMA_CPP is a tree of llama.cpp's sources, LIBRARIES the folder with the shared libraries that were built from it
(`cmake -B build -DBUILD_SHARED_LIBS=ON && cmake --build build --target llama`: build/bin). It takes a few minutes. With
names of architectures only these are made again, and the others stay as they are in the file.

llama.cpp itself says which tensors a header needs (`architecture_models.cpp`, compiled here): it is asked for all that
it would look for, those that it can do without are then left out one kind after the other, and so are the keys that
change nothing. What is left is the least that loads and computes, but for the parts that make a model of its kind: the
matrices of a layer's feed-forward part, and the head. Then what llama.cpp makes of the place of each layer is written
down. The keys and their values are those with which llama.cpp tests itself (tests/test-llama-archs.cpp), widened.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.architecture_models import MODELS, TOKENS, TinyModel  # noqa: E402

Tensors = dict[str, list[int]]
Keys = dict[str, Any]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Architectures of which a model with experts is made, and those of which one without is made as well.
EXPERTS = _words(
    "afmoe arctic bailingmoe bailingmoe2 bailingmoe3 cohere2moe dbrx deepseek deepseek2 deepseek2-ocr deepseek32 "
    "deepseek4 dots1 dots3note ernie4_5-moe exaone-moe glm-dsa glm4moe glm5-next gpt-oss granitehybrid granitemoe grok "
    "grovemoe hunyuan-moe hy_v3 hy_v4 jamba kimi-k3 kimi-linear laguna lfm2moe llada-moe llama4 maple mellum mimo2 "
    "minimax-01 minimax-m2 minimax-m3 mistral4 nemotron_h_moe nomic-bert-moe olmoe phimoe qwen2moe qwen35moe "
    "qwen3moe qwen3next qwen3vlmoe qwen4exp rnd1 smallthinker step35"
)
BOTH = ("granite", "llama", "minicpm", "mistral3")
# with keys and values that are computed of few numbers (MLA); with recurrent layers that head_count_kv tells
FEW_NUMBERS = _words("bailingmoe3 deepseek2 deepseek32 dots3note glm-dsa glm5-next hy_v4 kimi-k3 kimi-linear mistral4")
RECURRENT = _words(
    "bailingmoe3 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2 lfm2moe nemotron_h nemotron_h_moe plamo2"
)
# with a list of the layers that have a window
LISTED_WINDOWS = _words("cohere2moe dflash dots3note granite_swa maple mimo2 muse-glimmer spark2_5 step35")
LAYERS = {"gemma3n": 24, "hrm_text": 6, "wavtokenizer-dec": 6, "eagle3": 1}
# (width, heads, width of the feed-forward part), tried in this order
SIZES = ((64, 2, 96), (128, 2, 192), (256, 2, 384), (512, 8, 1024), (64, 1, 96))
# load, but cannot compute alone, or not in this size
ONLY_LOAD = _words("chameleon dflash eagle3 gemma4-assistant plm qwen3tts")
# no models of llama.cpp's own kind, or not with layers that predict further tokens
NO_FURTHER = _words(
    "dflash eagle3 gemma3n gemma4 gemma4-assistant graniteswitch hrm_text nanbeige t5 t5encoder wavtokenizer-dec"
)
SCALES = (".scale", ".input_scale")  # of quantized weights
NEEDED = re.compile(r"(blk\.\d+\.(ffn_(gate|up|down)(_(sh)?exps?)?|ffn_gate_inp)|output)\.weight")
TIED = ("cohere", "command", "gemma", "hrm")  # most models of these have no head of their own


def keys_of(arch: str, n: int, width: int, heads: int, inner: int, experts: bool) -> Keys:
    """All that any architecture reads; what one does not need is left out later."""
    head = width // heads
    listed: dict[str, Any] = {
        "context_length": 256,
        "embedding_length": width,
        "features_length": width,
        "block_count": n,
        "decoder_block_count": n,
        "leading_dense_block_count": 2 if n > 4 else 1,
        "feed_forward_length": inner,
        "use_parallel_residual": False,
        "logit_scale": 1.0,
        "residual_scale": 3.5565588,
        "time_mix_extra_dim": 64,
        "time_decay_extra_dim": 128,
        "token_shift_count": 1 if "qwen2" in arch or arch == "arwkv7" else 2,
        "wkv.head_size": head,
        "full_attention_interval": 4,
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        "attention.max_alibi_bias": 8.0,
        "attention.clamp_kqv": 1.0,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.group_norm_epsilon": 1e-5,
        "attention.group_norm_groups": 8,
        "attention.q_lora_rank": 32,
        "attention.kv_lora_rank": 512,
        "attention.relative_buckets_count": 8,
        "attention.sliding_window": 8,
        "attention.causal": True,
        "attention.decay_lora_rank": 16,
        "attention.iclr_lora_rank": 16,
        "attention.value_residual_mix_lora_rank": 16,
        "attention.gate_lora_rank": 16,
        "attention.indexer.head_count": heads if arch == "minimax-m3" else 64,
        "attention.indexer.key_length": head if arch == "qwen4exp" else 128,
        "attention.indexer.top_k": 131072,
        "attention.indexer.block_size": 4,
        "attention.indexer.kpool": 4,
        "attention.indexer.kpool_select_tail": True,
        "attention.indexer.local_blocks": 1,
        "rope.dimension_sections": [8, 12, 12, 0] if arch == "bailingmoe3" else [head // 4] * 4,
        "ssm.inner_size": width if arch in ("qwen35", "qwen35moe", "qwen3next", "qwen4exp") else 2 * width,
        "ssm.conv_kernel": 4,
        "ssm.state_size": head if arch.startswith("qwen") else 16,
        "ssm.time_step_rank": heads,
        "ssm.group_count": 0 if arch == "plamo2" else 2,
        "kda.head_dim": 128,
        "kda.safe_gate": True,
        "kda.gate_lower_bound": -5.0,
        "shortconv.l_cache": 3,
        "attn_res.block_size": 4,
        "activation.situ_beta": 4.0,
        "activation.situ_linear_beta": 25.0,
        "hidden_activation": "silu",
        "posnet.embedding_length": width,
        "posnet.block_count": n,
        "convnext.embedding_length": width,
        "convnext.block_count": n,
        "decoder_start_token_id": 0,
        "target_layers": [0, 1, 2],
        "target_hidden_size": width,
        "pooling_type": 1,
    }
    if experts:
        listed |= {
            "expert_feed_forward_length": 128 if arch == "deepseek4" else inner,
            "expert_shared_feed_forward_length": inner // 2,
            "expert_chunk_feed_forward_length": inner // 2,
            "expert_latent_length": inner,
            "interleave_moe_layer_step": 1 if arch == "ernie4_5-moe" else 2,
            "moe_every_n_layers": 2,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_shared_count": 1,
            "expert_gating_func": 4 if arch == "deepseek4" else 2,
            "expert_group_scale": 1.0,
            "experts_per_group": 1,
        }
    listed |= dict(_of_attention(arch, n, head, heads))
    listed |= dict(_of_family(arch, n, width, head, inner))
    outside = {"xielu.alpha_n": 1.0, "xielu.alpha_p": 1.0, "xielu.beta": 1.0, "xielu.eps": 1e-7}
    if arch.startswith(("bert", "jina-bert", "nomic-bert")):
        outside["tokenizer.ggml.token_type_count"] = 2
    return {f"{arch}.{key}": value for key, value in listed.items()} | outside


def _of_attention(arch: str, n: int, head: int, heads: int) -> Iterator[tuple[str, Any]]:
    if arch in LISTED_WINDOWS:
        yield "attention.sliding_window_pattern", [i % 2 == 1 for i in range(n)]
    if arch in RECURRENT:
        per_layer = [0 if i % 3 == 1 else heads for i in range(n)]
        if arch.startswith("nemotron_h"):
            per_layer = [heads if i % 3 == 1 else 0 for i in range(n)]
        yield "attention.head_count_kv", per_layer
        yield "attention.head_count", heads if arch.startswith(("glm5", "nemotron_h")) else per_layer
    if arch == "deepseek4":
        yield from {"attention.head_count_kv": 1, "attention.key_length": head}.items()
        yield from {"attention.value_length": head, "rope.dimension_count": head // 2}.items()
    elif arch in FEW_NUMBERS:
        rope = 0 if arch == "glm5-next" else 64
        yield from {"attention.key_length": 512 + rope, "attention.value_length": 512}.items()
        yield from {"attention.key_length_mla": 192, "attention.value_length_mla": 128}.items()
        yield "rope.dimension_count", rope
    elif arch == "minimax-m3":
        yield "rope.dimension_count", 64


def _of_family(arch: str, n: int, width: int, head: int, inner: int) -> Iterator[tuple[str, Any]]:
    """What single architectures need."""
    if arch.startswith("nemotron_h"):
        yield "feed_forward_length", [0 if i % 3 < 2 else inner for i in range(n)]
    if arch == "dots3note":
        yield from {"attention.kv_lora_rank_swa": 512, "attention.key_length_swa": 576}.items()
        yield from {"attention.value_length_swa": 512, "attention.key_length_mla_swa": 192}.items()
        yield from {"attention.value_length_mla_swa": 128, "rope.freq_base_swa": 10000.0}.items()
    if arch in ("dots3note", "hy_v4"):
        yield "attention.indexer.types", [0 if i % 2 else 1 for i in range(n)]
    if arch in ("gemma4", "gemma4-assistant"):
        yield from {"embedding_length_per_layer_input": width // 2, "rope.freq_base_swa": 10000.0}.items()
        yield from {"attention.key_length_swa": head, "attention.value_length_swa": head}.items()
        yield "attention.sliding_window_pattern", [(i + 1) % 5 != 0 for i in range(n)]
        yield "attention.shared_kv_layers", n if arch == "gemma4-assistant" else 0
    if arch == "gemma4-assistant":
        yield "embedding_length_out", 2 * width
    if arch in ("deepseek4", "glm5-next", "hy_v4", "qwen4exp"):
        yield from {"hyper_connection.count": 4, "hyper_connection.epsilon": 1e-6}.items()
        yield from {"hyper_connection.sinkhorn_iterations": 2, "hyper_connection.low_rank": 8}.items()
    if arch in ("deepseek4", "hy_v4"):
        yield from {"swiglu_clamp_exp": 10.0, "expert_weights_scale": 1.0, "expert_weights_norm": True}.items()
    if arch == "hy_v4":
        yield "hyper_connection.magnitude", 2.0
    if arch in ("glm5-next", "qwen4exp"):
        yield from {"attention.compress_ratios": [4] * n, "embedding_length_per_layer_input": width // 4}.items()
        yield from {"ple.layers": [0], "ple.ngram_size": 3, "ple.heads_per_ngram": 2, "ple.conv_kernel": 4}.items()
        yield from {"ple.eos_token_id": 0, "ple.layer_multipliers": {"u64": [1, 3, 5]}}.items()
        yield "ple.head_offsets", {"u64": [i * TOKENS for i in range(4)]}
        yield "ple.head_vocab_sizes", {"u64": [TOKENS] * 4}
    if arch == "deepseek4":
        yield "attention.q_lora_rank", 64
        yield from {"attention.output_group_count": 8, "attention.output_lora_rank": 32, "hash_layer_count": 0}.items()
        yield "attention.compress_ratios", [0, 0, *(4 if i % 2 == 0 else 128 for i in range(2, n))]
        yield "attention.compress_rope_freq_base", 160000.0
    if arch == "bailingmoe3":
        yield "swiglu_clamp_exp", [0.0 if i == 0 else 4.0 for i in range(n)]
        yield "swiglu_clamp_shexp", [0.0 if i == 0 else 5.0 for i in range(n)]
    if arch == "maple":
        yield "swiglu_clamp_exp", 7.0
    if arch == "hrm_text":
        yield from {"hrm.layers_per_stack": 1, "hrm.h_cycles": 2, "hrm.l_cycles": 2}.items()
    if arch == "graniteswitch":
        yield from {"adapters.count": 2, "adapters.lora_rank": 4, "adapters.router_gain": 1.0}.items()
        yield from {"adapters.token_ids_activate": [5, 6], "adapters.token_ids_substitute": [7, 8]}.items()


class Llama:
    """llama.cpp, started again after an assertion ended it."""

    def __init__(self, program: Path, libraries: Path, folder: Path) -> None:
        self._command = [str(program), str(libraries)]
        self._path = folder / "model.gguf"
        self._process: subprocess.Popen[str] | None = None

    def architectures(self) -> list[str]:
        """All that it knows."""
        listed = subprocess.run([*self._command, "list"], capture_output=True, text=True, check=True).stdout.split("\n")
        return [name for name in listed if name and name != "(unknown)"]

    def wanted(self, arch: str, keys: Keys) -> dict[str, Any]:
        """What it would look for in a file with these metadata."""
        return self._ask("wanted", arch, keys, {})

    def load(self, arch: str, keys: Keys, tensors: Tensors) -> dict[str, Any]:
        """What it makes of a file."""
        return self._ask("open" if arch in ONLY_LOAD else "load", arch, keys, tensors)

    def _ask(self, question: str, arch: str, keys: Keys, tensors: Tensors) -> dict[str, Any]:
        shapes = {name: tuple(shape) for name, shape in tensors.items()}
        TinyModel("", arch, keys, shapes, {}, True).write(self._path)
        if self._process is None:
            pipe = subprocess.PIPE
            environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
            self._process = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(question, self._path, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if line.endswith("\n"):
            return dict(json.loads(line))
        words = self._process.communicate()[1]  # an assertion failed
        self._process = None
        return {"ok": False, "words": words[-300:]}


def made(llama: Llama, arch: str, experts: bool) -> dict[str, Any] | str:
    """The entry of one model; why there is none."""
    n, words = LAYERS.get(arch, 12), ""
    sizes = ((64, 1, 96), *SIZES) if arch in FEW_NUMBERS else SIZES
    for width, heads, inner in sizes:
        keys = keys_of(arch, n, width, heads, inner, experts)
        found = llama.wanted(arch, keys)
        wanted = _shapes(found) if found["ok"] else _missed(llama, arch, keys)
        tensors, loaded = _loadable(llama, arch, keys, wanted)
        if not loaded.get("runs") and arch not in ONLY_LOAD:  # some is too much
            tensors, loaded = _loadable(llama, arch, keys, _missed(llama, arch, keys))
        if loaded["ok"] and (loaded["runs"] or arch in ONLY_LOAD):
            return _entry(llama, arch, keys, _least_tensors(llama, arch, keys, tensors, loaded["runs"]))
        words = found.get("words") or loaded.get("words") or "computes nothing"
    return words


def _missed(llama: Llama, arch: str, keys: Keys) -> Tensors:
    """The tensors without which a file is refused, found by what llama.cpp complains of: it cannot say what it would
    look for in models that may take the embedding of another.
    """
    tensors: Tensors = {"token_embd.weight": [TOKENS, keys[f"{arch}.embedding_length"]]}
    while True:
        words = llama.load(arch, keys, tensors).get("words", "")
        if lacking := re.search(r"tensor '([^']+)' not found", words):
            tensors[lacking[1]] = [1]
        elif wrong := re.search(r"tensor '([^']+)' has wrong shape; expected ([\d, ]+), got", words):
            shape = [int(number) for number in wrong[2].split(",")][::-1]
            while len(shape) > 1 and shape[0] == 1:
                shape.pop(0)
            if tensors.get(wrong[1]) == shape:
                return tensors
            tensors[wrong[1]] = shape
        else:
            return tensors


def _shapes(found: Mapping[str, Any]) -> Tensors:
    """The tensors of an answer, but for the scales of quantized ones."""
    return {name: shape for name, (_, *shape) in found["tensors"].items() if not name.endswith(SCALES)}


def _loadable(llama: Llama, arch: str, keys: Keys, tensors: Tensors) -> tuple[Tensors, dict[str, Any]]:
    """What llama.cpp would look for, with the experts' matrices apart where it takes them so: most files have them."""
    apart = _apart(tensors)
    loaded = llama.load(arch, keys, apart)
    return (apart, loaded) if loaded["ok"] else (tensors, llama.load(arch, keys, tensors))


def _apart(tensors: Tensors) -> Tensors:
    apart: Tensors = {}
    for name, shape in tensors.items():
        if "ffn_gate_up_exps" in name:
            halves = [shape[0], shape[1] // 2, shape[2]]
            apart |= {name.replace("gate_up", part): halves for part in ("gate", "up")}
        else:
            apart[name] = shape
    return apart


def _least_tensors(llama: Llama, arch: str, keys: Keys, tensors: Tensors, runs: bool) -> Tensors:
    """Those that are needed to load, to compute, and to be a model of this kind."""

    def fits(fewer: Tensors) -> bool:
        answer = llama.load(arch, keys, fewer)
        return bool(answer["ok"] and answer["runs"] == runs)

    lead = int(keys.get(f"{arch}.leading_dense_block_count", 0))
    mixed = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)(_inp|_exps|_shexp)?\.")
    if f"{arch}.expert_count" in keys:  # a layer has experts or none, where llama.cpp would take both
        fewer = {
            name: shape
            for name, shape in tensors.items()
            if (match := mixed.match(name)) is None or (match[3] is None) == (int(match[1]) < lead)
        }
        one_kind = {
            name: shape for name, shape in tensors.items() if (m := mixed.match(name)) is None or m[3] is not None
        }
        tensors = next((some for some in (fewer, one_kind) if some != tensors and fits(some)), tensors)
    is_tied = arch.startswith(TIED)
    for kind in dict.fromkeys(map(_kind, tensors)):
        fewer = {name: shape for name, shape in tensors.items() if _kind(name) != kind}
        dropped = tensors.keys() - fewer.keys()
        is_needed = all(NEEDED.fullmatch(name) for name in dropped) and not (kind == "output.weight" and is_tied)
        if not is_needed and fewer and fits(fewer):
            tensors = fewer
    return tensors


def _kind(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "N", name)


def _least_keys(llama: Llama, arch: str, keys: Keys, tensors: Tensors) -> Keys:
    """Those without which the hyperparameters would be others, and some that say what they are by default."""
    kept = ("sliding_window", "target_layers", "token_type_count", "pooling_type")

    def asked(some: Keys) -> dict[str, Any]:
        return llama.load(arch, some, tensors) if is_missed else llama.wanted(arch, some)

    is_missed = not llama.wanted(arch, keys)["ok"]
    expected = asked(keys)
    left = list(keys)
    size = len(left) // 4
    while size:  # many at once first, as most do not matter
        for start in range(0, len(left), size):
            some = [key for key in left[start : start + size] if not key.endswith(kept)]
            fewer = {key: value for key, value in keys.items() if key not in some}
            answer = asked(fewer) if some and len(fewer) < len(keys) else {"ok": False}
            if answer["ok"] and answer["digest"] == expected["digest"]:
                keys = fewer
        left = [key for key in left if key in keys]
        size //= 2
    return keys


def _entry(llama: Llama, arch: str, keys: Keys, tensors: Tensors) -> dict[str, Any]:
    before = llama.load(arch, keys, tensors)
    fewer = _least_keys(llama, arch, keys, tensors)
    answer = llama.load(arch, fewer, tensors)
    if not answer["ok"] or answer["runs"] != before["runs"] or answer["kinds"] != before["kinds"]:
        fewer, answer = keys, before
    return {
        "architecture": arch,
        "metadata": fewer,
        "tensors": _ordered(tensors),
        "kinds": answer["kinds"],
        "runs": answer["runs"],
    }


def _ordered(tensors: Tensors) -> Tensors:
    """In the order of a file: before the layers, the layers, after them."""

    def place(name: str) -> tuple[int, int, str]:
        layer = re.search(r"blk\.(\d+)\.", name)
        return (1, int(layer[1]), name) if layer else (2 if name.startswith(("output", "cls")) else 0, 0, name)

    return {name: tensors[name] for name in sorted(tensors, key=place)}


def further(llama: Llama, model: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same model with a layer behind the others that predicts further tokens; None where llama.cpp has none."""
    arch, tensors = model["architecture"], model["tensors"]
    n = model["metadata"][f"{arch}.block_count"]
    if arch in NO_FURTHER:
        return None
    keys = {
        key: [*value, value[-1]] if isinstance(value, list) and len(value) == n else value
        for key, value in model["metadata"].items()
    }
    keys |= {f"{arch}.block_count": n + 1, f"{arch}.nextn_predict_layers": 1}
    if arch.startswith("nemotron_h"):
        keys[f"{arch}.feed_forward_length"][-1] = 96
        keys[f"{arch}.attention.head_count_kv"][-1] = 2
    found = llama.wanted(arch, keys)
    prefix = f"blk.{n}."
    if not (found["ok"] and any(name.startswith(f"{prefix}nextn.") for name in found["tensors"])):
        return None
    wanted = {name: shape for name, shape in _apart(_shapes(found)).items() if name.startswith(prefix)}
    kinds = {re.sub(r"^blk\.\d+\.", "", name) for name in tensors}
    usual = {name: shape for name, shape in wanted.items() if name.removeprefix(prefix) in kinds or ".nextn." in name}
    lean = {name: shape for name, shape in usual.items() if "embed_tokens" not in name and "head_head" not in name}
    for own in (lean, usual, wanted):
        answer = llama.load(arch, keys, tensors | own)
        if answer["ok"]:
            return {
                "architecture": arch,
                "metadata": keys,
                "tensors": _ordered(tensors | own),
                "kinds": answer["kinds"],
                "runs": answer["runs"],
            }
    print(f"{arch}: no model that predicts further tokens: {answer['words'][-200:]}")
    return None


def made_all(llama: Llama, chosen: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, entry) for each model of the chosen architectures."""
    for arch in chosen:
        for experts in (False, True) if arch in BOTH else (arch in EXPERTS,):
            model = made(llama, arch, experts)
            if isinstance(model, str):
                print(f"{arch}: no model: {' '.join(model.split())[-200:]}", flush=True)
                continue
            name = f"{arch}-moe" if experts and arch in BOTH else arch
            yield name, model
            if (more := further(llama, model)) is not None:
                yield f"{name}-mtp", more


def compiled(sources: Path, libraries: Path, folder: Path) -> Path:
    """The program that asks llama.cpp."""
    program = folder / "architecture_models"
    includes = [f"-I{sources / part}" for part in ("include", "ggml/include", "src", "vendor")]
    linked = [f"-L{libraries}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}"]
    code = str(Path(__file__).with_name("architecture_models.cpp"))
    subprocess.run(["c++", "-std=c++17", "-O1", *includes, code, "-o", str(program), *linked], check=True)
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path)
    parser.add_argument("libraries", type=Path)
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--output", type=Path, default=MODELS)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    if arguments.architectures:
        found = json.loads(gzip.decompress(MODELS.read_bytes()))
    with tempfile.TemporaryDirectory() as name:
        libraries = arguments.libraries.resolve()
        llama = Llama(compiled(arguments.sources.resolve(), libraries, Path(name)), libraries, Path(name))
        for model, entry in made_all(llama, arguments.architectures or llama.architectures()):
            found[model] = entry
            runs = "" if entry["runs"] else ", does not run"
            print(f"{model}: {len(entry['metadata'])} keys, {len(entry['tensors'])} tensors{runs}", flush=True)
    text = json.dumps(dict(sorted(found.items())), separators=(",", ":"))
    arguments.output.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{len(found)} models, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
