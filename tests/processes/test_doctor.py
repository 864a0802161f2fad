"""What `objstore doctor` says of disks."""

import pytest

from objstore.processes.doctor import _disks


@pytest.mark.parametrize(
    ("state", "reason", "remedy"),
    [
        ("suspect", "append took 12 s", "check the device and its cabling, then: objstore disk verify 2"),
        ("read-only", "Read-only file system", "mount it writable, then: objstore disk verify 2"),
        ("full", "0 bytes free, 6291456 are kept", "free or add space"),
        ("missing", "no objstore.id at its path", "a path without its disk is never taken for an empty one"),
        ("foreign", "disk 3 lies at /d: swapped?", "put the right disk at the path"),
    ],
)
def test_a_disk_that_is_not_well_is_told_with_what_to_do(state: str, reason: str, remedy: str) -> None:
    [found] = _disks([{"disk": 2, "path": "/d", "state": state, "reason": reason}])
    assert (found["check"], found["level"]) == ("disks", "problem")
    assert found["finding"] == f"disk 2 (/d) is {state}: {reason}"
    assert remedy in found["remedy"]
