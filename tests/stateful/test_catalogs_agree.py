"""The catalog on SQLite and the in-memory reference give equal answers, whatever is asked in whatever order."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from tensorkeep.catalog.access import create_catalog, create_empty_catalog
from tensorkeep.catalog.memory import MemoryCatalog
from tensorkeep.catalog.protocol import Catalog
from tensorkeep.testing.catalog_fixtures import STORE
from tensorkeep.testing.catalog_operations import Operations, told_by
from tensorkeep.testing.catalog_scene import seeded_runtime


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), snapshot_every=st.sampled_from([3, 10, 1000]))
def test_random_operations_have_equal_answers_and_the_journal_tells_the_state(seed: int, snapshot_every: int) -> None:
    with TemporaryDirectory() as folder:
        runtime = seeded_runtime(seed)
        url = f"sqlite:///{folder}/catalog.sqlite"
        sqlite = create_catalog(url, store=STORE, policy="replicas=1", runtime=runtime, snapshot_every=snapshot_every)
        memory = MemoryCatalog(store=STORE, policy="replicas=1", runtime=runtime, snapshot_every=snapshot_every)
        operations = Operations([memory, sqlite], seed)
        operations.run(60)
        _rebuild_both(operations, Path(folder))
        sqlite.close()


def test_the_random_operations_reach_commits(tmp_path: Path) -> None:
    memory = MemoryCatalog(store=STORE, policy="replicas=1", runtime=seeded_runtime())
    operations = Operations([memory], 1)
    operations.run(300)
    assert operations.committed > 10


def _rebuild_both(operations: Operations, folder: Path) -> None:
    """Fill new catalogs from what the old ones' devices would tell: they agree with the old ones and with each other."""
    images = operations.images()
    assert images[0] == images[1]
    runtime = seeded_runtime(1)
    memory = MemoryCatalog(store=STORE, policy=None, runtime=runtime)
    sqlite = create_empty_catalog(f"sqlite:///{folder}/rebuilt.sqlite", store=STORE, runtime=runtime)
    before = told_by(operations.catalogs[0])
    catalogs: tuple[Catalog, Catalog] = (memory, sqlite)
    for new, image in zip(catalogs, images, strict=True):
        assert new.load_image(image, now=runtime.clock.now()) == image.entries[-1].seq + 1
        assert new.check() == []
        after = told_by(new)
        assert (list(after.devices), list(after.versions)) == (list(before.devices), list(before.versions))
        assert after == before
    assert memory.journal_rows() == sqlite.journal_rows()
    assert memory.locate_all(after=0, limit=9999) == sqlite.locate_all(after=0, limit=9999)
    assert memory.device_usage() == sqlite.device_usage()
    sqlite.close()
