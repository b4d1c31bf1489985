"""The bytes of layout v1, written out: what is on devices can't be changed later, so these literals never change."""

import msgspec
import zstandard

from tensorkeep.records.checks import encode_checks
from tensorkeep.records.conformance import Conformance
from tensorkeep.records.device import DeviceFacts, DeviceIdentity, decode_identity, encode_identity
from tensorkeep.records.digest import blake3_160, blake3_256, block_checks, xxh3_64
from tensorkeep.records.history import (
    DeviceChanged,
    JournalEntry,
    ModelChanged,
    ModelFacts,
    PolicyChanged,
    RefChanged,
    StoreChanged,
    VersionCommitted,
    VersionFacts,
    VersionRemoved,
    decode_entry,
    encode_entry,
    fold_entries,
    take_snapshot,
)
from tensorkeep.records.layout import (
    BLOCK_BYTES,
    JOURNAL_SNAPSHOT_EVERY,
    LAYOUT_VERSION,
    MAX_PART_SIZE_BYTES,
    PACK_ALIGNMENT_BYTES,
    PART_LIMIT_BYTES,
    SMALL_ITEM_BYTES,
)
from tensorkeep.records.manifest import Extent, File, Item, Manifest, Tensor, decode_manifest, encode_manifest
from tensorkeep.records.version import VersionRecord, decode_version, encode_version

STORE = "01JD000000STRE0000000000AA"
DEVICE = "01JD000000DEVC0000000000BB"
MODEL = "01JD000000MDEK0000000000CC"
MOMENT = "2026-01-31T23:59:59.000001Z"

MANIFEST = Manifest(
    split="tensor",
    part_size=4 << 20,
    files=(
        File(
            path="poids/é.safetensors",
            size_bytes=16,
            format="safetensors",
            extents=(Extent(0, 0, 8), Extent(1, 64, 8)),
            tensors=(
                Tensor(name="w", dtype="BF16", shape=(2, 2), start=8, length=8, digest="ab" * 32),
                Tensor(name="t", dtype="BF16", shape=(2, 2), strides=(1, 2), start=8, length=8, digest="ab" * 32),
            ),
            items=(Item(0, 8, "cd" * 32),),
            sha256="ef" * 32,
            git_sha1="01" * 20,
        ),
        File(path="empty", size_bytes=0, format="opaque", extents=(), tensors=(), items=(), sha256="00" * 32),
    ),
    parts=(8, 72),
    checks="12" * 32,
)

MANIFEST_JSON = (
    '{"checks":"' + "12" * 32 + '","files":['
    '{"extents":[[0,0,8],[1,64,8]],"format":"safetensors","git_sha1":"' + "01" * 20 + '",'
    '"items":[[0,8,"' + "cd" * 32 + '"]],"path":"poids/é.safetensors","sha256":"' + "ef" * 32 + '","size_bytes":16,'
    '"tensors":['
    '{"digest":"' + "ab" * 32 + '","dtype":"BF16","length":8,"name":"w","shape":[2,2],"start":8,"strides":null},'
    '{"digest":"' + "ab" * 32 + '","dtype":"BF16","length":8,"name":"t","shape":[2,2],"start":8,"strides":[1,2]}]},'
    '{"extents":[],"format":"opaque","git_sha1":null,"items":[],"path":"empty","sha256":"' + "00" * 32 + '",'
    '"size_bytes":0,"tensors":[]}],"format":1,"part_size":4194304,"parts":[8,72],"split":"tensor"}'
).encode()

VERSION = VersionRecord(
    model=MODEL, parent=None, manifest="ab" * 32, message="première", author="ann", created_at=MOMENT, total_bytes=16
)
VERSION_JSON = (
    '{"author":"ann","created_at":"2026-01-31T23:59:59.000001Z","format":1,"manifest":"' + "ab" * 32 + '",'
    '"message":"première","model":"01JD000000MDEK0000000000CC","parent":null,"total_bytes":16}'
).encode()
VERSION_ID = "8b32fb919c268397744bd3d82537d87b08a20f66"

