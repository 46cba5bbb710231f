"""Formats that are learned from Jinja templates, and the same in Ollama's language: one prompt on all ways."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufmerge.chat import jinja
from ggufmerge.chat.corpus import CORPUS
from ggufmerge.chat.formats import ChatFormat, learn
from ggufmerge.chat.go_template import go_template
from ggufmerge.chat.jinja import Conversation, Message, render
from ggufmerge.chat.of_file import adds_bos, chat_format, stops
from ggufmerge.evaluation.libllama import library
from ggufmerge.evaluation.llama import LlamaModel
from ggufmerge.files import open_gguf
from tests.chat.go_template import execute
from tests.chat.jinjas import JINJAS, write_model
from tests.tiny import write_tiny_llama

WORDS: dict[str, str | bool] = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": True}
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
NO_SYSTEM = ("gemma without system", "phi 3")


def learned(template: str, bos: str = "<s>") -> ChatFormat | None:
    return learn(lambda conversations: render(template, conversations, WORDS), bos)


def known(name: str) -> ChatFormat:
    found = learned(JINJAS[name])
    assert found is not None
    return found


@pytest.mark.parametrize("name", JINJAS)
def test_a_format_writes_what_its_template_writes(name: str) -> None:
    """Run by another Jinja than the one it was learned with, on 20 conversations; BOS is the tokenizer's."""
    form = known(name)
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(JINJAS[name])
    template.globals["raise_exception"] = pytest.fail
    for messages in CORPUS:
        seen = _folded(messages) if name in NO_SYSTEM else messages
        said = [m._asdict() for m in seen]
        text = template.render(messages=said, add_generation_prompt=True, **WORDS)
        assert form.write(messages) == text.removeprefix("<s>")


def _folded(messages: Sequence[Message]) -> Sequence[Message]:
    """What llama.cpp gives a template that knows no system messages."""
    if messages[0].role != "system":
        return messages
    return [Message("user", f"{messages[0].content}\n{messages[1].content}"), *messages[2:]]


@pytest.mark.parametrize("name", JINJAS)
def test_the_template_for_ollama_writes_the_same(name: str) -> None:
    """The one that a real Ollama rendered, with the texts that it gave."""
    form = known(name)
    template = go_template(form)
    assert template == GOLDEN[name]["template"]
    for messages, digest in zip(CORPUS, GOLDEN[name]["texts"], strict=True):
        text = execute(template, messages)
        assert text == form.write(messages)
        assert hashlib.sha256(text.encode()).hexdigest() == digest


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.sampled_from(sorted(JINJAS)), st.lists(texts, min_size=1, max_size=6), st.one_of(st.none(), texts))
def test_any_conversation_is_written_alike(name: str, said: list[str], system: str | None) -> None:
    """Also one that ends in an answer that is begun, which stays open."""
    form = known(name)
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(said)]
    if system is not None:
        messages.insert(0, Message("system", system))
    assert execute(go_template(form), messages) == form.write(messages)


def test_an_answer_that_is_begun_stays_open() -> None:
    """So that the model goes on with it."""
    chat = [Message("user", "Hi"), Message("assistant", "Well,")]
    assert known("chatml").write(chat).endswith("<|im_start|>assistant\nWell,")


def test_a_system_message_goes_where_the_template_puts_it() -> None:
    """In a turn of its own, in front of the first question, or into the last one."""
    chat = [Message("system", "S"), Message("user", "1"), Message("assistant", "2"), Message("user", "3")]
    assert known("llama 2").write(chat) == "[INST] <<SYS>>\nS\n<</SYS>>\n\n1 [/INST] 2 </s><s>[INST] 3 [/INST]"
    assert known("mistral, system last").write(chat) == "[INST] 1[/INST] 2</s>[INST] S\n\n3[/INST]"
    assert known("phi 3").write(chat).startswith("<|user|>\nS\n1<|end|>\n<|assistant|>\n2<|end|>\n")


@pytest.mark.parametrize("name", JINJAS)
def test_llama_cpp_writes_the_same(name: str, tmp_path: Path) -> None:
    """Its server, running the Jinja of the file, on the same conversations: the prompt on every other way."""
    path = tmp_path / "m.gguf"
    form = write_model(path, name)
    answers = _llama_server(path, CORPUS)
    if name == "llama 3.1":  # today's date
        answers = [text and _without_date(text) for text in answers]
    assert answers == [_without_date(form.write(m)) if name == "llama 3.1" else form.write(m) for m in CORPUS]


def _without_date(text: str) -> str:
    before, found, after = text.partition("Today Date: ")
    return before + found + after[len("26 Jul 2024") :]


