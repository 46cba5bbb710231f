"""The Hugging Face Hub: models downloaded, found in its cache, and uploaded."""
