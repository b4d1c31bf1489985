"""Physical names: the one function that builds what objects are called on devices, and its inverse.

A physical name is never reused or overwritten: it ends with the ulid of its upload, so a late PUT or a late DELETE can't
hurt anything else. Source: ``docs/format-v1.md``, section "Names".
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from tensorkeep.errors import Internal
from tensorkeep.records.ulid import is_ulid


class ObjectKind(StrEnum):
    """Kinds of objects that have location rows."""

    PART = "part"
    MANIFEST = "manifest"
    CHECKS = "checks"
    VERSION = "version"


@dataclass(frozen=True, slots=True)
class PartName:
    """A whole part: ``encoding`` is ``raw`` or a codec's name."""

    digest: bytes
    ulid: str
    encoding: str = "raw"


@dataclass(frozen=True, slots=True)
class FragmentName:
    """Fragment ``index`` of the ``data + parity`` fragments of a part."""

    digest: bytes
    ulid: str
    data: int
    parity: int
    index: int


@dataclass(frozen=True, slots=True)
class ManifestName:
    """A stored manifest."""

    digest: bytes
    ulid: str


@dataclass(frozen=True, slots=True)
class ChecksName:
    """A stored checks object."""

    digest: bytes
    ulid: str


@dataclass(frozen=True, slots=True)
class VersionName:
    """A stored version record: ``digest`` is the version id (20 bytes), ``model`` a ulid."""

    model: str
    digest: bytes
    ulid: str


@dataclass(frozen=True, slots=True)
class JournalName:
    """A journal entry: ``digest`` is the BLAKE3-256 of its bytes."""

    epoch: int
    seq: int
    digest: bytes
    ulid: str


ObjectName = PartName | FragmentName | ManifestName | ChecksName | VersionName | JournalName

_HEX64 = r"(?P<digest>[0-9a-f]{64})"
_ULID = r"(?P<ulid>[0-7][0-9A-HJKMNP-TV-Z]{25})"
_PART = re.compile(rf"parts/(?P<fan>[0-9a-f]{{2}})/{_HEX64}\.{_ULID}(\.(?P<suffix>[a-z0-9-]+))?\Z")
_FRAGMENT = re.compile(r"ec-([1-9][0-9]{0,2})-([1-9][0-9]{0,2})-(0|[1-9][0-9]{0,2})\Z")
_MANIFEST = re.compile(rf"manifests/(?P<fan>[0-9a-f]{{2}})/{_HEX64}\.{_ULID}\.json\.zst\Z")
_CHECKS = re.compile(rf"checks/(?P<fan>[0-9a-f]{{2}})/{_HEX64}\.{_ULID}\Z")
_VERSION = re.compile(rf"versions/(?P<model>[0-9A-Z]{{26}})/(?P<digest>[0-9a-f]{{40}})\.{_ULID}\.json\Z")
_JOURNAL = re.compile(rf"journal/(?P<epoch>[0-9]{{8}})-(?P<seq>[0-9]{{12}})\.{_HEX64}\.{_ULID}\.json\Z")

ROOT_FOLDERS = ("parts", "manifests", "checks", "versions", "journal", "tmp")


def physical_name(name: ObjectName) -> str:
    """Return what an object is called on a device: a relative POSIX path."""
    match name:
        case PartName(digest, ulid, encoding):
            suffix = "" if encoding == "raw" else f".{encoding}"
            return f"parts/{digest[:1].hex()}/{digest.hex()}.{ulid}{suffix}"
        case FragmentName(digest, ulid, data, parity, index):
            return f"parts/{digest[:1].hex()}/{digest.hex()}.{ulid}.ec-{data}-{parity}-{index}"
        case ManifestName(digest, ulid):
            return f"manifests/{digest[:1].hex()}/{digest.hex()}.{ulid}.json.zst"
        case ChecksName(digest, ulid):
            return f"checks/{digest[:1].hex()}/{digest.hex()}.{ulid}"
        case VersionName(model, digest, ulid):
            return f"versions/{model}/{digest.hex()}.{ulid}.json"
        case JournalName(epoch, seq, digest, ulid):
            return f"journal/{epoch:08d}-{seq:012d}.{digest.hex()}.{ulid}.json"


def parse_physical_name(text: str) -> ObjectName | None:
    """Return the typed value of a physical name, or None for anything that layout v1 does not name."""
    folder = text.partition("/")[0]
    match folder:
        case "parts":
            return _parse_part(text)
        case "manifests":
            return ManifestName(*_digest_and_ulid(found)) if (found := _MANIFEST.match(text)) and _fits(found) else None
        case "checks":
            return ChecksName(*_digest_and_ulid(found)) if (found := _CHECKS.match(text)) and _fits(found) else None
        case "versions":
            if (found := _VERSION.match(text)) and is_ulid(found["model"]):
                return VersionName(found["model"], *_digest_and_ulid(found))
        case "journal":
            if found := _JOURNAL.match(text):
                return JournalName(int(found["epoch"]), int(found["seq"]), *_digest_and_ulid(found))
    return None


def object_kind(name: ObjectName) -> ObjectKind:
    """Return the kind of an object that has location rows.

    Raises:
        Internal: journal entries have none.
    """
    match name:
        case PartName() | FragmentName():
            return ObjectKind.PART
        case ManifestName():
            return ObjectKind.MANIFEST
        case ChecksName():
            return ObjectKind.CHECKS
        case VersionName():
            return ObjectKind.VERSION
        case JournalName():
            raise Internal("journal entries have no location rows")


def location_form(name: ObjectName) -> str:
    """Return the form of the bytes under a name, for the catalog's location row: ``raw``, a codec, or ``ec-k-m``."""
    match name:
        case PartName(_, _, encoding):
            return encoding
        case FragmentName(_, _, data, parity, _):
            return f"ec-{data}-{parity}"
        case _:
            return "raw"


def _parse_part(text: str) -> ObjectName | None:
    found = _PART.match(text)
    if not found or not _fits(found):
        return None
    digest, ulid = _digest_and_ulid(found)
    suffix = found["suffix"]
    if suffix is None:
        return PartName(digest, ulid)
    if fragment := _FRAGMENT.match(suffix):
        data, parity, index = (int(number) for number in fragment.groups())
        return FragmentName(digest, ulid, data, parity, index) if index < data + parity else None
    return None if suffix == "raw" or suffix.startswith("ec-") else PartName(digest, ulid, suffix)


def _digest_and_ulid(found: "re.Match[str]") -> tuple[bytes, str]:
    return bytes.fromhex(found["digest"]), found["ulid"]


def _fits(found: "re.Match[str]") -> bool:
    return found["digest"].startswith(found["fan"])
