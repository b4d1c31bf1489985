"""The catalog's contract: many at once. Threads with two handles; what they may see is fixed, who is first is not."""

# ruff: noqa: D102 - a test's name is its sentence

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tensorkeep.catalog.protocol import Catalog, Committed, Needed
from tensorkeep.errors import AlreadyExists, Conflict, TensorkeepError
from tensorkeep.runtime import Failpoints, Runtime, ThreadWorkers
from tensorkeep.testing.catalog_fixtures import CatalogFixtures
from tensorkeep.testing.catalog_scene import Scene, part_key, seeded_runtime

COMMIT_STEPS = (
    "commit.begun",
    "commit.locked",
    "commit.version_inserted",
    "commit.ref_moved",
    "commit.journaled",
)


class StopAt(Failpoints):
    """Runs something once, at one named step."""

    def __init__(self) -> None:
        self.name = ""
        self.action: Callable[[], None] = lambda: None

    def hit(self, name: str) -> None:
        """Run the action if this is its step, the first time."""
        if name == self.name:
            self.name = ""
            self.action()


class PowerFailure(Exception):
    """What a test raises inside a commit."""


def run_together(tasks: Sequence[Callable[[], object]]) -> list[object]:
    """Run tasks in threads that start at the same moment; return answers and tensorkeep's errors, in order."""
    barrier = threading.Barrier(len(tasks))

    def run(task: Callable[[], object]) -> object:
        barrier.wait()
        try:
            return task()
        except TensorkeepError as error:
            return error

    with ThreadWorkers().open_pool(len(tasks), "race") as pool:
        futures = [pool.submit(run, task) for task in tasks]
        return [future.result() for future in futures]


