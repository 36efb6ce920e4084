"""Computes results in threads before they are requested."""

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
    """Applies ``function`` to each item in a pool of ``threads``; yields futures in item order.

    ``result()`` of a future blocks until that item is done and raises what the function raised for
    it. At most ``ahead`` items are computed in advance, so memory is bounded and ``items`` may be
    infinite. ``items`` is iterated in the caller's thread.
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
