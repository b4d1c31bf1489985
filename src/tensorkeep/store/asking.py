"""Asking devices many small things: one after the other where they are at hand, many at once where each answer is a journey.

Threads that each read a little from a local disk wait for the interpreter longer than for the disk: a rebuild took four times as long.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from tensorkeep.runtime import Workers

N = TypeVar("N")
T = TypeVar("T")


def ask_each(
    workers: Workers,
    concurrency: int,
    found: Sequence[N],
    ask: Callable[[N], T],
    *,
    before: Callable[[], object] = lambda: None,
) -> list[T]:
    """Return what is answered for each, in order. ``before`` is called, in this thread, ahead of each lot.

    The first error ends it, once what was asked with it has been answered.
    """
    answers: list[T] = []
    if concurrency <= 1:
        for each in found:
            before()
            answers.append(ask(each))
        return answers
    with workers.open_pool(concurrency, "ask") as pool:
        for start in range(0, len(found), concurrency):
            before()
            asked = [pool.submit(ask, each) for each in found[start : start + concurrency]]
            answers += [answer.result() for answer in asked]
    return answers
