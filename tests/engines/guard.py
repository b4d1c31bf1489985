"""Runs one server and ends it with its owner: a script of its own, of the standard library only.

A test run may end by any signal, kill -9 too, and then nothing of it can clean up. So each server is the child of a guard, a
process that outlives the run for a moment: it waits for the owner (by a pidfd, which no later process with the same number can
fool), for the server, and for SIGTERM, and whichever comes first, it leaves with the server ended. The last guard to
leave removes the folder, unless a test ended the server. Killed itself, it takes the server along: the kernel signals the child.

Usage: ``guard.py JSON`` with the fields of `Order`; prints the process numbers of guard and server, and returns at once.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

_GRACE_S = 20.0
_PR_SET_PDEATHSIG = 1


class Order(NamedTuple):
    """What a guard is to do."""

    owner: int  # the process with which all ends
    argv: list[str]
    folder: str  # what is removed at last: an engine's, or that of a run with all its engines
    log: str
    stop_signal: int
    user: str | None  # None: as the guard runs


def main(order: Order) -> None:
    """Start the server, say its number, and stay until it is to end."""
    owner = os.pidfd_open(order.owner)
    guards = Path(order.folder, "guards")
    guards.mkdir(exist_ok=True)
    if os.fork():
        os._exit(0)  # who started this waits for its output, not for it
    os.setsid()
    told: list[int] = []

    def leave(number: int, _: object) -> None:
        told.append(number)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    mine = guards / str(os.getpid())
    mine.touch()
    try:
        server = _start(order)
    except OSError as error:
        mine.unlink()
        sys.exit(str(error))
    try:
        print(os.getpid(), server.pid, flush=True)
        _close_output()
        _wait_for_any(owner, os.pidfd_open(server.pid))
    finally:
        _end(server, order.stop_signal)
        mine.unlink(missing_ok=True)
        if (told or _is_over(owner)) and not any(guards.iterdir()):
            shutil.rmtree(order.folder, ignore_errors=True)


def _start(order: Order) -> "subprocess.Popen[bytes]":
    def follow_guard() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, order.stop_signal)

    as_user: dict[str, Any] = (
        {} if order.user is None else {"user": order.user, "group": order.user, "extra_groups": []}
    )
    with open(order.log, "ab") as log:
        return subprocess.Popen(
            order.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in a terminal is for the tests
            preexec_fn=follow_guard,
            **as_user,
        )


def _close_output() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def _wait_for_any(*processes: int) -> None:
    poll = select.poll()
    for process in processes:
        poll.register(process, select.POLLIN)
    poll.poll()


def _is_over(process: int) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


def _end(server: "subprocess.Popen[bytes]", stop_signal: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server.send_signal(stop_signal)
    server.send_signal(signal.SIGCONT)  # a stopped one would not hear
    try:
        server.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # what it forked


if __name__ == "__main__":
    main(Order(**json.loads(sys.argv[1])))
