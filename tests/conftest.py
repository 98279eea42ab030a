"""Loaded first, which puts the repository root on the path, so that every test can import ``tests.tiny``."""

import signal

# A shell that starts the tests in the background has them ignore Ctrl-C, and their child processes too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
