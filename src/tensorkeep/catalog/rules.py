"""Rules that every catalog keeps in the same way: what an object owes, who is alive, when a catalog is stale. No I/O."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from tensorkeep.catalog.protocol import CommitRequest, DeviceHead, Needed, ObjectKey, ObjectRequest
from tensorkeep.errors import AlreadyExists, Conflict, Integrity, InvalidInput, NotFound
from tensorkeep.planning.policies import check_policy
from tensorkeep.records.device import DeviceFacts, counted_devices, is_gone
from tensorkeep.records.digest import DIGEST_BYTES, VERSION_ID_BYTES, blake3_256
from tensorkeep.records.history import ModelFacts, RefFacts, VersionFacts
from tensorkeep.records.json_text import format_time
from tensorkeep.records.names import check_ref_name
from tensorkeep.records.naming import (
    ChecksName,
    FragmentName,
    ManifestName,
    ObjectKind,
    PartName,
    VersionName,
    physical_name,
)
from tensorkeep.records.redundancy import metadata_copies, parse_policy

USABLE = ("live", "stored")
"""States whose bytes are durable and may be offered, read and counted."""

SESSION_KEPT_S = 7 * 24 * 3600.0
"""Sessions silent for longer are forgotten; liveness only, their rows are judged by the grace long before."""

_OLDEST = datetime(1970, 1, 1, tzinfo=UTC)


class CopiesMissing(Exception):
    """Undoes a commit because these objects have not the copies they owe."""

    def __init__(self, keys: Sequence[ObjectKey]) -> None:
        super().__init__(len(keys))
        self.needed = Needed(keys=tuple(sorted(keys)))


def copies_owed(kind: ObjectKind, policy: str, counted_devices: int) -> int:
    """Return how many copies, whatever their form, an object of a version with this policy owes."""
    parsed = parse_policy(policy)
    return parsed.losses + 1 if kind is ObjectKind.PART else metadata_copies(parsed, counted_devices)


def moment_before(now: datetime, seconds: float) -> str:
    """Return the moment that long before ``now``, as the catalog stores moments; never before 1970."""
    try:
        moment = now - timedelta(seconds=seconds)
    except OverflowError:
        return format_time(_OLDEST)
    return format_time(max(moment, _OLDEST))


def is_alive(heartbeat: str, *, grace_s: float, now: datetime) -> bool:
    """Return whether a session's heartbeat is younger than the grace; a grace of 0 spares nobody, whatever clocks say."""
    return grace_s > 0 and heartbeat > moment_before(now, grace_s)


def check_key(key: ObjectKey) -> ObjectKey:
    """Return the key if its digest has the length of its kind.

    Raises:
        InvalidInput: it has not.
    """
    expected = VERSION_ID_BYTES if key.kind is ObjectKind.VERSION else DIGEST_BYTES
    if len(key.digest) != expected:
        raise InvalidInput(f"the digest of a {key.kind} has {expected} bytes, not {len(key.digest)}")
    return key


def staged_name(request: ObjectRequest, fragment: int | None = None) -> str:
    """Return the physical name of every copy staged by a request, or of its fragment of that number."""
    key = check_key(request.key)
    if fragment is not None and request.code is not None:
        code = request.code
        return physical_name(FragmentName(key.digest, request.ulid, code.data, code.parity, fragment))
    match key.kind:
        case ObjectKind.PART:
            return physical_name(PartName(key.digest, request.ulid))
        case ObjectKind.MANIFEST:
            return physical_name(ManifestName(key.digest, request.ulid))
        case ObjectKind.CHECKS:
            return physical_name(ChecksName(key.digest, request.ulid))
        case ObjectKind.VERSION:
            if request.model is None:
                raise InvalidInput(f"staging the version record {key.digest.hex()} needs its model's ulid")
            return physical_name(VersionName(request.model, key.digest, request.ulid))


def check_size(request: ObjectRequest, known_bytes: int) -> None:
    """Return if an object has the size that the catalog knows.

    Raises:
        Integrity: it has another one: one of the two is not what its digest says.
    """
    if request.size_bytes != known_bytes:
        raise Integrity(
            f"{request.key.kind} {request.key.digest.hex()} is known with {known_bytes} bytes, "
            f"now it has {request.size_bytes}",
            part=request.key.digest.hex(),
        )


