"""Calibration statistics of tiny models, against a plain computation of what their weights are multiplied with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import ggufmerge
from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation import LlamaModel, calibrate, texts
from ggufmerge.evaluation.checkpoint import checkpoint_path
from ggufmerge.evaluation.inputs import Finder
from ggufmerge.evaluation.libllama import Node
from ggufmerge.evaluation.scores import Watcher
from ggufmerge.files import open_gguf
from ggufmerge.formats.imatrix import load_imatrix
from ggufmerge.quants.importance import Imatrix
from ggufmerge.types import TensorType
from tests.tiny import write_tiny_llama, write_tiny_lora

TEXT = "the history of the wind and that which was in it, as he said to the others with his hat on. " * 8
OTHER = "to and of the his not for it on in with as that is was, he said; 0123456789 " * 8
CONTEXT = 64
HEADS, KV_HEADS, EPSILON, BASE = 4, 2, 1e-5, 10000.0

Inputs = dict[str, list[NDArray[np.float32]]]


def chunks_of(path: Path, text: str, context: int = CONTEXT) -> list[NDArray[np.int32]]:
    """As llama-imatrix cuts a text: BOS before all of it and instead of the first token of each piece."""
    with LlamaModel(path, context=context, threads=1) as model:
        begin, ids = model.begin_token, model.tokenize(text)
    assert begin is not None
    tokens = np.array([begin, *ids], np.int32)
    pieces = tokens[: len(tokens) // context * context].reshape(-1, context)
    pieces[:, 0] = begin
    return list(pieces)


def inputs_of(weights: dict[str, NDArray], tokens: NDArray[np.int32]) -> dict[str, NDArray[np.float64]]:
    """What each weight of a llama model is multiplied with, computed in NumPy; [tokens, n]."""
    seen: dict[str, NDArray] = {}
    w = {name: values.astype(np.float64) for name, values in weights.items()}

    def linear(name: str, x: NDArray) -> NDArray:
        seen[name] = x
        return x @ w[name].T

    def norm(x: NDArray, gain: NDArray) -> NDArray:
        return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + EPSILON) * gain

    count, width = len(tokens), w["token_embd.weight"].shape[1] // HEADS
    angles = np.arange(count)[:, None] * BASE ** (-np.arange(0, width, 2) / width)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def turned(x: NDArray) -> NDArray:
        x = x.reshape(count, -1, width)
        a, b = x[:, :, 0::2], x[:, :, 1::2]
        return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)

    h = w["token_embd.weight"][tokens]
    future = np.triu(np.full((count, count), -np.inf), 1)
    for layer in range(2):
        at = f"blk.{layer}."
        x = norm(h, w[at + "attn_norm.weight"])
        q, k = turned(linear(at + "attn_q.weight", x)), turned(linear(at + "attn_k.weight", x))
        v = linear(at + "attn_v.weight", x).reshape(count, KV_HEADS, width)
        out = np.empty((count, HEADS, width))
        for head in range(HEADS):
            shared = head * KV_HEADS // HEADS
            a = q[:, head] @ k[:, shared].T / np.sqrt(width) + future
            a = np.exp(a - a.max(axis=1, keepdims=True))
            out[:, head] = a / a.sum(axis=1, keepdims=True) @ v[:, shared]
        h = h + linear(at + "attn_output.weight", out.reshape(count, -1))
        x = norm(h, w[at + "ffn_norm.weight"])
        gate, up = linear(at + "ffn_gate.weight", x), linear(at + "ffn_up.weight", x)
        h = h + linear(at + "ffn_down.weight", gate / (1 + np.exp(-gate)) * up)
    linear("output.weight", norm(h, w["output_norm.weight"]))
    return seen


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, NDArray]]:
    path = tmp_path_factory.mktemp("calibrate") / "tiny.gguf"
    return path, write_tiny_llama(path)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "prose.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "prose.txt"


def gathered(model: Path, output: Path, *given: object, **options: object) -> Imatrix:
    ggufmerge.calibrate(model, output, list(given), **{"context": CONTEXT, "threads": 1, "rank": 8, **options})
    return load_imatrix(output)


def test_sums_are_those_of_the_inputs(tiny: tuple[Path, dict[str, NDArray]], text: Path, tmp_path: Path) -> None:
    """The diagonal is llama-imatrix's: sums of squares over all tokens of all whole pieces, in the last layer too."""
    path, weights = tiny
    found = gathered(path, tmp_path / "stats.gguf", text, process_output=True)
    pieces = chunks_of(path, TEXT)
    assert len(pieces) > 3
    sums: dict[str, NDArray] = {}
    for piece in pieces:
        for name, x in inputs_of(weights, piece).items():
            sums[name] = sums.get(name, 0) + (x * x).sum(axis=0)
    assert set(found) == set(sums)
    for name, expected in sums.items():
        entry = found.entry(name)
        assert entry.counts.tolist() == [len(pieces) * CONTEXT]
        np.testing.assert_allclose(entry.sums, expected, rtol=0.02)  # keys and values are kept in 16 bits
    assert (found.chunks, found.chunk_size, found.datasets) == (len(pieces), CONTEXT, ("prose.txt",))


