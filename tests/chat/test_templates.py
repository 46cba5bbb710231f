"""Chat templates by name: what they say, in Jinja and in llama.cpp."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

import ggufmerge
from ggufmerge.chat.templates import TEMPLATES, most_common
from ggufmerge.engine import make_plan
from ggufmerge.evaluation import LlamaModel
from ggufmerge.recipe import load_recipe
from tests.tiny import write_tiny_llama

CHAT = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Why?")]
EXPECTED = {
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!"
    "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be kind.\n\nHi [/INST] Hello!</s> [INST] Why? [/INST]",
    "alpaca": "<s>Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello!</s>\n\n### Instruction:\nWhy?\n\n"
    "### Response:\n",
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello![|endofturn|]\n"
    "[|user|]Why?\n[|assistant|]",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_writes_its_format(name: str) -> None:
    """Run as transformers and llama.cpp's server run it."""
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATES[name])
    messages = [{"role": role, "content": content} for role, content in CHAT]
    text = template.render(messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
    assert text == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"alpaca"}))
def test_llama_cpp_recognizes_a_template(tmp_path: Path, name: str) -> None:
    """Its own code for the format, which runs no Jinja, writes the same text (it adds BOS while tokenizing)."""
    write_tiny_llama(tmp_path / "m.gguf", layers=1, tokenizer="bpe")
    recipe = f"{{merge_method: passthrough, models: [{{model: m.gguf}}], chat_template: {name}}}\n"
    (tmp_path / "r.yaml").write_text(recipe)
    ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    with LlamaModel(tmp_path / "out.gguf", threads=1) as model:
        assert model.format_chat(CHAT) == EXPECTED[name].removeprefix("<s>")


@pytest.mark.parametrize(
    ("templates", "winner"),
    [(["x", "y"], 0), (["x", "y", "y"], 1), ([None, "y", "x", "x"], 2), ([None, "x", "y"], 1), ([None, None], None)],
)
def test_auto_is_the_most_common_template(templates: list[str | None], winner: int | None) -> None:
    """Ties go to the model that stands first, the base if there is one."""
    assert most_common(templates) == winner


def test_a_template_of_the_recipe_replaces_all_of_the_model(tmp_path: Path) -> None:
    """Named variants, which belong to the old one, go; with auto and no template at all, a warning says so."""
    old = {"tokenizer.chat_template": "old {{x}}", "tokenizer.chat_template.tool_use": "tool"}
    write_tiny_llama(tmp_path / "a.gguf", layers=1, metadata=old)
    write_tiny_llama(tmp_path / "b.gguf", layers=1)
    text = "{merge_method: passthrough, models: [{model: MODEL}], chat_template: SETTING}\n"

    def changes(model: str, setting: str) -> tuple[object, list[str]]:
        (tmp_path / "r.yaml").write_text(text.replace("MODEL", model).replace("SETTING", setting))
        plan, _ = make_plan(load_recipe(tmp_path / "r.yaml"))
        chat = {k: v for k, v in plan.metadata.items() if k.startswith("tokenizer.chat")}
        return chat, [w for w in plan.warnings if "chat" in w]

    replaced = {"tokenizer.chat_template": "own {{y}}", "tokenizer.chat_template.tool_use": None}
    assert changes("a.gguf", '"own {{y}}"') == (replaced, [])
    assert changes("a.gguf", "auto") == ({}, [])
    assert changes("b.gguf", "auto") == (
        {},
        ["chat_template: auto, but no model has a chat template: the result has none"],
    )
