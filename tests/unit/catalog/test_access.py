"""Catalog files: made whole or not at all, opened only when they are what they should be, errors that say what to do."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection, event

from tensorkeep.catalog.access import create_catalog, create_empty_catalog, install_catalog, open_catalog
from tensorkeep.catalog.sql import SqlCatalog
from tensorkeep.errors import (
    AlreadyExists,
    Capacity,
    Format,
    Integrity,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)
from tensorkeep.runtime import ThreadWorkers
from tensorkeep.testing.catalog_fixtures import STORE
from tensorkeep.testing.catalog_scene import Scene, part_key, seeded_runtime

RUNTIME = seeded_runtime()


def url_of(folder: Path, name: str = "catalog.sqlite") -> str:
    return f"sqlite:///{folder}/{name}"


def make(folder: Path) -> SqlCatalog:
    return create_catalog(url_of(folder), store=STORE, policy="replicas=1", runtime=RUNTIME)


def populate(folder: Path) -> None:
    """Make a catalog of a few hundred rows and close it."""
    scene = Scene(make(folder), RUNTIME)
    scene.add_device("a")
    scene.push(scene.model(), [part_key(number) for number in range(300)])
    scene.catalog.close()


def test_a_new_catalog_is_one_file_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.sqlite"]
    with sqlite3.connect(tmp_path / "catalog.sqlite") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)  # not WAL, which would stick


def test_writers_truncate_their_journal_and_sync_fully(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    catalog.set_policy(None, "replicas=2", heads=(), now=RUNTIME.clock.now())
    with catalog._db.write() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "truncate"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    assert (tmp_path / "catalog.sqlite-journal").stat().st_size == 0


@pytest.mark.parametrize("name", ["a b.sqlite", "100%.sqlite", "what?.sqlite", "sharp#.sqlite", "mödel.sqlite"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    create_catalog(url_of(tmp_path, name), store=STORE, policy="replicas=1", runtime=RUNTIME).close()
    for read_only in (False, True):
        catalog = open_catalog(url_of(tmp_path, name), runtime=RUNTIME, read_only=read_only)
        assert catalog.check() == []
        catalog.close()
    assert name in os.listdir(tmp_path)


def test_a_catalog_is_not_made_over_another_file(tmp_path: Path) -> None:
    make(tmp_path).close()
    before = (tmp_path / "catalog.sqlite").read_bytes()
    with pytest.raises(AlreadyExists):
        make(tmp_path)
    with pytest.raises(AlreadyExists):
        create_empty_catalog(url_of(tmp_path), store=STORE, runtime=RUNTIME)
    assert (tmp_path / "catalog.sqlite").read_bytes() == before
    assert os.listdir(tmp_path) == ["catalog.sqlite"]


def test_of_many_makers_of_one_catalog_exactly_one_wins(tmp_path: Path) -> None:
    def attempt() -> str:
        try:
            make(tmp_path).close()
        except AlreadyExists:
            return "exists"
        return "made"

    with ThreadWorkers().open_pool(6, "makers") as pool:
        answers = [task.result() for task in [pool.submit(attempt) for _ in range(6)]]
    assert sorted(answers) == ["exists"] * 5 + ["made"]
    assert [name for name in os.listdir(tmp_path) if name.endswith(".new")] == []


def test_a_catalog_in_a_missing_folder_or_with_a_wrong_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="make it first"):
        make(tmp_path / "missing")
    with pytest.raises(InvalidInput):
        create_catalog(url_of(tmp_path), store=STORE, policy="many", runtime=RUNTIME)
    assert os.listdir(tmp_path) == []


def test_a_failure_while_making_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorkeep.catalog.access._sync_file", fail)
    with pytest.raises(Capacity):
        make(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite:///relative.sqlite", "sqlite://", "/a/path", ""])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        open_catalog(url, runtime=RUNTIME)


def test_a_missing_catalog_is_not_found_and_not_made(tmp_path: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(NotFound, match="rebuild-catalog"):
            open_catalog(url_of(tmp_path), runtime=RUNTIME, read_only=read_only)
    with pytest.raises(InvalidInput):
        open_catalog(f"sqlite:///{tmp_path}", runtime=RUNTIME)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"SQLite format 3\0" + bytes(4096)])
def test_a_file_that_is_no_catalog_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(content)
    with pytest.raises(Integrity, match="rebuild-catalog") as caught:
        open_catalog(url_of(tmp_path), runtime=RUNTIME)
    assert str(path) in caught.value.message
    assert path.read_bytes() == content


def test_another_applications_database_is_no_catalog(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "catalog.sqlite") as connection:
        connection.execute("CREATE TABLE store (a)")
    with pytest.raises(Integrity):
        open_catalog(url_of(tmp_path), runtime=RUNTIME)


def test_a_damaged_catalog_is_told_and_never_crashes(tmp_path: Path) -> None:
    populate(tmp_path)
    path = tmp_path / "catalog.sqlite"
    good = path.read_bytes()
    found = 0
    for page in range(len(good) // 4096):
        path.write_bytes(good[: page * 4096] + b"\xa5" * 4096 + good[(page + 1) * 4096 :])
        found += bool(problems_of(tmp_path))
    assert found == len(good) // 4096
    path.write_bytes(good[: len(good) // 2])
    assert problems_of(tmp_path)
    path.write_bytes(good)
    assert problems_of(tmp_path) == []


def problems_of(folder: Path) -> list[str]:
    """Return what opening and checking a catalog find."""
    try:
        catalog = open_catalog(url_of(folder), runtime=RUNTIME)
    except (Integrity, Format) as error:
        return [error.message]
    try:
        return catalog.check()
    finally:
        catalog.close()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("UPDATE journal SET body = body || ' ' WHERE seq = 2", "entry 2 does not fit"),
        ("DELETE FROM journal WHERE seq = 2", "entry 3 does not follow"),
        ("DELETE FROM journal WHERE seq = 3", "ends at entry 2"),
        ("DELETE FROM journal WHERE seq < 3", "no snapshot"),
        ("UPDATE store SET policy = 'replicas=9'", "policy"),
        ("UPDATE refs SET name = 'other'", "branches and tags"),
        ("UPDATE devices SET url = 'file:///elsewhere'", "devices differ"),
        ("UPDATE models SET policy = 'replicas=9'", "models differ"),
        ("UPDATE versions SET message = 'forged'", "versions differ"),
        ("DELETE FROM parts", "does not exist"),
        ("DELETE FROM store", "store row"),
    ],
)
def test_check_finds_rows_that_contradict_the_journal(tmp_path: Path, harm: str, told: str) -> None:
    populate(tmp_path)
    with sqlite3.connect(tmp_path / "catalog.sqlite") as connection:
        connection.execute(harm)
    connection.close()
    [problem, *_] = problems_of(tmp_path)
    assert told in problem


def test_a_catalog_opened_to_be_read_changes_nothing(tmp_path: Path) -> None:
    populate(tmp_path)
    before = (tmp_path / "catalog.sqlite").read_bytes()
    catalog = open_catalog(url_of(tmp_path), runtime=RUNTIME, read_only=True)
    scene, now = Scene(catalog, RUNTIME), RUNTIME.clock.now()
    model = catalog.list_models()[0]
    [device] = catalog.list_devices()
    version = catalog.get_version(model.id, "main")
    request = scene.commit_request(scene.ulid(), model, scene.version(model), [part_key(1)])
    for change in (
        lambda: catalog.begin_push("s", now=now),
        lambda: catalog.heartbeat("s", now=now),
        lambda: catalog.end_push("s"),
        lambda: catalog.stage("s", []),
        lambda: catalog.record_stored("s", [1]),
        lambda: catalog.forget_staged("s", [1]),
        lambda: catalog.commit(request),
        lambda: catalog.change_device(device, device, heads=(), now=now),
        lambda: catalog.set_ref(model.id, "tag", "t", version.id, expected=None, heads=(), now=now),
        lambda: catalog.remove_version(model.id, version.id, heads=(), now=now),
        lambda: catalog.remove_model(model.id, heads=(), now=now),
        lambda: catalog.set_policy(None, "replicas=2", heads=(), now=now),
        lambda: catalog.record_checked(good=[], bad=[1]),
        lambda: catalog.condemn(grace_s=0, dry_run=False, heads=(), now=now),
        lambda: catalog.drop([1]),
        lambda: catalog.record_flushed(device.id, 1),
        lambda: catalog.trim_journal(),
    ):
        with pytest.raises(PermissionDenied, match="read-only"):
            change()
    assert catalog.condemn(grace_s=0, dry_run=True, heads=(), now=now).locations == 0
    assert catalog.check() == []
    catalog.close()
    assert (tmp_path / "catalog.sqlite").read_bytes() == before
    assert [name for name in os.listdir(tmp_path) if name != "catalog.sqlite"] in ([], ["catalog.sqlite-journal"])


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder of a read-only file system that holds a catalog."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
    try:
        populate(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
def test_a_catalog_on_a_read_only_file_system_is_read(read_only_folder: Path) -> None:
    catalog = open_catalog(url_of(read_only_folder), runtime=RUNTIME, read_only=True)
    assert len(catalog.list_models()) == 1
    assert catalog.check() == []
    catalog.close()


@pytest.mark.root
def test_a_change_on_a_read_only_file_system_is_not_permitted(read_only_folder: Path) -> None:
    catalog = open_catalog(url_of(read_only_folder), runtime=RUNTIME)
    with pytest.raises(PermissionDenied):
        catalog.set_policy(None, "replicas=2", heads=(), now=RUNTIME.clock.now())
    catalog.close()
    with pytest.raises(PermissionDenied):
        create_catalog(url_of(read_only_folder, "new"), store=STORE, policy="replicas=1", runtime=RUNTIME)


def test_a_catalog_locked_for_too_long_is_unavailable(tmp_path: Path) -> None:
    make(tmp_path).close()
    holder = sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)
    catalog = open_catalog(url_of(tmp_path), runtime=RUNTIME, busy_timeout_s=0.05)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        catalog.set_policy(None, "replicas=2", heads=(), now=RUNTIME.clock.now())
    assert catalog.info().policy == "replicas=1"
    holder.execute("ROLLBACK")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unavailable, match="locked"):
        catalog.info()
    holder.execute("ROLLBACK")
    catalog.set_policy(None, "replicas=2", heads=(), now=RUNTIME.clock.now())
    holder.close()
    catalog.close()


def test_a_full_disk_is_told_and_nothing_is_half_done(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    scene = Scene(catalog, RUNTIME)
    scene.add_device("a")
    session = scene.begin()

    def fill(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={limit}")

    limit = os.path.getsize(tmp_path / "catalog.sqlite") // 4096 + 1
    event.listen(catalog._db.engine, "begin", fill)
    with pytest.raises(Capacity, match="free space"):
        scene.stage(session, [part_key(number) for number in range(2000)])
    limit = 1 << 30
    assert catalog.locate_all(after=0, limit=1) == []
    assert catalog.check() == []
    scene.stage(session, [part_key(number) for number in range(2000)])
    catalog.close()


def test_a_catalog_that_is_deleted_while_open_is_gone(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    catalog.info()
    (tmp_path / "catalog.sqlite").unlink()
    with pytest.raises(NotFound, match="rebuild-catalog"):
        catalog.set_policy(None, "replicas=2", heads=(), now=RUNTIME.clock.now())


def test_a_catalog_that_is_replaced_while_open_is_never_written_through_the_old_handle(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    catalog.set_policy(None, "replicas=2", heads=(), now=RUNTIME.clock.now())
    new = create_catalog(url_of(tmp_path, "new"), store=STORE, policy="replicas=3", runtime=RUNTIME)
    new.close()
    install_catalog(str(tmp_path / "new"), str(tmp_path / "catalog.sqlite"))
    assert catalog.info().policy == "replicas=3"
    assert catalog.set_policy(None, "replicas=4", heads=(), now=RUNTIME.clock.now()) == 2
    catalog.close()
    again = open_catalog(url_of(tmp_path), runtime=RUNTIME)
    assert again.info().policy == "replicas=4"
    again.close()


def test_an_old_rollback_journal_is_never_played_into_a_new_catalog(tmp_path: Path) -> None:
    make(tmp_path).close()
    journal = tmp_path / "catalog.sqlite-journal"
    new = create_catalog(url_of(tmp_path, "new"), store=STORE, policy="replicas=3", runtime=RUNTIME)
    new.close()
    journal.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(5000))
    install_catalog(str(tmp_path / "new"), str(tmp_path / "catalog.sqlite"))
    assert not journal.exists()
    assert os.listdir(tmp_path) == ["catalog.sqlite"]
    (tmp_path / "catalog.sqlite").unlink()
    journal.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(5000))
    with pytest.raises(Integrity, match="left of a catalog"):
        make(tmp_path)


def test_threads_share_one_catalog(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    scene = Scene(catalog, RUNTIME)
    scene.add_device("a")
    errors: list[TensorkeepError] = []

    def work(number: int) -> None:
        try:
            session = f"session {number}"
            catalog.begin_push(session, now=RUNTIME.clock.now())
            for part in range(10):
                scene.store(session, [part_key(100 * number + part)])
                catalog.locate([part_key(part)])
        except TensorkeepError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(catalog.locate_all(after=0, limit=999)) == 120
    catalog.close()


def test_a_catalog_open_before_a_fork_works_in_the_child(tmp_path: Path) -> None:
    script = f"""
