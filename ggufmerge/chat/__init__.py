"""Chat templates: the known ones by name, what one of a file writes, and the same in Ollama's template language."""
