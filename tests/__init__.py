"""The tests mirror the package; ``tests.tiny`` makes the models they share."""
