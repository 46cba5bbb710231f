"""What else is made of a finished file, for `build(sinks=[...])`: a Modelfile, a model in Ollama, an upload, ..."""

from ggufmerge.sinks.homes import HomesSink
from ggufmerge.sinks.hub import CardSink, HubSink
from ggufmerge.sinks.ollama import OllamaSink
from ggufmerge.sinks.projector import ProjectorSink
from ggufmerge.sinks.report import ReportSink
from ggufmerge.sinks.telling import Telling

__all__ = ["CardSink", "HomesSink", "HubSink", "OllamaSink", "ProjectorSink", "ReportSink", "Telling"]
