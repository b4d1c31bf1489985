"""Small questions to devices: in order, many at once only where a device is far away."""

import threading

import pytest

from tensorkeep.devices.forwarding import concurrency_of
from tensorkeep.devices.memory import MemoryDevice
from tensorkeep.runtime import ThreadWorkers
from tensorkeep.store.asking import ask_each


def test_as_many_are_asked_at_once_as_the_farthest_device_is_quickest_with(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = MemoryDevice("near"), MemoryDevice("far")
    assert concurrency_of([]) == 1
    assert concurrency_of([near, far]) == 1
    monkeypatch.setattr(type(far), "put_concurrency", 3, raising=False)
    assert concurrency_of([near, far]) == 3


@pytest.mark.parametrize("at_once", [0, 1])
def test_what_is_at_hand_is_asked_in_this_thread(at_once: int) -> None:
    threads = ask_each(ThreadWorkers(), at_once, range(5), lambda _: threading.get_ident())
    assert threads == [threading.get_ident()] * 5


def test_many_are_asked_at_once_and_answered_in_order() -> None:
    together = threading.Barrier(3, timeout=20)  # nobody gets through alone
    lots: list[int] = []

    def ask(number: int) -> int:
        together.wait()
        return number * 2

    assert ask_each(ThreadWorkers(), 3, range(6), ask, before=lambda: lots.append(1)) == [0, 2, 4, 6, 8, 10]
    assert len(lots) == 2


def test_an_error_ends_it() -> None:
    asked: list[int] = []

    def ask(number: int) -> None:
        asked.append(number)
        if number == 1:
            raise ValueError(number)

    for at_once in (1, 2):
        asked.clear()
        with pytest.raises(ValueError, match="1"):
            ask_each(ThreadWorkers(), at_once, range(6), ask)
        assert sorted(asked) == [0, 1]
