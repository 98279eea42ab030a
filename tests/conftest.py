"""Loaded first, which puts the repository root on the path, so that every test can import ``tests.tiny``."""

import os
import signal
import tempfile

# A shell that starts the tests in the background has them ignore Ctrl-C, and their child processes too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Data that tests prepare on the fly must not end up in the user's cache, nor must they find anything there.
_CACHE = tempfile.TemporaryDirectory(prefix="mmtune-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
