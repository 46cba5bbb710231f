"""What every command keeps whatever its input: `keep` runs a case in this process and says how it broke the law.

1. It succeeds, or ends with exit code 1 and one clear line (2 and a usage message for a command line that makes no
   sense). No traceback. Every line that it prints is printable, and no text out of a file begins a line of its own.
2. It takes less than `SECONDS` and `MEGABYTES`. Hangs and crashes are seen by the process that watches; see `hunt.py`.
3. After a refusal nothing is left behind: no output, no partial file, no journal; only the file of `--log`, which
   says why it was refused. Inputs are never changed.
4. What it writes llama.cpp accepts, and loads if it loads the inputs; weights that it computed are finite numbers.
5. What the library opens llama.cpp opens, and the other way round, but for two things that llama.cpp's model loader
   looks at, not its reader of headers: tensors past the end of the file, and shards, of which the library opens all
   or none.
6. Weights of an input that are no finite numbers are an error of a command that computes with them.
7. With `--json` the output is JSON, without NaN and infinity, which JSON does not have.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import random
import re
import shutil
import stat
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import ggufmerge
from ggufmerge.errors import FormatError, GgufmergeError
from tests.attacks import damage
from tests.attacks.case import OPEN, Case, Special
from tests.attacks.command_line import commands
from tests.attacks.judge import Judge
from tests.places.modelfiles import read_modelfile

SECONDS = 10.0
MEGABYTES = 500
# what commands say on standard error besides errors and warnings
_OTHER_LINES = re.compile(r"note: |about \d|the merged model is complete: |interrupted: |kept: |going on: ")
# what they say of each tensor with --verbose
_PROGRESS = re.compile(r"\d+ of \d+: ")
# errors that say that work was kept
_KEPT = re.compile(r"the merged model is complete|what is finished is kept")
# refusals that llama.cpp's reader of headers leaves to its model loader
_LATER = re.compile(r"lies past the end of the file|split\.|split model|shard")
_HIDDEN = re.compile(r"(^|/)\.[^/]*\.(partial|journal|stages|lock|old|tmp)(/|$)")


@dataclasses.dataclass(frozen=True)
class Fault:
    """what: the kind of fault, such as the exception's name.  place: where in the program.  detail: for people."""

    what: str
    place: str = ""
    detail: str = ""

    @property
    def signature(self) -> str:
        return f"{self.what} in {self.place}" if self.place else self.what


@dataclasses.dataclass
class Outcome:
    """built: the command succeeded and wrote something.  compared: how often llama.cpp was asked."""

    faults: list[Fault] = dataclasses.field(default_factory=list)
    code: int = 0
    built: bool = False
    compared: int = 0
    out: str = ""
    err: str = ""


def keep(case: Case, folder: Path, judge: Judge | None) -> Outcome:
    """Run a case in an empty folder; judge: llama.cpp, None to leave out what it thinks."""
    case.write(folder)
    if case.command[:1] == [OPEN]:
        return _open(folder / case.command[1], judge)
    outcome = Outcome()
    before = _snapshot(folder)
    wanted = None
    if case.same:
        wanted = _undisturbed(case, folder)
    if case.interrupt:
        _interrupted(case, folder)
        _harm_leftovers(case, folder, before)
    size = _forget_peak()
    raised = _run(case.command, folder, outcome)
    grown = _peak() - size
    if grown > MEGABYTES << 10:
        outcome.faults.append(Fault("memory", " ".join(case.command[:1]), f"grew by {grown >> 10} MB"))
    outcome.faults += raised if raised is not None else list(_talk(case, outcome))
    after = _snapshot(folder)
    outcome.faults += _files(case, before, after, outcome)
    if case.refuse and outcome.code == 0:
        outcome.faults.append(Fault("NaN or infinity passed over", _method_of(case), outcome.out[-1000:]))
    elif outcome.code == 0 and raised is None:
        new = [path for path in after if path not in before or after[path] != before[path]]
        outcome.built = bool(new)
        outcome.faults += _outputs(case, folder, new, outcome, judge)
        written = folder / "out.gguf"
        if wanted is not None and written.is_file() and written.read_bytes() != wanted:
            outcome.faults.append(Fault("other bytes than in a clean folder", "build"))
    return outcome


# Running ----------------------------------------------------------------------------------------------------------


