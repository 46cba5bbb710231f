"""Settings of the tokenizer and of the architecture: compared with those of all models, and named where they differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufmerge
from ggufmerge.evaluation.llama import LlamaModel
from ggufmerge.files import MetadataEditor
from ggufmerge.places.inventory import described
from ggufmerge.planning.plan import Plan
from tests import differing
from tests.tiny import CHAT_TEMPLATE, write_tiny_llama

SHAPE: dict[str, Any] = {"layers": 1, "embed": 32, "ff": 32, "heads": 2, "kv_heads": 1}
ROLES = ["bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "cls"]
ROLES += ["fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"]
EVERY: dict[str, Any] = {
    **{f"tokenizer.ggml.{role}_token_id": number for number, role in enumerate(ROLES, 5)},
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.add_eos_token": True,
    "tokenizer.ggml.add_sep_token": True,
    "tokenizer.ggml.remove_extra_whitespaces": True,
    "tokenizer.ggml.token_type_count": 2,
    "tokenizer.ggml.precompiled_charsmap": [1, 2, 3],
    "tokenizer.ggml.suppress_tokens": [4, 5],
    "tokenizer.ggml.normalizer.lowercase": True,
    "tokenizer.chat_template": "{{ messages }}",
    "tokenizer.chat_template.tool_use": "{{ tools }}",
    "tokenizer.chat_templates": ["tool_use"],
    "tokenizer.huggingface.json": "{}",
    "tokenizer.rwkv.world": "unknown to most",
    "llama.rope.freq_base": 20000.0,
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 128,
    "llama.rope.scaling.attn_factor": 1.5,
    "llama.rope.scaling.finetuned": True,
    "llama.rope.scaling.yarn_log_multiplier": 0.2,
    "llama.attention.sliding_window": 64,
    "llama.attention.sliding_window_pattern": [True, False, False],
    "llama.logit_scale": 0.5,
    "llama.expert_weights_scale": 2.0,
    "llama.unheard_of": 3,
    "xielu.alpha_n": [0.5],
}
BPE = {"tokenizer": "bpe", **SHAPE}
YARN: dict[str, Any] = {
    "llama.rope.freq_base": 500000.0,
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 128,
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes NAME.gguf, a tune of one base, with these metadata."""

    def model(name: str, metadata: Mapping[str, Any] | None = None, **shape: Any) -> Path:
        tune = None if name == "base" else (sum(name.encode()), 0.05)
        write_tiny_llama(tmp_path / f"{name}.gguf", tune=tune, metadata=metadata or {}, **{**BPE, **shape})
        return tmp_path / f"{name}.gguf"

    return model


def planned(folder: Path, *names: str, base: str = "", more: str = "") -> Plan:
    """The plan of a merge of models with equal weights, onto a base if there is one."""
    (folder / "r.yaml").write_text(recipe(*names, base=base, more=more), encoding="utf-8")
    return ggufmerge.plan(folder / "r.yaml")


def recipe(*names: str, base: str = "", more: str = "", weight: float = 1) -> str:
    models = ", ".join(f"{{model: {name}.gguf, parameters: {{weight: {weight}}}}}" for name in names)
    method = f"task_arithmetic, base_model: {base}.gguf" if base else "linear"
    return f"{{merge_method: {method}, models: [{models}]{', ' + more if more else ''}}}\n"


def told(plan: Plan) -> list[str]:
    """The warnings about settings."""
    return [line for line in plan.warnings if " lacks " in line or " differ" in line]


def built(folder: Path, *names: str, base: str = "", more: str = "") -> Mapping[str, Any]:
    """The metadata of the result."""
    (folder / "r.yaml").write_text(recipe(*names, base=base, more=more), encoding="utf-8")
    ggufmerge.build(folder / "r.yaml", folder / "out.gguf", overwrite=True)
    return ggufmerge.open(folder / "out.gguf").metadata