def test_correlations_are_those_of_the_inputs(
    tiny: tuple[Path, dict[str, NDArray]], text: Path, tmp_path: Path
) -> None:
    """Whole ones but for rounding, and of a rank nearly the best that there are of it."""
    path, weights = tiny
    whole = gathered(path, tmp_path / "whole.gguf", text, full=True)
    low = gathered(path, tmp_path / "low.gguf", text)
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
        x = np.concatenate([inputs_of(weights, piece)[name] for piece in chunks_of(path, TEXT)])
        h = x.T @ x
        c = h / np.sqrt(np.diag(h))[:, None] / np.sqrt(np.diag(h))
        values, vectors = np.linalg.eigh(c)
        best = (vectors[:, -8:] * values[-8:]) @ vectors[:, -8:].T
        np.fill_diagonal(best, 1)
        np.testing.assert_allclose(whole.correlations[name][0].matrix(), c, atol=0.02)
        missing, least = (float(((m - c) ** 2).sum()) for m in (low.correlations[name][0].matrix(), best))
        energy = float(((c - np.eye(len(c))) ** 2).sum())
        assert energy - missing > 0.7 * (energy - least)  # these inputs have hardly larger eigenvectors than others


def test_weights_with_the_same_inputs_share_them(
    tiny: tuple[Path, dict[str, NDArray]], text: Path, tmp_path: Path
) -> None:
    """Q, K and V, and gate and up: the numbers are the same, and the correlations are stored once."""
    found = gathered(tiny[0], tmp_path / "stats.gguf", text)
    for shared in (["attn_q", "attn_k", "attn_v"], ["ffn_gate", "ffn_up"]):
        names = [f"blk.1.{part}.weight" for part in shared]
        assert len({id(found.correlations[name]) for name in names}) == 1
        assert len({found.entry(name).sums.tobytes() for name in names}) == 1
    assert len({id(c) for c in found.correlations.values()}) == 8


def test_the_output_is_left_out_unless_it_is_wanted(tmp_path: Path, text: Path) -> None:
    """As llama-imatrix does; a model whose output is its embeddings has it under that name."""
    write_tiny_llama(tmp_path / "tied.gguf", tied=True)
    assert all(name.startswith("blk.") for name in gathered(tmp_path / "tied.gguf", tmp_path / "a.gguf", text))
    found = gathered(tmp_path / "tied.gguf", tmp_path / "b.gguf", text, process_output=True)
    assert [name for name in found if not name.startswith("blk.")] == ["token_embd.weight"]


