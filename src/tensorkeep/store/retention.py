"""Retention: what a model's versions are kept for, and letting go of the others. gc does that, before it collects."""

from tensorkeep.catalog.protocol import DeviceHead
from tensorkeep.errors import PermissionDenied
from tensorkeep.planning.retention import choose_expired
from tensorkeep.records.history import ModelFacts
from tensorkeep.records.names import parse_model_name
from tensorkeep.records.retention import Retention, parse_retention
from tensorkeep.store.context import StoreContext
from tensorkeep.store.journal import flush_journal, owed_devices, record_change, refuse_stale
from tensorkeep.store.reports import RetentionReport
from tensorkeep.store.revisions import get_model, make_version


def read_retention(context: StoreContext, name: str) -> RetentionReport:
    """Return what a model's retention is, and what the next gc lets go."""
    model = get_model(context, parse_model_name(name))
    retention = parse_retention(model.retention) if model.retention else None
    return _report(context, model, model.retention, retention, dry_run=True)


def set_retention(context: StoreContext, name: str, retention: Retention | None, *, dry_run: bool) -> RetentionReport:
    """Give a model a retention, or none; see `Store.retain`."""
    if context.read_only and not dry_run:
        raise PermissionDenied(f"the store {context.place.shown} can't be written: its retention stays as it is")
    model = get_model(context, parse_model_name(name))
    old, new = model.retention, None if retention is None else str(retention)
    if not dry_run:
        refuse_stale(context)
        now = context.runtime.clock.now()

        def change(heads: tuple[DeviceHead, ...]) -> int:
            if old == new:  # perhaps since a command that was cut off before its entry was on the devices
                return context.catalog.info().last_seq
            return context.catalog.set_retention(model.id, new, heads=heads, now=now)

        record_change(context, change, policy=model.policy)
    return _report(context, model, old, retention, dry_run=dry_run)


def expire_versions(context: StoreContext, *, dry_run: bool, grace_s: float, max_fraction: float | None) -> int:
    """Remove every version that its model's retention lets go; return how many, or how many that would be.

    Raises:
        Conflict: as `Catalog.expire`; none has gone.
        NotEnoughCopies: they are gone, but the entry is on too few devices; nothing that they used was given up.
    """
    catalog = context.catalog
    models = [model for model in catalog.list_models() if model.retention is not None]
    if not models:
        return 0
    epoch = catalog.info().epoch
    expiry = catalog.expire(
        grace_s=grace_s,
        dry_run=dry_run,
        max_fraction=max_fraction,
        heads=context.fleet.heads(),
        now=context.runtime.clock.now(),
    )
    if not dry_run:
        # Even where none goes now: those that went before a command that was cut off must be on the devices too.
        policies = {model.policy or catalog.info().policy for model in models}
        devices = catalog.list_devices()
        need = max(owed_devices(devices, policy) for policy in policies)
        flush_journal(catalog, context.fleet, expiry.seq, epoch=epoch, runtime=context.runtime, need=need)
    return len(expiry.versions)


def _report(
    context: StoreContext, model: ModelFacts, old: str | None, retention: Retention | None, *, dry_run: bool
) -> RetentionReport:
    refs, versions = context.catalog.list_refs(model.id), context.catalog.list_versions(model.id)
    now = context.runtime.clock.now()
    found = [] if retention is None else choose_expired(versions, refs, retention, now=now)
    return RetentionReport(
        model=model.name,
        old=old,
        new=None if retention is None else str(retention),
        dry_run=dry_run,
        versions=len(versions),
        expired=tuple(make_version(model, version, list(refs)) for version in found),
    )