@pytest.mark.parametrize(("tokenizer", "way"), [("spm", "base"), ("bpe", "models"), ("bpe", "vocabulary")])
def test_every_setting_that_one_model_has_otherwise_or_lacks_is_named(tmp_path: Path, tokenizer: str, way: str) -> None:
    """On either side, but for two that llama.cpp computes from others when they are missing; tokens that are aligned
    are what was asked for.
    """
    paths = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    flags = {"add_space_prefix": tokenizer == "bpe", "add_bos_token": tokenizer == "bpe"}  # unlike the defaults
    metadata = EVERY | {f"tokenizer.ggml.{flag}": value for flag, value in flags.items()}
    for number, path in enumerate(paths):
        tune = (number, 0.02)
        write_tiny_llama(path, **{**SHAPE, "layers": 2}, tokenizer=tokenizer, metadata=metadata, tune=tune)
    assert not [w for w in differing.said(differing.RECIPES[way], *paths) if "differ" in w or "lacks" in w]
    computed = {"llama.rope.dimension_count removed", "llama.vocab_size removed"}
    asked = {"tokenizer.ggml.tokens changed"} if way == "vocabulary" else set()
    unnamed = differing.unnamed(paths[0], paths[1], tmp_path, differing.RECIPES[way])
    assert {line.rpartition(" in ")[0] for line in unnamed} == computed | asked


def test_models_that_differ_alike_share_a_line(tmp_path: Path, write: Write) -> None:
    """With both values, whose is taken, and what to write for the others'."""
    write("base", {"tokenizer.ggml.eos_token_id": 0})
    for name in ("a", "b"):
        write(name, {"llama.context_length": 2048})
    write("c", {"tokenizer.ggml.eos_token_id": 0, "llama.attention.scale": 0.5})
    assert told(planned(tmp_path, "a", "b", "c", base="base")) == [
        "a.gguf and b.gguf differ from base.gguf in tokenizer.ggml.eos_token_id (2 '<|im_end|>', taken 0 "
        "'<|endoftext|>') and llama.context_length (2048, taken 512); to take theirs write metadata: "
        "{tokenizer.ggml.eos_token_id: 2, llama.context_length: 2048}",
        "c.gguf differs from base.gguf in llama.attention.scale (0.5, taken none); to take its own write metadata: "
        "{llama.attention.scale: 0.5}",
    ]


def test_what_the_recipe_sets_is_no_difference(tmp_path: Path, write: Write) -> None:
    """The remedies that the warnings name silence them, and give what they promise."""
    write("base", {"tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": "{{ other }}"})
    for name in ("a", "b"):
        write(name, {"llama.context_length": 2048})
    [line] = told(planned(tmp_path, "a", "b", base="base"))
    assert "chat_template: auto and metadata: {tokenizer.ggml.eos_token_id: 2, llama.context_length: 2048}" in line
    more = "chat_template: auto, metadata: {tokenizer.ggml.eos_token_id: 2, llama.context_length: 2048}"
    assert told(planned(tmp_path, "a", "b", base="base", more=more)) == []
    out = built(tmp_path, "a", "b", base="base", more=more)
    found = [out[k] for k in ("tokenizer.chat_template", "tokenizer.ggml.eos_token_id", "llama.context_length")]
    assert found == [CHAT_TEMPLATE, 2, 2048]


@pytest.mark.parametrize("base", ["old", ""])
def test_an_old_file_gets_the_pre_tokenizer_and_the_template_of_its_tunes(
    tmp_path: Path, write: Write, base: str
) -> None:
    """With the token that ends a turn; another end token is only told. So with a base as with models alone."""
    chat = {"tokenizer.ggml.eot_token_id": 2, "tokenizer.ggml.fim_pre_token_id": 5}
    old = {"tokenizer.ggml.pre": None, "tokenizer.chat_template": None, "tokenizer.ggml.eos_token_id": 0}
    write("old", old)
    write("a", chat)
    write("b", chat)
    names = ("a", "b") if base else ("old", "a", "b")
    plan = planned(tmp_path, *names, base=base)
    assert told(plan) == [
        "old.gguf lacks tokenizer.ggml.pre ('gpt-2'), tokenizer.chat_template ('{% for m in messages %}<...'), "
        "tokenizer.ggml.eot_token_id (2 '<|im_end|>') and tokenizer.ggml.fim_pre_token_id (5 'Ă'): taken from a.gguf "
        "and b.gguf, which agree",
        "a.gguf and b.gguf differ from old.gguf in tokenizer.ggml.eos_token_id (2 '<|im_end|>', taken 0 "
        "'<|endoftext|>'); to take theirs write metadata: {tokenizer.ggml.eos_token_id: 2}",
    ]
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    out = built(tmp_path, *names, base=base)
    with ggufmerge.open(tmp_path / "a.gguf") as tune:
        for key in ("tokenizer.ggml.pre", "tokenizer.chat_template", *chat):
            assert out[key] == tune.metadata[key]
            assert out.raw(key) == tune.metadata.raw(key)  # type: ignore[attr-defined]
    assert out["tokenizer.ggml.eos_token_id"] == 0


