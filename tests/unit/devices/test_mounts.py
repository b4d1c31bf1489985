import os
from pathlib import Path

import pytest

from tensorkeep.devices import LocalDevice, mounts
from tensorkeep.devices.mounts import find_mount, is_durable, parse_mounts
from tensorkeep.errors import Unavailable
from tensorkeep.runtime import Runtime

TABLE = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /dev/shm rw - tmpfs tmpfs rw
24 22 8:17 / /mnt/my\040disk rw shared:2 master:3 - xfs /dev/sdb1 rw,attr2
25 22 0:40 / /mnt/nfs rw - nfs4 host:/export rw,vers=4.2
26 22 0:41 / /mnt/ssh rw - fuse.sshfs host:/ rw
27 22 0:42 / /mnt/ntfs rw - fuseblk /dev/sdc1 rw
28 22 0:43 / /mnt/btrfs rw - btrfs /dev/sdd1 rw,subvol=/
29 22 8:33 / /mnt/fast rw - ext4 /dev/sde1 rw,nobarrier
30 22 0:44 / /mnt/overlay rw - overlay overlay rw,lowerdir=/a,upperdir=/b
31 22 0:45 / /mnt/volatile rw - overlay overlay rw,upperdir=/b,volatile
32 22 8:49 / /mnt/twice rw - ext4 /dev/sdf1 rw
33 32 0:46 / /mnt/twice rw - tmpfs tmpfs rw
34 22 0:47 / /hidden/deep rw - tmpfs tmpfs rw
35 22 8:65 / /hidden rw - ext4 /dev/sdg1 rw
a line of another shape
"""


@pytest.mark.parametrize(
    ("path", "device", "mount_point", "durable"),
    [
        ("/home/x", (8, 1), "/", True),
        ("/dev/shm/x", (0, 21), "/dev/shm", False),
        ("/mnt/my disk/x", (8, 17), "/mnt/my disk", True),
        ("/mnt/my disk2/x", (8, 1), "/", True),
        ("/mnt/nfs", (0, 40), "/mnt/nfs", False),
        ("/mnt/ssh/x", (0, 41), "/mnt/ssh", False),
        ("/mnt/ntfs/x", (0, 42), "/mnt/ntfs", False),
        ("/mnt/btrfs/subvolume", (0, 99), "/mnt/btrfs", True),
        ("/mnt/fast/x", (8, 33), "/mnt/fast", False),
        ("/mnt/overlay/x", (0, 44), "/mnt/overlay", True),
        ("/mnt/volatile/x", (0, 45), "/mnt/volatile", False),
        ("/mnt/twice/x", (0, 46), "/mnt/twice", False),
        ("/hidden/deep/x", (8, 65), "/hidden", True),
    ],
)
def test_the_mount_under_a_path_says_whether_fsync_reaches_a_disk(
    path: str, device: tuple[int, int], mount_point: str, durable: bool
) -> None:
    mount = find_mount(parse_mounts(TABLE), path, os.makedev(*device))
    assert mount is not None
    assert mount.mount_point == mount_point
    assert is_durable(mount) is durable


def test_of_two_mounts_of_one_number_on_one_point_the_later_counts() -> None:
    table = "1 0 8:1 / /x rw - ext4 a rw\n2 0 8:1 / /x rw - ext4 a rw,nobarrier"
    mount = find_mount(parse_mounts(table), "/x/y", os.makedev(8, 1))
    assert mount is not None
    assert not is_durable(mount)


def test_without_a_mount_table_nothing_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MOUNT_TABLE", str(tmp_path / "absent"))
    assert mounts.durability_of(str(tmp_path)) == "soft"


def test_a_missing_folder_has_no_durability(tmp_path: Path) -> None:
    device = LocalDevice(f"{tmp_path}/absent", runtime=Runtime(), url=f"file://{tmp_path}/absent")
    with pytest.raises(Unavailable):
        _ = device.durability
    device.prepare()
    assert device.durability in ("durable", "soft")
