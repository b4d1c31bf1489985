"""Staging and commit of the in-memory catalog, in the order in which the rules are told."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime

import msgspec

from tensorkeep.catalog import rules
from tensorkeep.catalog.memory_state import MemoryState, VersionRow
from tensorkeep.catalog.placing import Held, plan_staging
from tensorkeep.catalog.protocol import CommitRequest, Committed, ObjectKey, ObjectRequest, Staging
from tensorkeep.errors import AlreadyExists
from tensorkeep.records.history import Change, ModelChanged, RefChanged, RefKind, VersionCommitted
from tensorkeep.records.json_text import format_time
from tensorkeep.records.layout import CATALOG_MANIFEST_BYTES
from tensorkeep.records.naming import ObjectKind
from tensorkeep.runtime import Failpoints


def stage(
    state: MemoryState, session: str, requests: Sequence[ObjectRequest], *, down: Collection[str], allow_soft: bool
) -> list[Staging]:
    """Answer what exists and add the rows of what does not."""
    for request in requests:
        rules.check_key(request.key)
    for request in requests:
        state.know_object(request.key, request.size_bytes)
    for request in requests:
        rules.check_size(request, state.sizes[request.key])
    plans = plan_staging(
        [(request, state.copies_owed(request.key)) for request in requests],
        held={
            request.key: [Held(row.location, mine=row.session == session) for row in state.rows_of(request.key)]
            for request in requests
        },
        devices=list(state.devices.values()),
        down=down,
        allow_soft=allow_soft,
    )
    numbers = {}
    for plan in plans:
        for location in plan.new:
            numbers[location.device, location.name] = state.add_location(location, session).id
    state.forget_unused_objects()
    return [plan.answer(numbers) for plan in plans]


def record_stored(state: MemoryState, session: str, locations: Sequence[int]) -> list[int]:
    """Move the session's staged rows to stored; return those that are condemned or gone."""
    for number in _staged(state, session, locations):
        state.set_state(number, "stored")
    rows = [(number, state.locations.get(number)) for number in locations]
    return [number for number, row in rows if row is None or row.location.state == "condemned"]


def forget_staged(state: MemoryState, session: str, locations: Sequence[int], now: datetime) -> None:
    """Condemn the session's staged rows whose upload failed."""
    for number in _staged(state, session, locations):
        state.set_state(number, "condemned", condemned_at=format_time(now))


def commit(state: MemoryState, request: CommitRequest, *, failpoints: Failpoints, snapshot_every: int) -> Committed:
    """Make a version exist, move its branch, make its tag, append one entry.

    Raises:
        CopiesMissing: objects have not the copies they owe; the state must be thrown away.
    """
    failpoints.hit("commit.begun")
    rules.check_request(request)
    for row in state.versions.values():
        if row.token == request.session:
            rules.check_same_version(request, row.facts.id)
            return Committed(version=row.facts, seq=row.seq)
    state.refuse_stale(request.heads)
    if request.model.id not in state.models:
        rules.refuse_other_model(request.model, state.find_model(request.model.name.casefold()))
    _check_refs(state, request)
    failpoints.hit("commit.locked")
    changes = _write_model(state, request)
    keys = rules.request_keys(request)
    _insert_version(state, request, keys)
    failpoints.hit("commit.version_inserted")
    _check_copies(state, request, keys)
    _make_live(state, keys)
    changes.append(VersionCommitted(version=request.version))
    changes.append(_point(state, request, "branch", request.branch))
    if request.tag is not None:
        changes.append(_point(state, request, "tag", request.tag))
    failpoints.hit("commit.ref_moved")
    seq = state.append(changes, request.now, snapshot_every=snapshot_every)
    failpoints.hit("commit.journaled")
    return Committed(version=request.version, seq=seq)


def _staged(state: MemoryState, session: str, locations: Sequence[int]) -> list[int]:
    rows = [(number, state.locations.get(number)) for number in locations]
    return [n for n, row in rows if row and row.session == session and row.location.state == "staged"]


def _check_refs(state: MemoryState, request: CommitRequest) -> None:
    model = request.model.id
    head = state.refs.get((model, "branch", request.branch))
    rules.check_branch_head(request.branch, present=head, expected=request.expected_head)
    if request.tag is not None and (model, "tag", request.tag) in state.refs:
        raise AlreadyExists(f"the tag {request.tag!r} of {request.model.name} exists: choose another", tag=request.tag)
    if request.version.id in state.versions:
        raise AlreadyExists(f"version {request.version.id} exists already", version=request.version.id)


def _write_model(state: MemoryState, request: CommitRequest) -> list[Change]:
    old = state.models.get(request.model.id)
    new = old or request.model
    if request.model_policy is not None:
        new = msgspec.structs.replace(new, policy=request.model_policy)
    if new == old:
        return []
    state.models[new.id] = new
    return [ModelChanged(old=old, new=new)]


def _insert_version(state: MemoryState, request: CommitRequest, keys: Sequence[ObjectKey]) -> None:
    state.versions[request.version.id] = VersionRow(
        request.version, frozenset(keys), state.end.last_seq + 1, request.session
    )
    body = request.manifest_body
    if body is not None and len(body) <= CATALOG_MANIFEST_BYTES:
        state.manifests.setdefault(request.version.manifest, body)


def _check_copies(state: MemoryState, request: CommitRequest, keys: Sequence[ObjectKey]) -> None:
    short = []
    for key in keys:
        owed = request.copies if key.kind is ObjectKind.PART else request.metadata_copies
        if state.usable_copies(key, durable_only=not request.allow_soft) < owed:
            short.append(key)
    if short:
        raise rules.CopiesMissing(short)


def _make_live(state: MemoryState, keys: Sequence[ObjectKey]) -> None:
    wanted = frozenset(keys)
    for number, row in list(state.locations.items()):
        if row.location.key in wanted and row.location.state == "stored":
            state.locations[number] = replace(row, location=msgspec.structs.replace(row.location, state="live"))


def _point(state: MemoryState, request: CommitRequest, kind: RefKind, name: str) -> RefChanged:
    place = (request.model.id, kind, name)
    old = state.refs.get(place)
    state.refs[place] = request.version.id
    return RefChanged(model=request.model.id, ref=kind, name=name, old=old, new=request.version.id)
