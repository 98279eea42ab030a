"""Loaded first, which puts the repository root on the path, so that every test can import ``tests.tiny``."""