@pytest.mark.parametrize("used", [1, 2, 3])
def test_experts_are_apart(tmp_path: Path, text: Path, used: int) -> None:
    """Each token goes to the experts that it used, so all of them together saw what the router saw."""
    write_tiny_llama(tmp_path / "moe.gguf", experts=3, experts_used=used)
    found = gathered(tmp_path / "moe.gguf", tmp_path / "stats.gguf", text)
    tokens = found.chunks * CONTEXT
    for layer in range(2):
        router, up, down = (
            found.entry(f"blk.{layer}.{x}.weight") for x in ("ffn_gate_inp", "ffn_up_exps", "ffn_down_exps")
        )
        assert up.counts.tolist() == down.counts.tolist()
        assert (len(up.counts), up.counts.sum()) == (3, used * tokens)
        np.testing.assert_allclose(up.sums.reshape(3, -1).sum(axis=0), used * router.sums, rtol=1e-4)
        if used == 3:
            np.testing.assert_allclose(up.sums.reshape(3, -1), np.tile(router.sums, (3, 1)), rtol=1e-4)
        assert len(found.correlations[f"blk.{layer}.ffn_down_exps.weight"]) == 3


def test_inputs_go_to_the_expert_that_the_router_chose(tmp_path: Path, text: Path) -> None:
    """A router that knows one expert only sends all tokens there, and the others are told of."""
    weights = write_tiny_llama(tmp_path / "any.gguf", experts=3, experts_used=1)
    router = np.zeros_like(weights["blk.0.ffn_gate_inp.weight"])
    same = {f"blk.{layer}.ffn_gate_inp.weight": router for layer in range(2)}
    write_tiny_llama(tmp_path / "moe.gguf", experts=3, experts_used=1, replace=same)
    made = ggufmerge.calibrate(tmp_path / "moe.gguf", tmp_path / "stats.gguf", [text], context=CONTEXT, threads=1)
    found = load_imatrix(tmp_path / "stats.gguf").entry("blk.1.ffn_up_exps.weight")
    assert sorted(found.counts.tolist()) == [0, 0, made.tokens]
    assert any("no token reached some experts, 2 of 3" in line for line in made.warnings)


