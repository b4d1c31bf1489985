"""The journal's fold: any history adds up to the state that its changes say, through snapshots as well."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.errors import Format
from tensorkeep.records.device import DeviceFacts, DeviceState
from tensorkeep.records.history import (
    Change,
    DeviceChanged,
    JournalEntry,
    ModelChanged,
    ModelFacts,
    PolicyChanged,
    RefChanged,
    RefFacts,
    RefKind,
    StoreChanged,
    StoreState,
    VersionCommitted,
    VersionFacts,
    VersionRemoved,
    apply_change,
    decode_entry,
    encode_entry,
    fold_entries,
    take_snapshot,
)

MOMENT = "2026-01-31T23:59:59.000001Z"


def _device(name: str, state: DeviceState = "active") -> DeviceFacts:
    return DeviceFacts(id=name, name=name, url=f"memory://{name}", zone=name, durability="soft", state=state)


def _model(name: str, policy: str | None = None) -> ModelFacts:
    return ModelFacts(id=name, name=f"default/{name}", policy=policy, created_at=MOMENT)


def _version(name: str) -> VersionFacts:
    return VersionFacts(
        id=name,
        model="m",
        parent=None,
        manifest="",
        checks="",
        message="",
        author="",
        created_at=MOMENT,
        total_bytes=0,
        policy="replicas=1",
    )


def _ref(name: str, old: str | None, new: str | None, kind: RefKind = "branch") -> RefChanged:
    return RefChanged(model="m", ref=kind, name=name, old=old, new=new)


def _entry(seq: int, *changes: Change) -> JournalEntry:
    return JournalEntry(store="s", epoch=1, seq=seq, prev=None, created_at=MOMENT, changes=changes)


def _fold(*changes: Change) -> StoreState:
    return fold_entries([_entry(seq, change) for seq, change in enumerate(changes)])


def test_the_store_has_its_last_policy() -> None:
    assert StoreState().policy == "replicas=1"
    assert (
        _fold(StoreChanged(old=None, new="replicas=2"), StoreChanged(old="replicas=2", new="replicas=3")).policy
        == "replicas=3"
    )


def test_devices_are_added_changed_and_forgotten() -> None:
    a, b = _device("a"), _device("b")
    lost = _device("a", "lost")
    assert _fold(DeviceChanged(old=None, new=a), DeviceChanged(old=None, new=b)).devices == {"a": a, "b": b}
    assert _fold(DeviceChanged(old=None, new=a), DeviceChanged(old=a, new=lost)).devices == {"a": lost}
    assert _fold(DeviceChanged(old=None, new=a), DeviceChanged(old=a, new=None)).devices == {}


def test_models_are_made_renamed_and_removed() -> None:
    one, other = _model("m"), _model("m", "replicas=2")
    assert _fold(ModelChanged(old=None, new=one), ModelChanged(old=one, new=other)).models == {"m": other}
    assert _fold(ModelChanged(old=None, new=one), ModelChanged(old=one, new=None)).models == {}


def test_versions_stay_in_the_order_of_their_commits() -> None:
    state = _fold(*(VersionCommitted(version=_version(name)) for name in "zma"))
    assert list(state.versions) == ["z", "m", "a"]


def test_a_removed_version_is_gone_and_removing_it_again_changes_nothing() -> None:
    one = VersionRemoved(version=_version("a"))
    assert _fold(VersionCommitted(version=_version("a")), one, one).versions == {}


def test_a_version_owes_what_it_was_given_last() -> None:
    one, other = VersionCommitted(version=_version("a")), VersionCommitted(version=_version("b"))
    changed = PolicyChanged(version="a", old=one.version.policy, new="ec=4+2")
    state = _fold(one, other, changed)
    assert list(state.versions.values()) == [msgspec.structs.replace(one.version, policy="ec=4+2"), other.version]
    assert _fold(one, VersionRemoved(version=one.version), changed).versions == {}


def test_a_branch_and_a_tag_of_one_name_are_two_refs() -> None:
    state = _fold(_ref("v1", None, "a"), _ref("v1", None, "b", "tag"), _ref("v1", "a", "c"))
    assert {(ref.kind, ref.version) for ref in state.refs} == {("branch", "c"), ("tag", "b")}


def test_a_deleted_ref_is_gone() -> None:
    assert _fold(_ref("v1", None, "a"), _ref("v1", "a", None)).refs == []


def test_two_states_never_share_their_rows() -> None:
    assert StoreState().devices is not StoreState().devices
    snapshot = take_snapshot(_fold(VersionCommitted(version=_version("a")), _ref("main", None, "a")))
    first = apply_change(StoreState(), snapshot)
    apply_change(first, VersionRemoved(version=_version("a")))
    apply_change(first, _ref("main", "a", None))
    second = apply_change(StoreState(), snapshot)
    assert list(second.versions) == ["a"]
    assert second.refs == [RefFacts(model="m", kind="branch", name="main", version="a")]


letters = st.sampled_from("abcd")
values = st.none() | letters
changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(StoreChanged, old=st.none(), new=st.sampled_from(["replicas=1", "replicas=2"])),
    st.builds(lambda name: DeviceChanged(old=None, new=_device(name)), letters),
    st.builds(lambda name: DeviceChanged(old=_device(name), new=None), letters),
    st.builds(lambda name: ModelChanged(old=None, new=_model(name)), letters),
    st.builds(lambda name: ModelChanged(old=_model(name), new=None), letters),
    st.builds(lambda name: VersionCommitted(version=_version(name)), letters),
    st.builds(lambda name: VersionRemoved(version=_version(name)), letters),
    st.builds(lambda name: PolicyChanged(version=name, old="replicas=1", new="replicas=2"), letters),
    st.builds(_ref, letters, values, values, st.sampled_from(["branch", "tag"])),
)


@given(st.lists(changes, max_size=12), st.integers(0, 12))
def test_a_snapshot_anywhere_changes_nothing(history: list[Change], at: int) -> None:
    before = _fold(*history[:at])
    stored = encode_entry(_entry(at, take_snapshot(before)))[1]
    through = fold_entries([decode_entry(stored), *(_entry(99, change) for change in history[at:])])
    whole = _fold(*history)
    assert through == whole
    assert list(through.versions) == list(whole.versions)
    assert list(through.devices) == list(whole.devices)


@given(st.lists(changes, max_size=12))
def test_one_entry_of_many_changes_is_many_entries_of_one(history: list[Change]) -> None:
    assert fold_entries([_entry(1, *history)]) == _fold(*history)


@given(st.lists(changes, max_size=5))
def test_entries_are_read_back(history: list[Change]) -> None:
    entry = _entry(1, *history)
    digest, stored = encode_entry(entry)
    assert decode_entry(stored) == entry
    assert encode_entry(decode_entry(stored)) == (digest, stored)


def test_a_newer_entry_says_upgrade_even_with_other_fields() -> None:
    with pytest.raises(Format, match="upgrade"):
        decode_entry(b'{"format":2,"events":[]}')


def test_an_entry_of_an_unknown_change_is_refused() -> None:
    stored = encode_entry(_entry(1, StoreChanged(old=None, new="replicas=1")))[1]
    with pytest.raises(Format, match="journal entry"):
        decode_entry(stored.replace(b'"kind":"store"', b'"kind":"vault"'))