import os
from tensorkeep.catalog.access import create_catalog
from tensorkeep.testing.catalog_scene import seeded_runtime
runtime = seeded_runtime()
catalog = create_catalog({url_of(tmp_path)!r}, store={STORE!r}, policy="replicas=1", runtime=runtime)
catalog.info()
child = os.fork()
catalog.set_policy(None, "replicas=2", heads=(), now=runtime.clock.now())
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert catalog.info().last_seq == 3
assert catalog.check() == []
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_making_and_opening_need_no_alembic(tmp_path: Path) -> None:
    script = f"""
import sys
from tensorkeep.catalog.access import create_catalog, open_catalog
from tensorkeep.testing.catalog_scene import seeded_runtime
runtime = seeded_runtime()
create_catalog({url_of(tmp_path)!r}, store={STORE!r}, policy="replicas=1", runtime=runtime).close()
open_catalog({url_of(tmp_path)!r}, runtime=runtime).close()
assert "alembic" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_commit_of_many_parts_takes_few_statements(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    scene = Scene(catalog, RUNTIME)
    scene.add_device("a")
    model = scene.model()
    version = scene.version(model)
    parts = [part_key(number) for number in range(12_000)]
    session = scene.prepare(model, version, parts)
    request = scene.commit_request(session, model, version, parts)
    statements: list[str] = []
    event.listen(catalog._db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    short = msgspec.structs.replace(request, parts=request.parts + bytes(32))
    assert scene.needs(short)[0].digest == bytes(32)
    statements.clear()
    scene.commit(request)
    assert len(statements) < 40
    catalog.close()
