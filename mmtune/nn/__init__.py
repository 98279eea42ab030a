"""Floor 1: pure modules and functions on tensors, each testable alone."""
