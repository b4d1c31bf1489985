"""Running a transaction again as a whole: when it lost a race, or its connection.

A transaction that the server has undone (deadlock, serialization failure, a row that another one made or removed first) is
run again after a short random pause, a bounded number of times. A lost connection is tried again for some seconds. Where it
was lost in the COMMIT nobody knows what happened: a repeatable transaction is run again, of any other the server is asked.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tensorkeep.errors import Unavailable
from tensorkeep.runtime import Runtime

RACES = 20
"""Most times that a transaction is run again because it lost a race."""

PATIENCE_S = 20.0
"""How long a lost connection is tried again."""

_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 1.0

Answer = TypeVar("Answer")
Loss = Literal["race", "connection"]


class Restart(Exception):
    """Raised by a step that finds that another transaction came between: undo this one and run it again."""


@dataclass(slots=True)
class Attempt:
    """How far one run of a transaction came: ``number`` is the server's for it, ``committing`` once COMMIT may be sent."""

    number: str | None = None
    committing: bool = False
    answer: Any = None


class Retries(Protocol):
    """How transactions of one kind of database are run."""

    def run(
        self,
        attempt: Callable[[Attempt], Answer],
        *,
        repeatable: bool,
        connect: Callable[[], AbstractContextManager[Connection]],
    ) -> Answer:
        """Return an attempt's answer, running it again where that is right."""

    def transaction_number(self, connection: Connection) -> str | None:
        """Return what the server can later be asked about, or None."""


class NoRetries:
    """SQLite: a transaction waits for its lock, and has no connection to lose."""

    def run(
        self,
        attempt: Callable[[Attempt], Answer],
        *,
        repeatable: bool,  # noqa: ARG002 - the protocol's
        connect: Callable[[], AbstractContextManager[Connection]],  # noqa: ARG002
    ) -> Answer:
        """Run it once."""
        return attempt(Attempt())

    def transaction_number(self, connection: Connection) -> str | None:  # noqa: ARG002 - the protocol's
        """Nobody will ask."""
        return None


class ServerRetries:
    """PostgreSQL: see the module. ``classify`` says what an error of the driver means, ``name`` what messages call the catalog."""

    def __init__(self, runtime: Runtime, classify: Callable[[BaseException], Loss | None], name: str = "") -> None:
        self._name = name
        self._clock = runtime.clock
        self._randomness = runtime.randomness
        self._classify = classify

    def run(
        self,
        attempt: Callable[[Attempt], Answer],
        *,
        repeatable: bool,
        connect: Callable[[], AbstractContextManager[Connection]],
    ) -> Answer:
        """Return an attempt's answer."""
        races = losses = 0
        first_loss_s: float | None = None
        while True:
            state = Attempt()
            try:
                return attempt(state)
            except Restart:
                races += 1
                if races > RACES:
                    raise Unavailable("other transactions came between too often: try again") from None
            except DBAPIError as error:
                loss = self._classify(error.orig or error)
                races += loss == "race"
                losses += loss == "connection"
                if loss == "connection" and state.committing and not repeatable and self._has_happened(state, connect):
                    answer: Answer = state.answer
                    return answer
                now_s = self._clock.monotonic_s()
                first_loss_s = now_s if first_loss_s is None else first_loss_s
                if loss is None or races > RACES or now_s - first_loss_s > PATIENCE_S:
                    raise
            self._pause(races + losses)

    def transaction_number(self, connection: Connection) -> str | None:
        """Return the number of the connection's transaction."""
        return str(connection.execute(text("SELECT pg_current_xact_id()::text")).scalar_one())

    def _has_happened(self, state: Attempt, connect: Callable[[], AbstractContextManager[Connection]]) -> bool:
        """Return whether a transaction has committed whose COMMIT got no answer.

        Raises:
            Unavailable: the server can't be asked, or does not know (any more).
        """
        began_s = self._clock.monotonic_s()
        tries = 0
        while self._clock.monotonic_s() - began_s <= PATIENCE_S:
            tries += 1
            try:
                with connect() as connection:
                    query = text("SELECT pg_xact_status(CAST(:number AS xid8))")
                    status = connection.execute(query, {"number": state.number}).scalar()
            except DBAPIError as error:
                if self._classify(error.orig or error) is None:
                    raise
                status = "unknown"
            if status in {"committed", "aborted"}:
                return bool(status == "committed")
            self._pause(tries)
        raise Unavailable(
            f"the connection to the catalog {self._name} was lost while it committed, and nobody could be asked what became of it: "
            "look whether the change is there before you repeat it",
            reason="unknown_outcome",
        )

    def _pause(self, tries: int) -> None:
        longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries, 10))
        self._clock.sleep(longest_s * (0.5 + self._randomness.uniform() / 2))
