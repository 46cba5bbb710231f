"""What models and adapters are read from besides GGUF files: checkpoints of Hugging Face, PEFT, importance matrices."""
