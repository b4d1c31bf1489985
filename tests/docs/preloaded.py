"""``tensorkeep`` as a command that starts in less than half of the time: a process that has imported everything forks for each call.

Documents show a hundred commands, and an interpreter of its own takes most of a second to import what one needs. `serve` listens on a socket
and forks; `CLIENT` is the program that takes the command's place, hands over its arguments, folder, environment and standard streams, and exits with
its code. What a fresh interpreter does is tested in ``tests/e2e``.
"""

import importlib
import json
import os
import pkgutil
import socket
import sys
import threading
from pathlib import Path

import tensorkeep
from tensorkeep.cli.main import run

_NOT_OURS = tuple(f"tensorkeep.{room}" for room in ("__main__", "catalog.migrations.", "integrations.", "testing"))
"""Modules that no command needs, or that only others can import."""

CLIENT = """#!{python} -ISE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as near:
    near.connect({place!r})
    call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(near, [len(call).to_bytes(8, "little")], [0, 1, 2])
    near.sendall(call)
    code = near.recv(1)
sys.exit(code[0] if code else 99)
"""


def write_client(folder: Path, place: Path) -> None:
    """Write the program that takes the command's place."""
    program = folder / "tensorkeep"
    program.write_text(CLIENT.format(python=sys.executable, place=str(place)))
    program.chmod(0o755)


def serve(place: str) -> None:
    """Answer calls until the process is ended. It has one thread, so that forking is safe."""
    for module in pkgutil.walk_packages(tensorkeep.__path__, "tensorkeep."):
        if not module.name.startswith(_NOT_OURS):
            importlib.import_module(module.name)
    assert threading.active_count() == 1
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(64)
        print("listening", flush=True)
        while True:
            near, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(near)
            near.close()
            while _reap():
                pass


def _reap() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _answer(near: socket.socket) -> None:
    """Run one call in a child, which ends as any command does, and say how it ended."""
    head, streams, _, _ = socket.recv_fds(near, 8, 3)
    call = bytearray()
    while len(call) < int.from_bytes(head, "little"):
        call += near.recv(1 << 16)
    words, folder, environment = json.loads(call)
    child = os.fork()
    if child == 0:
        near.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["tensorkeep", *words]
        run()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    near.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
