"""The catalog's part of writing objects, for all batches of a push together.

A transaction of SQLite costs several fsyncs on a disk that is busy with parts. So one thread at a time runs one for all that
wait: it stages what they are about to upload and records what was uploaded since the last one. The invariant stands: rows
exist before an upload starts. What is not recorded yet when a push is killed is sent again by the next.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from tensorkeep.catalog.protocol import Catalog, Location, ObjectRequest, Staging
from tensorkeep.errors import Internal, TensorkeepError
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import Failpoints

_MOST_BYTES = 128 * MIB


class _Ticket:
    """What one batch waits for."""

    def __init__(self, requests: Sequence[ObjectRequest], down: frozenset[str]) -> None:
        self.requests = requests
        self.down = down
        self.size_bytes = sum(request.size_bytes for request in requests)
        self.answer: Future[list[Staging]] = Future()


class StagingQueue:
    """Stages and records for one push session. Thread safe."""

    def __init__(self, catalog: Catalog, session: str, *, allow_soft: bool, failpoints: Failpoints) -> None:
        self._catalog = catalog
        self._session = session
        self._allow_soft = allow_soft
        self._failpoints = failpoints
        self._changed = threading.Condition()
        self._waiting: list[_Ticket] = []
        self._stored: list[Location] = []
        self._late: list[Location] = []
        self._running = False

    def stage(self, requests: Sequence[ObjectRequest], *, down: frozenset[str]) -> list[Staging]:
        """Return places for objects; see `Catalog.stage`."""
        ticket = _Ticket(requests, down)
        with self._changed:
            self._waiting.append(ticket)
        self._run_until(ticket)
        return ticket.answer.result()

    def note_stored(self, locations: Sequence[Location]) -> None:
        """Have these rows recorded as stored by the next transaction: their bytes are durable."""
        with self._changed:
            self._stored += locations

    def record(self) -> None:
        """Return when everything noted before is recorded."""
        with self._changed:
            while self._running:
                self._changed.wait()
            if not self._stored:
                return
            self._running = True
            stored, self._stored = self._stored, []
        self._run([], stored)

    def take_late(self) -> list[Location]:
        """Return, once, the rows that gc has given up before they were recorded; whoever put them deletes them."""
        with self._changed:
            late, self._late = self._late, []
        return late

    def _run_until(self, ticket: _Ticket) -> None:
        """Run transactions for all that wait, unless another thread does, until one had this ticket."""
        while True:
            with self._changed:
                while self._running and not ticket.answer.done():
                    self._changed.wait()
                if ticket.answer.done():
                    return
                self._running = True
                tickets = self._next_tickets()
                stored, self._stored = self._stored, []
            self._run(tickets, stored)

    def _next_tickets(self) -> list[_Ticket]:
        """Take those that wait and agree on which devices are down, from the first, up to the most bytes of one call."""
        taken, size = [self._waiting.pop(0)], 0
        size += taken[0].size_bytes
        while self._waiting and self._waiting[0].down == taken[0].down:
            size += self._waiting[0].size_bytes
            if size > _MOST_BYTES:
                break
            taken.append(self._waiting.pop(0))
        return taken

    def _run(self, tickets: Sequence[_Ticket], stored: Sequence[Location]) -> None:
        unrecorded = list(stored)
        try:
            answers, late = self._transact(tickets, [location.id for location in stored])
            unrecorded = []
            with self._changed:
                self._late += [location for location in stored if location.id in late]
            for ticket in tickets:
                count = len(ticket.requests)
                ticket.answer.set_result(answers[:count])
                answers = answers[count:]
        except TensorkeepError as error:
            for ticket in tickets:
                ticket.answer.set_exception(error)
            if not tickets:
                raise
        finally:
            with self._changed:
                for ticket in tickets:
                    if not ticket.answer.done():  # a bug, or an interrupt: who waits must not wait for ever
                        ticket.answer.set_exception(Internal("the catalog's transaction for this batch was broken off"))
                self._stored = unrecorded + self._stored  # for a later transaction: recording twice does no harm
                self._running = False
                self._changed.notify_all()

    def _transact(self, tickets: Sequence[_Ticket], stored: Sequence[int]) -> tuple[list[Staging], list[int]]:
        requests = [request for ticket in tickets for request in ticket.requests]
        if requests:
            down = sorted(tickets[0].down)
            answers, late = self._catalog.stage_and_record(
                self._session, requests, stored, down=down, allow_soft=self._allow_soft
            )
            self._failpoints.hit("push.staged")
        else:
            answers, late = [], self._catalog.record_stored(self._session, stored)
        if stored:
            self._failpoints.hit("push.part_recorded")
        return answers, late
