"""Push: scan, plan, read and hash, write what is missing, commit, put the journal entry on the devices, return.

Killed anywhere, nothing that was stored is lost: parts lie on devices as staged or stored rows, the version exists only when
the commit's transaction is done, and running the push again sends only what is missing.
"""

import os
from collections.abc import Mapping
from typing import Any

from tensorkeep.planning.choosing import check_split
from tensorkeep.planning.layers import parse_layer_pattern
from tensorkeep.records.layout import PART_LIMIT_BYTES
from tensorkeep.records.names import parse_model_name
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import ErasureCoded, Policy
from tensorkeep.store.context import StoreContext
from tensorkeep.store.journal import flush_journal, refuse_stale
from tensorkeep.store.object_writer import ObjectWriter
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.push_commit import PushWork
from tensorkeep.store.push_manifest import assemble_version
from tensorkeep.store.push_plan import plan_push
from tensorkeep.store.push_read import ARENA_BYTES, read_sources
from tensorkeep.store.push_target import PushOptions, find_target, open_base, zone_warnings
from tensorkeep.store.reports import ProgressCallback, PushReport, Version
from tensorkeep.store.revisions import describe_version
from tensorkeep.store.sessions import new_session
from tensorkeep.store.sources import open_sources
from tensorkeep.store.stat_cache import StatCache

_BATCHES = 4


def push(
    context: StoreContext,
    source: str | os.PathLike[str] | Mapping[str, Any],
    model: str,
    options: PushOptions,
    progress: ProgressCallback | None,
) -> Version:
    """Store a source as a new version of a model and return the version; see `Store.push`."""
    started_s = context.runtime.clock.monotonic_s()
    failpoints = context.runtime.failpoints
    check_split(options.split, options.part_size)
    naming = parse_layer_pattern(options.layer_pattern)
    epoch = context.catalog.info().epoch
    scanned_at = context.runtime.clock.now()
    sources = open_sources(source)
    target = find_target(context, parse_model_name(model), options)
    refuse_stale(context)
    base = open_base(context, target, options)
    cache = StatCache(context.cache_folder)
    failpoints.hit("push.scanned")
    plan = plan_push(
        context,
        sources,
        requested=options.split,
        part_size=options.part_size,
        naming=naming,
        base=base,
        device_count=len(target.devices),
        cache=None if options.rehash else cache,
    )
    failpoints.hit("push.planned")
    with new_session(context) as session:
        failpoints.hit("push.session_begun")
        with (
            ObjectWriter(
                context,
                session,
                down=target.down,
                allow_soft=options.allow_soft,
                allow_degraded=options.allow_degraded,
            ) as writer,
            context.runtime.workers.open_pool(_BATCHES, "batch") as batches,
        ):
            work = PushWork(context, session, target, options, plan, base, writer)
            counter = ByteProgress(progress, "push", plan.total_bytes)
            counter.count(sum(file.size_bytes for file in plan.kept.values()))  # known, so not read again
            result = read_sources(
                plan,
                work.store_batch,
                workers=context.runtime.workers,
                pool=batches,
                count=counter.count,
                arena_bytes=_arena_bytes(target.policy),
            )
            assembled = assemble_version(plan, result, base)
            version, created, seq = work.conclude(assembled, result)
    flush_journal(
        context.catalog,
        context.fleet,
        # Also where nothing was committed: the head may be of a push that was killed before its entry was on the devices.
        seq or context.catalog.info().last_seq,
        epoch=epoch,
        runtime=context.runtime,
        policy=str(target.policy),
        need=1 if options.allow_degraded and target.down else None,
    )
    failpoints.hit("push.done")
    sha256s = {file.path: file.sha256 for file in assembled.manifest.files}
    cache.remember(((s, sha256s[s.path]) for s in sources), scanned_at=scanned_at)
    report = PushReport(
        created=created,
        files=len(sources),
        bytes=plan.total_bytes,
        parts=len(assembled.parts),
        new_parts=sum(key.kind is ObjectKind.PART for key in writer.tally.new_keys),
        new_bytes=writer.tally.new_bytes,
        written_bytes=writer.tally.written_bytes,
        device_bytes=writer.tally.device_bytes,
        method=str(plan.choice.method),
        part_size=plan.choice.part_size,
        why=plan.choice.why,
        seconds=context.runtime.clock.monotonic_s() - started_s,
        warnings=(*zone_warnings(target, allow_soft=options.allow_soft), *writer.tally.warnings),
        notes=plan.notes,
    )
    return describe_version(context, target.model, version, report=report)


def _arena_bytes(policy: Policy) -> int:
    """Return what parts may take in memory: with the parity made of them it is as much as whole copies would."""
    if not isinstance(policy, ErasureCoded):
        return ARENA_BYTES
    return max(ARENA_BYTES * policy.data // policy.slots, 2 * PART_LIMIT_BYTES)
