"""Which versions a retention keeps: the rules, beside a reference that follows their words one by one."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.retention import choose_expired
from tensorkeep.records.history import RefFacts, VersionFacts
from tensorkeep.records.json_text import format_time
from tensorkeep.records.retention import EVERY_TAG, MOST_DAYS, MOST_VERSIONS, Retention, make_retention, parse_retention

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def version(number: int, parent: int | None, days_ago: float) -> VersionFacts:
    return VersionFacts(
        id=f"{number:040x}",
        model="M",
        parent=None if parent is None else f"{parent:040x}",
        manifest="",
        checks="",
        message="",
        author="",
        created_at=format_time(NOW - timedelta(days=days_ago)),
        total_bytes=0,
        policy="replicas=1",
    )


def ref(kind: str, name: str, number: int) -> RefFacts:
    return RefFacts(model="M", kind=kind, name=name, version=f"{number:040x}")  # type: ignore[arg-type]


def expired(versions: list[VersionFacts], refs: list[RefFacts], text: str) -> list[int]:
    going = choose_expired(versions[::-1], refs, parse_retention(text), now=NOW)
    return [int(each.id, 16) for each in reversed(going)]


CHAIN = [version(number, number - 1 if number else None, 50 - 10 * number) for number in range(6)]  # 5 was pushed now


@pytest.mark.parametrize(
    ("text", "refs", "going"),
    [
        ("last=1", [ref("branch", "main", 5)], [0, 1, 2, 3, 4]),
        ("last=3", [ref("branch", "main", 5)], [0, 1, 2]),
        ("last=9", [ref("branch", "main", 5)], []),
        ("days=20", [ref("branch", "main", 5)], [0, 1, 2]),
        ("days=19", [ref("branch", "main", 5)], [0, 1, 2, 3]),
        ("last=2 days=30", [ref("branch", "main", 5)], [0, 1]),
        ("days=1", [ref("branch", "old", 1)], [0, 2, 3, 4]),  # the head of a branch stays, however old
        ("last=2", [ref("branch", "main", 5), ref("branch", "old", 2)], [0, 3]),
        ("last=1", [ref("branch", "main", 5), ref("tag", "v1", 1)], [0, 2, 3, 4]),
        ("last=1 protect=v*", [ref("branch", "main", 5), ref("tag", "v1", 1), ref("tag", "x", 0)], [0, 2, 3, 4]),
        ("last=1 protect=v*,x", [ref("branch", "main", 5), ref("tag", "v1", 1), ref("tag", "x", 0)], [2, 3, 4]),
        ("last=1", [ref("tag", "v1", 1)], []),  # without a branch nobody knows which are the last
    ],
)
def test_what_goes(text: str, refs: list[RefFacts], going: list[int]) -> None:
    assert expired(CHAIN, refs, text) == going


def test_everything_older_than_a_version_that_was_removed_stays_while_that_one_would_count() -> None:
    gap = [each for each in CHAIN if int(each.id, 16) != 4]
    assert expired(gap, [ref("branch", "main", 5)], "last=2") == []
    assert expired(gap, [ref("branch", "main", 5)], "last=1") == [0, 1, 2, 3]
    pushed = [*gap, version(6, 5, 0)]
    assert expired(pushed, [ref("branch", "main", 6)], "last=2") == [0, 1, 2, 3]
    assert expired(pushed, [ref("branch", "main", 6)], "last=3") == []


def test_what_a_branch_was_rolled_back_over_does_not_stand_in_for_what_is_on_it() -> None:
    line = [*CHAIN[:5], version(5, 1, 0), version(7, 6, 0)]  # rolled back from 4 to 1; 6 was removed
    assert expired(line, [ref("branch", "main", 7)], "last=3") == []
    assert expired(line, [ref("branch", "main", 7)], "last=1") == [0, 1, 2, 3, 4, 5]


@given(
    parents=st.lists(st.one_of(st.none(), st.integers(0, 20)), min_size=1, max_size=15),
    ages=st.lists(st.integers(0, 40), min_size=15, max_size=15),
    refs=st.lists(
        st.tuples(st.sampled_from(["branch", "tag"]), st.sampled_from("abv"), st.integers(0, 14)), max_size=6
    ),
    removed=st.sets(st.integers(0, 14), max_size=4),
    last=st.one_of(st.none(), st.integers(1, 5)),
    days=st.one_of(st.none(), st.integers(1, 40)),
    protect=st.sampled_from([EVERY_TAG, ("v",), ("a", "b")]),
)
def test_no_version_goes_that_anything_keeps_and_all_others_do_where_none_was_removed(
    parents: list[int | None],
    ages: list[int],
    refs: list[tuple[str, str, int]],
    removed: set[int],
    last: int | None,
    days: int | None,
    protect: tuple[str, ...],
) -> None:
    if last is None and days is None:
        last = 1
    versions = [
        version(n, None if p is None or p >= n else p, ages[n]) for n, p in enumerate(parents)
    ]  # parents are older
    names = [ref(kind, name, number % len(versions)) for kind, name, number in refs]
    gone = {versions[n].id for n in removed if n < len(versions)} - {name.version for name in names}
    left = [each for each in versions if each.id not in gone]
    going = {each.id for each in choose_expired(left[::-1], names, Retention(last, days, protect), now=NOW)}
    by_id = {each.id: each for each in versions}

    def is_kept(one: VersionFacts) -> bool:
        if days is not None and ages[int(one.id, 16)] <= days:
            return True
        for name in names:
            if name.kind == "tag":
                if name.version == one.id and (protect == EVERY_TAG or name.name in protect):
                    return True
                continue
            line, count = name.version, 0
            while count < (last or 1):  # nobody but this test knows what came before one that is gone
                count += line not in gone
                if line == one.id:
                    return True
                parent = by_id[line].parent
                if parent is None:
                    break
                line = parent
        return False

    unkept = {each.id for each in left if not is_kept(each)}
    assert going <= unkept
    if not any(name.kind == "branch" for name in names):
        assert not going
    elif not gone:
        assert going == unkept


@given(
    last=st.one_of(st.none(), st.integers(1, MOST_VERSIONS)),
    days=st.one_of(st.none(), st.integers(1, MOST_DAYS)),
    protect=st.sampled_from([EVERY_TAG, ("v*",), ("rel/?", "[a-z]*", "x")]),
)
def test_a_retention_is_what_its_text_says(last: int | None, days: int | None, protect: tuple[str, ...]) -> None:
    if last is None and days is None:
        with pytest.raises(InvalidInput):
            make_retention(last, days, protect)
    else:
        retention = make_retention(last, days, protect)
        assert parse_retention(str(retention)) == retention


@pytest.mark.parametrize(
    "text",
    ["", " ", "last=0", "last=-1", "days=0", "protect=v*", "last=1  days=2", "days=2 last=1", "last=1 protect=", "last=1 ",
     "last=1 protect=a,,b", "last=1 protect=*", "last=1\n", "last=1000001", "days=36501", "days=1 protect=ä", "keep=3"],
)  # fmt: skip
def test_what_is_no_retention_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_retention(text)


@pytest.mark.parametrize("protect", ["v*", [], "", ["a b"], [7], ["ä"]])
def test_what_is_no_list_of_patterns_is_refused(protect: Sequence[str]) -> None:
    with pytest.raises(InvalidInput):
        make_retention(1, None, protect)


@pytest.mark.parametrize(("last", "days"), [(0, None), (True, None), (1.5, None), (None, 36_501), (None, -1)])
def test_what_is_no_limit_is_refused(last: int, days: int) -> None:
    with pytest.raises(InvalidInput, match="makes no sense"):
        make_retention(last, days)


def test_a_hundred_years_can_be_counted_back() -> None:
    assert expired(CHAIN, [], f"days={MOST_DAYS}") == []