def _llama_server(path: Path, conversations: Sequence[Sequence[Message]]) -> list[str]:
    import xllamacpp

    params: Any = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers = str(path), 512, 0
    params.use_jinja, params.warmup = True, False
    server = xllamacpp.Server(params)

    def prompt(messages: Sequence[Message]) -> str:
        body = json.dumps({"messages": [m._asdict() for m in messages]}).encode()
        where = f"{server.listening_address}/apply-template"
        request = urllib.request.Request(where, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return str(json.load(response)["prompt"])

    return [prompt(messages) for messages in conversations]


UNSAYABLE = {
    "backwards": "{% for m in messages | reverse %}{{ m.role + m.content }}{% endfor %}",
    "numbers its messages": "{% for m in messages %}{{ loop.index ~ m.role + m.content }}{% endfor %}",
    "capitals": "{% for m in messages %}{{ m.role + (m.content | upper) }};{% endfor %}",
    "only the last": "{{ messages[-1].content }}",
    "a window": "{% for m in messages[-20:] %}{{ m.role + m.content }};{% endfor %}",
    "cuts off": "{% for m in messages %}{{ m.role + m.content[:9999] }};{% endfor %}",
    "hundredth": "{% for m in messages %}{{ m.role + m.content + '!' * (loop.index // 100) }};{% endfor %}",
    "today": "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.role + m.content }};{% endfor %}",
    "changes quotes": "{% for m in messages %}{{ m.role + (m.content | e) }};{% endfor %}",
    "no Jinja": "{% for m in %}",
    "refuses all": "{{ raise_exception('no') }}",
    "says nothing": "hello",
}


@pytest.mark.parametrize("name", UNSAYABLE)
def test_a_template_that_does_more_is_found_out(name: str) -> None:
    """Then there is no format, rather than one that is nearly right."""
    assert learned(UNSAYABLE[name]) is None


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set x = namespace(t='x' * 99999) %}{% for a in range(64) %}{% set x.t = x.t ~ x.t %}{% endfor %}{{ x.t }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}",
        "{{ 'x' * 300000 }}{{ messages[0].content }}",
        "{% for m in messages %}{{ m.content }}{% endfor %}{# " + "x" * (1 << 20) + " #}",
    ],
    ids=["loops", "memory", "escape", "long", "huge"],
)
def test_a_hostile_template_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a second of a processor and a gigabyte, in a process of its own."""
    monkeypatch.setattr(jinja, "_SECONDS", 1)
    assert learned(template) is None


def test_a_text_that_is_too_long_is_not_passed_on() -> None:
    """Many of them would fill the memory of the process that asks."""
    asked = (Conversation((Message("user", "x"),)), Conversation((Message("user", "short"),)))
    assert render("{{ 'y' * (300000 // messages[0].content | length ** 2) }}", asked, WORDS) == [None, "y" * 12000]


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_an_interpreter_there_is_no_format(nothing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program with Python inside may have none that could run the template."""
    monkeypatch.setattr(jinja.sys, "executable", nothing)
    assert learned("{% for m in messages %}{{ m.role + m.content }};{% endfor %}") is None


@pytest.mark.parametrize("end", ["\udcff", "{{ eos_token }}"])
def test_bytes_that_are_no_text_make_no_format(end: str) -> None:
    """They can stand neither in a template of Ollama's nor in a stop string, wherever they come from."""
    metadata = _metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": ["a", "<\udcff>"],
            "tokenizer.ggml.token_type": [1, 3],
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.chat_template": "{% for m in messages %}{{ m.role + m.content }}" + end + "{% endfor %}<\udcff>",
        }
    )
    assert chat_format(metadata) is None
    assert stops(metadata, None) == []


def _metadata(changes: dict[str, Any]) -> Any:
    from ggufmerge.files import MetadataEditor

    editor = MetadataEditor()
    for key, value in changes.items():
        editor.set(key, value)
    return editor


VOCABULARY = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "<|im_end|>", "<eos>", "</s>", "User:"],
    "tokenizer.ggml.token_type": [1, 4, 3, 3, 1],
    "tokenizer.ggml.eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("chatml", ["<|im_end|>"]),  # though the file names another end
        ("llama3", ["<|eot_id|>"]),  # which this vocabulary does not have
        ("vicuna", ["<eos>"]),
        ("alpaca", ["<eos>"]),
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", ["user:"]),
        ("<eos>{{ messages[-1].content }}", ["<eos>"]),
    ],
)
def test_an_answer_stops_where_a_turn_ends(template: str, expected: list[str]) -> None:
    """At the token that the format ends a turn with, whatever the file calls its end, or at the next question."""
    metadata = _metadata({**VOCABULARY, "tokenizer.chat_template": JINJAS.get(template, template)})
    assert stops(metadata, chat_format(metadata)) == expected


@pytest.mark.parametrize("told", [True, False, None])
@pytest.mark.parametrize("pre", ["llama-bpe", "smollm", "tekken", "qwen2", "default", "gemma4"])
def test_a_beginning_is_added_where_llama_cpp_adds_it(pre: str, told: bool | None, tmp_path: Path) -> None:
    """As its vocabulary says after loading."""
    path = tmp_path / "m.gguf"
    changes: dict[str, Any] = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": told}
    write_tiny_llama(path, layers=1, embed=32, ff=32, tokenizer="bpe", metadata=changes)
    with open_gguf(path) as file, LlamaModel(path, threads=1) as model:
        assert adds_bos(file.metadata) == library().llama_vocab_get_add_bos(model._opened_vocabulary())


def test_bos_stands_in_the_format_where_no_tokenizer_adds_it() -> None:
    """Then the template has to."""
    form = learned(JINJAS["llama3"], bos="")
    assert form is not None
    assert form.write([Message("user", "x")]).startswith("<s><|start_header_id|>")
    assert execute(go_template(form), [Message("user", "x")]).startswith("<s><|start_header_id|>")


def test_a_conversation_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is not started again for the same template."""
    asked = (Conversation((Message("user", "once"),)),)
    assert render(JINJAS["chatml"], asked, WORDS) is not None
    run: Callable[..., Any] = pytest.fail
    monkeypatch.setattr(jinja.subprocess, "run", run)
    assert render(JINJAS["chatml"], asked, WORDS) is not None