IDENTITY = DeviceIdentity(layout=1, store=STORE, device=DEVICE, epoch=3, created_at=MOMENT)
IDENTITY_JSON = (
    b'{"created_at":"2026-01-31T23:59:59.000001Z","device":"01JD000000DEVC0000000000BB","epoch":3,"layout":1,'
    b'"store":"01JD000000STRE0000000000AA",'
    b'"blake3":"322fed5e0d6617375b732d92579d2a1378b7bbd48b980fc2ed4555fb00c05578"}\n'
)

DEVICE_FACTS = DeviceFacts(
    id=DEVICE, name="nvme0", url="file:///mnt/nvme0", zone="rack1", durability="durable", bandwidth=5
)
MODEL_FACTS = ModelFacts(id=MODEL, name="acme/llama", policy=None, created_at=MOMENT)
VERSION_FACTS = VersionFacts(
    id="aa" * 20,
    model=MODEL,
    parent="bb" * 20,
    manifest="ab" * 32,
    checks="12" * 32,
    message="m",
    author="ann",
    created_at=MOMENT,
    total_bytes=16,
    policy="replicas=2",
)
ENTRY = JournalEntry(
    store=STORE,
    epoch=1,
    seq=7,
    prev="99" * 32,
    created_at=MOMENT,
    changes=(
        StoreChanged(old=None, new="replicas=1"),
        DeviceChanged(old=None, new=DEVICE_FACTS),
        ModelChanged(old=None, new=MODEL_FACTS),
        VersionCommitted(version=VERSION_FACTS),
        RefChanged(model=MODEL, ref="branch", name="main", old=None, new="aa" * 20),
        VersionRemoved(version=VERSION_FACTS),
        PolicyChanged(version="aa" * 20, old="replicas=2", new="ec=4+2"),
    ),
)
CONFORMANCE = Conformance(
    checked_at=MOMENT,
    form="full",
    verdict="accepted",
    conditional_create="exact",
    compare_and_swap="broken",
    refused_checksums=("md5", "sha256"),
    clock_offset_s=-3,
    read_p50_us=900,
)
CONFORMANCE_JSON = (
    '{"checked_at":"2026-01-31T23:59:59.000001Z","clock_offset_s":-3,"compare_and_swap":"broken",'
    '"conditional_create":"exact","form":"full","read_p50_us":900,"refused_checksums":["md5","sha256"],'
    '"verdict":"accepted"}'
)
_DEVICE_JSON = (
    '{"bandwidth":5,"capacity":null,"durability":"durable","id":"01JD000000DEVC0000000000BB","name":"nvme0",'
    '"rate_limit":null,"state":"active","untrusted":false,"url":"file:///mnt/nvme0","zone":"rack1"}'
)
_MODEL_JSON = (
    '{"created_at":"2026-01-31T23:59:59.000001Z","id":"01JD000000MDEK0000000000CC","name":"acme/llama","policy":null}'
)
_VERSION_JSON = (
    '{"author":"ann","checks":"' + "12" * 32 + '","created_at":"2026-01-31T23:59:59.000001Z","id":"' + "aa" * 20 + '",'
    '"manifest":"' + "ab" * 32 + '","message":"m","model":"01JD000000MDEK0000000000CC","parent":"' + "bb" * 20 + '",'
    '"policy":"replicas=2","total_bytes":16}'
)
ENTRY_JSON = (
    '{"changes":['
    '{"kind":"store","new":"replicas=1","old":null},'
    '{"kind":"device","new":' + _DEVICE_JSON + ',"old":null},'
    '{"kind":"model","new":' + _MODEL_JSON + ',"old":null},'
    '{"kind":"commit","version":' + _VERSION_JSON + "},"
    '{"kind":"ref","model":"01JD000000MDEK0000000000CC","name":"main","new":"'
    + "aa"
    * 20
    + '","old":null,"ref":"branch"},'
    '{"kind":"remove","version":' + _VERSION_JSON + "},"
    '{"kind":"policy","new":"ec=4+2","old":"replicas=2","version":"' + "aa" * 20 + '"}],'
    '"created_at":"2026-01-31T23:59:59.000001Z","epoch":1,"format":1,"prev":"' + "99" * 32 + '","seq":7,'
    '"store":"01JD000000STRE0000000000AA"}'
).encode()
SNAPSHOT_JSON = (
    '{"changes":[{"device_order":["01JD000000DEVC0000000000BB"],"kind":"snapshot","state":{'
    '"devices":{"01JD000000DEVC0000000000BB":' + _DEVICE_JSON + "},"
    '"models":{"01JD000000MDEK0000000000CC":' + _MODEL_JSON + "},"
    '"policy":"replicas=1",'
    '"refs":[{"kind":"branch","model":"01JD000000MDEK0000000000CC","name":"main","version":"' + "aa" * 20 + '"}],'
    '"versions":{"' + "aa" * 20 + '":' + _VERSION_JSON + "}},"
    '"version_order":["' + "aa" * 20 + '"]}],'
    '"created_at":"2026-01-31T23:59:59.000001Z","epoch":1,"format":1,"prev":null,"seq":1000,'
    '"store":"01JD000000STRE0000000000AA"}'
).encode()


