"""A made-up model of 10 TiB: 100,000 tensors in 10⁶ parts, committed to a store as structure only.

The manifest, the checks (0.4 GB) and the version record are real objects on a device, and the catalog knows every part and a
copy of it; only the parts' own bytes are nowhere. What opens, lists and shows a version can't tell it from a model of that size.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

from tensorkeep import Store
from tensorkeep.catalog.protocol import CommitRequest, Committed, ObjectKey, ObjectRequest
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.history import ModelFacts, VersionFacts
from tensorkeep.records.json_text import format_time
from tensorkeep.records.layout import BLOCK_BYTES, MIB
from tensorkeep.records.manifest import Extent, File, Manifest, Tensor, encode_manifest
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.version import VersionRecord, encode_version
from tensorkeep.store.context import StoreContext
from tensorkeep.store.journal import flush_journal, new_ulid

FILES, TENSORS_A_FILE, PARTS_A_TENSOR = 100, 1000, 10
PART_BYTES = 10 * MIB + 500 * 1024  # ten TiB over 10⁶ parts, in whole pages
HEADER_BYTES = 4096
_BATCH = 5000


def commit_giant(store: Store, model: str, *, seed: int = 0) -> str:
    """Commit the made-up model to a store with one device as ``model``, and return the version's id."""
    context = store._context  # a version without bytes can't be pushed
    rng = np.random.default_rng(seed)
    part_sizes = tuple(size for _ in range(FILES) for size in _file_parts())
    digests = rng.integers(0, 256, (len(part_sizes), 32), np.uint8)
    blocks = rng.integers(0, 1 << 63, sum(-(-size // BLOCK_BYTES) for size in part_sizes), np.uint64)
    checks = digests.tobytes() + blocks.astype("<u8").tobytes()
    manifest = Manifest(
        split="tensor",
        part_size=16 * MIB,
        files=tuple(_file(number) for number in range(FILES)),
        parts=part_sizes,
        checks=blake3_256(checks).hex(),
    )
    return _commit(context, model, manifest, checks, digests)


def _file_parts() -> list[int]:
    return [HEADER_BYTES, *(PART_BYTES for _ in range(TENSORS_A_FILE * PARTS_A_TENSOR))]


def _file(number: int) -> File:
    first = number * (1 + TENSORS_A_FILE * PARTS_A_TENSOR)
    extents = [Extent(first + part, 0, size) for part, size in enumerate(_file_parts())]
    size = PART_BYTES * PARTS_A_TENSOR
    tensors = [
        Tensor(
            name=f"model.layers.{number}.mlp.experts.{expert}.down_proj.weight",
            dtype="BF16",
            shape=(size // 8192, 4096),
            start=HEADER_BYTES + expert * size,
            length=size,
            digest=blake3_256(b"%d/%d" % (number, expert)).hex(),
        )
        for expert in range(TENSORS_A_FILE)
    ]
    return File(
        path=f"model-{number + 1:05d}-of-{FILES:05d}.safetensors",
        size_bytes=sum(extent.length for extent in extents),
        format="safetensors",
        extents=tuple(extents),
        tensors=tuple(tensors),
        items=(),
        sha256=blake3_256(b"%d" % number).hex(),
    )


def _commit(
    context: StoreContext, model: str, manifest: Manifest, checks: bytes, digests: npt.NDArray[np.uint8]
) -> str:
    catalog, now = context.catalog, context.runtime.clock.now()
    body = encode_manifest(manifest)
    facts = ModelFacts(id=new_ulid(context.runtime), name=model, policy=None, created_at=format_time(now))
    record = VersionRecord(
        model=facts.id,
        parent=None,
        manifest=blake3_256(body).hex(),
        message="structure only",
        author="bench",
        created_at=format_time(now),
        total_bytes=manifest.total_bytes,
    )
    version_id, record_body = encode_version(record)
    version = VersionFacts(
        id=version_id,
        model=facts.id,
        parent=None,
        manifest=record.manifest,
        checks=manifest.checks,
        message=record.message,
        author=record.author,
        created_at=record.created_at,
        total_bytes=record.total_bytes,
        policy="replicas=1",
    )
    session = new_ulid(context.runtime)
    catalog.begin_push(session, now=now)
    device_id, device = next(iter(context.fleet.writable().items()))
    for batch in _batches(context, device_id, manifest, digests):
        staged = catalog.stage(session, batch)
        catalog.record_stored(session, [location.id for answer in staged for location in answer.staged])
    objects = {
        ObjectKey(ObjectKind.MANIFEST, blake3_256(body)): body,
        ObjectKey(ObjectKind.CHECKS, blake3_256(checks)): checks,
        ObjectKey(ObjectKind.VERSION, bytes.fromhex(version_id)): record_body,
    }
    for key, data in objects.items():
        request = ObjectRequest(
            key=key,
            size_bytes=len(data),
            copies=1,
            candidates=(device_id,),
            ulid=new_ulid(context.runtime),
            model=facts.id,
        )
        for location in catalog.stage(session, [request])[0].staged:
            device.put(location.name, [data])
            device.flush()
            catalog.record_stored(session, [location.id])
    answer = catalog.commit(
        CommitRequest(
            session=session,
            model=facts,
            version=version,
            parts=digests.tobytes(),
            manifest_body=body,
            branch="main",
            expected_head=None,
            copies=1,
            metadata_copies=1,
            heads=context.fleet.heads(),
            now=now,
        )
    )
    assert isinstance(answer, Committed)
    catalog.end_push(session)
    epoch = catalog.info().epoch
    flush_journal(catalog, context.fleet, answer.seq, epoch=epoch, runtime=context.runtime, policy="replicas=1")
    return version_id


def _batches(
    context: StoreContext, device: str, manifest: Manifest, digests: npt.NDArray[np.uint8]
) -> Iterator[list[ObjectRequest]]:
    for start in range(0, len(manifest.parts), _BATCH):
        yield [
            ObjectRequest(
                key=ObjectKey(ObjectKind.PART, digests[part].tobytes()),
                size_bytes=manifest.parts[part],
                copies=1,
                candidates=(device,),
                ulid=new_ulid(context.runtime),
            )
            for part in range(start, min(start + _BATCH, len(manifest.parts)))
        ]
