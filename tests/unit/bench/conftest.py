"""The bench's own tests measure nothing that matters: their turns need no memory from the host."""

import pytest

from bench import rounds


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "FETCHED_BYTES", 1 << 20)
