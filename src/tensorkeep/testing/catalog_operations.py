"""Random operations on several catalogs side by side: all must give equal answers, equal errors included."""

import random
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Any

import msgspec

from tensorkeep.catalog.protocol import Catalog, CatalogImage, Committed, ObjectKey, ObjectRequest
from tensorkeep.catalog.rules import version_keys
from tensorkeep.errors import TensorkeepError
from tensorkeep.records.conformance import Conformance
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.history import ModelFacts, RefKind, StoreState, VersionFacts, decode_entry, fold_entries
from tensorkeep.records.layout import MIB
from tensorkeep.records.names import parse_model_name
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import ErasureCoded
from tensorkeep.testing.catalog_scene import Scene, part_key, seeded_runtime

NAMES = ("acme/llama", "acme/Mistral", "acme/mistral", "solo/x")
BRANCHES = ("main", "dev")
TAGS = ("v1", "v2", "main")
KINDS: tuple[RefKind, ...] = ("branch", "tag")
_PART_BYTES = 1 * MIB
POLICIES = ("replicas=1", "replicas=2", "ec=2+1")
RETENTIONS = ("last=1", "last=2 days=3", "days=9 protect=v*")


class Operations:
    """A sequence of random operations with a seed; ``catalogs`` are all asked the same."""

    def __init__(self, catalogs: Sequence[Catalog], seed: int) -> None:
        self.catalogs = catalogs
        self._random = random.Random(seed)
        runtime = seeded_runtime(seed)
        self._scene = Scene(catalogs[0], runtime)
        self._sessions: list[str] = []
        self._rows: list[int] = []
        self._versions: list[VersionFacts] = []
        self._keys: set[ObjectKey] = {part_key(n) for n in range(6)}
        self._requests: list[Any] = []
        self.committed = 0

    def run(self, steps: int) -> None:
        """Do that many random operations, comparing after each."""
        for name in ("a", "b", "c"):
            self._add_device(name)
        operations = [getattr(self, name) for name in dir(self) if name.startswith("do_")]
        operations += [self.do_push] * 3
        for _ in range(steps):
            self._scene.clock.advance(self._random.choice((0, 1, 3600, 100_000)))
            self._random.choice(operations)()
        self.compare()

    def compare(self) -> None:
        """Compare everything that the catalogs can be asked."""
        for ask in (
            lambda c: c.info(),
            lambda c: c.check(),
            lambda c: c.list_devices(),
            lambda c: c.device_usage(),
            lambda c: c.list_models(),
            lambda c: [c.list_refs(model.id) for model in c.list_models()],
            lambda c: [c.list_versions(model.id) for model in c.list_models()],
            lambda c: c.flushed(),
            lambda c: c.journal_rows(),
            lambda c: c.locate_all(after=0, limit=10_000),
            lambda c: c.list_condemned(grace_s=0, now=self._scene.clock.now(), after=0, limit=10_000),
            lambda c: c.survey(sorted(self._keys)),
            lambda c: c.copies_owed(sorted(self._keys)),
            lambda c: c.count_short([version.id for version in self._versions]),
            _short_of,
            lambda c: [c.list_on(device, after=0, limit=10_000) for device in self._device_ids()],
            lambda c: [c.find_manifest(version.manifest) for version in self._versions],
        ):
            self._ask(ask)
        assert self.catalogs[0].check() == []
        for version in self._versions:
            self._ask(methodcaller("version_objects", version.id))
            self._ask(methodcaller("version_usage", [version.id]))

    def images(self) -> list[CatalogImage]:
        """Return what a rebuild would find of each catalog: equal images."""
        return [self._image(catalog) for catalog in self.catalogs]

    # operations

    def do_begin(self) -> None:
        """Open a session."""
        session = self._scene.ulid()
        self._sessions.append(session)
        self._ask(lambda c: c.begin_push(session, now=self._scene.clock.now()))

    def do_beat_or_end(self) -> None:
        """Keep a session alive or end it."""
        session = self._session()
        if self._random.random() < 0.5:
            self._ask(lambda c: c.heartbeat(session, now=self._scene.clock.now()))
        else:
            self._ask(lambda c: c.end_push(session))

    def do_stage(self) -> None:
        """Stage a few objects, some again."""
        devices = self._device_ids()
        down = tuple(device for device in devices if self._random.random() < 0.1)
        requests = [
            self._request(
                self._random.choice(sorted(self._keys)),
                copies=self._random.choice((1, 2, 3)),
                model=self._scene.ulid(),
                candidates=self._random.sample(devices, self._random.randint(1, len(devices))),
            )
            for _ in range(self._random.randint(1, 4))
        ]
        if self._requests and self._random.random() < 0.3:
            requests.append(self._random.choice(self._requests))
        self._requests += requests
        session, soft = self._session(), self._random.random() < 0.3
        if self._random.random() < 0.3:
            before = self._some_rows()
            both = self._ask(lambda c: c.stage_and_record(session, requests, before, down=down, allow_soft=soft))
            answers = both[0] if isinstance(both, tuple) else both
        else:
            answers = self._ask(lambda c: c.stage(session, requests, down=down, allow_soft=soft))
        if isinstance(answers, list):
            rows = [row.id for answer in answers for row in answer.staged]
            self._rows += rows
            stored = [row for row in rows if self._random.random() < 0.7]
            self._ask(lambda c: c.record_stored(session, stored))

    def do_finish_rows(self) -> None:
        """Say that some rows are stored, or that their upload failed."""
        session, rows = self._session(), self._some_rows()
        if self._random.random() < 0.5:
            self._ask(lambda c: c.record_stored(session, rows))
        else:
            self._ask(lambda c: c.forget_staged(session, rows))

    def do_push(self) -> None:
        """Store most of what a version needs, then commit it, perhaps with a wrong expectation."""
        model = self._model()
        version = self._scene.version(model, policy=self._random.choice(POLICIES))
        parts = [part_key(self._random.randrange(6)) for _ in range(self._random.randint(0, 5))]
        session = self._session()
        keys = [key for key in dict.fromkeys((*parts, *version_keys(version))) if self._random.random() < 0.97]
        requests = [self._request(key, copies=2, model=model.id) for key in keys]
        answers = self._ask(lambda c: c.stage(session, requests))
        if isinstance(answers, list):
            rows = [row.id for answer in answers for row in answer.staged]
            self._ask(lambda c: c.record_stored(session, rows))
        branch = self._random.choice(BRANCHES)
        heads = {ref.name: ref.version for ref in self.catalogs[0].list_refs(model.id) if ref.kind == "branch"}
        request = self._scene.commit_request(
            session,
            model,
            version,
            parts,
            branch=branch,
            expected_head=heads.get(branch) if self._random.random() < 0.9 else self._some_version(),
            tag=self._random.choice((None, None, *TAGS)),
            model_policy=self._random.choice((None, None, *POLICIES)),
        )
        answer = self._ask(lambda c: c.commit(request))
        self.committed += isinstance(answer, Committed)
        self._versions.append(version)
        self._keys.update(version_keys(version))
        if self._random.random() < 0.2:
            self._ask(lambda c: c.commit(request))
        if self._random.random() < 0.8:
            self._sessions.remove(session)

    def do_move_ref(self) -> None:
        """Make, move or delete a branch or tag."""
        model, kind = self._model().id, self._random.choice(KINDS)
        name = self._random.choice(BRANCHES if kind == "branch" else TAGS)
        refs = {(ref.kind, ref.name): ref.version for ref in self.catalogs[0].list_refs(model)}
        expected = refs.get((kind, name)) if self._random.random() < 0.7 else self._some_version()
        version = self._some_version()
        self._ask(
            lambda c: c.set_ref(model, kind, name, version, expected=expected, heads=(), now=self._scene.clock.now())
        )

    def do_remove(self) -> None:
        """Remove a version, seldom a whole model."""
        now = self._scene.clock.now()
        if self._random.random() < 0.2:
            model = self._model().id
            self._ask(lambda c: c.remove_model(model, heads=(), now=now))
        elif self._versions:
            version = self._random.choice(self._versions)
            self._ask(lambda c: c.remove_version(version.model, version.id, heads=(), now=now))

    def do_policy(self) -> None:
        """Set a policy."""
        model = self._random.choice((None, self._model().id))
        policy = self._random.choice((*POLICIES, "nonsense"))
        versions = self._random.random() < 0.5
        self._ask(lambda c: c.set_policy(model, policy, versions=versions, heads=(), now=self._scene.clock.now()))

    def do_retention(self) -> None:
        """Set a retention, or none."""
        model, retention = self._model().id, self._random.choice((*RETENTIONS, None, "nonsense"))
        self._ask(lambda c: c.set_retention(model, retention, heads=(), now=self._scene.clock.now()))

    def do_expire(self) -> None:
        """Let go of what retentions do not keep."""
        now, grace_s = self._scene.clock.now(), self._random.choice((0.0, 3600.0))
        self._ask(lambda c: c.expire(grace_s=grace_s, dry_run=True, heads=(), now=now))
        most = self._random.choice((None, None, 0.0, 0.2, 0.5))
        self._ask(lambda c: c.expire(grace_s=grace_s, dry_run=False, max_fraction=most, heads=(), now=now))

    def do_device(self) -> None:
        """Add, change or lose a device."""
        devices = self.catalogs[0].list_devices()
        if len(devices) < 6:
            self._add_device(self._random.choice("abcdefg"))
        else:
            old = self._random.choice(devices)
            new = msgspec.structs.replace(
                old,
                bandwidth=self._random.randrange(9),
                state=self._random.choice((*["active"] * 7, "draining", "draining", "removed", "lost")),
            )
            self._ask(lambda c: c.change_device(old, new, heads=(), now=self._scene.clock.now()))

    def do_check_rows(self) -> None:
        """Note good and bad rows."""
        good, bad = self._some_rows(), self._some_rows()
        self._ask(lambda c: c.record_checked(good=good, bad=bad))

    def do_retire(self) -> None:
        """Give up copies that may not be needed."""
        rows = self._random.sample(self._rows, min(len(self._rows), 12))
        down = self._random.sample(self._device_ids(), self._random.randrange(2))
        now, short = self._scene.clock.now(), _short_of(self.catalogs[0])
        self._ask(lambda c: c.retire(rows, down=down, heads=(), now=now))
        assert _short_of(self.catalogs[0]) == short  # whatever was given up, nothing lacks copies for it

    def do_collect(self) -> None:
        """Condemn, and drop some of what is condemned."""
        now, grace_s = self._scene.clock.now(), self._random.choice((0.0, 3600.0, 1e6))
        self._ask(lambda c: c.condemn(grace_s=grace_s, dry_run=True, heads=(), now=now))
        most = self._random.choice((None, None, 0.0, 0.1, 0.5))
        self._ask(lambda c: c.condemn(grace_s=grace_s, dry_run=False, max_fraction=most, heads=(), now=now))
        rows = self._ask(lambda c: c.list_condemned(grace_s=grace_s, now=now, after=0, limit=5))
        numbers = [row.id for row in rows] + self._some_rows()
        self._ask(lambda c: c.drop(numbers))

    def do_flush(self) -> None:
        """Flush a device's journal, and trim."""
        device = self._random.choice(self._device_ids())
        rows = self._ask(lambda c: c.journal_backlog(device, limit=7))
        if rows:
            self._ask(lambda c: c.record_flushed(device, rows[-1].seq))
        self._ask(lambda c: c.trim_journal())

    def do_look_up(self) -> None:
        """Ask for models and revisions."""
        name = parse_model_name(self._random.choice(NAMES).upper())
        self._ask(lambda c: c.find_model(name))
        model, version = self._model().id, self._some_version() or "0" * 40
        for revision in (*BRANCHES, *TAGS, version, version[:7]):
            self._ask(methodcaller("get_version", model, revision))
            self._ask(methodcaller("find_version", name, revision))

    # choices

    def _request(
        self, key: ObjectKey, *, copies: int, model: str, candidates: Sequence[str] | None = None
    ) -> ObjectRequest:
        """Return a request for whole copies, or sometimes, of a part, for fragments."""
        if key.kind is not ObjectKind.PART:
            return self._scene.request(key, copies=copies, model=model, candidates=candidates)
        code = self._random.choice((None, None, ErasureCoded(2, 1), ErasureCoded(1, 1), ErasureCoded(3, 2)))
        return self._scene.request(
            key,
            copies=copies,
            model=model,
            candidates=candidates,
            size_bytes=_PART_BYTES,
            code=code,
            anew=self._random.random() < 0.2,
        )

    def _ask(self, operation: Callable[[Catalog], Any]) -> Any:
        answers = [_answer(operation, catalog) for catalog in self.catalogs]
        for answer in answers[1:]:
            assert answer == answers[0], f"\n{answers[0]}\n{answer}"
        return answers[0]

    def _add_device(self, name: str) -> None:
        facts = msgspec.structs.replace(
            _DEVICE,
            id=self._scene.ulid(),
            name=name,
            url=f"file:///{name}",
            zone=self._random.choice(("r1", "r2", "r3")),
            durability="soft" if self._random.random() < 0.1 else "durable",
            conformance=_CONFORMANCE if self._random.random() < 0.5 else msgspec.UNSET,
        )
        self._ask(lambda c: c.change_device(None, facts, heads=(), now=self._scene.clock.now()))

    def _session(self) -> str:
        if not self._sessions:
            self.do_begin()
        return self._random.choice(self._sessions)

    def _model(self) -> ModelFacts:
        models = self.catalogs[0].list_models()
        if not models or self._random.random() < 0.1:
            return self._scene.model(self._random.choice(NAMES))
        return self._random.choice(models)

    def _some_version(self) -> str | None:
        if not self._versions or self._random.random() < 0.2:
            return None
        return self._random.choice(self._versions).id

    def _some_rows(self) -> list[int]:
        return self._random.sample(self._rows, min(len(self._rows), self._random.randrange(4)))

    def _device_ids(self) -> list[str]:
        return [facts.id for facts in self.catalogs[0].list_devices()]

    def _image(self, catalog: Catalog) -> CatalogImage:
        info = catalog.info()
        state = told_by(catalog)
        states = ("live", "stored", "bad")
        return CatalogImage(
            store=info.store,
            epoch=info.epoch + 1,
            state=state,
            entries=catalog.journal_rows(),
            flushed=catalog.flushed(),
            objects={version: catalog.version_objects(version) for version in state.versions},
            locations=[row for row in catalog.locate_all(after=0, limit=10_000) if row.state in states],
            manifests={},
        )


def _short_of(catalog: Catalog) -> list[tuple[ObjectKey, int, int, int]]:
    """Return what lacks copies; each catalog numbers objects as it likes."""
    found = catalog.list_short(after=0, limit=10_000)
    assert [each.id for each in found] == sorted({each.id for each in found})
    assert catalog.list_short(parts=False, after=0, limit=10_000) == [
        each for each in found if each.key.kind is not ObjectKind.PART
    ]
    return sorted((each.key, each.size_bytes, each.have, each.owed) for each in found)


def told_by(catalog: Catalog) -> StoreState:
    """Return the state that a catalog's journal tells, refs in order."""
    state = fold_entries(decode_entry(row.body) for row in catalog.journal_rows())
    state.refs.sort(key=lambda ref: (ref.model, ref.kind, ref.name))
    return state


def _answer(operation: Callable[[Catalog], Any], catalog: Catalog) -> Any:
    try:
        return operation(catalog)
    except TensorkeepError as error:
        return error.to_dict()


_CONFORMANCE = Conformance(
    checked_at="2026-01-31T23:59:59.000001Z", form="short", verdict="accepted", refused_checksums=("md5",)
)
_DEVICE = DeviceFacts(id="", name="", url="", zone="", durability="durable")
