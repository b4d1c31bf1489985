"""A commit killed between any two statements is wholly there or wholly absent, and an acknowledged one is there."""

import subprocess
import sys
from pathlib import Path

import msgspec

from tensorkeep.catalog.access import create_catalog, open_catalog
from tensorkeep.testing.catalog_fixtures import STORE
from tensorkeep.testing.catalog_scene import Scene, part_key, seeded_runtime


def test_a_commit_killed_before_any_statement_is_all_or_nothing(tmp_path: Path) -> None:
    runtime = seeded_runtime()
    template = tmp_path / "template.sqlite"
    # The fourth entry is the commit's: a snapshot follows it in the same transaction.
    scene = Scene(
        create_catalog(f"sqlite:///{template}", store=STORE, policy="replicas=1", runtime=runtime, snapshot_every=4),
        runtime,
    )
    scene.add_device("a")
    model = scene.model()
    first = scene.push(model, [part_key(1)])
    version = scene.version(model, label="second")
    parts = [part_key(number) for number in range(400)]
    session = scene.prepare(model, version, parts)
    request = scene.commit_request(
        session,
        model,
        version,
        parts,
        expected_head=first.id,
        tag="v2",
        model_policy="replicas=1",
        manifest_body=scene.manifest_body(b"second"),
    )
    before = scene.catalog.info()
    scene.catalog.close()
    (tmp_path / "request").write_bytes(msgspec.json.encode(request))
    copies = tmp_path / "copies"
    copies.mkdir()
    script = Path(__file__).parent / "kill_commit.py"
    subprocess.run([sys.executable, script, template, tmp_path / "request", copies], check=True, timeout=200)

    found = sorted(copies.iterdir())
    assert len(found) > 15
    for copy in found:
        catalog = open_catalog(f"sqlite:///{copy}/catalog.sqlite", runtime=runtime, snapshot_every=4)
        present = catalog.list_versions(model.id) == [version, first]
        assert present or catalog.list_versions(model.id) == [first]
        assert present or not (copy / "acknowledged").exists()
        assert catalog.check() == []
        states = {row.state for row in catalog.locate_all(after=0, limit=9999)}
        if not present:
            assert catalog.info() == before
            assert "stored" in states
        answer = Scene(catalog, runtime).commit(request)
        assert (answer.version, answer.seq) == (version, 4)
        assert catalog.info().last_seq == 5
        assert {row.state for row in catalog.locate_all(after=0, limit=9999)} == {"live"}
        assert catalog.get_version(model.id, "v2") == catalog.get_version(model.id, "main") == version
        assert catalog.check() == []
        catalog.close()
    assert (found[-1] / "acknowledged").exists()
