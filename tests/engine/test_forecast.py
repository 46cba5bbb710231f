"""What is said of a build before it begins: the size to the byte, time from measured rates, what is in its way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ggufmerge
from ggufmerge.engine import Progress, build, make_plan, run
from ggufmerge.engine.documents import documents_of, planned_documents
from ggufmerge.engine.forecast import Forecast, check_output, forecast, result_sizes
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.errors import GgufmergeError, OutputError
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.methods import NAMES
from ggufmerge.recipe import load_recipe
from ggufmerge.running.rates import Measured, Meter, Rates, rates_path
from ggufmerge.running.run import DEFAULT_CHUNK
from tests.tiny import write_tiny_llama

LINEAR = "merge_method: linear\nmodels: [{model: a.gguf}, {model: b.gguf}]\nparameters: {weight: 1}\n"
TIES = (
    "merge_method: ties\nbase_model: base.gguf\nmodels: [{model: a.gguf}, {model: b.gguf}]\n"
    "parameters: {weight: 0.5, density: 0.5}\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for number, name in enumerate(("base", "a", "b")):
        write_tiny_llama(folder / f"{name}.gguf", embed=256, ff=256, tune=(number, 0.02) if number else None)
    return folder


def said(folder: Path, text: str, output: Path | None = None, **options: Any) -> Forecast:
    """The forecast of a recipe."""
    (folder / "r.yaml").write_text(text)
    options = {"chunk": DEFAULT_CHUNK, **options}
    with planned_documents(load_recipe(folder / "r.yaml")) as documents:
        return forecast(documents, output, **options)


@pytest.mark.parametrize("text", [LINEAR, TIES, f"{LINEAR}metadata: {{general.description: {'x' * 1001}}}\n"])
@pytest.mark.parametrize("kind", ["F32", "Q4_K_M", "Q8_0"])
def test_the_size_is_that_of_the_file(folder: Path, tmp_path: Path, text: str, kind: str) -> None:
    """With its header and all padding."""
    found = said(folder, f"{text}out_type: {kind}\n")
    ggufmerge.build(folder / "r.yaml", tmp_path / "out.gguf")
    assert found.sizes == ((tmp_path / "out.gguf").stat().st_size,)


@pytest.mark.parametrize("limit", [SplitLimit(max_tensors=5), SplitLimit(max_tensors=5, metadata_first=True)])
def test_the_sizes_of_shards_are_theirs(folder: Path, tmp_path: Path, limit: SplitLimit) -> None:
    """Each, in order."""
    found = said(folder, LINEAR, split=limit)
    report = ggufmerge.build(folder / "r.yaml", tmp_path / "out.gguf", split=limit)
    assert [path.stat().st_size for path in report.files] == list(found.sizes)


def test_the_size_of_a_quantized_file(folder: Path, tmp_path: Path) -> None:
    """Of a plan without a recipe."""
    plan, opened = plan_quantize(folder / "a.gguf", "Q5_K_M")
    with opened:
        [size] = result_sizes(plan, opened)
        assert run(plan, opened, tmp_path / "out.gguf").nbytes == size


def test_models_between_documents_are_counted(folder: Path, tmp_path: Path) -> None:
    """They lie beside the result while it is made."""
    first = LINEAR.replace("merge_method", "name: half\nmerge_method")
    last = "merge_method: linear\nmodels: [{model: half}, {model: base.gguf}]\nparameters: {weight: 1}\n"
    found = said(folder, f"{first}---\n{last}out_type: Q8_0\n")
    assert found.between > 1.5 * found.nbytes


class Listening(Progress):
    """Keeps what a build measured."""

    def __init__(self) -> None:
        self.sums: dict[str, Measured] = {}

    def measured(self, sums: Any) -> None:
        self.sums |= sums


@pytest.mark.parametrize("method", NAMES)
def test_every_kind_of_work_is_measured(folder: Path, tmp_path: Path, method: str) -> None:
    """After one build nothing of the same build is a guess any more but what takes no time worth telling."""
    shared = {"slerp": "t: 0.4", "nearswap": "t: 0.001"}.get(method, "weight: 0.5")
    shared = "" if method in ("arcee_fusion", "karcher", "model_stock", "passthrough") else shared
    models = "[{model: a.gguf}, {model: b.gguf}]"
    models = "[{model: b.gguf}]" if method in ("slerp", "nearswap", "arcee_fusion", "passthrough") else models
    base = "" if method in ("linear", "passthrough", "karcher", "multislerp") else "base_model: base.gguf\n"
    if method in ("ram", "ramplus_tl", "sce"):
        shared = ""
    text = f"merge_method: {method}\n{base}models: {models}\nparameters: {{{shared}}}\nout_type: Q8_0\n"
    listening, rates = Listening(), Rates()
    found = said(folder, text, rates=rates)
    assert found.guessed or method == "passthrough"  # which takes nothing but the time of Python
    ggufmerge.build(folder / "r.yaml", tmp_path / "out.gguf", progress=listening)
    rates.learn({**listening.sums, "start": Measured(1, 0.5)})
    assert said(folder, text, rates=rates).guessed == ()


def test_the_newest_build_counts_half() -> None:
    """A machine that became slower is known as such after a few builds."""
    rates = Rates()
    rates.learn({"digest": Measured(1e9, 1.0)})
    rates.learn({"digest": Measured(1e9, 3.0)})
    assert rates.of("digest") == pytest.approx(2e-9)


def test_short_work_does_not_change_a_known_rate() -> None:
    """A millisecond says little."""
    rates = Rates({"digest": 1e-9})
    rates.learn({"digest": Measured(10, 0.001)})
    assert rates.of("digest") == 1e-9


def test_rates_are_kept(tmp_path: Path) -> None:
    """In a file that reads back as what was written."""
    rates = Rates({"read Q4_K": 1.5e-10})
    rates.save(tmp_path / "rates.json")
    assert Rates.load(tmp_path / "rates.json") == rates


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 2, "rates": {}}', b'{"format": 1, "rates": {"digest": "x"}}',
     b'{"format": 1, "rates": {"digest": -1}}', b'{"format": 1, "rates": {"digest": NaN}}', b"\xff\xfe"],
)  # fmt: skip
def test_a_damaged_file_of_rates_says_nothing(tmp_path: Path, data: bytes) -> None:
    """Guesses are used, and the next build writes it anew."""
    (tmp_path / "rates.json").write_bytes(data)
    assert Rates.load(tmp_path / "rates.json").known == {}


@pytest.mark.parametrize("error", [OSError("read-only"), OutputError("cannot be created")])
def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch, error: Exception) -> None:
    """The build is done; what it took is forgotten."""

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("ggufmerge.running.rates.write_file", refuse)
    Rates({"digest": 1e-9}).save(tmp_path / "rates.json")
    assert not list(tmp_path.iterdir())


def test_the_library_writes_no_rates(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the command line keeps what it learns of the machine in the user's cache."""
    monkeypatch.setenv("GGUFMERGE_CACHE", str(tmp_path / "cache"))
    (folder / "r.yaml").write_text(LINEAR)
    ggufmerge.build(folder / "r.yaml", tmp_path / "out.gguf")
    assert rates_path().parent == tmp_path / "cache"
    assert not (tmp_path / "cache").exists()


