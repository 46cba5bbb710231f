"""Ollama: names, its store read and written, its server, and how its models are prompted."""
