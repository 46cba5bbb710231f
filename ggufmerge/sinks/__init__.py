"""Where results go to besides their file: Modelfiles, an Ollama store, an Ollama server."""

from ggufmerge.sinks.modelfile import modelfile_path, write_modelfile
from ggufmerge.sinks.ollama_api import Installed
from ggufmerge.sinks.ollama_place import destination, install
from ggufmerge.sinks.settings import inherited, refusals

__all__ = ["Installed", "destination", "inherited", "install", "modelfile_path", "refusals", "write_modelfile"]
