"""Concurrent calls whose results come in order and with bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from factory.files.threads import Threads

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(
    function: Callable[[T], R], arguments: Iterable[T], threads: int, ahead: int, name: str
) -> Iterator[tuple[T, R]]:
    """Call `function` in threads and yield (argument, result) in the order of the arguments.

    At most `ahead` calls are started before the first of their results is consumed, so the others continue while one
    is slow. `name` is that of the threads. An exception of a call is raised in place of its result, after the calls
    that have started. After Ctrl-C, these calls go on in the background: one that waits for a store could take an hour.
    """
    executor = Threads(threads, thread_name_prefix=name)
    pending, wait = deque[tuple[T, Future[R]]](), True
    try:
        for argument in arguments:
            pending.append((argument, executor.submit(function, argument)))
            if len(pending) == ahead:
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        executor.shutdown(wait, cancel_futures=True)
