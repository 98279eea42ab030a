"""Floor 5: checks that a third party runs on its own method or modality."""
