"""An object store becomes a device only if it does what its clients rely on: a stub that is wrong in one way is refused by name."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

import tensorkeep
from tensorkeep.devices import normalize_url
from tensorkeep.devices.conformance import PROBES, check_place
from tensorkeep.errors import Integrity, InvalidInput, PermissionDenied, TensorkeepError, Unavailable
from tensorkeep.runtime import ManualClock, Runtime
from tests.unit.devices.conformance.stub_store import ENVIRONMENT, StubStore, running

MakeStub = Callable[..., StubStore]


@pytest.fixture
def stub() -> Iterator[MakeStub]:
    """Make stubs that are wrong in these ways."""
    with ExitStack() as stack:

        def make(*wrong: str, clock_offset: timedelta = timedelta()) -> StubStore:
            made = StubStore(ManualClock().now(), frozenset(wrong), clock_offset)
            made.objects["team/notes"] = b"mine"
            return stack.enter_context(running(made))

        yield make


def runtime() -> Runtime:
    return Runtime(environment=ENVIRONMENT, clock=ManualClock())


def test_a_store_that_is_right_passes_every_probe(stub: MakeStub) -> None:
    store = stub()
    report = check_place(normalize_url(store.url), runtime=runtime(), form="full")
    assert {probe.name: probe.detail for probe in report.probes if probe.outcome == "failed"} == {}
    assert {probe.name for probe in report.probes if probe.outcome == "passed"} == {
        probe.name for probe in PROBES if "object_store" in probe.kinds
    }
    found = report.conformance
    assert (found.verdict, found.conditional_create, found.compare_and_swap) == ("accepted", "exact", "exact")
    assert found.refused_checksums == ("md5", "sha256")
    assert found.clock_offset_s == 0
    assert report.durability == "durable"
    assert store.objects == {"team/notes": b"mine"}


WRONG = {
    "ignores_ranges": (InvalidInput, "it ignores ranges: asked for bytes 0-99 of 262151 it answers 200, not 206"),
    "lies_in_content_range": (InvalidInput, "it answers a range wrongly: .*tells of 'bytes 0-4999/262151'"),
    "cuts_ranges_short": (InvalidInput, "it answers a range wrongly: .*gives 50 bytes"),
    "shows_torn_uploads": (
        InvalidInput,
        "it shows a truncated object: an upload that broke off after 300,000 of 1,000,000 bytes left one",
    ),
    "shows_torn_uploads_late": (
        InvalidInput,
        "it shows a truncated object: an upload that broke off after 300,000 of 1,000,000 bytes left one",
    ),
    "lists_torn_uploads": (InvalidInput, "it lists an object whose upload broke off"),
    "loses_what_was_torn": (InvalidInput, "it loses an object when an upload that should replace it breaks off"),
    "lists_late": (InvalidInput, "it lists 0 of 1 objects that are there"),
    "lists_deleted": (InvalidInput, "it still lists parts/00/.*, which was deleted"),
    "gives_back_deleted": (InvalidInput, "it still gives back an object that was deleted"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_store_that_is_wrong_is_refused_with_the_reason_and_left_as_it_was(
    stub: MakeStub, wrong: str, tmp_path: Path
) -> None:
    error, reason = WRONG[wrong]
    store = stub(wrong)
    with tensorkeep.open(tmp_path / "store", runtime=runtime()) as opened:
        with pytest.raises(error, match=reason) as caught:
            opened.devices.add("bucket", store.url)
        assert "can't be a device" in str(caught.value)
        assert opened.devices.list() == []
    assert store.objects == {"team/notes": b"mine"}


@pytest.mark.parametrize("minutes", [40, -40])
def test_a_store_with_a_wrong_clock_is_refused(stub: MakeStub, minutes: int) -> None:
    store = stub(clock_offset=timedelta(minutes=minutes))
    report = check_place(normalize_url(store.url), runtime=runtime(), form="short")
    assert isinstance(report.refusal, PermissionDenied)
    assert f"40 minutes {'ahead of' if minutes > 0 else 'behind'}" in str(report.refusal)
    assert [probe.name for probe in report.probes] == ["clock"]
    small = stub(clock_offset=timedelta(minutes=minutes / 10))
    report = check_place(normalize_url(small.url), runtime=runtime(), form="short")
    assert report.ok, report.refusal
    assert report.conformance.clock_offset_s == minutes * 6


def test_a_listing_that_ends_at_a_page_is_found_by_the_full_form(stub: MakeStub) -> None:
    store = stub("ends_at_a_page")
    assert check_place(normalize_url(store.url), runtime=runtime(), form="short").ok
    report = check_place(normalize_url(store.url), runtime=runtime(), form="full")
    assert report.conformance.refusal
    assert "lists 1,000 of 1,200 objects" in report.conformance.refusal
    assert store.objects == {"team/notes": b"mine"}  # what is not listed is removed too


def test_conditional_writes_that_are_ignored_are_a_flag_and_no_reason_to_refuse(stub: MakeStub) -> None:
    report = check_place(normalize_url(stub("ignores_if_none_match").url), runtime=runtime(), form="short")
    assert report.ok, report.refusal
    assert report.conformance.conditional_create == "ignored"


def test_the_full_form_goes_on_after_a_failure_and_the_first_one_is_the_reason(stub: MakeStub) -> None:
    store = stub("lists_deleted", "ignores_if_none_match")
    report = check_place(normalize_url(store.url), runtime=runtime(), form="full")
    assert not report.ok
    assert report.conformance.conditional_create == "ignored"
    assert isinstance(report.refusal, TensorkeepError)
    assert report.refusal.facts["probe"] == "delete"


def test_what_was_written_is_removed_by_name_where_listing_is_refused(stub: MakeStub) -> None:
    store = stub("lists_no_sites")
    report = check_place(normalize_url(store.url), runtime=runtime(), form="short")
    assert isinstance(report.refusal, PermissionDenied)
    assert report.refusal.facts["probe"] == "torn_upload"
    assert store.objects == {"team/notes": b"mine"}


def test_a_store_that_is_busy_is_asked_again_and_not_blamed(stub: MakeStub) -> None:
    store = stub("is_busy_at_first")
    report = check_place(normalize_url(store.url), runtime=runtime(), form="short")
    assert report.ok, report.refusal
    assert store.objects == {"team/notes": b"mine"}


def test_a_torn_upload_is_not_taken_for_gone_while_the_store_does_not_say_so(stub: MakeStub) -> None:
    report = check_place(normalize_url(stub("hides_absence").url), runtime=runtime(), form="short")
    assert isinstance(report.refusal, Unavailable)
    assert report.refusal.facts["probe"] == "torn_upload"


def test_no_secret_and_no_signature_is_in_what_a_check_says(stub: MakeStub) -> None:
    report = check_place(normalize_url(stub("ignores_ranges").url), runtime=runtime(), form="full")
    for secret in ("stub-secret", "X-Amz-Signature", "Signature="):
        assert secret not in repr(report)


def test_a_store_that_is_not_there_is_unavailable_and_not_judged(stub: MakeStub) -> None:
    store = stub()
    url = normalize_url(store.url.replace(str(store.port), "1"))
    with pytest.raises(TensorkeepError) as caught:
        check_place(url, runtime=runtime(), form="short")
    assert caught.value.code == "unavailable"
    assert not isinstance(caught.value, Integrity)
