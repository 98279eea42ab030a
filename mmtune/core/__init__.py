"""Floor 0: plain values and rules that know neither a Hugging Face model nor a method."""
