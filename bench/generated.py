"""A store in PostgreSQL with many versions, made by SQL: rows as thousands of fine-tunes would have left them.

Each version has 300 tensors in 120 parts: 114 of one of 100 base models and 6 of its own, and its manifest, checks object and
record, so 123 objects. A part of a base is shared by a hundredth of the store's versions, nearly. Digests are made up. The newest version of each of 1,000 models can be opened: its manifest is in the catalog and its checks
object on the device; the manifests of the others are 64 bytes in the catalog (whole they would be some 20 KB each). There is no
journal for the generated versions. Rows are inserted without constraints on ``version_parts``, which come last.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg

import tensorkeep
from bench.work import remove
from tensorkeep.records.checks import encode_checks
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.records.manifest import Extent, File, Manifest, Tensor, encode_manifest
from tensorkeep.records.naming import ChecksName, physical_name
from tests.engines.postgres import Postgres

TENSORS, PARTS, OWN = 300, 120, 6
BASES, MODELS = 100, 1000
TENSOR_BYTES = 409_600
PART_BYTES = TENSOR_BYTES * TENSORS // PARTS
METADATA = ("manifest", "checks", "version")
_FOLDER = "generated"

# Ids of parts: those of bases, then for each version its own and its metadata.
_OBJECTS = OWN + len(METADATA)
_BASE_PARTS = BASES * PARTS

_ROWS = f"""
SET session_replication_role = replica;
SET synchronous_commit = off;
ALTER TABLE version_parts DROP CONSTRAINT fk_version_parts_part_id, DROP CONSTRAINT fk_version_parts_version,
    DROP CONSTRAINT pk_version_parts;
DROP INDEX ix_version_parts_part_id_version;
INSERT INTO models (id, name, folded, created_at)
    SELECT lpad(m::text, 26, '0'), 'bench/m' || m, 'bench/m' || m, '' FROM generate_series(0, {MODELS - 1}) m;
INSERT INTO versions (id, model, parent, manifest, checks, message, author, created_at, total_bytes, policy, seq)
    SELECT left(encode(sha256(('version ' || v)::bytea), 'hex'), 40), lpad((v % {MODELS})::text, 26, '0'), NULL,
        encode(sha256(('manifest ' || v)::bytea), 'hex'), encode(sha256(('checks ' || v)::bytea), 'hex'), 'fine-tune ' || v,
        'bench', '2026-01-01T00:00:00.000000Z', {TENSOR_BYTES * TENSORS}, 'replicas=1', 0
    FROM generate_series(1, %(versions)s) v ORDER BY v;
INSERT INTO refs (model, kind, name, version)
    SELECT model, 'branch', 'main', id FROM versions WHERE number > %(versions)s - {MODELS};
INSERT INTO manifests (digest, body) SELECT manifest, repeat('m', 64)::bytea FROM versions;
INSERT INTO parts (id, kind, digest, size_bytes)
    SELECT p, 'part', sha256(('part ' || p)::bytea), {PART_BYTES} FROM generate_series(1, {_BASE_PARTS}) p;
INSERT INTO parts (id, kind, digest, size_bytes)
    SELECT {_BASE_PARTS} + (v - 1) * {_OBJECTS} + k, CASE k WHEN 7 THEN 'manifest' WHEN 8 THEN 'checks' WHEN 9 THEN 'version'
        ELSE 'part' END,
        CASE k WHEN 7 THEN sha256(('manifest ' || v)::bytea) WHEN 8 THEN sha256(('checks ' || v)::bytea)
        WHEN 9 THEN substr(sha256(('version ' || v)::bytea), 1, 20)
        ELSE sha256(('part ' || ({_BASE_PARTS} + (v - 1) * {_OBJECTS} + k))::bytea) END, {PART_BYTES}
    FROM generate_series(1, %(versions)s) v, generate_series(1, {_OBJECTS}) k;
INSERT INTO locations (part_id, device, name, form, "offset", length, state)
    SELECT id, %(device)s, kind || 's/' || left(encode(digest, 'hex'), 2) || '/' || encode(digest, 'hex') || '.'
        || lpad(id::text, 26, '0'), CASE kind WHEN 'part' THEN 'raw' ELSE kind END, 0, size_bytes, 'live' FROM parts ORDER BY id;
INSERT INTO version_parts (version, part_id)
    SELECT v, CASE WHEN j < {PARTS} - {OWN} THEN (v % {BASES}) * {PARTS} + 1 + (v + j) % {PARTS}
        ELSE {_BASE_PARTS} + (v - 1) * {_OBJECTS} + 1 + j - ({PARTS} - {OWN}) END
    FROM generate_series(1, %(versions)s) v, generate_series(0, {PARTS} + {len(METADATA)} - 1) j;
