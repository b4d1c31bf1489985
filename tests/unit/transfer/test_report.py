"""Reports of loads that ran one after the other, as one."""

from tensorkeep.transfer.report import Damage, DamageKind, DeviceLoad, LoadReport, add_reports


def damage(location: int, device: str, kind: DamageKind = "corrupt") -> Damage:
    return Damage(location, 0, device, device, f"copy {location}", kind)


def report(*damaged: Damage, devices: tuple[DeviceLoad, ...] = (), seconds: float = 1.0) -> LoadReport:
    return LoadReport(10, 12, seconds, devices, damaged, 1, "blocks")


def test_bytes_seconds_and_devices_are_summed() -> None:
    first = report(devices=(DeviceLoad("A", "disk0", 5, 0.5, 0.25), DeviceLoad("B", "disk1", 7, 1.0, 0.5)))
    second = report(devices=(DeviceLoad("B", "disk1", 3, 2.0, 1.0), DeviceLoad("C", "disk2", 9, 0.5, 0.5)), seconds=2.0)
    total = add_reports([first, second], verify="blocks")
    assert (total.bytes_needed, total.bytes_read, total.seconds, total.retried) == (20, 24, 3.0, 2)
    assert total.devices == (
        DeviceLoad("A", "disk0", 5, 0.5, 0.25),
        DeviceLoad("B", "disk1", 10, 3.0, 1.5),
        DeviceLoad("C", "disk2", 9, 0.5, 0.5),
    )
    assert total.slowest_seconds == 3.0
    assert total.predicted_seconds == 1.5
    assert [device.rate_bytes_per_s for device in total.devices] == [10.0, 10 / 3, 18.0]
    assert DeviceLoad("A", "disk0", 5, 0.0, 0.25).rate_bytes_per_s == 0.0


def test_each_damaged_copy_and_each_device_out_of_reach_is_named_once() -> None:
    first = report(damage(1, "A"), damage(2, "A"), damage(8, "B", "unreachable"))
    second = report(damage(2, "A"), damage(3, "A"), damage(9, "B", "unreachable"), damage(9, "C", "unreachable"))
    assert [each.location for each in add_reports([first, second], verify="blocks").damaged] == [1, 2, 8, 3, 9]


def test_of_no_loads_it_is_empty() -> None:
    assert add_reports([], verify="digest") == LoadReport(0, 0, 0.0, (), (), 0, "digest")
    assert add_reports([], verify="digest").predicted_seconds == 0.0
