"""Scorers of public benchmarks: pure functions from texts to verdicts, each equal to the reference it names."""
