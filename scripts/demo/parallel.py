"""The last step: the same model loaded from one device and from three, each no faster than a given rate.

Local folders share one disk and one page cache, so the rate is limited: what is shown is that the devices of a load work
at once and share it evenly, so that the whole takes L = max L_i, about a third with three of them.
"""

from pathlib import Path

import tensorkeep
from scripts.demo.material import same_tensors
from scripts.demo.stage import Stage, Step
from tensorkeep import LoadReport
from tensorkeep.cli.units import human_duration, human_rate, human_size

RATE_BYTES_PER_S = 40_000_000
LEAST_SPEED_UP = 2.4


def load_from_one_and_three(stage: Stage, folder: Path, source: Path) -> None:
    """Show L_i of each device and their maximum, from one device and from three, and the speed-up."""
    with stage.step(f"Load from 1 and from 3 devices of {human_rate(RATE_BYTES_PER_S)} each") as step:
        one, three = (_load(stage, folder, source, devices, step) for devices in (1, 3))
        rows = [
            [
                f"{len(report.devices)}",
                device.name,
                human_size(device.bytes),
                human_duration(device.seconds),
                human_duration(device.predicted_seconds),
                human_rate(device.bytes / device.seconds),
            ]
            for report in (one, three)
            for device in sorted(report.devices, key=lambda device: device.name)
        ]
        stage.table([">DEVICES", "DEVICE", ">READ", ">L_i", ">PREDICTED", ">RATE"], rows)
        for report in (one, three):
            stage.say(
                f"{len(report.devices)} device(s): max L_i {human_duration(report.slowest_seconds)},"
                f" whole load {human_duration(report.seconds)}, {human_rate(report.rate_bytes_per_s)}"
            )
        speed_up = one.seconds / three.seconds
        stage.check(
            f"three devices load {speed_up:.2f} times as fast as one (at least {LEAST_SPEED_UP})",
            speed_up >= LEAST_SPEED_UP,
        )


def _load(stage: Stage, folder: Path, source: Path, devices: int, step: Step) -> LoadReport:
    with tensorkeep.open(folder / f"store-of-{devices}") as store:
        for number in range(devices):
            store.devices.add(
                f"slow{number}",
                str((folder / f"slow-{devices}-{number}").absolute()),
                bandwidth=RATE_BYTES_PER_S,
                rate_limit=RATE_BYTES_PER_S,
            )
        with stage.progress() as progress:
            store.push(source, "demo/llama", progress=progress)
        model = store.model("demo/llama")
        with stage.progress() as progress:
            arrays = model.load(progress=progress)
        assert model.report is not None, "a load reports"
    stage.check(f"from {devices}: every tensor is right", same_tensors(arrays, source))
    stage.check(f"from {devices}: every device took part", len(model.report.devices) == devices)
    step.moved(model.report.bytes_needed, model.report.seconds)
    return model.report