def test_nothing_is_taken_where_the_others_disagree(tmp_path: Path, write: Write) -> None:
    """Nor a turn's end that belongs to another template than the result has."""
    write("base", {"tokenizer.ggml.pre": None, "tokenizer.chat_template": None})
    write("a", {"tokenizer.ggml.eot_token_id": 2})
    write("b", {"tokenizer.ggml.pre": "qwen2", "tokenizer.chat_template": "{{ own }}"})
    plan = planned(tmp_path, "a", "b", base="base")
    assert plan.taken == {}
    assert [line.split(" in ")[0] for line in told(plan)] == [f"{name}.gguf differs from base.gguf" for name in "ab"]
    own = planned(tmp_path, "a", base="base", more='chat_template: "{{ mine }}"')
    assert own.taken == {"tokenizer.ggml.pre": 1}


def logits(model: Path) -> np.ndarray:
    with LlamaModel(model, context=64, threads=1) as opened:
        return opened.logits(list(range(3, 40)))


def test_a_base_that_says_nothing_of_its_rotation_gets_that_of_the_tune(tmp_path: Path, write: Write) -> None:
    """So at weight 1 the result is the tune, in llama.cpp."""
    write("base", {"llama.rope.freq_base": None})
    write("a", YARN)
    plan = planned(tmp_path, "a", base="base")
    [line] = told(plan)
    assert line.startswith("base.gguf lacks llama.rope.freq_base (500000), llama.rope.scaling.type ('yarn'), ")
    assert plan.taken == dict.fromkeys(YARN, 1)
    ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    wanted = logits(tmp_path / "a.gguf")
    np.testing.assert_allclose(logits(tmp_path / "out.gguf"), wanted, atol=1e-4)
    assert (
        np.abs(logits(differing.copied(tmp_path / "a.gguf", tmp_path / "silent.gguf", silenced)) - wanted).max() > 0.01
    )


def silenced(metadata: MetadataEditor) -> None:
    for key in YARN:
        metadata.remove(key)


def test_a_rotation_is_taken_as_a_whole_or_not_at_all(tmp_path: Path, write: Write) -> None:
    """A base that states another one keeps it; half of each would be nobody's."""
    write("base", {"llama.rope.freq_base": 20000.0})
    write("a", YARN)
    plan = planned(tmp_path, "a", base="base")
    [line] = told(plan)
    assert "llama.rope.freq_base (500000, taken 20000), llama.rope.scaling.type ('yarn', taken 'linear' by " in line
    assert plan.taken == {}


def test_a_window_of_attention_is_taken_too(tmp_path: Path, write: Write) -> None:
    """It belongs to weights that were trained so. Other numbers of the architecture are left to the user."""
    write("base")
    write("a", {"llama.attention.sliding_window": 64, "llama.logit_scale": 0.5})
    assert planned(tmp_path, "a", base="base").taken == {"llama.attention.sliding_window": 1}


@pytest.mark.parametrize(("pre", "flag"), [("llama-bpe", True), ("gpt-2", False), (None, None)])
def test_whether_a_text_begins_with_a_token_depends_on_the_pre_tokenizer(
    tmp_path: Path, write: Write, pre: str | None, flag: bool | None
) -> None:
    """llama.cpp decides by it where the key is missing. Where both are missing, both are taken."""
    key = "tokenizer.ggml.add_bos_token"
    write("a", {"tokenizer.ggml.pre": pre, key: None})
    for value in (True, False):
        write("b", {"tokenizer.ggml.pre": pre or "llama-bpe", key: value})
        taken = planned(tmp_path, "a", "b").taken
        assert (key in taken) == (flag is not value)


def table(*values: float) -> dict[str, Any]:
    return {"extra": {"rope_freqs.weight": np.array(values, np.float32)}}


def test_tables_of_the_rotation_come_with_its_settings(tmp_path: Path, write: Write) -> None:
    """From the models that have one and agree, unless the base states another rotation."""
    ones = table(*[2.0] * 8)
    write("base", {"llama.rope.freq_base": None})
    write("plain", {"llama.rope.freq_base": 20000.0})
    write("a", YARN, **ones)
    write("b", YARN, **ones)
    plan = planned(tmp_path, "a", "b", base="base")
    [tensor] = [t for t in plan.tensors if t.name == "rope_freqs.weight"]
    assert (tensor.action, tensor.inputs[0].source) == ("copy", 1)
    assert tensor.decisions == ("computed, not trained: taken from a.gguf",)
    [line] = told(plan)
    assert "rope_freqs.weight (a table): taken from a.gguf and b.gguf, which agree" in line
    kept = planned(tmp_path, "a", base="plain")
    assert not [t for t in kept.tensors if t.name == "rope_freqs.weight"]
    assert "rope_freqs.weight (a table, taken none)" in " ".join(told(kept))