ALTER TABLE version_parts ADD CONSTRAINT pk_version_parts PRIMARY KEY (version, part_id);
CREATE INDEX ix_version_parts_part_id_version ON version_parts (part_id, version);
SELECT setval(pg_get_serial_sequence('parts', 'id'), (SELECT max(id) FROM parts));
"""  # noqa: S608 - numbers of this file

_KEYS = """
SET session_replication_role = origin;
ALTER TABLE version_parts ADD CONSTRAINT fk_version_parts_part_id FOREIGN KEY (part_id) REFERENCES parts (id) NOT VALID,
    ADD CONSTRAINT fk_version_parts_version FOREIGN KEY (version) REFERENCES versions (number) NOT VALID;
"""


class Generated(NamedTuple):
    """A generated store: its URL, how many versions it has, and the id of its device."""

    url: str
    versions: int
    device: str

    def removable(self, count: int, batch: int) -> list[tuple[str, str]]:
        """Return models and ids of old versions that no branch points at; another batch is of others."""
        numbers = range(1 + batch * count, 1 + (batch + 1) * count)
        return [(f"{number % MODELS:026d}", version_id(number)) for number in numbers]


def version_id(number: int) -> str:
    """Return the id of a generated version."""
    return _sha256(f"version {number}").hex()[:40]


def part_digest(part: int) -> bytes:
    """Return the digest of a generated part by its row's id: those of bases first."""
    return _sha256(f"part {part}")


def parts_of(number: int) -> list[int]:
    """Return the ids of the rows of a version's parts: those of its base, then its own."""
    first = number % BASES * PARTS + 1
    shared = [first + (number + index) % PARTS for index in range(PARTS - OWN)]
    return shared + [part_of(number, index) for index in range(OWN)]


def part_of(number: int, own: int) -> int:
    """Return the id of the row of one of a version's own parts, counted from 0."""
    return _BASE_PARTS + (number - 1) * _OBJECTS + 1 + own


@contextmanager
def generated_store(postgres: Postgres, versions: int) -> Iterator[Generated]:
    """Give a store with that many versions, at least 2,000, in a database of its own."""
    url = postgres.make_database()
    folder = remove(f"{_FOLDER}-{versions}")
    with tensorkeep.init(url) as store:
        facts = store.devices.add("disk", str(folder), bandwidth=10**9)
        device = next(each.id for each in store._context.catalog.list_devices() if each.name == facts.name)
    with psycopg.connect(url, options="-c search_path=tensorkeep") as connection:
        for statement in _ROWS.split(";"):
            if statement.strip():
                connection.execute(_fill(statement, versions, device))
        connection.execute("ANALYZE")
        for number in range(versions - MODELS + 1, versions + 1):
            _make_openable(connection, number, folder)
        connection.execute(_KEYS)
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
    yield Generated(url, versions, device)
    remove(folder.name)


def _fill(statement: str, versions: int, device: str) -> bytes:
    return statement.replace("%(versions)s", str(versions)).replace("%(device)s", f"'{device}'").encode()


def _make_openable(connection: "psycopg.Connection[tuple[object, ...]]", number: int, folder: Path) -> None:
    """Give a version a manifest and a checks object that fit its parts."""
    digests = [part_digest(part) for part in parts_of(number)]
    blocks = -(-PART_BYTES // BLOCK_BYTES)
    checks = encode_checks(digests, [[number * part] * blocks for part in range(PARTS)])
    digest, part_id = blake3_256(checks), part_of(number, OWN + 1)
    name = physical_name(ChecksName(digest, f"{part_id:026d}"))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(checks)
    body = encode_manifest(_manifest(number, digest.hex()))
    described = blake3_256(body)
    for kind, new, row in (("manifest", described, part_id - 1), ("checks", digest, part_id)):
        connection.execute(f"UPDATE versions SET {kind} = %s WHERE number = %s", (new.hex(), number))  # noqa: S608 - a column
        connection.execute("UPDATE parts SET digest = %s WHERE id = %s", (new, row))
    connection.execute("UPDATE locations SET name = %s, length = %s WHERE part_id = %s", (name, len(checks), part_id))
    connection.execute("INSERT INTO manifests (digest, body) VALUES (%s, %s)", (described.hex(), body))


def _manifest(number: int, checks: str) -> Manifest:
    tensors = tuple(
        Tensor(
            name=f"model.layers.{index // 10}.weight_{index % 10}",
            dtype="F32",
            shape=(TENSOR_BYTES // 4,),
            start=index * TENSOR_BYTES,
            length=TENSOR_BYTES,
            digest=_sha256(f"tensor {number} {index}").hex(),
        )
        for index in range(TENSORS)
    )
    size = TENSORS * TENSOR_BYTES
    file = File(
        path="model.safetensors",
        size_bytes=size,
        format="safetensors",
        extents=tuple(Extent(part, 0, PART_BYTES) for part in range(PARTS)),
        tensors=tensors,
        items=(),
        sha256=_sha256(f"file {number}").hex(),
    )
    return Manifest(split="size", part_size=PART_BYTES, files=(file,), parts=(PART_BYTES,) * PARTS, checks=checks)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
