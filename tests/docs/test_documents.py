"""Documents agree with the code and with each other."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tensorkeep.records.device import DeviceIdentity, decode_identity, encode_identity
from tensorkeep.records.fragment import FragmentFooter, decode_footer, encode_footer
from tensorkeep.records.history import JournalEntry, decode_entry, encode_entry
from tensorkeep.records.json_text import decode_canonical, encode_canonical
from tensorkeep.records.manifest import Manifest, check_manifest
from tensorkeep.records.parts_index import PartEntry, PartsIndex, decode_index, encode_index
from tensorkeep.records.version import VersionRecord, decode_version, encode_version

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

_EXAMPLE = re.compile(r"<!-- example: (\w+) -->\n```json\n(.*?)```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def _manifest(data: bytes) -> bytes:
    manifest = decode_canonical(data, Manifest, what="example")
    check_manifest(manifest)
    return encode_canonical(manifest)


def _version(data: bytes) -> bytes:
    record: VersionRecord = decode_version(data)
    return encode_version(record)[1]


def _sealed(data: bytes) -> bytes:
    """Return the stored bytes of an example; in them the seal comes last, in the sorted example first."""
    fields = json.loads(data)
    seal = fields.pop("blake3")
    body = json.dumps(fields, separators=(",", ":"), sort_keys=True)
    return f'{body[:-1]},"blake3":"{seal}"}}\n'.encode()


def _identity(data: bytes) -> bytes:
    stored = _sealed(data)
    identity: DeviceIdentity = decode_identity(stored, device="example")
    assert encode_identity(identity) == stored
    return data


def _footer(data: bytes) -> bytes:
    stored = _sealed(data)
    stored += len(stored).to_bytes(4, "little") + b"tkf1"
    footer: FragmentFooter = decode_footer(stored, what="example")
    assert encode_footer(footer) == stored
    return data


def _entry(data: bytes) -> bytes:
    entry: JournalEntry = decode_entry(data)
    return encode_entry(entry)[1]


ROUND_TRIPS: dict[str, Callable[[bytes], bytes]] = {
    "manifest": _manifest,
    "version": _version,
    "identity": _identity,
    "entry": _entry,
    "footer": _footer,
}


def _examples() -> dict[str, str]:
    return dict(_EXAMPLE.findall((DOCS / "format-v1.md").read_text("utf-8")))


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_the_specifications_example_is_what_the_code_reads_and_writes(name: str) -> None:
    fields = json.loads(_examples()[name])
    canonical = json.dumps(fields, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    assert ROUND_TRIPS[name](canonical) == canonical


def test_the_specification_has_an_example_of_each_record() -> None:
    assert _examples().keys() == ROUND_TRIPS.keys()


@pytest.mark.parametrize(
    ("record", "heading"),
    [
        (Manifest, "## 5. Manifest"),
        (VersionRecord, "## 7. Version record"),
        (FragmentFooter, "## 12. Erasure-coded parts"),
        (DeviceIdentity, "## 8. Identity"),
        (JournalEntry, "## 9. Journal"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_every_field_of_a_record_stands_in_its_table(record: type, heading: str) -> None:
    text = (DOCS / "format-v1.md").read_text("utf-8")
    section = text[text.index(heading) :].split("\n## ", 1)[0]
    documented = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE))))
    assert set(record.__annotations__) <= documented


def test_the_index_of_parts_is_documented_field_by_field_with_an_example_that_the_code_reads_and_writes() -> None:
    text = (DOCS / "split-join.md").read_text("utf-8")
    stored = json.dumps(json.loads(dict(_EXAMPLE.findall(text))["index"]), separators=(",", ":")).encode() + b"\n"
    assert encode_index(decode_index(stored, what="example")) == stored
    rows = "\n".join(re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE))
    documented = set(re.findall(r"`([\w\[\].]+)`", rows))
    fields = {*PartsIndex.__annotations__, *(f"parts[].{name}" for name in PartEntry.__annotations__), "index_blake3"}
    assert fields <= documented


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_links_to_files_lead_somewhere(document: Path) -> None:
    broken = [link for link in _LINK.findall(document.read_text("utf-8")) if not (document.parent / link).exists()]
    assert not broken


def test_every_dependency_is_documented_with_its_reason_and_no_other() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    text = (DOCS / "dependencies.md").read_text("utf-8")
    run_time, _, rest = text.partition("## Extras")
    rest, _, bench = rest.partition("## To measure beside")
    contenders = (ROOT / "bench" / "contenders.txt").read_text("utf-8").splitlines()
    assert _documented(bench) == _names([line for line in contenders if not line.startswith("#")])
    assert _documented(run_time) == _names(project["dependencies"])
    assert _documented(rest) == {name for words in extras.values() for name in _names(words)}


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=~!\[ ]", requirement, maxsplit=1)[0] for requirement in requirements}


def _documented(text: str) -> set[str]:
    cells = re.findall(r"^\| ([a-z][^|]*) \|", text, re.MULTILINE)
    return {name for cell in cells for name in cell.split(", ")} - {"package"}
