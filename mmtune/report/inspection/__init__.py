"""What ``mmtune inspect`` shows of data, checkpoints and runs: an object of numbers, and a page."""