def test_tables_that_differ_are_told(tmp_path: Path, write: Write) -> None:
    """Those of the base are taken; so where a tune lacks one."""
    write("base", **table(*[1.0] * 8))
    write("a", **table(*[2.0] * 8))
    write("b")
    plan = planned(tmp_path, "a", "b", base="base")
    assert [line.partition(";")[0] for line in told(plan)] == [
        "a.gguf differs from base.gguf in rope_freqs.weight (a table of its own, taken that of the other)",
        "b.gguf differs from base.gguf in rope_freqs.weight (none, taken a table)",
    ]
    without = planned(tmp_path, "a", "base", base="b")
    assert not [t for t in without.tensors if t.name == "rope_freqs.weight"]
    [line] = told(without)
    assert line.startswith("a.gguf and base.gguf differ from b.gguf in rope_freqs.weight (a table, taken none)")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"llama.rope.freq_base": 10000.0}, {"llama.rope.freq_base": None}),
        ({"llama.rope.freq_base": 500000.0}, {"llama.rope.freq_base": 500000}),
        ({"llama.rope.scaling.type": "none"}, {}),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0}, {"llama.rope.scaling.type": "none"}),
        ({"llama.rope.scale_linear": 4.0}, {"llama.rope.scaling.factor": 4.0}),
        ({"llama.rope.dimension_count": None}, {}),
        ({"llama.attention.key_length": 16}, {}),
        ({"llama.vocab_size": None}, {}),
        ({"llama.expert_count": 0}, {}),
        ({"llama.attention.head_count_kv": [1]}, {"llama.attention.head_count_kv": 1}),
        ({"llama.feed_forward_length": [32]}, {}),
        ({"tokenizer.ggml.add_space_prefix": False}, {}),
        ({"tokenizer.ggml.add_bos_token": None}, {}),
        ({"tokenizer.ggml.add_sep_token": False}, {}),
        ({"general.author": "somebody"}, {"general.version": "2"}),
    ],
)
def test_no_difference(tmp_path: Path, write: Write, one: dict[str, Any], other: dict[str, Any]) -> None:
    """What llama.cpp takes to be the same, whichever model comes first: its defaults, and equal numbers of other types;
    a value for all layers and a list of it; names and authors.
    """
    write("a", one)
    write("b", other)
    for names in (("a", "b"), ("b", "a")):
        plan = planned(tmp_path, *names)
        assert (told(plan), plan.taken) == ([], {})


def test_a_factor_that_the_type_switches_off_is_a_difference(tmp_path: Path, write: Write) -> None:
    """`none` and no type at all are the same only where nothing is stretched."""
    write("a", {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0})
    write("b", {"llama.rope.scaling.factor": 4.0})
    [line] = told(planned(tmp_path, "a", "b"))
    assert "llama.rope.scaling.type ('linear' by default, taken 'none')" in line


def test_aligned_vocabularies_are_compared_by_their_tokens(tmp_path: Path, write: Write) -> None:
    """An id means another token elsewhere; types and merges of tokens that only one model has are no difference."""
    write("base", vocab=420, metadata={"tokenizer.ggml.eos_token_id": 1})
    write("a", vocab=421, added={"<end>": 3}, metadata={"tokenizer.ggml.eos_token_id": 1})
    union = "tokenizer_source: union"
    assert told(planned(tmp_path, "a", base="base", more=union)) == []
    with ggufmerge.open(tmp_path / "a.gguf") as file:
        end = list(file.metadata["tokenizer.ggml.tokens"]).index("<end>")
    write("a", vocab=421, added={"<end>": 3}, metadata={"tokenizer.ggml.eos_token_id": end})
    [line] = told(planned(tmp_path, "a", base="base", more=union))
    assert f"tokenizer.ggml.eos_token_id ({end} '<end>', taken 1 '<|im_start|>')" in line
    number = line.rpartition("eos_token_id: ")[2].rstrip("}")
    out = built(tmp_path, "a", base="base", more=f"{union}, metadata: {{tokenizer.ggml.eos_token_id: {number}}}")
    assert out["tokenizer.ggml.tokens"][out["tokenizer.ggml.eos_token_id"]] == "<end>"


