"""Which reader reads which file."""

import pytest

from tensorkeep.errors import Format
from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.formats.protocol import FileStructure
from tensorkeep.formats.registry import READERS, find_reader, read_metadata, read_structure
from tensorkeep.formats.safetensors import SAFETENSORS

GOOD = (2).to_bytes(8, "little") + b"{}"
BROKEN = (3).to_bytes(8, "little") + b"{}"


class Source:
    """A byte source over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/model.safetensors", SAFETENSORS), ("MODEL.SAFETENSORS", SAFETENSORS), ("config.json", OPAQUE), ("x", OPAQUE)],
)
def test_the_path_chooses_the_reader(path: str, name: str) -> None:
    assert find_reader(path).name == name
    assert read_structure(path, Source(GOOD)) == FileStructure(name, ())


def test_a_path_that_no_format_claims_is_opaque() -> None:
    assert not any(reader.claims("anything") for reader in READERS)
    assert find_reader("anything").name == OPAQUE


def test_a_broken_file_is_refused_naming_path_rule_and_remedy() -> None:
    with pytest.raises(Format) as refused:
        read_structure("sub/model.safetensors", Source(BROKEN))
    assert refused.value.facts["path"] == "sub/model.safetensors"
    for words in ("sub/model.safetensors", "3 bytes", "--split size", "opaque"):
        assert words in refused.value.message


def test_a_broken_file_is_opaque_where_that_was_asked_for() -> None:
    structure = read_structure("model.safetensors", Source(BROKEN), strict=False)
    assert structure[:2] == (OPAQUE, ())
    assert structure.note.startswith("it is broken: ")
    assert "3 bytes" in structure.note
    assert read_structure("model.safetensors", Source(GOOD), strict=False).format == SAFETENSORS


def test_metadata_is_read_by_the_reader_of_the_format_that_the_file_was_stored_as() -> None:
    header = b'{"__metadata__":{"z":"1","format":"pt"}}'
    source = Source(len(header).to_bytes(8, "little") + header)
    assert read_metadata("m.safetensors", SAFETENSORS, source) == {"z": "1", "format": "pt"}
    assert read_metadata("m.safetensors", SAFETENSORS, Source(GOOD)) == {}
    assert read_metadata("m.safetensors", OPAQUE, Source(b"broken")) is None
    assert read_metadata("config.json", OPAQUE, Source(b"{}")) is None
    with pytest.raises(Format, match=r"metadata of 'm\.safetensors' can't be read: its header says"):
        read_metadata("m.safetensors", SAFETENSORS, Source(BROKEN))
