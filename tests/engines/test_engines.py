"""Engines end with what started them, however that ends, and keep what they acknowledged when they are killed."""

import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from tests.engines.ceph import Ceph
from tests.engines.fixtures import PostgresAccount
from tests.engines.postgres import Postgres
from tests.engines.servers import EngineError, Life, S3Account, Server, end_all, make_folder, wait_until_gone

REPOSITORY = Path(__file__).parents[2]

HANGING_TEST = """
import signal
from pathlib import Path

def test_that_never_ends(request):
    engine = request.getfixturevalue({fixture!r})
    Path({told!r}).write_text("ready")
    signal.pause()
"""


class HangingRun:
    """A pytest of its own whose only test waits for ever, with an engine started."""

    def __init__(self, folder: Path, fixture: str, *options: str) -> None:
        told = folder / "told"
        os.mkfifo(told)
        (folder / "conftest.py").write_text('pytest_plugins = ["tests.engines.fixtures"]')
        (folder / "test_hanging.py").write_text(HANGING_TEST.format(fixture=fixture, told=str(told)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(folder / "test_hanging.py")],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.folder = Path(tempfile.gettempdir(), f"tensorkeep-run-{self.process.pid}")
        try:
            self._wait_for(told)
        except BaseException:
            self.process.kill()
            self.process.communicate()
            raise
        self.guards = [int(path.name) for path in (self.folder / "guards").iterdir()]
        self.servers = [
            int(pid) for one in self.guards for pid in Path(f"/proc/{one}/task/{one}/children").read_text().split()
        ]

    def _wait_for(self, told: Path) -> None:
        poll = select.poll()
        reader = os.open(told, os.O_RDONLY | os.O_NONBLOCK)
        for descriptor in (reader, os.pidfd_open(self.process.pid)):
            poll.register(descriptor, select.POLLIN)
        poll.poll(120_000)
        assert os.read(reader, 100) == b"ready"

    def end(self, number: signal.Signals) -> None:
        """Send a signal; return when the guards and the servers are gone."""
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        wait_until_gone(self.guards + self.servers)


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "xdist"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_no_server_outlives_a_test_run(number: signal.Signals, options: tuple[str, ...], tmp_path: Path) -> None:
    run = HangingRun(tmp_path, "postgres_server", *options)
    assert len(run.servers) == 1
    run.end(number)
    assert not run.folder.exists()


@pytest.mark.soak
def test_no_ceph_outlives_a_test_run_that_is_killed(tmp_path: Path) -> None:
    run = HangingRun(tmp_path, "ceph")
    assert len(run.servers) == 3
    run.end(signal.SIGKILL)
    assert not run.folder.exists()


def test_a_killed_guard_takes_its_server_along() -> None:
    with Postgres.running() as postgres:
        [one] = (postgres.folder / "guards").iterdir()
        os.kill(int(one.name), signal.SIGKILL)
        wait_until_gone([postgres.server.pid])


def test_what_a_server_forked_ends_with_it() -> None:
    life = Life(make_folder("test"), os.getpid())
    program = "import os, signal; print(os.getpid(), os.fork(), flush=True); signal.pause()"
    server = Server("parent", [sys.executable, "-c", program], life=life)
    server.start()
    server.wait_until(lambda: len(server.log_tail().split()) == 4, limit_s=60)
    pids = {int(word) for word in server.log_tail().split()} - {0}
    assert len(pids) == 2
    end_all(life.folder)
    wait_until_gone(list(pids))


def test_a_server_that_does_not_start_says_what_it_logged() -> None:
    life = Life(make_folder("test"), os.getpid())
    server = Server("liar", [sys.executable, "-c", "print('no port for me'); raise SystemExit(3)"], life=life)
    try:
        server.start()
        with pytest.raises(EngineError, match="liar ended; its log ends with:\nno port for me"):
            server.wait_until(lambda: False, limit_s=60)
        with pytest.raises(EngineError, match=r"ghost was not started: \[Errno 2\] .*/no/such/program"):
            Server("ghost", ["/no/such/program"], life=life).start()
    finally:
        end_all(life.folder)
    assert not life.folder.exists()


def test_postgres_keeps_its_rows_when_it_is_killed() -> None:
    with Postgres.running() as postgres:
        url = postgres.make_database()
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        postgres.kill_postmaster()
        assert not postgres.server.alive()
        postgres.start()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT number FROM kept").fetchone() == (7,)
            assert connection.execute("SHOW data_checksums").fetchone() == ("on",)


def test_ceph_keeps_its_objects_when_gateway_and_osd_are_killed() -> None:
    with Ceph.running() as ceph:
        client = ceph.s3.client()
        ceph.make_bucket("bucket")
        client.put_object(Bucket="bucket", Key="key", Body=b"kept")
        for name in ("osd", "rgw"):
            ceph.kill(name)
            assert not ceph.servers[name].alive()
            ceph.start(name)
        assert client.get_object(Bucket="bucket", Key="key")["Body"].read() == b"kept"


def test_tests_share_servers_and_have_databases_of_their_own(
    database: str, postgres_server: PostgresAccount, ceph: S3Account, ceph_bucket: str
) -> None:
    assert postgres_server.make_database("another") != database
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM pg_stat_user_tables").fetchone() == (0,)
    postgres_server.drop_database("another")
    assert ceph_bucket in [bucket["Name"] for bucket in ceph.client().list_buckets()["Buckets"]]
