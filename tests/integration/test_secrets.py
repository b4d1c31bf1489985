"""Keys, passwords and signatures appear nowhere: not in output, errors, logs, the catalog, the journal or a cache.

A store on Ceph is used through the command line and the library, well and badly, with keys that can't be mistaken; then
everything that was printed, raised, logged or kept is searched.
"""

import io
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psycopg
import pytest
import zstandard
from psycopg.sql import SQL, Identifier
from safetensors.numpy import save_file

import tensorkeep
from tensorkeep.cli.main import main
from tensorkeep.devices import innermost
from tensorkeep.devices.object_store import ObjectStoreDevice
from tensorkeep.errors import PermissionDenied, TensorkeepError
from tests.engines.servers import S3Account

WRONG = "wJalrXUtnFEMIUNMISTAKABLE"
TOKEN = "FwoGZXIvYXdzUNMISTAKABLE"
MARKS = (
    "UNMISTAKABLE",
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "AWS4-HMAC-SHA256",
    "Signature=",
)


class Evidence:
    """Everything that a user, a log or a disk could show, with where it came from."""

    def __init__(self, *secrets: str) -> None:
        self._secrets = [mark.encode() for mark in (*MARKS, *secrets)]
        self.kept: dict[str, bytes] = {}

    def keep(self, where: str, what: bytes | str) -> None:
        data = what.encode() if isinstance(what, str) else what
        if data.startswith(zstandard.FRAME_HEADER):
            data += zstandard.ZstdDecompressor().decompressobj().decompress(data)
        self.kept[f"{len(self.kept)}: {where}"] = data

    def keep_error(self, error: BaseException) -> None:
        self.keep(f"{type(error).__name__}", "".join(traceback.format_exception(error)))
        link: BaseException | None = error
        while link is not None:
            facts = link.to_dict() if isinstance(link, TensorkeepError) else link.args
            self.keep("error", f"{link} {link!r} {facts}")
            link = link.__context__

    def keep_files(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.keep(str(path), path.read_bytes())

    def leaks(self) -> list[str]:
        return [
            f"{where}: {secret!r}" for where, data in self.kept.items() for secret in self._secrets if secret in data
        ]


@pytest.fixture
def evidence(ceph: S3Account) -> Evidence:
    return Evidence(ceph.secret_key, ceph.access_key)


class Shell:
    """Runs the command line on one store, in this process, and keeps what it prints, the system's streams too."""

    def __init__(
        self, folder: Path, evidence: Evidence, patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self.location = str(folder / "store")
        self._evidence = evidence
        self._patch = patch
        self._capfd = capfd

    def run(self, *words: str, code: int | None = 0, variables: Mapping[str, str] | None = None) -> None:
        """Run one command; ``code`` None is any failure."""
        with self._patch.context() as patch:
            for name, value in (variables or {}).items():
                patch.setenv(name, value)
            done = main(["--store", self.location, *words])
        out, error = self._capfd.readouterr()
        self._evidence.keep(f"output of {' '.join(words[:2])}", out + error)
        assert done == code if code is not None else done != 0, out + error


@pytest.fixture
def shell(
    tmp_path: Path,
    evidence: Evidence,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    ceph: S3Account,
) -> Iterator[Shell]:
    """The command line with good keys, and with every logger told to say all it has."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logger = logging.getLogger()
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    logger.addHandler(handler)
    monkeypatch.setenv("RUST_LOG", "trace")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shell" / "cache"))
    for name, value in ceph.environment("CEPH").items():
        monkeypatch.setenv(name, value)
    yield Shell(tmp_path / "shell", evidence, monkeypatch, capfd)
    logger.removeHandler(handler)
    evidence.keep("log", log.getvalue())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    chance = np.random.default_rng(1)
    arrays = {f"layers.{n}.w": chance.standard_normal((512, 1024), dtype=np.float32) for n in range(3)}
    save_file(arrays, folder / "model.safetensors")
    return folder


def keep_objects(evidence: Evidence, ceph: S3Account, bucket: str, prefix: str) -> None:
    client = ceph.client()
    names = [o["Key"] for o in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]]
    assert any("/journal/" in name for name in names)
    assert any(name.endswith("tensorkeep.json") for name in names)
    for name in names:
        if "/parts/" not in name:
            evidence.keep(name, client.get_object(Bucket=bucket, Key=name)["Body"].read())


def test_secrets_are_in_nothing_that_a_store_on_s3_prints_or_keeps(
    ceph: S3Account, ceph_bucket: str, evidence: Evidence, shell: Shell, tmp_path: Path, weights: Path
) -> None:
    url = ceph.device_url(ceph_bucket, "secrets", credentials="env:CEPH")
    shell.run("init")
    shell.run("device", "add", "s1", url)
    shell.run("push", str(weights), "acme/m", "--tag", "v1", "--json")
    shell.run("load", "acme/m@v1", "--json")
    shell.run("pull", "acme/m@v1", str(tmp_path / "out"))
    shell.run("verify", "--debug")
    for words in (["device", "ls"], ["status"], ["gc"], ["du"], ["log", "acme/m"]):
        shell.run(*words)
        shell.run(*words, "--json")
    bad = {
        "wrong secret": {"CEPH_SECRET_ACCESS_KEY": WRONG},
        "wrong key": {"CEPH_ACCESS_KEY_ID": WRONG, "CEPH_SESSION_TOKEN": TOKEN},
        "no key": {"CEPH_ACCESS_KEY_ID": ""},
    }
    other = url.replace("/secrets?", "/elsewhere?")
    for variables in bad.values():
        shell.run("push", str(weights), "acme/other", "--debug", code=None, variables=variables)
        shell.run("load", "acme/m@v1", "--json", "--debug", code=None, variables=variables)
        shell.run("device", "add", "s2", other, "--debug", code=10, variables=variables)
        shell.run("status", "--json", variables=variables)
    with_secrets = [
        f"s3://{WRONG}:{WRONG}@bucket/p",
        f"{url}&secret_access_key={WRONG}",
        f"s3://bucket/p?credentials={WRONG}",
        f"postgresql://user:{WRONG}@host/db",
        f"s3:{WRONG}:{WRONG}@bucket",
    ]
    for text in with_secrets:
        shell.run("device", "add", "s2", text, "--debug", code=2)
        shell.run("rebuild-catalog", "--force", "--from", text, "--json", code=2)
    (shell.folder / "store" / "catalog.sqlite").rename(tmp_path / "catalog.sqlite")
    shell.run("rebuild-catalog", "--from", url, "--debug", code=None, variables={"CEPH_SECRET_ACCESS_KEY": WRONG})
    shell.run("rebuild-catalog", "--from", url, "--json")
    evidence.keep_files(shell.folder)
    evidence.keep("old catalog", (tmp_path / "catalog.sqlite").read_bytes())
    keep_objects(evidence, ceph, ceph_bucket, "secrets")
    assert not evidence.leaks()


def test_secrets_are_in_no_error_or_repr_of_the_library(
    ceph: S3Account,
    ceph_bucket: str,
    evidence: Evidence,
    shell: Shell,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with tensorkeep.init(shell.folder / "store") as store:
        store.devices.add("s1", ceph.device_url(ceph_bucket, "library", credentials="env:CEPH"))
        version = store.push(weights, "acme/m")
        model = store.model("acme/m")
        model.load()
        device = innermost(next(iter(store._context.fleet.readable().values())))
        assert isinstance(device, ObjectStoreDevice)
        signed = device.sign("GET", next(device.iter_objects("parts/")).name)
        assert "X-Amz-Signature" in signed.url  # what must not be seen is really there
        for thing in (store, version, model, model.report, device, signed, store._context, store._context.runtime):
            evidence.keep(type(thing).__name__, f"{thing!r} {thing}")
        evidence.keep("request", repr(device.read_request("journal/x")))
        evidence.keep("fields", repr(vars(device)))
    monkeypatch.setenv("CEPH_SECRET_ACCESS_KEY", WRONG)
    with tensorkeep.open(shell.folder / "store") as store:
        calls: list[Callable[[], object]] = [
            lambda: store.model("acme/m").load(),
            lambda: store.push({"w": np.ones(100)}, "acme/other"),
            lambda: store.pull("acme/m", shell.folder / "out"),
            lambda: store.devices.add("s2", ceph.device_url(ceph_bucket, "third", credentials="env:CEPH")),
        ]
        for call in calls:
            with pytest.raises(TensorkeepError) as caught:
                call()
            evidence.keep_error(caught.value)
    evidence.keep("streams", "".join(capfd.readouterr()))
    assert not evidence.leaks()


def test_a_databases_password_is_in_nothing_that_a_store_prints_or_keeps(
    ceph: S3Account, ceph_bucket: str, evidence: Evidence, shell: Shell, weights: Path, database: str, tmp_path: Path
) -> None:
    whole = urlsplit(database)
    host = whole.netloc.rpartition("@")[2]
    user = whole.username or "postgres"
    with_password = whole._replace(netloc=f"{user}:{WRONG}@{host}").geturl()
    shell.location = with_password  # the server lets in whoever asks, so that any password will do
    shell.run("init")
    shell.run("device", "add", "s1", ceph.device_url(ceph_bucket, "database", credentials="env:CEPH"))
    shell.run("device", "add", "d1", str(tmp_path / "disk"))
    shell.run("push", str(weights), "acme/m", "--tag", "v1", "--json", "--debug")
    shell.run("pull", "acme/m", str(tmp_path / "out"))
    for words in (["init"], ["load", "acme/m@none"], ["push", str(tmp_path / "none"), "x"]):
        shell.run(*words, "--debug", code=None)
        shell.run(*words, "--json", code=None)
    for words in (["status"], ["device", "ls", "-v"], ["gc"], ["log", "acme/m"]):
        shell.run(*words)
        shell.run(*words, "--json")
    with tensorkeep.open(with_password) as store:
        shown = (store, store._context, store._context.catalog, store.location, store.status())
        evidence.keep("objects", " ".join(f"{thing!r} {thing}" for thing in shown))
    bad = (
        f"postgresql://{user}:{WRONG}@127.0.0.1:1/{whole.path[1:]}",
        f"postgresql://{user}:{WRONG}@{host}/no_such_database",
        f"postgresql://nobody:{WRONG}@{host}{whole.path}",
        f"postgresql://{user}:{WRONG}@[bad{whole.path}",
        f"{database}?password={WRONG}&unknown_option=1",
        f"{with_password}?schema=Not%20A%20Name",
        f"mysql://{user}:{WRONG}@{host}/db",
    )
    for shell.location in bad:
        shell.run("status", "--debug", code=None)
        shell.run("push", str(weights), "acme/m", "--json", code=None)
    evidence.keep_files(tmp_path / "disk" / "journal")
    evidence.keep_files(shell.folder)
    keep_objects(evidence, ceph, ceph_bucket, "database")
    keep_tables(evidence, database)
    assert not evidence.leaks()


def keep_tables(evidence: Evidence, database: str) -> None:
    with psycopg.connect(database) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        assert len(tables) > 5
        for schema, table in tables:
            rows = connection.execute(SQL("SELECT * FROM {}").format(Identifier(schema, table))).fetchall()
            evidence.keep(f"table {table}", repr(rows))


def test_the_search_finds_what_is_planted(evidence: Evidence, ceph: S3Account, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(zstandard.compress(f"…{WRONG}…".encode()))
    evidence.keep_files(tmp_path)
    evidence.keep("text", f"the key {ceph.secret_key}")
    error = PermissionDenied("no", url=f"http://h/?X-Amz-Signature={ceph.region}")
    evidence.keep_error(error)
    assert len(evidence.leaks()) >= 3
