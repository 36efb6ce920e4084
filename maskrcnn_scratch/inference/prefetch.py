"""Work that threads do ahead of the one who asks for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int
) -> Generator[Future[R]]:
    """``function`` of each item, in their order, computed by ``threads`` before they are asked for.

    Each comes as a future: its ``result()`` waits, and raises what the function raised for that
    item alone. No more than ``ahead`` are waiting to be asked for, so memory is bounded and
    ``items`` may be endless. It is they who are read in the caller's thread.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