def test_sizes_of_layout_v1() -> None:
    assert LAYOUT_VERSION == 1
    assert BLOCK_BYTES == 262_144
    assert SMALL_ITEM_BYTES == 1_048_576
    assert MAX_PART_SIZE_BYTES == 67_108_864
    assert PART_LIMIT_BYTES == 68_157_440
    assert PACK_ALIGNMENT_BYTES == 64
    assert JOURNAL_SNAPSHOT_EVERY == 1000


def test_digests_are_those_of_the_published_algorithms() -> None:
    assert blake3_256(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert blake3_160(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9"
    assert xxh3_64(b"") == 0x2D06800538D394C2
    assert block_checks(bytes(BLOCK_BYTES + 1)) == [0x2D64C035E85FB928, 0xC44BDFF4074EECDB]


def test_a_manifest_is_this_json_under_zstd() -> None:
    stored = encode_manifest(MANIFEST)
    assert zstandard.ZstdDecompressor().decompress(stored) == MANIFEST_JSON
    assert zstandard.frame_content_size(stored) == len(MANIFEST_JSON)
    assert decode_manifest(stored) == MANIFEST


def test_a_version_is_this_json_and_its_id_the_blake3_160_of_it() -> None:
    version, stored = encode_version(VERSION)
    assert stored == VERSION_JSON
    assert version == VERSION_ID
    assert decode_version(VERSION_JSON) == VERSION


def test_an_identity_is_this_json_with_its_seal_last() -> None:
    assert encode_identity(IDENTITY) == IDENTITY_JSON
    assert decode_identity(IDENTITY_JSON, device="nvme0") == IDENTITY


def test_a_journal_entry_is_this_json_and_named_by_its_blake3() -> None:
    digest, stored = encode_entry(ENTRY)
    assert stored == ENTRY_JSON
    assert digest == blake3_256(ENTRY_JSON)
    assert decode_entry(ENTRY_JSON) == ENTRY


def test_what_a_check_found_stands_in_the_devices_entry_without_what_it_did_not_find() -> None:
    checked = msgspec.structs.replace(DEVICE_FACTS, conformance=CONFORMANCE)
    entry = msgspec.structs.replace(ENTRY, changes=(DeviceChanged(old=DEVICE_FACTS, new=checked),))
    stored = encode_entry(entry)[1]
    new = _DEVICE_JSON.replace('"durability"', f'"conformance":{CONFORMANCE_JSON},"durability"')
    assert stored.startswith(f'{{"changes":[{{"kind":"device","new":{new},"old":{_DEVICE_JSON}}}]'.encode())
    assert decode_entry(stored) == entry


def test_a_snapshot_is_this_json() -> None:
    state = fold_entries(
        [JournalEntry(store=STORE, epoch=1, seq=7, prev=None, created_at=MOMENT, changes=ENTRY.changes[:5])]
    )
    entry = JournalEntry(store=STORE, epoch=1, seq=1000, prev=None, created_at=MOMENT, changes=(take_snapshot(state),))
    assert encode_entry(entry)[1] == SNAPSHOT_JSON
    assert fold_entries([decode_entry(SNAPSHOT_JSON)]) == state


def test_checks_are_digests_then_little_endian_block_checks() -> None:
    data = encode_checks([b"\x01" * 32, b"\x02" * 32], [[0x0102030405060708], [1, 2]])
    assert data.hex() == "01" * 32 + "02" * 32 + "0807060504030201" + "0100000000000000" + "0200000000000000"