class RaceRules(CatalogFixtures):
    """Exactly one wins, and no version ever has an object whose copies are condemned."""

    @pytest.fixture
    def stop(self) -> StopAt:
        """Return the failpoints of the scenes below."""
        return StopAt()

    @pytest.fixture
    def stopped(self, tmp_path: Path, stop: StopAt) -> Scene:
        """Return a scene whose commits can be stopped, with a device."""
        runtime = seeded_runtime()
        runtime = Runtime(runtime.clock, runtime.randomness, runtime.workers, stop)
        folder = tmp_path / "stopped"
        folder.mkdir()
        scene = Scene(self.make_catalog(folder, runtime), runtime)
        scene.add_device("a")
        return scene

    def handles(self, scene: Scene, tmp_path: Path, count: int) -> list[Catalog]:
        """Return that many handles of the scene's catalog, alternating between two."""
        other = self.other_handle(scene.catalog, tmp_path, scene.runtime)
        return [(scene.catalog, other)[number % 2] for number in range(count)]

    def test_of_many_pushes_to_one_branch_exactly_one_wins(self, scene: Scene, tmp_path: Path) -> None:
        scene.add_device("a")
        model = scene.model()
        requests = []
        for number in range(8):
            version = scene.version(model, label=str(number))
            session = scene.prepare(model, version, [part_key(number), part_key(99)])
            requests.append(scene.commit_request(session, model, version, [part_key(number), part_key(99)]))
        handles = self.handles(scene, tmp_path, len(requests))
        answers = run_together(
            [
                lambda catalog=catalog, request=request: catalog.commit(request)  # type: ignore[misc]
                for catalog, request in zip(handles, requests, strict=True)
            ]
        )
        winners = [answer for answer in answers if isinstance(answer, Committed)]
        assert len(winners) == 1
        assert sum(isinstance(answer, Conflict) for answer in answers) == 7
        assert scene.catalog.list_versions(model.id) == [winners[0].version]
        assert scene.catalog.get_version(model.id, "main") == winners[0].version
        assert scene.catalog.check() == []

    def test_of_many_makers_of_one_model_exactly_one_wins(self, scene: Scene, tmp_path: Path) -> None:
        scene.add_device("a")
        requests = []
        for number in range(6):
            model = scene.model("Acme/Llama" if number % 2 else "acme/llama")
            version = scene.version(model)
            session = scene.prepare(model, version, [part_key(1)])
            requests.append(scene.commit_request(session, model, version, [part_key(1)], branch=f"b{number}"))
        handles = self.handles(scene, tmp_path, len(requests))
        answers = run_together(
            [
                lambda catalog=catalog, request=request: catalog.commit(request)  # type: ignore[misc]
                for catalog, request in zip(handles, requests, strict=True)
            ]
        )
        assert sum(isinstance(answer, Committed) for answer in answers) == 1
        assert sum(isinstance(answer, Conflict) for answer in answers) == 5
        assert len(scene.catalog.list_models()) == 1

    def test_one_commit_sent_many_times_happens_once(self, scene: Scene, tmp_path: Path) -> None:
        scene.add_device("a")
        model = scene.model()
        version = scene.version(model)
        session = scene.prepare(model, version, [part_key(1)])
        request = scene.commit_request(session, model, version, [part_key(1)], tag="v1")
        handles = self.handles(scene, tmp_path, 6)
        answers = run_together([lambda catalog=catalog: catalog.commit(request) for catalog in handles])  # type: ignore[misc]
        assert answers == [Committed(version=version, seq=3)] * 6
        assert scene.catalog.info().last_seq == 3

    def test_of_many_makers_of_one_tag_exactly_one_wins(self, scene: Scene, tmp_path: Path) -> None:
        scene.add_device("a")
        model = scene.model()
        version = scene.push(model, [part_key(1)]).id
        now = scene.clock.now()
        answers = run_together(
            [
                lambda catalog=catalog: catalog.set_ref(model.id, "tag", "t", version, expected=None, heads=(), now=now)  # type: ignore[misc]
                for catalog in self.handles(scene, tmp_path, 6)
            ]
        )
        assert sum(isinstance(answer, int) for answer in answers) == 1
        assert sum(isinstance(answer, AlreadyExists) for answer in answers) == 5

    def test_many_stagers_of_one_object_get_rows_of_their_own(self, scene: Scene, tmp_path: Path) -> None:
        scene.add_device("a")
        sessions = [scene.begin() for _ in range(6)]
        requests = [scene.request(part_key(1)) for _ in sessions]
        answers = run_together(
            [
                lambda catalog=catalog, session=session, request=request: (
                    catalog.stage(session, [request])[0].staged[0].id
                )  # type: ignore[misc]
                for catalog, session, request in zip(self.handles(scene, tmp_path, 6), sessions, requests, strict=True)
            ]
        )
        assert len(set(answers)) == 6
        assert all(isinstance(answer, int) for answer in answers)

    def test_entries_of_concurrent_changes_are_one_chain(self, scene: Scene, tmp_path: Path) -> None:
        now = scene.clock.now()
        answers = run_together(
            [
                lambda catalog=catalog: [  # type: ignore[misc]
                    catalog.set_policy(None, "replicas=2", heads=(), now=now) for _ in range(5)
                ]
                for catalog in self.handles(scene, tmp_path, 6)
            ]
        )
        seqs = sorted(seq for answer in answers if isinstance(answer, list) for seq in answer)
        assert seqs == list(range(2, 32))
        assert scene.catalog.check() == []

    @pytest.mark.parametrize("step", COMMIT_STEPS)
    def test_gc_that_begins_inside_a_commit_takes_nothing_from_it(
        self, stopped: Scene, stop: StopAt, tmp_path: Path, step: str
    ) -> None:
        other = self.other_handle(stopped.catalog, tmp_path / "stopped", stopped.runtime)
        model = stopped.model()
        version = stopped.version(model)
        session = stopped.prepare(model, version, [part_key(1), part_key(2)])
        stopped.catalog.end_push(session)
        now = stopped.clock.now()
        condemning = []
        with ThreadWorkers().open_pool(1, "gc") as pool:
            stop.name = step
            stop.action = lambda: condemning.append(
                pool.submit(other.condemn, grace_s=0, dry_run=False, heads=(), now=now)
            )
            request = stopped.commit_request(session, model, version, [part_key(1), part_key(2)])
            answer = stopped.catalog.commit(request)
        assert condemning[0].result().locations == 0
        assert isinstance(answer, Committed)
        assert stopped.catalog.count_short([version.id]) == {}
        assert stopped.catalog.list_condemned(grace_s=0, now=now, after=0, limit=9) == []
        assert stopped.catalog.check() == []

    @pytest.mark.parametrize("step", COMMIT_STEPS)
    def test_a_commit_that_fails_at_any_step_leaves_nothing(self, stopped: Scene, stop: StopAt, step: str) -> None:
        def fail() -> None:
            raise PowerFailure

        catalog, model = stopped.catalog, stopped.model()
        version = stopped.version(model)
        session = stopped.prepare(model, version, [part_key(1)])
        request = stopped.commit_request(session, model, version, [part_key(1)], tag="v1")
        before = (catalog.info(), catalog.locate_all(after=0, limit=99))
        stop.name, stop.action = step, fail
        with pytest.raises(PowerFailure):
            catalog.commit(request)
        assert (catalog.info(), catalog.locate_all(after=0, limit=99)) == before
        assert catalog.list_models() == []
        assert catalog.check() == []
        assert stopped.commit(request).version == version

    def test_commits_and_gc_together_never_lose_an_object(self, scene: Scene, tmp_path: Path) -> None:
        scene.add_device("a")
        model = scene.model()
        now = scene.clock.now()
        requests = []
        for number in range(6):
            version = scene.version(model, label=str(number))
            session = scene.prepare(model, version, [part_key(number), part_key(50)])
            scene.catalog.end_push(session)
            requests.append(
                scene.commit_request(session, model, version, [part_key(number), part_key(50)], branch=f"b{number}")
            )
        handles = self.handles(scene, tmp_path, 9)
        tasks: list[Callable[[], object]] = [
            lambda catalog=catalog, request=request: catalog.commit(request)  # type: ignore[misc]
            for catalog, request in zip(handles, requests, strict=False)
        ]
        tasks[3:3] = [
            lambda catalog=catalog: catalog.condemn(grace_s=0, dry_run=False, heads=(), now=now)  # type: ignore[misc]
            for catalog in handles[6:]
        ]
        answers = run_together(tasks)
        committed = [answer.version.id for answer in answers if isinstance(answer, Committed)]
        assert len(committed) + sum(isinstance(answer, Needed) for answer in answers) == 6
        assert scene.catalog.count_short(committed) == {}
        for version_id in committed:
            objects = [key for key, _ in scene.catalog.version_objects(version_id)]
            assert all(row.state == "live" for rows in scene.catalog.locate(objects).values() for row in rows)
        assert scene.catalog.check() == []
