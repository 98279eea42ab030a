"""Floor 2: a uniform view of any Hugging Face transformer."""