def version_keys(version: VersionFacts) -> tuple[ObjectKey, ObjectKey, ObjectKey]:
    """Return the keys of a version's manifest, checks object and record."""
    return (
        check_key(ObjectKey(ObjectKind.MANIFEST, bytes.fromhex(version.manifest))),
        check_key(ObjectKey(ObjectKind.CHECKS, bytes.fromhex(version.checks))),
        check_key(ObjectKey(ObjectKind.VERSION, bytes.fromhex(version.id))),
    )


def request_keys(request: CommitRequest) -> list[ObjectKey]:
    """Return every object that a commit refers to, each once: parts in manifest order, then metadata."""
    data = request.parts
    digests = dict.fromkeys(data[start : start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES))
    return [*(ObjectKey(ObjectKind.PART, digest) for digest in digests), *version_keys(request.version)]


def check_request(request: CommitRequest) -> None:
    """Return if a commit's values fit together.

    Raises:
        InvalidInput: they don't; nothing was looked up yet.
    """
    check_ref_name(request.branch, kind="branch")
    if request.tag is not None:
        check_ref_name(request.tag, kind="tag")
    for policy in (request.version.policy, request.model.policy, request.model_policy):
        if policy is not None:
            parse_policy(policy)
    if len(request.parts) % DIGEST_BYTES:
        raise InvalidInput(f"the parts of a commit are {DIGEST_BYTES} bytes each; {len(request.parts)} is no multiple")
    if request.version.model != request.model.id:
        raise InvalidInput(f"version {request.version.id} is of model {request.version.model}, not {request.model.id}")
    if request.copies < 1 or request.metadata_copies < 1:
        raise InvalidInput("every object of a version owes at least one copy")
    if request.manifest_body is not None and blake3_256(request.manifest_body).hex() != request.version.manifest:
        raise InvalidInput(f"the manifest given with version {request.version.id} is not the one that it names")


def check_same_version(request: CommitRequest, committed: str) -> None:
    """Return if a session that has committed asks for the same version again.

    Raises:
        InvalidInput: it asks for another one: the session is also the idempotency token.
    """
    if committed != request.version.id:
        raise InvalidInput(
            f"session {request.session} has already committed version {committed}: open another one",
            session=request.session,
            version=committed,
        )


def check_ref_move(*, kind: str, name: str, present: str | None, expected: str | None, new: str | None) -> None:
    """Return if a branch or tag may be made, moved (``new`` is the version) or deleted (``new`` None).

    Raises:
        AlreadyExists: it should be new and exists.
        Conflict: it does not point at ``expected``.
        NotFound: there is none to delete.
    """
    if present == expected and (present is not None or new is not None):
        return
    if new is None and present is None:
        raise NotFound(f"there is no {kind} {name!r} to delete", ref=name)
    if expected is None and new is not None:
        remedy = "move it instead" if kind == "branch" else "delete it first: tags don't move"
        raise AlreadyExists(
            f"the {kind} {name!r} exists and points at version {present}: choose another name, or {remedy}",
            ref=name,
            version=present,
        )
    raise Conflict(
        f"the {kind} {name!r} does not point at {expected or 'nothing'} any more but at {present or 'nothing'}: "
        "look again, then retry",
        ref=name,
        expected=expected,
        version=present,
    )


def check_branch_head(branch: str, *, present: str | None, expected: str | None) -> None:
    """Return if a commit may move a branch.

    Raises:
        Conflict: another push moved or made it first.
    """
    if present != expected:
        raise Conflict(
            f"the branch {branch!r} points at {present or 'nothing'}, not at {expected or 'nothing'} as when this push "
            "began: another push was first, push again",
            ref=branch,
            expected=expected,
            version=present,
        )