def at_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep unfinished work after every piece of text."""
    monkeypatch.setattr(calibrate, "_INTERVAL", -1.0)
    monkeypatch.setattr(calibrate, "_RARELY", -1)


class Interrupter(Watcher):
    """Presses Ctrl-C after so many pieces; says how much was expected."""

    def __init__(self, pieces: int = 1000) -> None:
        self.left, self.expected = pieces, 0

    def expect(self, tokens: int, quick: int | None = None) -> None:
        self.expected = tokens

    def advance(self, tokens: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("options", [{"rank": 8}, {"rank": 0}, {"full": True}])
def test_an_interrupted_run_goes_on(
    tiny: tuple[Path, dict[str, NDArray]], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    """The same call reads only what is left, and its file has the bytes of one that was never interrupted."""
    at_every_piece(monkeypatch)
    whole, cut = tmp_path / "whole.gguf", tmp_path / "cut.gguf"
    gathered(tiny[0], whole, text, **options)
    with pytest.raises(KeyboardInterrupt):
        gathered(tiny[0], cut, text, watcher=Interrupter(3), **options)
    assert not cut.exists()
    assert checkpoint_path(cut).exists()
    again = Interrupter()
    gathered(tiny[0], cut, text, watcher=again, **options)
    assert again.expected == (load_imatrix(whole).chunks - 2) * CONTEXT
    assert cut.read_bytes() == whole.read_bytes()
    assert not checkpoint_path(cut).exists()


@pytest.mark.parametrize("change", ["damage", "cut", "text", "rank", "nonsense"])
def test_work_of_something_else_is_not_continued(
    tiny: tuple[Path, dict[str, NDArray]], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """What is left of another call, or damaged, is not used."""
    at_every_piece(monkeypatch)
    output, options = tmp_path / "stats.gguf", {"rank": 4 if change == "rank" else 8}
    with pytest.raises(KeyboardInterrupt):
        gathered(tiny[0], output, text, watcher=Interrupter(3))
    kept = checkpoint_path(output)
    data = bytearray(kept.read_bytes())
    if change == "damage":
        data[-5] ^= 1
    kept.write_bytes({"cut": data[:-5], "nonsense": b"[" * 100}.get(change, data))
    if change == "text":
        text.write_text("And " + TEXT, encoding="utf-8")
    watcher = Interrupter()
    found = gathered(tiny[0], output, text, watcher=watcher, **options)
    assert watcher.expected == found.chunks * CONTEXT
    gathered(tiny[0], tmp_path / "other.gguf", text, **options)
    assert (tmp_path / "other.gguf").read_bytes() == output.read_bytes()


def test_a_weight_makes_tokens_count_more(tiny: tuple[Path, dict[str, NDArray]], text: Path, tmp_path: Path) -> None:
    """Sums are in the proportion of the weights; counts are still as many as there are tokens."""
    other = tmp_path / "other.txt"
    other.write_text(OTHER, encoding="utf-8")
    name = "blk.1.ffn_down.weight"
    a, b = (gathered(tiny[0], tmp_path / f"{t.stem}.gguf", t).entry(name) for t in (text, other))
    both = gathered(tiny[0], tmp_path / "both.gguf", f"{text}=3", (other, 1)).entry(name)
    assert both.counts.tolist() == [a.counts[0] + b.counts[0]]
    share = float(both.counts[0]) / (3 * a.counts[0] + b.counts[0])
    np.testing.assert_allclose(both.sums, share * (3 * a.sums.astype(np.float64) + b.sums), rtol=1e-4)


def test_a_limit_is_for_all_texts_alike(tiny: tuple[Path, dict[str, NDArray]], text: Path, tmp_path: Path) -> None:
    """Of each as many pieces, and the last one may be shorter."""
    given = {"one": TEXT, "two": OTHER}
    made = ggufmerge.calibrate(
        tiny[0], tmp_path / "stats.gguf", given, tokens=3 * CONTEXT + 20, context=CONTEXT, rank=0, threads=1
    )
    assert [t.tokens for t in made.texts] == [2 * CONTEXT, CONTEXT + 20]
    assert made.tokens == 3 * CONTEXT + 20
    entry = load_imatrix(tmp_path / "stats.gguf").entry("blk.0.attn_q.weight")
    assert entry.counts.tolist() == [made.tokens]


def test_few_tokens_and_coarse_models_are_warned_of(tmp_path: Path, text: Path) -> None:
    """Correlations of few tokens are chance; a coarse model has inputs of its own."""
    write_tiny_llama(tmp_path / "q4.gguf", embed=64, type=TensorType.Q4_0)
    made = ggufmerge.calibrate(tmp_path / "q4.gguf", tmp_path / "a.gguf", [text], context=CONTEXT, threads=1)
    assert [" ".join(line.split()[:4]) for line in made.warnings] == [
        "the model has 4.5",
        f"{made.tokens} tokens are few",
    ]
    made = ggufmerge.calibrate(tmp_path / "q4.gguf", tmp_path / "b.gguf", [text], context=CONTEXT, threads=1, rank=0)
    assert len(made.warnings) == 1


def test_chats_are_in_the_format_of_the_model(tmp_path: Path) -> None:
    """The paragraphs of a text become messages; the tokens of the format are read as such."""
    write_tiny_llama(tmp_path / "chat.gguf", tokenizer="bpe")
    given = {"talk": "\n\n".join(["the history of the wind", "and that was it"] * 12)}
    plain = ggufmerge.calibrate(tmp_path / "chat.gguf", tmp_path / "a.gguf", given, context=32, threads=1, rank=0)
    chat = ggufmerge.calibrate(
        tmp_path / "chat.gguf", tmp_path / "b.gguf", given, context=32, threads=1, rank=0, chat=True
    )
    assert chat.tokens > plain.tokens
    with LlamaModel(tmp_path / "chat.gguf", context=32, threads=1) as model:
        shaped = calibrate._as_chat(model, given["talk"])
    assert shaped.startswith(
        "<|im_start|>user\nthe history of the wind<|im_end|>\n<|im_start|>assistant\nand that was it"
    )
    assert shaped.count("<|im_start|>user") == shaped.count("<|im_start|>assistant") == 12
    write_tiny_llama(tmp_path / "plain.gguf", metadata={"tokenizer.chat_template": None})
    with pytest.raises(GgufmergeError, match="no chat template: leave"):
        ggufmerge.calibrate(tmp_path / "plain.gguf", tmp_path / "c.gguf", given, chat=True)


def test_bad_arguments_are_refused(tiny: tuple[Path, dict[str, NDArray]], text: Path, tmp_path: Path) -> None:
    """Each in a line that says what to do, before anything is read; nothing is written."""
    out = tmp_path / "stats.gguf"
    (tmp_path / "empty.txt").write_text(" \n")
    write_tiny_lora(tmp_path / "lora.gguf", tiny[1])
    for given, options, message in (
        ([text], {"context": 8}, "context"),
        ([text], {"tokens": 8}, "tokens"),
        ([text], {"rank": -1}, "rank"),
        ([f"{text}=0"], {}, "above 0"),
        ([f"{text}=nan"], {}, "above 0"),
        ([f"{text}=much"], {}, "is a number, as in"),
        ([tmp_path / "empty.txt"], {}, "is empty"),
        ([tmp_path / "prosa.txt"], {}, "prose.txt"),
        ({"short": "the wind"}, {}, "only .* tokens?"),
        ([], {}, "give a text"),
    ):
        with pytest.raises(GgufmergeError, match=message) as caught:
            ggufmerge.calibrate(tiny[0], out, given, **options)
        assert len(caught.value.lines) == 1
    with pytest.raises(GgufmergeError, match="this is an adapter"):
        ggufmerge.calibrate(tmp_path / "lora.gguf", out, [text])
    with pytest.raises(GgufmergeError, match="exists"):
        ggufmerge.calibrate(tiny[0], text, [text])
    assert not out.exists()


def test_broken_weights_are_told(tmp_path: Path, text: Path) -> None:
    """Inputs that are not finite are refused, with the weight that has them."""
    up = np.full((128, 64), 3e37, np.float32)
    write_tiny_llama(tmp_path / "broken.gguf", replace={"blk.0.ffn_up.weight": up})
    with pytest.raises(GgufmergeError, match=r"inputs of blk\.\d\.\w+\.weight that are NaN or infinite"):
        gathered(tmp_path / "broken.gguf", tmp_path / "stats.gguf", text)


def test_what_a_watcher_raises_comes_out(tiny: tuple[Path, dict[str, NDArray]]) -> None:
    """An exception in the middle of a computation ends it, and the model can be used again."""

    def watch(node: Node, ask: bool) -> bool:
        raise KeyboardInterrupt

    with LlamaModel(tiny[0], context=32, threads=1, watch=watch) as model:
        with pytest.raises(KeyboardInterrupt):
            model.compute([1] * 32)
        model.watch = finder = Finder()
        model.compute([1] * 32)
    assert len(finder.weights) == 14


def test_the_text_that_comes_along_is_of_many_kinds_and_not_what_models_are_measured_on() -> None:
    """It shares no line with the texts of eval, is long enough, and its beginning is as mixed as the whole."""
    text = texts.read(texts.CALIBRATION)
    assert len(text.encode()) > 30_000
    lines = {line for line in text.splitlines() if len(line) > 30}
    assert not lines & {line for name in texts.NAMES for line in texts.read(name).splitlines()}
    for part in (text[: len(text) // 2], text[len(text) // 2 :]):
        assert sum(ord(letter) > 0x2FF for letter in part) > 500
        assert "User:" in part
        assert "return" in part


def test_statistics_are_explained_by_inspect(tiny: tuple[Path, dict[str, NDArray]], text: Path, tmp_path: Path) -> None:
    """What was counted on which text; a model has none."""
    gathered(tiny[0], tmp_path / "stats.gguf", text)
    found = ggufmerge.inspect(tmp_path / "stats.gguf")["statistics"]
    chunks = len(chunks_of(tiny[0], TEXT))
    assert found == {
        "texts": ["prose.txt"],
        "chunks": chunks,
        "chunk_size": CONTEXT,
        "tokens": chunks * CONTEXT,
        "weights": 14,
        "correlated": 14,
        "inputs": 8,
        "rank": 8,
        "full": False,
    }
    assert ggufmerge.inspect(tiny[0])["statistics"] is None
    with open_gguf(tmp_path / "stats.gguf") as file:
        assert "blk.0.attn_k.weight.in_loadings" in file.tensors
