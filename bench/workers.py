"""Contenders in processes of their own: started, asked, checked, and ended whatever happens.

A worker is `bench/contenders/worker.py`, run by tensorkeep's own Python or by that of `.bench/contenders`. What it loads is
compared by a hash over all tensors with what the source's files hold: a contender that loads other bytes is not measured.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from bench.contenders.worker import checksum
from bench.rounds import ContenderFailed, Round, Turn
from bench.tensors import read_header
from bench.work import ROOT, WORK

THEIR_PYTHON = WORK / "contenders" / "bin" / "python"
WORKER = ROOT / "bench" / "contenders" / "worker.py"
TIMEOUT_S = 300.0


class Worker:
    """A contender's process, started when first asked."""

    def __init__(self, name: str, actions: str, python: Path = THEIR_PYTHON) -> None:
        """Remember who it is: ``actions`` is ``module:name`` of its actions."""
        self.name = name
        self._command = [str(python), str(WORKER), actions]
        self._process: subprocess.Popen[bytes] | None = None
        self._log = WORK / "logs" / f"{xxhash.xxh3_64_hexdigest(name.encode())[:8]}-{actions.rpartition(':')[2]}.log"
        self._pending = b""

    def ask(self, do: str, **words: object) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            ContenderFailed: the action raised, the process died, or it did not answer in time.
        """
        process = self._started()
        assert process.stdin is not None
        request = {"do": do} | {key: str(word) if isinstance(word, Path) else word for key, word in words.items()}
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed("died") from error
        answer: dict[str, Any] = json.loads(self._line(process))
        if "error" in answer:
            raise ContenderFailed(self.name, f"{do}: {_without_root(answer['error'])}")
        return answer

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
                )
            self._pending = b""
        return self._process

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        deadline = time.monotonic() + TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(deadline - time.monotonic()):
                    raise self._failed(f"did not answer in {TIMEOUT_S:.0f} s")
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    raise self._failed("died")
                self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _failed(self, what: str) -> ContenderFailed:
        self.close()
        lines = self._log.read_text("utf-8", errors="replace").strip().splitlines()
        return ContenderFailed(self.name, f"{what}: {_without_root(lines[-1]) if lines else 'it said nothing'}")


def _without_root(text: str) -> str:
    """Return what a contender said without where this checkout lies: results are kept and shown."""
    return text.replace(f"{ROOT}/", "")


def ours(name: str = "tensorkeep", actions: str = "bench.contenders.ours:ours") -> Worker:
    """Return a worker of tensorkeep itself, in its own environment."""
    return Worker(name, actions, Path(sys.executable))


@contextlib.contextmanager
def running(*workers: Worker) -> Iterator[None]:
    """End workers when the block ends."""
    try:
        yield
    finally:
        for worker in workers:
            worker.close()


def loading(
    worker: Worker, expected: str, prepare: Callable[[], object], words: Mapping[str, object], name: str | None = None
) -> Turn:
    """Return the turn of a worker that loads; its answer must have the checksum of the model."""
    return Turn(name or worker.name, lambda: checked(worker, expected, worker.ask("load", **words)), prepare)


def doing(
    worker: Worker, do: str, prepare: Callable[[], object], words: Mapping[str, object], name: str | None = None
) -> Turn:
    """Return the turn of a worker that does something else; whoever calls checks what it did."""
    return Turn(name or worker.name, lambda: as_round(worker.ask(do, **words)), prepare)


def checked(worker: Worker, expected: str, answer: Mapping[str, Any]) -> Round:
    """Return the round of an answer.

    Raises:
        ContenderFailed: it loaded other bytes than expected.
    """
    if answer.get("checksum") != expected:
        raise ContenderFailed(worker.name, f"loaded wrong bytes: checksum {answer.get('checksum')}, not {expected}")
    return as_round(answer)


def as_round(answer: Mapping[str, Any]) -> Round:
    """Return the figures of an answer."""
    return Round(answer["seconds"], answer["cpu_seconds"], answer["peak_bytes"])


def expected_checksum(source: Path) -> str:
    """Return the checksum of a folder's safetensors files, read by `bench.tensors` and no library."""
    import numpy as np  # noqa: PLC0415

    tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        data = np.memmap(path, np.uint8, "r")
        for spec, start in read_header(path).items():
            tensors[spec.name] = data[start : start + spec.size_bytes]
    return checksum(tensors)