def choose_version(found: list[VersionFacts], model: ModelFacts, revision: str) -> VersionFacts:
    """Return the one version whose id begins with a revision.

    Raises:
        NotFound: there is none.
        InvalidInput: there are several.
    """
    if not found:
        raise NotFound(
            f"model {model.name} has no branch, tag or version {revision!r}: `tensorkeep log {model.name}` lists them",
            model=model.name,
            revision=revision,
        )
    if len(found) > 1:
        candidates = sorted(version.id for version in found)
        raise InvalidInput(
            f"{revision!r} begins {len(found)} versions of {model.name}, write more digits: {', '.join(candidates)}",
            revision=revision,
            candidates=candidates,
        )
    return found[0]


def refuse_referenced(version: str, pointing: Sequence[RefFacts]) -> None:
    """Return if no branch or tag points at a version.

    Raises:
        Conflict: ``reason="referenced"``; the message names them.
    """
    if pointing:
        names = ", ".join(f"{ref.kind} {ref.name}" for ref in pointing)
        raise Conflict(
            f"version {version} can't be removed: {names} points at it; delete or move it first",
            reason="referenced",
            version=version,
            refs=[ref.name for ref in pointing],
        )


def refuse_unknown_structure(versions: Sequence[str]) -> None:
    """Return if there are none of these versions, whose parts nobody knows since a rebuild found no structure of them.

    Raises:
        Conflict: ``reason="unknown_structure"``; collecting could delete their parts.
    """
    if versions:
        raise Conflict(
            f"nothing is collected: the structure of version {', '.join(versions[:5])} could not be read when the catalog was "
            "rebuilt, so that its parts look unused. Bring back what keeps it and run `tensorkeep rebuild-catalog --force`, "
            "or give the version up with `tensorkeep rm`",
            reason="unknown_structure",
            versions=list(versions),
        )


def may_condemn(size_bytes: int, kept_bytes: int, max_fraction: float | None) -> bool:
    """Return whether bytes that are to be condemned are no more than that of them and those that are kept; None: as many as there are."""
    return max_fraction is None or size_bytes <= (size_bytes + kept_bytes) * max_fraction


def refuse_much(size_bytes: int, kept_bytes: int, max_fraction: float | None) -> NoReturn:
    """Refuse to condemn so much at once: it may be a mistake, or the catalog lacks versions.

    Raises:
        Conflict: ``reason="gc_brake"``.
    """
    stored = size_bytes + kept_bytes
    raise Conflict(
        f"nothing is collected: gc would give up {size_bytes} of the {stored} bytes that are stored "
        f"({size_bytes / max(1, stored):.0%}, at once at most {max_fraction or 0:.0%}). Look with `tensorkeep ls` and `tensorkeep log` "
        "whether versions are missing; if it is meant, say so (`tensorkeep gc --yes`)",
        reason="gc_brake",
        bytes=size_bytes,
        stored=stored,
    )


def refuse_many(count: int, total: int, max_fraction: float | None, models: Sequence[str]) -> None:
    """Return if so many of all versions may be let go at once.

    Raises:
        Conflict: ``reason="gc_brake"``.
    """
    if max_fraction is None or count <= total * max_fraction:
        return
    raise Conflict(
        f"nothing is collected: the retention of {', '.join(models)} lets {count} of all {total} versions go "
        f"({count / total:.0%}, at once at most {max_fraction:.0%}). See which: `tensorkeep retain {models[0]}`; "
        "if it is meant, say so (`tensorkeep gc --yes`; where so many go each time, `--max-fraction`)",
        reason="gc_brake",
        versions=count,
        models=tuple(models),
    )


def refuse_other_model(wanted: ModelFacts, present: ModelFacts | None) -> None:
    """Return if the model that has a name now, if any, is the one that a push means.

    Raises:
        Conflict: another push made a model of that name first.
    """
    if present is not None and present.id != wanted.id:
        raise Conflict(
            f"another push has made the model {present.name} meanwhile: push again", model=present.name, id=present.id
        )


