"""Modelfiles: what Ollama's parser reads back from them is what was meant."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufmerge.chat.jinja import Message
from ggufmerge.errors import PlanError
from ggufmerge.files import MetadataEditor
from ggufmerge.places.ollama.modelfile import (
    check_modelfile,
    comment,
    modelfile_path,
    modelfile_text,
    quoted,
    write_modelfile,
)
from ggufmerge.places.ollama.settings import check_content
from ggufmerge.places.ollama.store import OllamaSettings
from ggufmerge.types import TensorType
from tests.chat.go_template import execute
from tests.places.modelfiles import read_modelfile
from tests.tiny import write_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "my model.gguf"
    write_tiny_llama(path, layers=1, tokenizer="bpe", metadata={"general.license": "apache-2.0"})
    return path


@settings(deadline=None, max_examples=500)
@given(st.text(st.sampled_from('a"#\n\r\t é{}\\<|>▁\u00a0\x1b\u200b'), max_size=12))
def test_what_is_written_reads_back(value: str) -> None:
    """Newlines and quotes in any combination: Ollama reads the value that was meant, or none is written."""
    text = quoted(value)
    if text is not None:
        assert read_modelfile(f"FROM ./m\nSYSTEM {text}\nPARAMETER top_k 3\n") == [
            ("model", "./m"),
            ("system", value),
            ("top_k", "3"),
        ]


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "two\nlines",
        'says "yes"',
        '"quoted"',
        '""',
        '"',
        '{{ if .System }}"{{ .System }}"\n{{ end }}{{ .Prompt }}',
        'ends a line with "\nand goes on',
        "  blanks around  ",
        "\n",
        "# no comment",
        "<｜begin▁of▁sentence｜>",
        "C:\\models\\a",
        'three """ in the middle of a line',
    ],
)
def test_texts_that_can_be_written(value: str) -> None:
    """Everything that templates and prompts have in them."""
    text = quoted(value)
    assert text is not None
    assert read_modelfile(f"FROM m\nTEMPLATE {text}\n")[1] == ("template", value)


@pytest.mark.parametrize("value", ["escape \x1b", "no-break\u00a0space", 'a line with "\nand one with """\nand an end'])
def test_texts_that_cannot_be_written(value: str) -> None:
    """Letters that Ollama drops, and quotes that no quotes can hold: a comment says what is left out."""
    assert quoted(value) is None
    text = modelfile_text(["m.gguf"], OllamaSettings(template=value, system="fine"))
    assert read_modelfile(text) == [("model", "./m.gguf"), ("system", "fine")]
    assert "# TEMPLATE is left out" in text


def test_everything_a_parent_has(model: Path) -> None:
    """Template, parameters (one line for each stop), system prompt, messages, licences, renderer, parser, version."""
    inherited = OllamaSettings(
        template='{{ .Prompt }}\n"x"',
        system='You are "M".\nBe brief.',
        parameters={"stop": ["</s>", 'a "b"\n'], "num_ctx": 8192, "temperature": 0.25, "use_mmap": False},
        licenses=("MIT\n\nCopyright\f\n", "Llama"),
        messages=({"role": "user", "content": "Hi\nthere"}, {"role": "assistant", "content": "Hello"}, {"role": "x"}),
        renderer="r",
        parser="p",
        requires="0.14.0",
    )
    path = write_modelfile(model, inherited, overwrite=True)
    assert read_modelfile(path.read_text("utf-8")) == [
        ("model", "./my model.gguf"),
        ("template", '{{ .Prompt }}\n"x"'),
        ("stop", "</s>"),
        ("stop", 'a "b"\n'),
        ("num_ctx", "8192"),
        ("temperature", "0.25"),
        ("use_mmap", "false"),
        ("renderer", "r"),
        ("parser", "p"),
        ("requires", "0.14.0"),
        ("system", 'You are "M".\nBe brief.'),
        ("message", "user: Hi\nthere"),
        ("message", "assistant: Hello"),
        ("license", "MIT\n\nCopyright \n"),
        ("license", "Llama"),
    ]


