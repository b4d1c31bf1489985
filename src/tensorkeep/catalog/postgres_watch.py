"""Sessions that find out when their server stands still.

A server whose processes were stopped, or whose machine has frozen, keeps its connections: its kernel goes on taking what is sent, so that
neither keepalives nor TCP's timeouts end them, and the statement's timeout is the silent server's own. So whoever has waited for long
asks whether the server still takes connections; a statement that is merely slow, or waits for a lock, is waited for.
"""

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

ASK_AFTER_S = 20.0
"""How long an answer may take before a new connection is asked for; again after that."""

_INTERVAL_S = 0.1  # how often psycopg looks for an interrupt

T = TypeVar("T")


class WatchedConnection(psycopg.Connection[Any]):
    """A connection whose statements end in an error once the server takes no other within its ``connect_timeout``."""

    def wait(self, gen: PQGen[T], interval: float = _INTERVAL_S, timeout: float | None = None) -> T:
        """Return what a conversation with the server comes to; see `psycopg.Connection.wait`.

        Raises:
            psycopg.OperationalError: the server stands still; the connection is closed.
        """
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        while True:
            try:
                return super().wait(gen, interval, ASK_AFTER_S)
            except psycopg.errors._WaitTimeout:
                if not self._is_answered():
                    self.pgconn.finish()
                    raise psycopg.OperationalError(
                        f"the server has not answered for {ASK_AFTER_S:g} s, and takes no new connection"
                    ) from None

    def _is_answered(self) -> bool:
        """Return whether the server takes connections, or refuses them."""
        words: dict[str, Any] = {**self.info.get_parameters(), "password": self.info.password}
        try:
            psycopg.connect(**words).close()
        except psycopg.errors.ConnectionTimeout:
            return False
        except psycopg.OperationalError:
            return True
        return True