def test_work_within_measured_work_counts_once() -> None:
    """The survey of a tensor reads, merges and writes by itself."""
    meter = Meter()
    with meter.measure("survey Q8_0", 1), meter.measure("read Q8_0", 1 << 20):
        pass
    assert list(meter.sums) == ["survey Q8_0"]


def test_memory_grows_with_threads_and_chunks(folder: Path) -> None:
    """And not with them when the tensors are smaller than a chunk."""
    small = said(folder, TIES, threads=1, chunk=1024)
    assert said(folder, TIES, threads=4, chunk=1024).own > small.own
    assert said(folder, TIES, threads=1, chunk=8192).own > small.own
    assert said(folder, TIES, threads=1, chunk=1 << 24).own == said(folder, TIES, threads=1, chunk=1 << 25).own


def test_more_threads_take_less_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as there are processors."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    rates = Rates({"write Q4_K": 1e-6})
    times = [said(folder, f"{LINEAR}out_type: Q4_K_M\n", threads=n, rates=rates).seconds for n in (1, 2, 4, 8)]
    assert times[0] > times[1] > times[2] == times[3]


# What is there


class Stop(Progress):
    """Ctrl-C after some tensors."""

    def __init__(self, after: int) -> None:
        self.left = after

    def tensor_done(self, name: str) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_an_unfinished_build_is_told(folder: Path, tmp_path: Path) -> None:
    """With the tensors that are there, of all; one of something else is told apart."""
    output = tmp_path / "out.gguf"
    (folder / "r.yaml").write_text(LINEAR)
    with pytest.raises(KeyboardInterrupt):
        ggufmerge.build(folder / "r.yaml", output, progress=Stop(9), threads=1)
    [line] = said(folder, LINEAR, output).there
    assert line.startswith("an unfinished build of the same: 9 of 21 tensors written")
    [line] = said(folder, TIES, output).there
    assert line.startswith("an unfinished build of something else (9 of 21 tensors written)")