def test_what_the_file_itself_tells(model: Path) -> None:
    """Without parents in Ollama: its chat template in Ollama's language, the token that ends a turn, the licence. The
    context the model was trained for is a comment, since Ollama would reserve memory for all of it.
    """
    text = write_modelfile(model, overwrite=True).read_text("utf-8")
    (name, template), *others = [entry for entry in read_modelfile(text) if entry[0] != "model"]
    assert name == "template"
    assert execute(template, [Message("user", "Hi")]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert others == [("stop", "<|im_end|>"), ("license", "apache-2.0")]
    assert "# PARAMETER num_ctx 512 " in text


def test_no_stop_without_a_chat_template(tmp_path: Path) -> None:
    """A base model has no turns to end."""
    write_tiny_llama(tmp_path / "base.gguf", layers=1)
    assert read_modelfile(write_modelfile(tmp_path / "base.gguf").read_text()) == [("model", "./base.gguf")]


def test_names(tmp_path: Path) -> None:
    """Beside the output, one for each output of a folder, one for all shards of a model."""
    for name, wanted in (
        ("a.gguf", "a.Modelfile"),
        ("a.b.GGUF", "a.b.Modelfile"),
        ("model.v1", "model.v1.Modelfile"),
        ("a-00001-of-00003.gguf", "a.Modelfile"),
    ):
        assert modelfile_path(tmp_path / name) == tmp_path / wanted


def test_shards_are_all_named() -> None:
    """Ollama takes the shards of a model that follow each other as FROM lines."""
    text = modelfile_text([f"a-0000{i}-of-00002.gguf" for i in (1, 2)], OllamaSettings())
    assert read_modelfile(text) == [("model", "./a-00001-of-00002.gguf"), ("model", "./a-00002-of-00002.gguf")]


def test_somebody_elses_modelfile_stays(tmp_path: Path) -> None:
    """Unless it may be overwritten."""
    write_tiny_llama(tmp_path / "m.gguf", layers=1)
    mine = tmp_path / "m.Modelfile"
    mine.write_text("FROM precious")
    with pytest.raises(PlanError, match=r"m\.Modelfile: exists: use --overwrite to replace it, or --no-modelfile"):
        write_modelfile(tmp_path / "m.gguf")
    assert mine.read_text() == "FROM precious"
    write_modelfile(tmp_path / "m.gguf", overwrite=True)
    assert "./m.gguf" in mine.read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"m.gguf", "m.Modelfile"}


def test_a_file_that_ollama_refuses_is_marked(tmp_path: Path) -> None:
    """The Modelfile says why `ollama create` will fail."""
    write_tiny_llama(tmp_path / "m.gguf", layers=1, embed=256, ff=256, type="TQ1_0")
    assert "# Ollama will refuse it: " in write_modelfile(tmp_path / "m.gguf").read_text()


EVIL = "x\nFROM attacker/model\nSYSTEM owned\n#\r\u2028FROM b\x1b[2J"


@given(st.text(st.sampled_from('#a \n\r\x0b\x85\u2028\x1b\ud800"')))
def test_a_comment_is_a_line_that_says_nothing(text: str) -> None:
    """Whatever is in it: the only way that comments are written."""
    assert comment(text).isprintable()
    assert read_modelfile(f"{comment(text)}\nFROM ./m\n{comment(text)}\n") == [("model", "./m")]


def test_strangers_write_no_instructions(tmp_path: Path) -> None:
    """Names of tensors that Ollama refuses, names of files and parameters, values of all kinds."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor(EVIL, np.zeros(54, np.uint8), raw_dtype=gguf.GGMLQuantizationType.TQ1_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "Ollama will refuse it" in write_modelfile(tmp_path / "m.gguf").read_text()
    (tmp_path / "m.Modelfile").unlink()
    assert read_modelfile(write_modelfile(tmp_path / "m.gguf").read_text()) == [("model", "./m.gguf")]
    settings = OllamaSettings(
        template=EVIL,
        system=EVIL,
        parameters={EVIL: 1, f"top_k 1\nFROM {EVIL}": 2, "stop": [EVIL, "fine"]},
        messages=({"role": EVIL, "content": "x"}, {"role": "user", "content": EVIL}),
        renderer=EVIL,
        requires=EVIL,
    )
    text = modelfile_text(["m.gguf"], settings, [EVIL], 512)
    assert read_modelfile(text) == [("model", "./m.gguf"), ("stop", "fine")]
    assert all(line.startswith("# ") for line in text.splitlines() if "attacker" in line)


@pytest.mark.parametrize("name", ["\udcff.gguf", "\x1b[2J.gguf", "\u2028FROM b.gguf"])
def test_a_name_that_a_modelfile_cannot_hold(tmp_path: Path, name: str) -> None:
    """Is left out, with what to do; what would stand there instead is another file."""
    write_tiny_llama(tmp_path / name, layers=1)
    text = write_modelfile(tmp_path / name).read_text("utf-8")
    assert all(line.startswith("# ") for line in text.splitlines())
    assert "FROM is left out" in text
    assert "rename the file" in text


@pytest.mark.parametrize("output", ["", ".", "/", ".."])
def test_an_output_that_names_no_file(output: str) -> None:
    """One line instead of an empty name."""
    with pytest.raises(PlanError, match="names no file"):
        check_modelfile(output)


def test_each_reason_of_ollamas_is_a_line_of_its_own() -> None:
    """A name that has line breaks is none."""
    with pytest.raises(PlanError) as caught:
        check_content({EVIL: TensorType.TQ1_0, "y": TensorType.TQ2_0}, MetadataEditor())
    assert len(caught.value.lines) == 2
