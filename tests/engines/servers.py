"""Server processes of this machine for tests and benches: started, waited for, killed on purpose, and gone at the end.

Each runs under a guard (``guard.py``) that ends it together with an owner: the process that made it, or the test run that shares
it. So a server may be started by one process and ended by another, or by nobody. An engine is one or more servers that serve
together. Nothing here knows pytest: benches use it too.
"""

import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from tests.engines.guard import Order

HOST = "127.0.0.1"
_GUARD = Path(__file__).with_name("guard.py")
_FIRST_PORT, _LAST_PORT = 15_000, 32_000
"""Below the ports that the kernel gives to outgoing connections: a server that is started again finds its own free."""


class EngineError(Exception):
    """A server that did not start, or did not answer in time; the message ends with what it logged last."""


@dataclass(frozen=True, slots=True)
class Life:
    """Where an engine lives and with what it ends."""

    folder: Path
    owner: int
    run: Path | None = None  # the folder of a run that shares engines and ends them all; None: an engine of one's own


class Server:
    """One server process, which can be killed and started again."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        life: "Life",
        stop_signal: signal.Signals = signal.SIGKILL,
        user: str | None = None,
    ) -> None:
        """Describe a server; `start` starts it.

        Args:
            name: of the server, and of its log.
            argv: the command, which must stay in the foreground.
            life: whose, and where its log goes.
            stop_signal: what ends it, where it needs to know; after twenty seconds it is killed.
            user: whom it runs as; None: as this process.
        """
        self.name = name
        self.log = life.folder / f"{name}.log"
        self.pid = 0
        self._order = Order(
            owner=life.owner,
            argv=list(argv),
            folder=str(life.run or life.folder),
            log=str(self.log),
            stop_signal=stop_signal,
            user=user,
        )

    def start(self) -> None:
        """Start it, as it was started before; it may not answer yet."""
        started = subprocess.run(
            [sys.executable, "-I", "-S", str(_GUARD), json.dumps(self._order._asdict())],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if len(numbers := started.stdout.split()) != 2:
            raise EngineError(f"{self.name} was not started: {started.stderr.strip()}")
        self.pid = int(numbers[1])

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal; after SIGKILL, return when it is gone."""
        os.kill(self.pid, number)
        if number == signal.SIGKILL:
            wait_until_gone([self.pid])

    def alive(self) -> bool:
        """Return whether its process is there."""
        return is_alive(self.pid)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines that it logged."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def wait_until(self, answers: Callable[[], bool], *, limit_s: float) -> None:
        """Return when ``answers`` does, or raise `EngineError`: the server ended, or the limit passed."""
        end = time.monotonic() + limit_s
        while not answers():
            problem = None
            if not self.alive():
                problem = "ended"
            elif time.monotonic() > end:
                problem = f"did not answer in {limit_s:.0f} s"
            if problem:
                raise EngineError(f"{self.name} {problem}; its log ends with:\n{self.log_tail()}")
            time.sleep(0.05)


class Engine(ABC):
    """Servers that serve together, in a folder of their own; running when made."""

    NAME: ClassVar[str]

    def __init__(self, life: Life | None = None) -> None:
        """Make and start one; None: in a new folder, ending with this process."""
        self.life = life or Life(make_folder(self.NAME), os.getpid())
        self.folder = self.life.folder
        try:
            self._start_all()
        except BaseException:
            if self.life.run is None:
                self.stop()
            raise

    @classmethod
    @abstractmethod
    def is_installed(cls) -> bool:
        """Return whether this machine has its programs."""

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        """Give an engine of one's own, stopped at the end."""
        engine = cls()
        try:
            yield engine
        finally:
            engine.stop()

    def stop(self) -> None:
        """End it, with all others of its run if it is shared, and remove its folder."""
        end_all(self.life.run or self.folder)

    @abstractmethod
    def _start_all(self) -> None: ...


def is_alive(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: Sequence[int], *, limit_s: float = 30) -> None:
    """Return when none of these processes is there; raise `EngineError` at the limit."""
    end = time.monotonic() + limit_s
    for pid in pids:
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poll = select.poll()
            poll.register(process, select.POLLIN)
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                raise EngineError(f"process {pid} is still there after {limit_s:.0f} s")
        finally:
            os.close(process)


def children_of(pid: int) -> list[int]:
    """Return the processes that a process started itself."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return found


def make_folder(name: str) -> Path:
    """Make a new folder for an engine: short, as sockets need it, and open for the users that servers run as."""
    folder = Path(tempfile.mkdtemp(prefix=f"tensorkeep-{name}-"))
    folder.chmod(0o711)
    return folder


def end_all(folder: Path) -> None:
    """End every server of an engine's or a run's folder, whoever started it, and remove the folder."""
    guards = [int(path.name) for path in (folder / "guards").glob("[0-9]*") if _is_guard(int(path.name))]
    for guard in guards:
        try:
            os.kill(guard, signal.SIGTERM)
        except ProcessLookupError:
            continue
    try:
        wait_until_gone(guards, limit_s=120)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_guard(pid: int) -> bool:
    try:
        return _GUARD.name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on."""
    draw = random.SystemRandom()
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            free = socket.socket()
            try:
                free.bind((HOST, draw.randrange(_FIRST_PORT, _LAST_PORT)))
            except OSError:
                free.close()
            else:
                held.append(free)
        return [port.getsockname()[1] for port in held]
    finally:
        for port in held:
            port.close()


def accepts(port: int) -> bool:
    """Return whether something listens on a port of 127.0.0.1."""
    with socket.socket() as caller:
        caller.settimeout(1)
        return caller.connect_ex((HOST, port)) == 0


def find_program(name: str) -> str:
    """Return the path of a program, which may lie where only root looks; raise `EngineError` without it."""
    if not has_program(name):
        raise EngineError(f"{name} is not installed: run scripts/setup.sh dev as root")
    return str(shutil.which(name, path=_search_path()))


def has_program(name: str) -> bool:
    """Return whether a program is installed."""
    return shutil.which(name, path=_search_path()) is not None


def _search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def run(*argv: str | Path, user: str | None = None) -> str:
    """Run a program of an engine to its end and return its output; raise `EngineError` with what it said."""
    done = subprocess.run(
        [find_program(str(argv[0])), *map(str, argv[1:])],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        cwd="/",
    )
    if done.returncode:
        raise EngineError(f"{argv[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class S3Account:
    """How an S3 engine is reached: path style, no TLS."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"

    def client(self) -> Any:
        """Return boto3's client of this engine."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 10}),
        )

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its name."""
        self.client().create_bucket(Bucket=name)
        return name

    def device_url(self, bucket: str, prefix: str, *, credentials: str = "env:AWS") -> str:
        """Return the URL, in its canonical form, of a device whose objects lie under a prefix of a bucket."""
        return f"s3://{bucket}/{prefix}?credentials={credentials}&endpoint={self.endpoint}&region={self.region}"

    def environment(self, name: str = "AWS") -> dict[str, str]:
        """Return the variables that hold the credentials ``env:NAME``."""
        return {f"{name}_ACCESS_KEY_ID": self.access_key, f"{name}_SECRET_ACCESS_KEY": self.secret_key}

    def facts(self) -> dict[str, str]:
        """Return the fields, to be written down for another process."""
        return asdict(self)
