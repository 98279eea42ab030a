"""The rows of all sources in blocks, and blocks made into parts by one process or several."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context

from mmtune.core.errors import ResourceError
from mmtune.data.intake import Choice, Source
from mmtune.data.parts import Block, FolderParts, PartMaker
from mmtune.data.reading import JsonText, RawRow

_BLOCK_ROWS, _BLOCK_BYTES = 1024, 1 << 24
_EMBED_ROWS = 64  # rows whose files are read into memory at once
Progress = Callable[[int, "int | None"], None]


def blocks(sources: Sequence[Source], choice: Choice, num_rows: int = _BLOCK_ROWS) -> Iterator[Block]:
    """The rows of all sources that are taken, cut into blocks that fit into memory."""
    block: list[tuple[int, int, RawRow]] = []
    size = 0
    for entry in choice.rows(sources):
        block.append(entry)
        size += _size(entry[2].value)
        if len(block) >= num_rows or size >= _BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _size(value: object) -> int:
    if isinstance(value, JsonText):
        return len(value.text)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, bytes | str) else 8


def make_parts(maker: PartMaker, choice: Choice, *, workers: int, progress: Progress | None) -> FolderParts:
    """Make all parts that are not there yet; the result does not depend on the number of workers."""
    parts = FolderParts(maker.folder)
    counted = 0

    def told(number: int) -> None:
        nonlocal counted
        counted += number
        if progress is not None:
            progress(counted, None)

    num_rows = _EMBED_ROWS if maker.judge.embed else _BLOCK_ROWS
    numbered = enumerate(blocks(maker.judge.sources, choice, num_rows))
    first = list(islice(numbered, 2))
    everything = chain(first, numbered)
    if workers < 2 or len(first) < 2:
        for number, block in everything:
            told(len(block) if parts.is_whole(number) else maker.make(number, block))
        return parts
    waiting: deque[Future[int]] = deque()
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(maker, os.getpid())) as pool:
        try:
            for number, block in everything:
                if parts.is_whole(number):
                    told(len(block))
                    continue
                waiting.append(pool.submit(_make, number, block))
                if len(waiting) >= 2 * workers:
                    told(waiting.popleft().result())
            while waiting:
                told(waiting.popleft().result())
        except BrokenProcessPool as error:
            raise ResourceError(
                "A worker process ended, most likely for lack of memory.", fix="run it again with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return parts


_maker: PartMaker | None = None


def _start(maker: PartMaker, parent: int) -> None:
    """Prepare a worker: it leaves Ctrl-C to its parent, and does not outlive it."""
    global _maker
    _maker = maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make(number: int, block: Block) -> int:
    if _maker is None:
        raise ResourceError("The worker was not started.", fix="run it again")
    return _maker.make(number, block)
