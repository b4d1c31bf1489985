"""``tensorkeep.json``: believed only when its seal fits, refused when its layout is newer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.errors import Format, Integrity
from tensorkeep.records.device import DeviceIdentity, decode_identity, encode_identity
from tensorkeep.records.digest import blake3_256

STORE = "01JD000000STRE0000000000AA"
IDENTITY = DeviceIdentity(
    layout=1, store=STORE, device="01JD000000DEVC0000000000BB", epoch=1, created_at="2026-01-31T23:59:59.000001Z"
)


def _sealed(body: bytes) -> bytes:
    return body[:-1] + b',"blake3":"' + blake3_256(body).hex().encode() + b'"}\n'


def test_every_flip_of_one_bit_is_detected() -> None:
    data = encode_identity(IDENTITY)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Integrity, match="nvme0"):
            decode_identity(bytes(damaged), device="nvme0")


def test_every_truncation_is_detected() -> None:
    data = encode_identity(IDENTITY)
    for size in range(len(data)):
        with pytest.raises(Integrity):
            decode_identity(data[:size], device="nvme0")


def test_bytes_after_the_end_are_detected() -> None:
    for more in (b"\n", b" ", b"\0", b"}"):
        with pytest.raises(Integrity):
            decode_identity(encode_identity(IDENTITY) + more, device="nvme0")


def test_a_newer_layout_says_upgrade_even_with_other_fields() -> None:
    with pytest.raises(Format, match="upgrade") as caught:
        decode_identity(_sealed(b'{"layout":2,"shards":[]}'), device="nvme0")
    assert caught.value.facts == {"device": "nvme0", "layout": 2}


def test_a_sealed_text_that_is_no_identity_is_refused() -> None:
    for body in (b"{}", b'{"layout":1}', b'{"layout":"1"}', b"[]"):
        with pytest.raises((Format, Integrity)):
            decode_identity(_sealed(body), device="nvme0")


def test_ids_that_are_no_ulids_are_refused() -> None:
    for field in ("store", "device"):
        body = encode_identity(IDENTITY).partition(b',"blake3"')[0] + b"}"
        broken = body.replace(b'"' + field.encode() + b'":"01', b'"' + field.encode() + b'":"0I')
        with pytest.raises(Format, match=f"{field} id"):
            decode_identity(_sealed(broken), device="nvme0")


@given(st.binary())
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises((Format, Integrity)):
        decode_identity(data, device="nvme0")


@given(st.integers(0, 2**31), st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=25, max_size=25))
def test_every_identity_is_read_back(epoch: int, tail: str) -> None:
    identity = DeviceIdentity(layout=1, store=STORE, device="0" + tail, epoch=epoch, created_at="x")
    assert decode_identity(encode_identity(identity), device="nvme0") == identity
