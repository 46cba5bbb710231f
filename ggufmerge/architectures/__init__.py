"""What is known of the architectures of language models: their tensors, the kinds of their layers, and their names."""
