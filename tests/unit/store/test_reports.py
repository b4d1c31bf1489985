"""What reports say about themselves."""

from tensorkeep.records.device import DeviceFacts, DeviceState
from tensorkeep.store.reports import DeviceStatus, StatusReport


def status(state: DeviceState, problem: str | None) -> StatusReport:
    facts = DeviceFacts(id="A", name="disk0", url="file:///d0", zone="disk0", durability="durable", state=state)
    device = DeviceStatus(facts, problem, objects=0, bytes=0, bad_objects=0, free_bytes=None, journal_behind=0)
    return StatusReport(
        store="S",
        location="/s",
        policy="replicas=1",
        epoch=1,
        journal_seq=1,
        models=0,
        versions=0,
        devices=(device,),
        short=(),
        warnings=(),
    )


def test_a_store_is_well_only_while_its_devices_answer() -> None:
    assert status("active", None).ok
    assert not status("active", "is its disk mounted?").ok


def test_a_device_that_was_given_up_does_not_count() -> None:
    assert status("lost", "marked lost").ok