def _run(command: list[str], folder: Path, outcome: Outcome) -> list[Fault] | None:
    """Run a command line as the console script does; the faults if it raised something, else None."""
    from ggufmerge.cli import main

    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)
    faults = None
    kept = sys.argv, sys.stdin, sys.stdout, sys.stderr, Path.cwd(), dict(os.environ)
    try:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = ["ggufmerge", *command], io.StringIO(), out, err
        os.chdir(folder)
        os.environ |= _environment(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", category=ResourceWarning)
            warnings.filterwarnings("ignore", module="numba")
            try:
                main()
            except SystemExit as end:
                outcome.code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException as error:
                outcome.code = 1
                faults = [_fault(error)]
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = kept[:4]
        os.chdir(kept[4])
        os.environ.clear()
        os.environ |= kept[5]
    outcome.out, outcome.err = (s.buffer.getvalue().decode("utf-8", "replace") for s in (out, err))
    return faults


def _environment(folder: Path) -> dict[str, str]:
    """A home of its own, and no network."""
    home = folder / "home"
    return {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "OLLAMA_MODELS": str(folder / "ollama"),
        "OLLAMA_HOST": "127.0.0.1:9",
        "LLAMA_CACHE": str(home / "llama.cpp"),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }


def _fault(error: BaseException) -> Fault:
    """The exception, and the innermost function of the program in its traceback."""
    root = str(Path(ggufmerge.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(root)]
    place = f"{ours[-1].filename.removeprefix(root).lstrip('/')}:{ours[-1].name}" if ours else "?"
    text = "".join(traceback.format_exception(error, limit=-6))
    return Fault(type(error).__name__, place, text[-3000:])


def _undisturbed(case: Case, folder: Path) -> bytes | None:
    """What the command writes in a folder that has only its inputs; None if it fails or writes shards."""
    clean = folder.with_name(folder.name + "-clean")
    shutil.rmtree(clean, ignore_errors=True)
    clean.mkdir()
    inputs = {path: data for path, data in case.files.items() if not Path(path).name.startswith(".")}
    dataclasses.replace(case, files=inputs).write(clean)
    _run(case.command, clean, Outcome())
    written = clean / "out.gguf"
    data = written.read_bytes() if written.is_file() else None
    shutil.rmtree(clean)
    return data


def _interrupted(case: Case, folder: Path) -> None:
    """The command, stopped as by Ctrl-C when it has finished some tensors."""
    from ggufmerge.cli.progress import ProgressDisplay

    left = case.interrupt
    done = ProgressDisplay.tensor_done

    def stop(self: Any, name: str) -> None:
        nonlocal left
        done(self, name)
        left -= 1
        if not left:
            raise KeyboardInterrupt

    ProgressDisplay.tensor_done = stop  # type: ignore[method-assign]
    try:
        _run(case.command, folder, Outcome())
    finally:
        ProgressDisplay.tensor_done = done  # type: ignore[method-assign]


def _harm_leftovers(case: Case, folder: Path, before: dict[str, Any]) -> None:
    if not case.leftovers:
        return
    rng = random.Random(case.leftovers)
    left = sorted(path for path in _snapshot(folder) if path not in before and _HIDDEN.search(path))
    for path in rng.sample(left, min(len(left), rng.choice((1, 1, 2)))):
        place = folder / path
        if place.is_file():
            data = place.read_bytes()
            harm = damage.damage_json_text if path.endswith("journal") else damage.damage_bytes
            if rng.random() < 0.1:
                place.unlink()
            else:
                place.write_bytes(harm(rng, data))


# Looking ----------------------------------------------------------------------------------------------------------


def _open(path: Path, judge: Judge | None) -> Outcome:
    """Open a file with the library, look at all that its header says, and ask llama.cpp."""
    outcome = Outcome()
    refusal = ""
    try:
        with ggufmerge.open(path) as file:
            for value in file.metadata.values():
                repr(value)
            for tensor in file.tensors.values():
                tensor.raw.sum()
    except FormatError as error:
        refusal = str(error)
        if not refusal.startswith(f"{path}: ") or not refusal.isprintable():
            outcome.faults.append(Fault("message", "files/reader.py", repr(refusal)[:2000]))
    except BaseException as error:
        outcome.faults.append(_fault(error))
    outcome.code = int(bool(refusal))
    if judge is not None and not outcome.faults and not _LATER.search(refusal):
        outcome.compared = 1
        verdict = judge.accepts(path)
        if (verdict == "yes") != (not refusal):
            ours = f"refused: {refusal}" if refusal else "accepted"
            outcome.faults.append(
                Fault("llama.cpp thinks otherwise", "files/reader.py", f"llama.cpp {verdict}; {ours}")
            )
    return outcome


def _talk(case: Case, outcome: Outcome) -> Iterator[Fault]:
    """What was printed, and the exit code."""
    where = " ".join(case.command[:1])
    errors = [line for line in outcome.err.split("\n") if line]
    if outcome.code not in (0, 1, 2):
        yield Fault(f"exit code {outcome.code}", where, outcome.err[-2000:])
    if outcome.code == 2:
        if not errors and not outcome.out:
            yield Fault("no usage message", where)
        return
    verbose = {"-v", "--verbose"} & set(case.command)
    for line in errors:
        if not line.isprintable() or MARKED.match(line):
            yield Fault("unprintable error", where, repr(line)[:2000])
            break
        if not line.startswith(("error: ", "warning: ")) and not _OTHER_LINES.match(line):
            if verbose and _PROGRESS.match(line):
                continue
            yield Fault("strange line on standard error", where, outcome.err[-2000:])
            break
    if outcome.code == 1 and not errors:
        yield Fault("no error message", where, outcome.out[-2000:])
    json_wanted = _wants_json(case.command)
    if json_wanted and outcome.code == 0:
        try:
            json.loads(outcome.out, parse_constant=_no_constant)
        except ValueError as error:
            yield Fault("no JSON", where, f"{error}\n{outcome.out[:1000]}")
    elif json_wanted is False:
        for line in outcome.out.split("\n"):
            if not line.isprintable() or MARKED.match(line):
                yield Fault("unprintable output", where, repr(line)[:2000])
                break


def _wants_json(command: list[str]) -> bool | None:
    """None when that is not easily said: --json may be the value of another option, or help may be asked for."""
    if "--json" not in command:
        return False
    switches = {flag for c in commands() for value in c.values if value.type is bool for flag in value.flags}
    before = command[command.index("--json") - 1]
    if {"-h", "--help", "--"} & set(command) or (before.startswith("-") and before not in switches):
        return None
    return True


MARKED = re.compile(rf"(error: )?{damage.MARK}")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _snapshot(folder: Path) -> dict[str, Any]:
    """What is in a folder: contents of regular files (of large ones size and time), kinds of others."""
    found: dict[str, Any] = {}
    for root, folders, names in os.walk(folder):
        at = Path(root)
        if at == folder and "home" in folders:
            folders.remove("home")  # caches of other programs' libraries
        for name in [*names, *(f for f in folders if (at / f).is_symlink())]:
            place = at / name
            path = place.relative_to(folder).as_posix()
            facts = place.lstat()
            if place.is_symlink():
                found[path] = ("link", str(place.readlink()))
            elif place.is_file() and facts.st_size < 1 << 22:
                found[path] = place.read_bytes()
            else:
                found[path] = (facts.st_mode, facts.st_size, facts.st_mtime_ns if place.is_file() else 0)
    return found


def _is_special(content: Any) -> bool:
    """Whether what was seen was a pipe or the like, which nobody means to replace."""
    return isinstance(content, tuple) and content[0] != "link" and not stat.S_ISREG(content[0])


def _log_file(command: list[str], seen: dict[str, Any]) -> str | None:
    """The file that `--log` names, as an option of its own word or with `=`, or that the link of this name leads to;
    None without one.
    """
    named = None
    for word, behind in itertools.pairwise([*command, ""]):
        if word == "--log":
            named = os.path.normpath(behind)
        elif word.startswith("--log="):
            named = os.path.normpath(word.removeprefix("--log="))
    content = seen.get(named) if named is not None else None
    is_link = isinstance(content, tuple) and content[0] == "link"
    return os.path.normpath(str(content[1])) if is_link else named


def _files(case: Case, before: dict[str, Any], after: dict[str, Any], outcome: Outcome) -> Iterator[Fault]:
    """Inputs are as they were, and nothing is left that nobody asked for."""
    where = " ".join(case.command[:1])
    words = [word.partition("=")[2] if word.startswith("--") and "=" in word else word for word in case.command]
    replaced = set(words) if "--overwrite" in words and outcome.code == 0 else set()
    for path, content in before.items():
        if path in after and after[path] == content:
            continue
        if path in replaced and words.count(path) == 1 and not _is_special(content):
            continue
        if _HIDDEN.search(path):
            continue  # a name of the program's own: it may take up or clear away what is there
        if outcome.code == 0 and path.startswith("ollama/manifests/") and "--overwrite" in case.command:
            continue
        yield Fault("input changed" if path in after else "input gone", where, path)
    new = [path for path in after if path not in before]
    hidden = [path for path in new if _HIDDEN.search(path)]
    if outcome.code == 0:
        if hidden:
            yield Fault("left behind after success", where, " ".join(hidden))
    elif new and not _KEPT.search(outcome.err):
        log = _log_file(case.command, after)
        kept = [path for path in new if path != log and not (case.interrupt and _HIDDEN.search(path))]
        if kept:
            yield Fault("left behind after a refusal", where, " ".join(kept))


def _outputs(case: Case, folder: Path, new: list[str], outcome: Outcome, judge: Judge | None) -> Iterator[Fault]:
    where = " ".join(case.command[:1])
    for path in new:
        place = folder / path
        if place.is_symlink() or not place.is_file():
            continue
        if path.endswith("Modelfile") and (fault := _modelfile(place)):
            yield dataclasses.replace(fault, place=where)
        with place.open("rb") as file:
            if file.read(4) != b"GGUF" or re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", path):
                continue  # the first shard opens the others
        try:
            with ggufmerge.open(place) as opened:
                bad = _not_finite(opened, case)
                architecture, kind = opened.architecture, str(opened.metadata.get("general.type", "model"))
        except GgufmergeError as error:
            yield Fault("cannot open its own output", where, str(error))
            continue
        if bad:
            yield Fault("not finite", where, bad)
        if judge is None or bad:
            continue
        outcome.compared += 1
        verdict = judge.accepts(place)
        if verdict != "yes":
            yield Fault(f"llama.cpp: {verdict} to the header of the output", where, path)
        elif (
            # of a kind that is a list, a comparison would be another list
            [str(kind), str(architecture)] == ["model", "llama"]
            and _is_whole(case)
            and random.Random(case.name).random() < 0.5
        ):
            outcome.compared += 1
            verdict = judge.loads(place)
            if verdict != "yes" and _inputs_load(case, folder, judge):
                yield Fault(f"llama.cpp: {verdict} to loading the output", where, path)


def _method_of(case: Case) -> str:
    recipe = case.files.get("r.yaml", b"")
    found = re.search(rb"merge_method: (\w+)", recipe) if isinstance(recipe, bytes) else None
    return found[1].decode() if found else " ".join(case.command[:1])


def _is_whole(case: Case) -> bool:
    """Whether the output is a complete model, whose keys are those of its sources."""
    if any(word.startswith("--split") or word == "--no-tensor-first-split" for word in case.command):
        return False
    recipes = [data for path, data in case.files.items() if path.endswith(".yaml") and isinstance(data, bytes)]
    writes_all = {"build", "quantize", "bake", "join"} & set(case.command[:1])
    return bool(writes_all) and not any(b"metadata" in text for text in recipes)


def _inputs_load(case: Case, folder: Path, judge: Judge) -> bool:
    """Whether llama.cpp loads all models that the case was given."""
    for path, data in case.files.items():
        if isinstance(data, Special) or not data.startswith(b"GGUF") or (folder / path).is_symlink():
            continue
        if case.origins.get(path, "").endswith(("lora.gguf", "imatrix.gguf", "mmproj.gguf")):
            continue
        if re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", path):
            continue  # loaded with the first shard
        if judge.loads(folder / path) != "yes":
            return False
    return True


def _not_finite(opened: Any, case: Case) -> str:
    """The first tensor of an output with values that are no numbers, unless its bytes are those of an input's."""
    for name, tensor in opened.tensors.items():
        if not (tensor.type.is_float or tensor.type.is_quantized) or str(tensor.type) in ("Q8_1", "Q8_K"):
            continue
        with np.errstate(all="ignore"):
            values = tensor.dequantize()
        if not np.isfinite(values).all():
            raw = tensor.raw.tobytes()
            if not any(isinstance(data, bytes) and raw in data for data in case.files.values()):
                return f"{name} ({tensor.type}): {np.count_nonzero(~np.isfinite(values))} of {values.size} values"
    return ""


def _modelfile(path: Path) -> Fault | None:
    """A Modelfile is one, and no text of a file has become an instruction of it."""
    try:
        lines = read_modelfile(path.read_text(encoding="utf-8"))
    except (AssertionError, ValueError) as error:
        return Fault("no Modelfile", "", str(error))
    if gone := [value for name, value in lines if name == "model" and not (path.parent / value).is_file()]:
        return Fault("a model in the Modelfile that is not there", "", repr(gone)[:1000])
    if any(value.startswith(damage.MARK) for _, value in lines):
        return Fault("instruction injected into the Modelfile", "", repr(lines)[:1000])
    return None


def _peak() -> int:
    """Largest size of this process since `_forget_peak`, in KiB; since ever where the system does not know better."""
    with contextlib.suppress(OSError):
        return _status("VmHWM")
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak >> 10 if sys.platform == "darwin" else peak
    return 0


def _forget_peak() -> int:
    """Begin to measure anew, if the system can do that; the size now, in KiB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    return _peak()


def _status(key: str) -> int:
    """A number of KiB that Linux knows about this process."""
    match = re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise OSError(f"no {key}")
    return int(match[1])