def test_the_end_of_a_turn_has_its_id_in_the_vocabulary_of_the_result(tmp_path: Path, write: Write) -> None:
    """A base without a template gets that of a tune with tokens of its own."""
    write("base", vocab=420, metadata={"tokenizer.chat_template": None})
    write("a", vocab=430, added={"<end>": 3}, metadata={})
    with ggufmerge.open(tmp_path / "a.gguf") as file:
        end = list(file.metadata["tokenizer.ggml.tokens"]).index("<end>")
    write("a", vocab=430, added={"<end>": 3}, metadata={"tokenizer.ggml.eot_token_id": end})
    out = built(tmp_path, "a", base="base", more="tokenizer_source: union")
    assert out["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert out["tokenizer.ggml.tokens"][out["tokenizer.ggml.eot_token_id"]] == "<end>"


def test_the_tokenizer_is_compared_with_that_of_its_owner(tmp_path: Path, write: Write) -> None:
    """Which is not the first model where the recipe names another; the rest is compared with the first."""
    write("a")
    write("b", {"tokenizer.ggml.pre": "qwen2", "llama.context_length": 1024})
    lines = told(planned(tmp_path, "a", "b", more="tokenizer_source: b.gguf"))
    assert [line.partition(";")[0] for line in lines] == [
        "a.gguf differs from b.gguf in tokenizer.ggml.pre ('gpt-2', taken 'qwen2': texts are cut otherwise)",
        "b.gguf differs from a.gguf in llama.context_length (1024, taken 512)",
    ]


def test_a_model_without_a_pre_tokenizer_is_of_the_family_that_it_is_merged_with(tmp_path: Path, write: Write) -> None:
    """`models` and `build` agree: the vocabulary is the same, and the missing key is taken."""
    old, new = write("base", {"tokenizer.ggml.pre": None}), write("a")
    assert described("old", old).family == described("new", new).family
    assert planned(tmp_path, "a", base="base").taken == {"tokenizer.ggml.pre": 1}


def test_no_line_is_so_long_that_messages_cut_it(tmp_path: Path, write: Write) -> None:
    """However many keys differ: all of them are named."""
    many = {f"llama.of_the_future.number_{i}": i for i in range(100)}
    write("base")
    write("a", many)
    lines = told(planned(tmp_path, "a", base="base"))
    assert max(map(len, lines)) < 2000
    assert all(any(key in line for line in lines) for key in many)


def test_a_table_stays_away_where_its_settings_do(tmp_path: Path, write: Write) -> None:
    """Tunes that disagree about the rotation leave that of the base, which a table would stretch all the same."""
    write("base", {"llama.rope.freq_base": None})
    write("a", YARN, **table(*[2.0] * 8))
    write("b", {"llama.rope.freq_base": 20000.0})
    plan = planned(tmp_path, "a", "b", base="base")
    assert plan.taken == {}
    assert not [t for t in plan.tensors if t.name == "rope_freqs.weight"]
    assert "rope_freqs.weight (a table, taken none)" in " ".join(told(plan))


def test_a_template_is_not_taken_without_its_tokens(tmp_path: Path, write: Write) -> None:
    """With the vocabulary of a base that lacks them they would be cut into pieces; with the union it is taken."""
    own = {"tokenizer.chat_template": "<end>{{ messages }}"}
    write("base", {"tokenizer.chat_template": None}, vocab=420)
    write("a", own, vocab=430, added={"<end>": 3})
    base = planned(tmp_path, "a", base="base", more="tokenizer_source: base")
    assert "tokenizer.chat_template" not in base.taken
    assert "tokenizer.chat_template ('<end>{{ messages }}', taken none)" in " ".join(told(base))
    union = planned(tmp_path, "a", base="base", more="tokenizer_source: union")
    assert union.taken == {"tokenizer.chat_template": 1}


def test_small_numbers_can_be_written_as_the_warning_says(tmp_path: Path, write: Write) -> None:
    """An epsilon in the spelling that YAML takes for a text."""
    key = "llama.attention.layer_norm_rms_epsilon"
    write("base")
    write("a", {key: 1e-6})
    [line] = told(planned(tmp_path, "a", base="base"))
    remedy = line.rpartition("write ")[2]
    assert remedy == f"metadata: {{{key}: 1e-06}}"
    assert built(tmp_path, "a", base="base", more=remedy)[key] == np.float32(1e-6)
