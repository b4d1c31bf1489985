"""The store: every verb of the public API, each a few lines that hand over to the module that keeps its promise."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorkeep.errors import AlreadyExists, InvalidInput
from tensorkeep.records.conformance_report import ConformanceReport
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.layout import MIB
from tensorkeep.records.names import parse_revision
from tensorkeep.records.retention import EVERY_TAG, make_retention
from tensorkeep.store import device_admin, gc, revisions, usage
from tensorkeep.store.context import StoreContext
from tensorkeep.store.conversion import read_policies, set_policy
from tensorkeep.store.device_bench import bench_device
from tensorkeep.store.diff import diff_manifests
from tensorkeep.store.diff_stats import measure_changes
from tensorkeep.store.drain import drain_device, remove_device, undrain_device
from tensorkeep.store.forecast import forecast_push
from tensorkeep.store.model import Model
from tensorkeep.store.place import get_first_device
from tensorkeep.store.places import LOCAL_NAME
from tensorkeep.store.progress import progress_callback
from tensorkeep.store.pull import PullReport, pull_files
from tensorkeep.store.push import push
from tensorkeep.store.push_target import PushOptions, make_policy
from tensorkeep.store.rebalance import rebalance
from tensorkeep.store.repair import repair
from tensorkeep.store.reports import (
    DeviceBench,
    DeviceStatus,
    Diff,
    DrainReport,
    GcReport,
    LogEntry,
    ModelSummary,
    PolicyReport,
    PolicyTable,
    ProgressCallback,
    PushForecast,
    RebalanceReport,
    RepairReport,
    RetentionReport,
    ScrubReport,
    StatusReport,
    UsageReport,
    VerifyReport,
    Version,
)
from tensorkeep.store.retention import read_retention, set_retention
from tensorkeep.store.scrub import scrub
from tensorkeep.store.structure import open_manifest
from tensorkeep.store.verify import verify_store, verify_version
from tensorkeep.transfer.report import Verify

DAY_S = 86400.0
BENCH_BYTES = 256 * MIB


class DeviceCollection:
    """The devices of a store."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context

    def add(
        self,
        name: str,
        url: str,
        *,
        zone: str | None = None,
        capacity: int | None = None,
        bandwidth: int | None = None,
        rate_limit: int | None = None,
        untrusted: bool = False,
    ) -> DeviceFacts:
        """Make a place a device: parts may go there from now on.

        Args:
            name: what users call it.
            url: an absolute path, ``file:///mnt/nvme0``, or ``s3://bucket/prefix?endpoint=…&region=…&credentials=env:NAME``
                (``gs:`` and ``az:`` alike). It is stored, so keys are refused in it.
            zone: what fails together; its own name if None. Copies go to different zones while these suffice.
            capacity: most bytes that may be stored there; None: all that is free.
            bandwidth: bytes per second; None: a short measurement.
            rate_limit: bytes per second that are never exceeded; None: no limit.
            untrusted: loads check whole digests (BLAKE3) instead of block checks.

        Raises:
            InvalidInput: an unknown URL scheme, an illegal name, another store's device, a place that failed the short
                form of `check`. It is left as it was.
            AlreadyExists: the name or the place is a device already.
        """
        facts = device_admin.add_device(
            self._context,
            name,
            url,
            zone=zone,
            capacity=capacity,
            bandwidth=bandwidth,
            rate_limit=rate_limit,
            untrusted=untrusted,
        )
        self._context.place.write_note(self._context.catalog)
        return facts

    def check(self, place: str) -> ConformanceReport:
        """Ask a device everything that a store needs of it, and keep what was found with it; look at ``ok`` of the report.

        What it holds is left alone, the place as it was. A folder whose mount has become another gets another durability.

        Args:
            place: the name of a device; or a URL or an absolute path, of which nothing is kept where it is no device.

        Raises:
            NotFound: there is no such device.
            Unavailable: it does not answer, or is not the device that the catalog means.
        """
        report = device_admin.check_device(self._context, place)
        if report.name is not None:
            self._context.place.write_note(self._context.catalog)
        return report

    def bench(self, name: str, *, size: int = BENCH_BYTES, save: bool | None = None) -> DeviceBench:
        """Measure how fast a device is written and read, by how many readers best, and how long a small read takes.

        It writes objects of its own on the device, reads them and removes them; a limit of the device's rate holds. The read
        rate of the best number of readers becomes the device's bandwidth.

        Args:
            name: the device.
            size: bytes to write at most, at least 1 MiB; slow devices get less.
            save: whether to keep the bandwidth in the catalog; None: unless a user gave the one that is there.

        Raises:
            NotFound: there is no such device.
            InvalidInput: it is given up, or ``size`` is too little.
            Capacity: it has no room for ``size``.
            PermissionDenied: it, or the store, can't be written.
            Unavailable: it does not answer, or is not the device that the catalog means.
        """
        report = bench_device(self._context, name, size_bytes=size, save=save)
        if report.saved:
            self._context.place.write_note(self._context.catalog)
        return report

    def list(self) -> list[DeviceStatus]:
        """Return every device with what it holds, lost ones too."""
        return usage.list_devices(self._context)

    def drain(
        self,
        name: str,
        *,
        grace_s: float = DAY_S,
        rate_limit: int | None = None,
        progress: bool | ProgressCallback | None = None,
    ) -> DrainReport:
        """Copy what a device holds to the others, then give its copies up; ``empty`` of the report says when it can be removed.

        From the beginning it takes no objects and its copies do not count; it is read as long as it holds some. Each new copy
        is read back before the old one is given up. Killed and run again, it goes on.

        Args:
            name: the device.
            grace_s: seconds for which what was given up is kept, since loads may have begun: it is deleted by a drain, or a gc,
                after that. 0 deletes at once.
            rate_limit: bytes of objects per second that are never exceeded; None: no limit.
            progress: True for a line on standard error, or a callable.

        Raises:
            NotFound: there is no such device.
            InvalidInput: the others are too few for what is stored, or it is gone already.
            Conflict: the catalog is older than its devices (``reason="stale_catalog"``).
        """
        report = drain_device(
            self._context, name, grace_s=grace_s, rate_limit=rate_limit, progress=progress_callback(progress)
        )
        self._context.place.write_note(self._context.catalog)
        return report

    def undrain(self, name: str) -> DeviceFacts:
        """Have a device that drains take objects again, and its copies count.

        Raises:
            NotFound: there is no such device.
            InvalidInput: it does not drain.
        """
        return undrain_device(self._context, name)

    def remove(self, name: str) -> DeviceFacts:
        """Take a drained, empty device out of the store for good. Its folder or bucket can then be deleted.

        Raises:
            NotFound: there is no such device.
            InvalidInput: it was not drained.
            Conflict: it still holds objects (``reason="filled_device"``).
        """
        facts = remove_device(self._context, name)
        self._context.place.write_note(self._context.catalog)
        return facts

    def lost(self, name: str) -> DeviceFacts:
        """Give a device up for lost: its copies count no more, `Store.repair` makes them anew on others.

        Raises:
            NotFound: there is no such device.
        """
        facts = device_admin.lose_device(self._context, name)
        self._context.place.write_note(self._context.catalog)
        return facts


