"""Manifests: each rule of `check_manifest`, broken once, and ranges that are lawful at their limits."""

import msgspec
import pytest
import zstandard

from tensorkeep.errors import Format
from tensorkeep.records.json_text import encode_canonical
from tensorkeep.records.layout import PART_LIMIT_BYTES
from tensorkeep.records.manifest import (
    MANIFEST_LIMIT_BYTES,
    Extent,
    File,
    Item,
    Manifest,
    Tensor,
    check_manifest,
    decode_manifest,
    encode_manifest,
)


def _file(
    path: str = "a.bin",
    size_bytes: int = 100,
    extents: tuple[Extent, ...] = (Extent(0, 0, 100),),
    tensors: tuple[Tensor, ...] = (),
    items: tuple[Item, ...] = (),
) -> File:
    return File(
        path=path,
        size_bytes=size_bytes,
        format="opaque",
        extents=extents,
        tensors=tensors,
        items=items,
        sha256="00" * 32,
    )


def _manifest(*files: File, parts: tuple[int, ...] = (100, 50)) -> Manifest:
    return Manifest(split="size", part_size=1 << 20, files=files, parts=parts, checks="00" * 32)


def _tensor(start: int, length: int) -> Tensor:
    return Tensor(name="w", dtype="U8", shape=(length,), start=start, length=length, digest="00" * 32)


GOOD = [
    _manifest(parts=()),
    _manifest(_file()),
    _manifest(_file(size_bytes=0, extents=())),
    _manifest(_file(size_bytes=150, extents=(Extent(0, 0, 100), Extent(1, 0, 50)))),
    _manifest(_file(extents=(Extent(0, 50, 50), Extent(0, 0, 50)))),
    _manifest(_file("a"), _file("b/a"), _file("b/c")),
    _manifest(_file(tensors=(_tensor(0, 100), _tensor(100, 0)), items=(Item(100, 0, "00" * 32),))),
    _manifest(_file(), parts=(PART_LIMIT_BYTES - 1,)),
]

BROKEN = {
    "a part without bytes": (_manifest(_file(), parts=(100, 0)), "part 1"),
    "a part of negative size": (_manifest(_file(), parts=(100, -1)), "part 1"),
    "a part at the limit": (_manifest(_file(), parts=(100, PART_LIMIT_BYTES)), "part 1"),
    "an unsafe path": (_manifest(_file("../a")), "component"),
    "two files of one path": (_manifest(_file(), _file()), "same"),
    "two paths that differ only in case": (_manifest(_file("A"), _file("a")), "same"),
    "a file that is a folder too": (_manifest(_file("a"), _file("a/b")), "folder"),
    "an extent in a part that is not there": (_manifest(_file(extents=(Extent(2, 0, 100),))), "out of bounds"),
    "an extent in a negative part": (_manifest(_file(extents=(Extent(-1, 0, 100),))), "out of bounds"),
    "an extent without bytes": (_manifest(_file(extents=(Extent(0, 0, 100), Extent(0, 0, 0)))), "out of bounds"),
    "an extent of negative length": (_manifest(_file(extents=(Extent(0, 0, 100), Extent(0, 5, -1)))), "out of bounds"),
    "an extent before its part": (_manifest(_file(extents=(Extent(0, -1, 100),))), "out of bounds"),
    "an extent past its part": (_manifest(_file(extents=(Extent(0, 1, 100),))), "past its part"),
    "an extent past all integers": (_manifest(_file(extents=(Extent(0, 1 << 62, 1 << 62),))), "past its part"),
    "extents that cover too little": (_manifest(_file(extents=(Extent(0, 0, 99),))), "cover 99 bytes of 100"),
    "extents that cover too much": (_manifest(_file(extents=(Extent(0, 0, 100), Extent(1, 0, 1)))), "cover 101"),
    "a file of negative size": (_manifest(_file(size_bytes=-1, extents=())), "cover"),
    "a tensor past its file": (_manifest(_file(tensors=(_tensor(1, 100),))), "outside its file"),
    "a tensor before its file": (_manifest(_file(tensors=(_tensor(-1, 10),))), "outside its file"),
    "a tensor of negative length": (_manifest(_file(tensors=(_tensor(10, -1),))), "outside its file"),
    "an item past its file": (_manifest(_file(items=(Item(100, 1, "00" * 32),))), "outside its file"),
    "an item before its file": (_manifest(_file(items=(Item(-1, 1, "00" * 32),))), "outside its file"),
    "an item of negative length": (_manifest(_file(items=(Item(1, -1, "00" * 32),))), "outside its file"),
}


@pytest.mark.parametrize("manifest", GOOD, ids=range(len(GOOD)))
def test_lawful_manifests_are_read_back(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest)) == manifest


@pytest.mark.parametrize("rule", BROKEN)
def test_a_manifest_is_refused_for(rule: str) -> None:
    manifest, message = BROKEN[rule]
    with pytest.raises(Format, match=message):
        check_manifest(manifest)
    with pytest.raises(Format, match=message):
        decode_manifest(encode_manifest(manifest))


def test_a_newer_manifest_says_upgrade_even_with_other_fields() -> None:
    with pytest.raises(Format, match="upgrade"):
        decode_manifest(zstandard.compress(b'{"format":2,"trees":[]}'))


def test_a_manifest_that_claims_to_unpack_past_the_limit_is_refused_unread() -> None:
    compressor = zstandard.ZstdCompressor().compressobj(size=MANIFEST_LIMIT_BYTES + 1)
    with pytest.raises(Format, match="limit"):
        decode_manifest(compressor.compress(b" " * (1 << 20)) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))


def test_a_manifest_without_its_size_is_refused() -> None:
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(encode_canonical(GOOD[1]))
    with pytest.raises(Format, match="unpacks to"):
        decode_manifest(packed)


def test_total_bytes_are_those_of_files() -> None:
    assert _manifest(_file("a"), _file("b")).total_bytes == 200


def test_tensors_come_with_their_file_in_order() -> None:
    one, two = _file("a", tensors=(_tensor(0, 1), _tensor(1, 1))), _file("b", tensors=(_tensor(2, 1),))
    found = [(file.path, tensor.start) for file, tensor in _manifest(one, two).iter_tensors()]
    assert found == [("a", 0), ("a", 1), ("b", 2)]


def test_three_hundred_tensors_take_about_twelve_kilobytes() -> None:
    digests = [bytes([i % 256, i // 256, *range(30)]).hex() for i in range(300)]
    tensors = tuple(
        Tensor(name=f"model.layers.{i}.mlp.weight", dtype="BF16", shape=(4, 4), start=32 * i, length=32, digest=digest)
        for i, digest in enumerate(digests)
    )
    file = _file(size_bytes=9600, extents=(Extent(0, 0, 9600),), tensors=tensors)
    assert len(encode_manifest(_manifest(file, parts=(9600,)))) < 12_000


def test_manifests_are_values() -> None:
    with pytest.raises(AttributeError):
        GOOD[0].checks = ""  # type: ignore[misc]
    assert msgspec.structs.replace(GOOD[0], checks="11" * 32) != GOOD[0]
