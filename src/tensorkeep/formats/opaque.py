"""Files of no known format: bytes without tensors, stored and given back as they are."""

from tensorkeep.formats.protocol import ByteSource, FileStructure

OPAQUE = "opaque"
"""The format's name in manifests."""


class OpaqueReader:
    """Claims every path and finds no tensors."""

    name = OPAQUE

    def claims(self, path: str) -> bool:  # noqa: ARG002 - every file may be opaque
        """Return True."""
        return True

    def read_structure(self, path: str, source: ByteSource) -> FileStructure:  # noqa: ARG002 - nothing is read
        """Return a structure without tensors, without reading."""
        return FileStructure(OPAQUE, ())


def opaque_structure(note: str) -> FileStructure:
    """Return the structure of a file that is stored whole, and why in half a sentence: ``it is compressed``."""
    return FileStructure(OPAQUE, (), note)
