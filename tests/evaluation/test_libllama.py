"""Finding llama.cpp, and telling a build that can be used from one that cannot."""

from __future__ import annotations

import ctypes
import importlib
import pathlib
import sys

import pytest

from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation import libllama

load = libllama.library.__wrapped__  # without the cache


def test_without_llama_cpp_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optional extra is named when it is missing."""
    monkeypatch.delenv(libllama.VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.delitem(sys.modules, "xllamacpp.xllamacpp", raising=False)
    with pytest.raises(GgufmergeError, match=r"pip install 'ggufmerge\[llama\]'"):
        load()


def test_another_build_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable has the path of the library to use."""
    path = importlib.import_module("xllamacpp.xllamacpp").__file__
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setenv(libllama.VARIABLE, path)
    assert load()._name == str(pathlib.Path(path).resolve())


@pytest.mark.parametrize("name", ["absent.so", "text.so"])
def test_a_path_without_a_library_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A missing file and one that is no library are named in the error."""
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setenv(libllama.VARIABLE, str(tmp_path / name))
    with pytest.raises(GgufmergeError, match=rf"{libllama.VARIABLE}: cannot load .*{name}"):
        load()


def test_a_library_without_llama_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that does not export llama.cpp's functions, as the extension module on Windows, is refused."""
    monkeypatch.setenv(libllama.VARIABLE, importlib.import_module("_ctypes").__file__)
    with pytest.raises(GgufmergeError, match="does not export llama_"):
        load()


@pytest.mark.parametrize("struct", ["ModelParams", "ContextParams"])
def test_a_release_with_other_parameters_is_refused(monkeypatch: pytest.MonkeyPatch, struct: str) -> None:
    """When the defaults show another struct layout, nothing is called with it."""
    fields = [("inserted", ctypes.c_uint64), *getattr(libllama, struct)._fields_]
    monkeypatch.setattr(libllama, struct, type("Shifted", (ctypes.Structure,), {"_fields_": fields}))
    with pytest.raises(GgufmergeError, match="has another llama_"):
        load()
