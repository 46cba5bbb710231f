"""Where models are kept: folders, Ollama, the Hugging Face Hub, other programs; to be found there or put there."""