def test_looking_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """The unfinished build goes on as if nobody had looked."""
    output = tmp_path / "out.gguf"
    (folder / "r.yaml").write_text(LINEAR)
    with pytest.raises(KeyboardInterrupt):
        ggufmerge.build(folder / "r.yaml", output, progress=Stop(9), threads=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    said(folder, LINEAR, output)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert ggufmerge.build(folder / "r.yaml", output).resumed == 9


def _exists(folder: Path) -> Path:
    (folder / "out.gguf").write_bytes(b"old")
    return folder / "out.gguf"


def _is_folder(folder: Path) -> Path:
    (folder / "out.gguf").mkdir()
    return folder / "out.gguf"


PLACES: dict[str, Callable[[Path], Path]] = {
    "exists": _exists,
    "is a folder": _is_folder,
    "folder is missing": lambda folder: folder / "nowhere" / "out.gguf",
    "is an input": lambda folder: folder / "a.gguf",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_is_refused_as_by_the_build(tmp_path: Path, place: str) -> None:
    """In the same words."""
    for number, name in enumerate(("a", "b")):
        write_tiny_llama(tmp_path / f"{name}.gguf", tune=(number, 0.02) if number else None)
    (tmp_path / "r.yaml").write_text(LINEAR)
    output = PLACES[place](tmp_path)
    with planned_documents(load_recipe(tmp_path / "r.yaml")) as documents, pytest.raises(GgufmergeError) as early:
        check_output(documents, output, split=None, overwrite=False, chunk=DEFAULT_CHUNK)
    with pytest.raises(GgufmergeError) as late:
        build(tmp_path / "r.yaml", output)
    assert str(early.value) == str(late.value)


def test_a_full_disk_is_refused_as_by_the_build(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    (folder / "r.yaml").write_text(LINEAR)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    plan, opened = make_plan(load_recipe(folder / "r.yaml"))
    with opened, pytest.raises(GgufmergeError) as early:
        check_output(documents_of(plan, opened), tmp_path / "out.gguf", split=None, overwrite=False, chunk=1 << 18)
    with pytest.raises(GgufmergeError) as late:
        build(folder / "r.yaml", tmp_path / "out.gguf")
    assert str(early.value) == str(late.value)
    assert "free" in str(early.value)


def test_a_place_that_is_free_is_taken(folder: Path, tmp_path: Path) -> None:
    """And left as it was."""
    (folder / "r.yaml").write_text(LINEAR)
    with planned_documents(load_recipe(folder / "r.yaml")) as documents:
        check_output(documents, tmp_path / "out.gguf", split=None, overwrite=False, chunk=DEFAULT_CHUNK)
    assert not list(tmp_path.iterdir())
