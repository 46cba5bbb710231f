"""Models in a local Ollama store: `ollama:llama3.2:3b` is the GGUF file that Ollama runs under that name.

A store has `manifests/<host>/<namespace>/<model>/<tag>`, JSON files that list the layers of a model, and
`blobs/sha256-<hex>`, the layers. One layer holds the weights; others hold adapters, the template, parameters and so on.
Nothing here writes; the writing side is `publish.py`.

The layout is no documented interface of Ollama. Source: its `types/model/name.go` and `config.go`, `manifest/*.go`,
`server/images.go` and `envconfig/config.go`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ggufmerge.errors import PlanError, nearest
from ggufmerge.files import GGUFFile
from ggufmerge.files.small import open_regular, parse_json, read_json
from ggufmerge.places.ollama.names import DEFAULT_TAG, MAX_MANIFEST, OllamaName, lookup, path_of, stored
from ggufmerge.sources import Source
from ggufmerge.sources.located import Located

IMAGE = "application/vnd.ollama.image."  # media types of layers begin with it
SERVICE_ROOT = Path("/usr/share/ollama/.ollama/models")  # where the service that Linux's installer sets up keeps models
_MAX_TEXT = 16 << 20  # bytes of all layers that are text together: far more than any model has
_MAX_ADAPTERS = 16
_MAX_JSON = 4 << 20  # bytes of a layer that is JSON
_TEXTS = ("template", "prompt", "system", "license", "params", "messages")  # kinds of layers
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


@dataclass(frozen=True)
class OllamaSettings:
    """What Ollama keeps beside the weights of a model: how it is prompted, and under which licences it comes.

    template: a Go template, None when the one of the GGUF file is used.  parameters: as in PARAMETER lines; `stop` is a
    list.  messages: {"role", "content"} of example conversations.  renderer, parser: names of code inside Ollama that
    takes the template's place.  requires: the oldest Ollama that can run it.
    """

    template: str | None = None
    system: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    licenses: tuple[str, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None


def settings_of(source: Source) -> OllamaSettings | None:
    """What Ollama keeps beside the weights of a source; None for models from elsewhere."""
    settings = source.located.settings
    return settings if isinstance(settings, OllamaSettings) else None


@dataclass(frozen=True)
class Layer:
    """An entry of a manifest."""

    media_type: str
    digest: str  # sha256:<hex>
    size: int  # bytes

    @property
    def kind(self) -> str:
        """`model`, `adapter`, `template`, ...; the media type when it is none of Ollama's."""
        return self.media_type.removeprefix(IMAGE)

    def to_json(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Manifest:
    """What a store has under a name."""

    path: Path
    config: Layer
    layers: tuple[Layer, ...]

    def of_kind(self, kind: str) -> list[Layer]:
        return [layer for layer in self.layers if layer.kind == kind]


def find(name: str) -> Located:
    """The file of a model of a local store, what belongs to it, and how it is prompted; PlanError when there is none.

    Looked for in `candidate_roots()`, in that order.
    """
    wanted = OllamaName.parse(name)
    label, roots = f"ollama:{name}", []
    for root in candidate_roots():
        try:
            found = lookup(root, wanted)
            if found is not None and path_of(root, found).is_file():
                return _Reader(label, root).located(path_of(root, found))
            roots += [root] * root.is_dir()
        except PermissionError as error:
            raise _Reader(label, root).unreadable(Path(error.filename or root), error) from None
    if roots:
        raise PlanError(f"{label}: not in {_listed(roots)}; {_advice(roots, wanted)}")
    raise PlanError(
        f"{label}: no Ollama store here (looked for {_listed(candidate_roots())}); set OLLAMA_MODELS to the folder "
        "that has manifests and blobs in it"
    )


def candidate_roots() -> list[Path]:
    """Where stores may be: `$OLLAMA_MODELS` if set, else the user's and that of a Linux service."""
    if text := environment("OLLAMA_MODELS"):
        return [Path(text)]
    with contextlib.suppress(RuntimeError):  # a user without a home
        return [Path.home() / ".ollama" / "models", SERVICE_ROOT]
    return [SERVICE_ROOT]


def environment(name: str) -> str:
    """A variable as Ollama reads it: without blanks and quotes around it."""
    return os.environ.get(name, "").strip().strip("\"'")


def blob_path(root: Path, digest: str) -> Path:
    """The file of a layer. ValueError for anything but a sha256 digest, which could lead out of the store."""
    match = _DIGEST.fullmatch(digest)
    if not match:
        raise ValueError(f"{digest!r} is no sha256 digest")
    return root / "blobs" / f"sha256-{match[1].lower()}"


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. ValueError says what is wrong with it, OSError when it cannot be read."""
    content = read_json(path, MAX_MANIFEST)
    if not isinstance(content.get("layers"), list):
        raise ValueError("it lists no layers")
    return Manifest(path, _layer(content.get("config")), tuple(map(_layer, content["layers"])))


def names(root: Path) -> Iterator[str]:
    """The names of all models of a store, short."""
    return map(str, stored(root))


def layout_warnings(label: str, file: GGUFFile) -> list[str]:
    """What a file of a store holds that llama.cpp would not load: Ollama keeps models in layouts of its own, too.

    Source: Ollama's `llama/compat/README.md`.
    """
    from gguf.constants import MODEL_ARCH_NAMES

    warnings = []
    foreign = [name for name in file.tensors if name.startswith(("a.", "mm.", "mtp.", "s.", "v."))]
    if foreign:
        warnings.append(
            f"{label}: {len(foreign)} tensors ({foreign[0]}, ...) are in Ollama's own layout, which has vision or "
            "sound in the same file; the result runs in Ollama but not in llama.cpp; for llama.cpp merge the model's "
            "GGUF from Hugging Face"
        )
    if file.architecture and file.architecture not in MODEL_ARCH_NAMES.values():
        warnings.append(
            f"{label}: {file.architecture!r} is not known as an architecture of llama.cpp by this version of gguf, so "
            "the result may run in Ollama only; for llama.cpp merge the model's GGUF from Hugging Face"
        )
    return warnings


class _Reader:
    """Reads one model of a store; every complaint begins with the reference the user wrote."""

    def __init__(self, label: str, root: Path) -> None:
        self.label, self.root = label, root

    def located(self, path: Path) -> Located:
        try:
            manifest = read_manifest(path)
        except ValueError as error:
            raise PlanError(f"{self.label}: the manifest {path} is damaged ({error}); {self._again()}") from None
        except OSError as error:
            raise self.unreadable(path, error) from None
        config = self._mapping(manifest.config)
        self._check(manifest, config)
        weights = self._blob(manifest.of_kind("model")[0])
        with self._opened(weights) as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise PlanError(f"{self.label}: {weights} is not a GGUF file; {self._again()}")
        adapters = tuple(map(self._blob, manifest.of_kind("adapter")))
        warnings = []
        if adapters:
            warnings.append(
                f"{self.label}: comes with {len(adapters)} LoRA adapter(s), applied before merging, as Ollama does"
            )
        if manifest.of_kind("projector"):
            warnings.append(
                f"{self.label}: its projector (for images or sound) takes no part: the result takes text only"
            )
        return Located(weights, adapters, self._settings(manifest, config), tuple(warnings))

    def _check(self, manifest: Manifest, config: dict[str, Any]) -> None:
        if (host := config.get("remote_host")) and isinstance(host, str):
            raise PlanError(
                f"{self.label}: runs at {host}, its weights are not on this machine; use a model that is downloaded"
            )
        form = str(config.get("model_format") or "gguf")
        if form != "gguf" or manifest.of_kind("tensor"):
            form = form if form != "gguf" else "safetensors"
            raise PlanError(
                f"{self.label}: is kept as {form}, not as GGUF; pull a variant with a GGUF quantization, such as q4_K_M"
            )
        if (count := len(manifest.of_kind("model"))) != 1:
            raise PlanError(f"{self.label}: its manifest has {count} model layers instead of one; {self._again()}")
        if (count := len(manifest.of_kind("adapter"))) > _MAX_ADAPTERS:
            raise PlanError(f"{self.label}: its manifest has {count} adapters, more than any model; {self._again()}")
        if (size := sum(layer.size for kind in _TEXTS for layer in manifest.of_kind(kind))) > _MAX_TEXT:
            raise PlanError(f"{self.label}: its texts have {size} bytes, more than any model's; {self._again()}")

    def _settings(self, manifest: Manifest, config: dict[str, Any]) -> OllamaSettings:
        def texts(*kinds: str) -> list[str]:
            return [self._text(layer) for kind in kinds for layer in manifest.of_kind(kind)]

        parameters: dict[str, Any] = {}
        for layer in manifest.of_kind("params"):
            parameters |= {key: value for key, value in self._mapping(layer).items() if _is_parameter(value)}
        messages = [m for layer in manifest.of_kind("messages") for m in self._list(layer) if _is_message(m)]
        words = {k: v for k in ("renderer", "parser", "requires") if isinstance(v := config.get(k), str) and v}
        return OllamaSettings(
            template=next(iter(texts("template", "prompt")), None),
            system=next(iter(texts("system")), None),
            parameters=parameters,
            licenses=tuple(texts("license")),
            messages=tuple(messages),
            **words,
        )

    def _blob(self, layer: Layer) -> Path:
        """The file of a layer, which is there and of the size that the manifest says."""
        try:
            path = blob_path(self.root, layer.digest)
        except ValueError as error:
            raise PlanError(f"{self.label}: its manifest is damaged ({error}); {self._again()}") from None
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise PlanError(f"{self.label}: {path} is missing; {self._again()}") from None
        except OSError as error:
            raise self.unreadable(path, error) from None
        if size != layer.size:
            raise PlanError(f"{self.label}: {path} has {size} of {layer.size} bytes; {self._again()}")
        return path

    def _text(self, layer: Layer) -> str:
        with self._opened(self._blob(layer)) as file:
            text: bytes = file.read(layer.size)
        return text.decode("utf-8", "replace")

    def _mapping(self, layer: Layer) -> dict[str, Any]:
        content = self._json(layer)
        return content if isinstance(content, dict) else self._damaged(layer, "it is not a mapping")

    def _list(self, layer: Layer) -> list[Any]:
        content = self._json(layer)
        return content if isinstance(content, list) else self._damaged(layer, "it is not a list")

    def _json(self, layer: Layer) -> Any:
        if layer.size > _MAX_JSON:
            self._damaged(layer, f"it has {layer.size} bytes")
        try:
            return parse_json(self._text(layer))
        except ValueError as error:
            return self._damaged(layer, str(error))

    def _damaged(self, layer: Layer, why: str) -> NoReturn:
        raise PlanError(f"{self.label}: {blob_path(self.root, layer.digest)} is damaged ({why}); {self._again()}")

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        try:
            with open_regular(path) as file:
                yield file
        except OSError as error:
            raise self.unreadable(path, error) from None

    def _again(self) -> str:
        return f"get the model again with ollama pull {self.label.removeprefix('ollama:')}"

    def unreadable(self, path: Path, error: OSError) -> PlanError:
        if not isinstance(error, PermissionError):
            return PlanError(f"{self.label}: {path} cannot be read ({error.strerror}); check the disk")
        return PlanError(
            f"{self.label}: you may not read {path}; become a member of the group that owns it (sudo usermod -aG "
            f"ollama $USER, then log in again) or let yourself read it (sudo setfacl -R -m u:$USER:rX {self.root})"
        )


def _layer(value: Any) -> Layer:
    kind, digest, size = map(value.get, ("mediaType", "digest", "size")) if isinstance(value, dict) else (None,) * 3
    if not isinstance(kind, str) or not isinstance(digest, str) or type(size) is not int or size < 0:
        raise ValueError("a layer has no mediaType, digest or size")
    return Layer(kind, digest, size)


def _is_parameter(value: Any) -> bool:
    """Whether a value is one that PARAMETER lines can give: a word, a number, a switch, or a list of them."""
    return all(isinstance(item, (str, int, float)) for item in (value if isinstance(value, list) else [value]))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _advice(roots: list[Path], wanted: OllamaName) -> str:
    known = [name.removesuffix(f":{DEFAULT_TAG}") for root in roots for name in names(root)]
    if not known:
        return f"nothing is there; ollama pull {wanted} gets it"
    hint = nearest(str(wanted).removesuffix(f":{DEFAULT_TAG}"), known)
    if len(hint) >= 400:
        hint = "see ollama list"
    joint = " otherwise get it" if hint.endswith("?") else "; or get it"
    return f"{hint}{joint} with ollama pull {wanted}"


def _listed(paths: list[Path]) -> str:
    return " and ".join(map(str, paths))
