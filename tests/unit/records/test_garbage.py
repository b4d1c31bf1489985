"""Whatever bytes a device gives back, decoding them raises Format or Integrity, and nothing else."""

import json
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.errors import Format, Integrity
from tensorkeep.records.checks import decode_checks
from tensorkeep.records.device import decode_identity
from tensorkeep.records.fragment import decode_footer
from tensorkeep.records.history import decode_entry
from tensorkeep.records.manifest import Manifest, decode_manifest, encode_manifest
from tensorkeep.records.version import VersionRecord, decode_version, encode_version

DECODERS: dict[str, Callable[[bytes], object]] = {
    "manifest": decode_manifest,
    "version": decode_version,
    "entry": decode_entry,
    "footer": lambda data: decode_footer(data, what="x"),
    "identity": lambda data: decode_identity(data, device="nvme0"),
    "checks": lambda data: decode_checks(data, [1, 300_000]),
    "packed manifest": lambda data: decode_manifest(zstandard.compress(data)),
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["format", "files", "parts", "x"]), inner)
    ),
    max_leaves=10,
)
texts = json_values.map(lambda value: json.dumps(value).encode())


def _decode(name: str, data: bytes) -> None:
    try:
        DECODERS[name](data)
    except (Format, Integrity) as error:
        assert str(error)  # noqa: PT017 - any of the two may come, and either must say something


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.binary(max_size=400) | texts)
def test_garbage_raises_nothing_else(name: str, data: bytes) -> None:
    _decode(name, data)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"format":' + b"9" * 5000 + b"}",
        b'{"format":1e999}',
        b"\xff",
        b'"\xed\xa0\x80"',
        b'{"a":"\\ud800"}',
        b"{}\n{}",
    ],
    ids=range(9),
)
def test_known_poison_raises_nothing_else(name: str, data: bytes) -> None:
    with pytest.raises((Format, Integrity)):
        DECODERS[name](data)


def test_no_flip_of_one_bit_of_a_manifest_raises_anything_else() -> None:
    data = encode_manifest(Manifest(split="size", part_size=1 << 20, files=(), parts=(5, 6), checks="00" * 32))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        _decode("manifest", bytes(damaged))


def test_no_flip_of_one_bit_of_a_version_raises_anything_else() -> None:
    record = VersionRecord(
        model="m", parent=None, manifest="00" * 32, message="é\n", author="a", created_at="", total_bytes=1
    )
    data = encode_version(record)[1]
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        _decode("version", bytes(damaged))