class Store:
    """A store of models. Get one from `tensorkeep.open`; a context manager; thread safe."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context
        self.devices = DeviceCollection(context)

    @property
    def location(self) -> str:
        """The store's folder, or the URL of its database without the password."""
        return self._context.place.shown

    def close(self) -> None:
        """Give back the catalog's connections."""
        self._context.catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def push(
        self,
        source: str | os.PathLike[str] | Mapping[str, Any],
        model: str,
        *,
        branch: str = "main",
        tag: str | None = None,
        message: str = "",
        author: str | None = None,
        split: str = "auto",
        part_size: int | None = None,
        layer_pattern: str | None = None,
        replicas: int | None = None,
        ec: str | None = None,
        base: str | None = None,
        allow_soft: bool = False,
        allow_degraded: bool = False,
        rehash: bool = False,
        progress: bool | ProgressCallback | None = None,
    ) -> Version:
        """Store a source as a new version of a model; durable on the devices it owes when this returns.

        Atomic: the version exists whole or not at all. Where every file equals the branch's head no version is made, and
        the head is returned. Killed and run again, it sends only what is missing.

        Args:
            source: a folder, a file, or arrays by name (stored as safetensors).
            model: ``namespace/name``, or a bare name.
            branch: the branch that moves to the new version.
            tag: a new tag for it.
            message: for the log.
            author: for the log; the user's name if None.
            split: ``auto``, ``tensor``, ``layer``, ``size`` or ``parts=N``.
            part_size: bytes, a whole number of MiB up to 64; None: chosen, or the parent's.
            layer_pattern: a regular expression whose groups name the layer in a tensor's name; None: as the usual families do.
            replicas: whole copies of each part, kept by later pushes; None: the model's or the store's policy.
            ec: erasure coding ``K+M``: each part in K data and M parity fragments on as many devices, M of which may be lost.
            base: a version whose method, part size and packs are taken as if it were the parent.
            allow_soft: count copies on devices that may not survive a power cut.
            allow_degraded: go on with fewer copies when a device is down.
            rehash: read every file, also those that look unchanged.
            progress: True for a line on standard error, or a callable.

        Raises:
            NotFound: the source does not exist.
            InvalidInput: it holds what can't be stored, it changed meanwhile, or an argument makes no sense.
            Format: a file breaks its format's rules (``split="size"`` stores it all the same).
            AlreadyExists: the tag exists.
            Conflict: another push moved the branch meanwhile.
            Unavailable: a device is down.
            NotEnoughCopies: too few devices took the bytes, or the journal's entry ("committed, not yet on devices").
            Capacity: the devices are full.
        """
        self._ensure_device()
        options = PushOptions(
            branch=branch,
            tag=tag,
            message=message,
            author=author,
            split=split,
            part_size=part_size,
            layer_pattern=layer_pattern,
            policy=make_policy(replicas, ec),
            base=base,
            allow_soft=allow_soft,
            allow_degraded=allow_degraded,
            rehash=rehash,
        )
        return push(self._context, source, model, options, progress_callback(progress))

    def plan(
        self,
        source: str | os.PathLike[str] | Mapping[str, Any],
        model: str | None = None,
        *,
        branch: str = "main",
        split: str = "auto",
        part_size: int | None = None,
        layer_pattern: str | None = None,
        replicas: int | None = None,
        ec: str | None = None,
        base: str | None = None,
        allow_soft: bool = False,
        allow_degraded: bool = False,
        rehash: bool = False,
        exact: bool = False,
        progress: bool | ProgressCallback | None = None,
    ) -> PushForecast:
        """Return what `push` with the same arguments would do, and why; writes nothing.

        What it says of parts and bytes for each device is what the push then writes, metadata apart. It reads headers only, and
        so takes parts that are equal to each other, or stored already, for new ones; unchanged files of the model's branch are known.

        Args:
            source: a folder, a file, or arrays by name.
            model: the model to push to; None: one that is not there yet.
            branch: the branch whose head is the parent.
            split: as in `push`, and so are the other arguments of its names.
            part_size: as in `push`.
            layer_pattern: as in `push`.
            replicas: as in `push`.
            ec: as in `push`.
            base: as in `push`.
            allow_soft: as in `push`.
            allow_degraded: as in `push`.
            rehash: as in `push`.
            exact: read and hash everything, so that equal and stored parts are known.
            progress: True for a line on standard error, or a callable; it moves with ``exact`` only.

        Raises:
            NotFound: the source does not exist.
            InvalidInput: it holds what can't be stored, or an argument makes no sense.
            Format: a file breaks its format's rules.
            Unavailable: a device is down.
        """
        options = PushOptions(
            branch=branch,
            split=split,
            part_size=part_size,
            layer_pattern=layer_pattern,
            policy=make_policy(replicas, ec),
            base=base,
            allow_soft=allow_soft,
            allow_degraded=allow_degraded,
            rehash=rehash,
        )
        return forecast_push(self._context, source, model, options, exact=exact, progress=progress_callback(progress))

    def model(self, spec: str) -> Model:
        """Return a version opened for reading, ``model[@revision]``; reads its manifest only.

        Raises:
            NotFound: there is no such model or revision.
        """
        model, version = revisions.get_version(self._context, parse_revision(spec))
        described = revisions.describe_version(self._context, model, version)
        return Model(self._context, model.name, described, version, open_manifest(self._context, version))

    def pull(
        self,
        spec: str,
        destination: str | os.PathLike[str],
        *,
        format: str | None = None,  # noqa: A002 - the word that users know
        include: str | Sequence[str] | None = None,
        force: bool = False,
        verify: Verify | None = None,
        deadline_s: float | None = None,
        progress: bool | ProgressCallback | None = None,
    ) -> PullReport:
        """Write a version's files under a folder, byte-identical; each appears under its name only when it is whole.

        With ``format="safetensors"`` each file of another known tensor format becomes a safetensors file, named as
        transformers looks for it (``pytorch_model.bin`` becomes ``model.safetensors``), and indexes of shards are rewritten;
        all else comes as it is. Tensors keep names, dtypes and bytes, as in `Model.save`; what a file holds besides does not
        come along.

        Args:
            spec: ``model[@revision]``.
            destination: a folder; made if missing. Files that are there and equal are left alone.
            format: ``safetensors``; None: as they were pushed.
            include: a glob, or several, over paths (those in the version, whatever they become).
            force: replace files that differ.
            verify: as in `Model.load`.
            deadline_s: seconds after which it fails instead of waiting.
            progress: True for a line on standard error, or a callable.

        Raises:
            AlreadyExists: a file is there and differs.
            InvalidInput: a file holds what the format can't say, or two files would get one name; nothing is written.
            Integrity: bytes are damaged on every device that has them.
            NotEnoughCopies: no device that has some bytes can be read.
        """
        _, version = revisions.get_version(self._context, parse_revision(spec))
        manifest = open_manifest(self._context, version)
        return pull_files(
            self._context,
            version,
            manifest,
            Path(destination),
            format_name=format,
            include=include,
            force=force,
            verify=verify,
            deadline_s=deadline_s,
            progress=progress_callback(progress),
        )

    def models(self) -> list[ModelSummary]:
        """Return every model at a glance, by name."""
        return revisions.list_models(self._context)

    def log(self, spec: str) -> list[LogEntry]:
        """Return a revision and its ancestors, newest first; a removed one is shown as such."""
        return revisions.log(self._context, spec)

    def diff(
        self,
        old: str,
        new: str,
        *,
        stats: bool = False,
        include: str | Sequence[str] | None = None,
        progress: bool | ProgressCallback | None = None,
    ) -> Diff:
        """Return which files and tensors differ between two versions; reads manifests only, without ``stats``.

        Args:
            old: ``model[@revision]``.
            new: the same; of another model too.
            stats: read the changed tensors of both versions, verified, and measure how far their values moved. Takes less
                than 256 MiB of memory, whatever their size.
            include: a glob, or several, over paths of files and names of tensors; None is all.
            progress: True for a line on standard error, or a callable.

        Raises:
            NotFound: there is no such version, or nothing in either fits ``include``.
            Integrity: bytes to measure are damaged on every device that has them.
            NotEnoughCopies: no device that has them can be read.
        """
        before, after = self.model(old), self.model(new)
        found = diff_manifests(before.version.id, before.manifest, after.version.id, after.manifest, include=include)
        return measure_changes(found, before, after, progress_callback(progress)) if stats else found

    def tag(self, model: str, name: str, revision: str = "main") -> Version:
        """Make a tag at a revision; tags never move.

        Raises:
            AlreadyExists: the tag exists.
        """
        return revisions.set_tag(self._context, model, name, revision)

    def delete_tag(self, model: str, name: str) -> None:
        """Delete a tag; the version stays."""
        revisions.delete_ref(self._context, model, "tag", name)

    def branch(self, model: str, name: str, to: str = "main") -> Version:
        """Make a branch at a revision, or move it there: a roll back.

        Raises:
            Conflict: somebody else moved it meanwhile.
        """
        return revisions.set_branch(self._context, model, name, to)

    def delete_branch(self, model: str, name: str) -> None:
        """Delete a branch; its versions stay."""
        revisions.delete_ref(self._context, model, "branch", name)

    def rm(self, spec: str) -> Version:
        """Remove a version that no branch or tag points at; its space is freed by `gc`.

        Raises:
            Conflict: a branch or tag points at it; the message names them.
        """
        return revisions.remove_version(self._context, spec)

    def rm_model(self, model: str) -> int:
        """Remove a model with all versions, branches and tags; return how many versions there were."""
        return revisions.remove_model(self._context, model)

    def verify(self, spec: str | None = None, *, progress: bool | ProgressCallback | None = None) -> VerifyReport:
        """Read stored bytes again, compare every one with its digest, and return what is wrong.

        Without ``spec`` everything: all copies of all objects, the identity and journal of each device, and the catalog.
        Copies found bad are marked so, and copies marked bad that are good are good again.
        """
        callback = progress_callback(progress)
        if spec is None:
            return verify_store(self._context, callback)
        _, version = revisions.get_version(self._context, parse_revision(spec))
        return verify_version(self._context, version, callback)

    def scrub(
        self,
        *,
        deep: bool = False,
        devices: Sequence[str] = (),
        rate_limit: int | None = None,
        restart: bool = False,
        progress: bool | ProgressCallback | None = None,
    ) -> ScrubReport:
        """Look devices through for missing and damaged objects, all devices at once; mark what is bad, for `repair`.

        A light scrub compares listings with the catalog, and notes objects that no row tells of for `gc`; a deep one reads and
        compares every byte. Each goes on where the last one of its depth was cut off.

        Args:
            deep: read every byte.
            devices: names; none: all.
            rate_limit: bytes per second that are never exceeded on each device; None: no limit.
            restart: begin anew.
            progress: True for a line on standard error, or a callable.

        Raises:
            NotFound: there is no such device in use.
            Conflict: the catalog is older than its devices (``reason="stale_catalog"``).
        """
        return scrub(
            self._context,
            depth="deep" if deep else "light",
            devices=devices,
            rate_limit=rate_limit,
            restart=restart,
            progress=progress_callback(progress),
        )

    def repair(
        self,
        *,
        without: Sequence[str] = (),
        rate_limit: int | None = None,
        dry_run: bool = False,
        progress: bool | ProgressCallback | None = None,
    ) -> RepairReport:
        """Give whatever has fewer copies than it owes the others again, the most endangered first; say exactly what is lost.

        A copy is read, verified, written, and read back before it counts. Copies on a device that can't be reached count, as
        it may come back: nothing is copied because a disk is not mounted. Killed and run again, it goes on.

        Args:
            without: devices whose copies are not to count this time, though they may come back.
            rate_limit: bytes of objects per second that are never exceeded; None: no limit.
            dry_run: only say what lacks copies.
            progress: True for a line on standard error, or a callable.

        Raises:
            NotFound: there is no such device.
            Conflict: the catalog is older than its devices (``reason="stale_catalog"``).
        """
        return repair(
            self._context,
            without=without,
            rate_limit=rate_limit,
            dry_run=dry_run,
            progress=progress_callback(progress),
        )

    def rebalance(
        self,
        *,
        rate_limit: int | None = None,
        dry_run: bool = False,
        progress: bool | ProgressCallback | None = None,
    ) -> RebalanceReport:
        """Move parts until each device holds its share by bandwidth and room, and give up copies that nobody owes any more.

        As few bytes move as that takes: to a new device about its share. A copy is given up only when the new one was read
        back and counts; gc deletes it after its grace. Killed and run again, it goes on.

        Args:
            rate_limit: bytes of copies per second that are never exceeded; None: no limit.
            dry_run: only say what would move.
            progress: True for a line on standard error, or a callable.

        Raises:
            Conflict: the catalog is older than its devices (``reason="stale_catalog"``).
        """
        return rebalance(self._context, rate_limit=rate_limit, dry_run=dry_run, progress=progress_callback(progress))

    def policies(self) -> PolicyTable:
        """Return the policy of the store, and what models and their versions owe."""
        return read_policies(self._context)

    def set_policy(
        self,
        model: str | None,
        *,
        replicas: int | None = None,
        ec: str | None = None,
        rate_limit: int | None = None,
        dry_run: bool = False,
        progress: bool | ProgressCallback | None = None,
    ) -> PolicyReport:
        """Change what a model owes, the versions that it has included, or what models without a policy of their own will owe.

        A model's versions owe the new policy as one change of the catalog; then their parts are written in its form, read back, and
        the copies of the old form are given up, which gc deletes after its grace. Parts of which other models ask more stay as they
        are. Killed and run again, it goes on.

        Args:
            model: the model; None: the store's default, for later pushes of models without a policy of their own.
            replicas: whole copies of each part.
            ec: erasure coding ``K+M``; this or ``replicas``.
            rate_limit: bytes of objects per second that are never exceeded; None: no limit.
            dry_run: only say how many versions and parts would change.
            progress: True for a line on standard error, or a callable.

        Raises:
            NotFound: there is no such model.
            InvalidInput: neither or both are given, one makes no sense, or the devices that can be written are too few.
            Conflict: the catalog is older than its devices (``reason="stale_catalog"``).
            NotEnoughCopies: the change is in the catalog, but on too few devices.
        """
        policy = make_policy(replicas, ec)
        if policy is None:
            raise InvalidInput("give replicas or ec: what is to be owed from now on")
        return set_policy(
            self._context, model, policy, rate_limit=rate_limit, dry_run=dry_run, progress=progress_callback(progress)
        )

    def retention(self, model: str) -> RetentionReport:
        """Return which versions of a model stay, and which go with the next gc."""
        return read_retention(self._context, model)

    def retain(
        self,
        model: str,
        *,
        last: int | None = None,
        days: int | None = None,
        protect: Sequence[str] = EVERY_TAG,
        dry_run: bool = False,
    ) -> RetentionReport:
        """Say which versions of a model stay; the others go with each gc from then on, and their parts as gc says.

        Heads of branches stay always, and every version that one of these keeps. Without ``last`` and ``days`` all stay, as at first.

        Args:
            model: the model.
            last: so many versions of each branch, from its head on. Before one that was removed any older ones count.
            days: what was committed in so many days, by the clocks of those who pushed.
            protect: shell patterns of tags whose versions stay; other tags are deleted with their versions.
            dry_run: only say which would go.

        Raises:
            NotFound: there is no such model.
            InvalidInput: a limit or a pattern makes no sense.
            Conflict: the catalog is older than its devices (``reason="stale_catalog"``).
            NotEnoughCopies: the change is in the catalog, but on too few devices.
        """
        patterns = protect if isinstance(protect, str) else tuple(protect)
        stays_all = last is None and days is None and patterns == EVERY_TAG
        retention = None if stays_all else make_retention(last, days, patterns)
        return set_retention(self._context, model, retention, dry_run=dry_run)

    def gc(
        self, *, dry_run: bool = False, grace_s: float = DAY_S, max_fraction: float | None = gc.MOST_UNUSED
    ) -> GcReport:
        """Delete what no version uses from the devices; before that, remove the versions that `retain` lets go.

        Two steps: what nothing uses is condemned now, and deleted by the first gc after the grace (readers may have open
        plans). A grace of 0 is safe for what is stored: commits and condemnations lock the same rows.

        Args:
            dry_run: only say what would be condemned and deleted.
            grace_s: seconds for which what was condemned is kept.
            max_fraction: of the stored bytes, 0 to 1: more are not condemned at once, since that is more often a mistake than meant.
                None: as many as it takes.

        Raises:
            Conflict: the catalog is older than its devices (``reason="stale_catalog"``), or too much would be condemned
                (``reason="gc_brake"``).
        """
        return gc.collect(self._context, dry_run=dry_run, grace_s=grace_s, max_fraction=max_fraction)

    def du(self, spec: str | None = None) -> UsageReport:
        """Return the space of all versions, of a model, or of one ``model@revision``."""
        return usage.measure_usage(self._context, spec)

    def status(self) -> StatusReport:
        """Return devices, versions short of copies, and what to do about them."""
        return usage.read_status(self._context, self.location)

    def _ensure_device(self) -> None:
        """Add a device inside the store's folder where there is none at all, so that a first push needs no set-up."""
        if self._context.read_only or self._context.catalog.list_devices():
            return
        try:
            self.devices.add(LOCAL_NAME, str(get_first_device(self._context.place)))
        except AlreadyExists:
            if not self._context.catalog.list_devices():
                raise
            # Another first push was quicker: its device is ours.
