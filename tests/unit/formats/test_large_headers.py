"""A million tensors in one header: accepted in bounded memory; a header over the limit is refused unread."""

import json
import subprocess
import sys

import pytest

from tensorkeep.errors import Format
from tensorkeep.formats.safetensors import HEADER_LIMIT_BYTES, SafetensorsReader

TENSORS = 1_000_000

_READ = """
import json, resource, sys
from tensorkeep.formats.safetensors import SafetensorsReader

class Source:
    def __init__(self, count):
        fields = (
            '"model.layers.%06d.weight":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}' % (n, n, n + 1) for n in range(count)
        )
        text = ("{" + ",".join(fields) + "}").encode()
        self.header = len(text).to_bytes(8, "little") + text
        self.size_bytes = len(self.header) + count

    def read(self, offset, length):
        assert offset + length <= len(self.header), "only the header is read"
        return self.header[offset : offset + length]

source = Source(int(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
structure = SafetensorsReader().read_structure("model.safetensors", source)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
last = structure.tensors[-1]
print(json.dumps([len(source.header), len(structure.tensors), last.name, last.start, (after - before) * 1024]))
"""


def test_a_header_of_a_million_tensors_is_read_in_bounded_memory() -> None:
    child = subprocess.run([sys.executable, "-c", _READ, str(TENSORS)], check=True, capture_output=True, text=True)
    header_bytes, count, name, start, grown = json.loads(child.stdout)
    assert 80_000_000 < header_bytes < HEADER_LIMIT_BYTES
    assert (count, name, start) == (TENSORS, f"model.layers.{TENSORS - 1:06d}.weight", header_bytes + TENSORS - 1)
    assert grown < 1 << 30


class _Refusing:
    """A file whose header says that it is one byte too long; reading it would take its memory first."""

    size_bytes = 3 * HEADER_LIMIT_BYTES

    def read(self, offset: int, length: int) -> bytes:
        assert (offset, length) == (0, 8), "refused by its length alone"
        return (HEADER_LIMIT_BYTES + 1).to_bytes(8, "little")


def test_a_header_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(Format, match=f"{HEADER_LIMIT_BYTES + 1} bytes; the limit is {HEADER_LIMIT_BYTES}"):
        SafetensorsReader().read_structure("model.safetensors", _Refusing())
