"""Physical names: one spelling each, exactly inverted, and nothing else accepted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.errors import Internal
from tensorkeep.records.naming import (
    ChecksName,
    FragmentName,
    JournalName,
    ManifestName,
    ObjectKind,
    ObjectName,
    PartName,
    VersionName,
    location_form,
    object_kind,
    parse_physical_name,
    physical_name,
)

ULID = "01JD000000ABCDEFGHJKMNPQRS"
HEX = "0123456789abcdef" * 4

ulids = st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=25, max_size=25).map(lambda text: "0" + text)
digests = st.binary(min_size=32, max_size=32)
fragments = st.integers(1, 99).flatmap(
    lambda data: st.integers(1, 99).flatmap(
        lambda parity: st.builds(
            FragmentName, digests, ulids, st.just(data), st.just(parity), st.integers(0, data + parity - 1)
        )
    )
)
names: st.SearchStrategy[ObjectName] = st.one_of(
    st.builds(PartName, digests, ulids, st.sampled_from(["raw", "planes-zstd", "zstd", "delta"])),
    fragments,
    st.builds(ManifestName, digests, ulids),
    st.builds(ChecksName, digests, ulids),
    st.builds(VersionName, ulids, st.binary(min_size=20, max_size=20), ulids),
    st.builds(JournalName, st.integers(0, 10**8 - 1), st.integers(0, 10**12 - 1), digests, ulids),
)

LITERAL: list[tuple[ObjectName, str]] = [
    (PartName(bytes.fromhex(HEX), ULID), f"parts/01/{HEX}.{ULID}"),
    (PartName(bytes.fromhex(HEX), ULID, "planes-zstd"), f"parts/01/{HEX}.{ULID}.planes-zstd"),
    (FragmentName(bytes.fromhex(HEX), ULID, 4, 2, 5), f"parts/01/{HEX}.{ULID}.ec-4-2-5"),
    (ManifestName(bytes.fromhex(HEX), ULID), f"manifests/01/{HEX}.{ULID}.json.zst"),
    (ChecksName(bytes.fromhex(HEX), ULID), f"checks/01/{HEX}.{ULID}"),
    (VersionName(ULID, bytes.fromhex(HEX[:40]), ULID), f"versions/{ULID}/{HEX[:40]}.{ULID}.json"),
    (JournalName(1, 42, bytes.fromhex(HEX), ULID), f"journal/00000001-000000000042.{HEX}.{ULID}.json"),
]


@pytest.mark.parametrize(
    ("name", "text"), LITERAL, ids=[text.partition("/")[0] + str(i) for i, (_, text) in enumerate(LITERAL)]
)
def test_each_kind_of_object_has_this_name(name: ObjectName, text: str) -> None:
    assert physical_name(name) == text
    assert parse_physical_name(text) == name


@given(names)
def test_every_name_is_parsed_back_to_itself(name: ObjectName) -> None:
    assert parse_physical_name(physical_name(name)) == name


@given(st.text())
def test_arbitrary_text_is_no_name(text: str) -> None:
    assert parse_physical_name(text) is None


@given(names, st.data())
def test_a_changed_name_is_refused_or_is_the_only_spelling_of_what_it_means(
    name: ObjectName, data: st.DataObject
) -> None:
    text = physical_name(name)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters()) + text[at + data.draw(st.integers(0, 1)) :]
    parsed = parse_physical_name(changed)
    assert parsed is None or physical_name(parsed) == changed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tensorkeep.json",
        f"tmp/{ULID}",
        f"parts/02/{HEX}.{ULID}",
        f"parts/01/{HEX.upper()}.{ULID}",
        f"parts/01/{HEX}",
        f"parts/01/{HEX}.{ULID.lower()}",
        f"parts/01/{HEX}.8{ULID[1:]}",
        f"parts/01/{HEX}.{ULID}.raw",
        f"parts/01/{HEX}.{ULID}.",
        f"parts/01/{HEX}.{ULID}\n",
        f"parts/01/{HEX}.{ULID}/x",
        f"/parts/01/{HEX}.{ULID}",
        f"parts/01/{HEX}.{ULID}.ec-4-2-6",
        f"parts/01/{HEX}.{ULID}.ec-4-2-05",
        f"parts/01/{HEX}.{ULID}.ec-0-2-0",
        f"parts/01/{HEX}.{ULID}.ec-4-2",
        f"manifests/02/{HEX}.{ULID}.json.zst",
        f"manifests/01/{HEX}.{ULID}.json",
        f"checks/02/{HEX}.{ULID}",
        f"checks/01/{HEX}.{ULID}.json",
        f"versions/{ULID}/{HEX}.{ULID}.json",
        f"versions/{'I' * 26}/{HEX[:40]}.{ULID}.json",
        f"journal/1-42.{HEX}.{ULID}.json",
        f"journal/0000000\N{ARABIC-INDIC DIGIT ONE}-000000000042.{HEX}.{ULID}.json",
    ],
)
def test_near_misses_are_no_names(text: str) -> None:
    assert parse_physical_name(text) is None


def test_kinds_and_forms_are_those_of_location_rows() -> None:
    kinds = [object_kind(name) for name, _ in LITERAL[:-1]]
    assert kinds == [*3 * [ObjectKind.PART], ObjectKind.MANIFEST, ObjectKind.CHECKS, ObjectKind.VERSION]
    forms = [location_form(name) for name, _ in LITERAL[:-1]]
    assert forms == ["raw", "planes-zstd", "ec-4-2", "raw", "raw", "raw"]


def test_journal_entries_have_no_location_rows() -> None:
    with pytest.raises(Internal):
        object_kind(LITERAL[-1][0])
