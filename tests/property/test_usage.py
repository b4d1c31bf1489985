"""Space of versions, held to sets: of any versions of any models, what is shared and what is a version's own."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorkeep.catalog.access import create_catalog
from tensorkeep.catalog.memory import MemoryCatalog
from tensorkeep.catalog.protocol import Catalog
from tensorkeep.runtime import Runtime
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fleet import Fleet, open_by_facts
from tensorkeep.store.folder_place import FolderPlace
from tensorkeep.store.usage import measure_usage
from tensorkeep.testing.catalog_fixtures import STORE
from tensorkeep.testing.catalog_scene import PART_BYTES, Scene, part_key, seeded_runtime

PARTS = st.lists(st.integers(0, 7), max_size=8)  # a part may be in a version twice, and in none of the others
VERSIONS = st.lists(st.tuples(st.sampled_from(["acme/one", "acme/two"]), PARTS), max_size=6)


def make_catalog(kind: str, folder: Path, runtime: Runtime) -> Catalog:
    if kind == "memory":
        return MemoryCatalog(store=STORE, policy="replicas=1", runtime=runtime, snapshot_every=1000)
    folder.mkdir()
    return create_catalog(
        f"sqlite:///{folder}/catalog.sqlite", store=STORE, policy="replicas=1", runtime=runtime, snapshot_every=1000
    )


@pytest.mark.parametrize(("kind", "examples"), [("memory", 200), ("sqlite", 15)])
def test_shared_and_exclusive_parts_are_those_that_sets_say(kind: str, examples: int, tmp_path: Path) -> None:
    made: list[Path] = []

    @settings(max_examples=examples)
    @given(versions=VERSIONS)
    def run(versions: list[tuple[str, list[int]]]) -> None:
        runtime = seeded_runtime()
        made.append(tmp_path / str(len(made)))
        scene = Scene(make_catalog(kind, made[-1], runtime), runtime)
        scene.add_device("disk")
        models = {name: scene.model(name) for name in ("acme/one", "acme/two")}
        held: dict[str, tuple[str, set[int]]] = {}
        for number, (name, parts) in enumerate(versions):
            branch = f"branch-{number}"
            version = scene.push(models[name], [part_key(part) for part in parts], branch=branch)
            held[version.id] = (name, set(parts))
        context = StoreContext(
            scene.catalog,
            Fleet(scene.catalog, runtime=runtime, opener=open_by_facts),
            runtime,
            FolderPlace(tmp_path),
            None,
        )
        report = measure_usage(context, None)
        assert {row.version for row in report.rows} == set(held)
        for row in report.rows:
            name, own = held[row.version]
            others: set[int] = set().union(*(parts for version, (_, parts) in held.items() if version != row.version))
            assert row.model == name
            assert row.part_bytes == PART_BYTES * len(own)
            assert row.shared_bytes == PART_BYTES * len(own & others)
            assert row.exclusive_bytes == PART_BYTES * len(own - others)
            assert row.shared_bytes + row.exclusive_bytes == row.part_bytes
        assert report.stored_bytes == sum(report.device_bytes.values())
        assert report.logical_bytes == sum(row.logical_bytes for row in report.rows)
        scene.catalog.close()

    run()