def check_device_change(old: DeviceFacts | None, new: DeviceFacts, present: Iterable[DeviceFacts]) -> None:
    """Return if a device may be added or changed among the present ones.

    The name of a device that is lost or removed stays its own, so that a name means one device for ever; its URL is free again,
    because a new disk is mounted where the old one was.

    Raises:
        AlreadyExists: its id, name or URL is another device's.
        Conflict: it is not ``old`` any more.
        NotFound: there is no such device to change.
        InvalidInput: another device's id, or a device that is lost or removed and should come back.
    """
    by_id = {facts.id: facts for facts in present}
    if old is None and new.id in by_id:
        raise AlreadyExists(f"device {new.id} exists, named {by_id[new.id].name}", device=new.id)
    if old is not None:
        _check_old_device(old, new, by_id)
    for other in by_id.values():
        if other.id == new.id:
            continue
        if other.name == new.name:
            raise AlreadyExists(
                f"the name {new.name!r} is that of device {other.id} ({other.url}, {other.state}): choose another",
                device=other.id,
            )
        if other.url == new.url and not is_gone(other) and not is_gone(new):
            raise AlreadyExists(f"{new.url} is already the device {other.name}", device=other.id)


def _check_old_device(old: DeviceFacts, new: DeviceFacts, by_id: dict[str, DeviceFacts]) -> None:
    if old.id != new.id:
        raise InvalidInput(f"a change of device {old.id} can't make it {new.id}", device=old.id)
    present = by_id.get(old.id)
    if present is None:
        raise NotFound(f"there is no device {old.id}", device=old.id)
    if present != old:
        raise Conflict(f"device {present.name} was changed meanwhile: look again, then retry", device=old.id)
    if is_gone(present) and new.state != present.state:
        raise InvalidInput(
            f"device {present.name} is {present.state} and never used again: add its disk as a new device",
            device=old.id,
        )


def check_draining(draining: DeviceFacts, devices: Iterable[DeviceFacts], policies: Iterable[str]) -> None:
    """Return if the other devices can hold what these policies ask for.

    Asked in the transaction that changes the device: of two drains at once, each of which the others could bear, one is refused.

    Raises:
        InvalidInput: they are too few.
    """
    zones = [facts.zone for facts in counted_devices(facts for facts in devices if facts.id != draining.id)]
    for policy in sorted(set(policies)):
        try:
            check_policy(parse_policy(policy), zones)
        except InvalidInput as error:
            raise InvalidInput(
                f"without device {draining.name} the others can't keep what is stored: {error.message}",
                device=draining.name,
            ) from error


def refuse_filled(device: DeviceFacts, rows: int) -> None:
    """Return if the catalog has no rows of a device that is to be removed.

    Raises:
        Conflict: ``reason="filled_device"``; it has.
    """
    if rows:
        raise Conflict(
            f"device {device.name} still holds {rows} objects: run `tensorkeep device drain {device.name}`, and again once the "
            "grace of those that were given up is over (or with --grace 0); then remove it",
            reason="filled_device",
            device=device.name,
            objects=rows,
        )


def check_heads(
    heads: Sequence[DeviceHead], *, epoch: int, last_seq: int, find_digest: Callable[[int, int], str | None]
) -> None:
    """Return if no device is ahead of the catalog, nor tells another history.

    Args:
        heads: what the devices say.
        epoch: the catalog's.
        last_seq: of the catalog's newest entry, which is of that epoch.
        find_digest: the digest of the entry (epoch, seq) that the catalog still has, or None.

    Raises:
        Conflict: ``reason="stale_catalog"``.
    """
    for head in heads:
        told = f"the journal of device {head.device} ends at entry {head.seq} of epoch {head.entry_epoch}"
        if head.epoch > epoch:
            _refuse(head, f"device {head.device} is of epoch {head.epoch}, the catalog of {epoch}")
        if (head.entry_epoch, head.seq) > (epoch, last_seq):
            _refuse(head, f"{told}, the catalog's at entry {last_seq} of epoch {epoch}")
        if head.digest is not None:
            digest = find_digest(head.entry_epoch, head.seq)
            if digest is not None and digest != head.digest:
                _refuse(head, f"{told}, which is another entry than the catalog's of that number")


def _refuse(head: DeviceHead, what: str) -> None:
    raise Conflict(
        f"this catalog is older than the devices: {what}. Nothing was changed; run `tensorkeep rebuild-catalog`",
        reason="stale_catalog",
        device=head.device,
    )
