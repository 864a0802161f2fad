"""Which disks the processes of a machine find slow, as operators are told."""

from pathlib import Path

from objstore.metrics import Family, Registry
from objstore.processes.control import EJECTED, serve_metrics, slow_disks


def finds(slow: dict[tuple[int, str], bool]) -> Registry:
    registry = Registry()
    samples = [((str(disk), op), [float(found)]) for (disk, op), found in slow.items()]
    registry.include(lambda: [Family(EJECTED, "gauge", "", ("disk", "op"), (), list(samples))])
    return registry


async def test_what_several_processes_find_slow_is_told_in_one_sentence_a_disk(tmp_path: Path) -> None:
    (tmp_path / "gone.sock").touch()  # Of a process that died.
    all_well = {(1, "read"): False, (1, "append"): False, (2, "read"): False, (2, "append"): False}
    servers = [
        await serve_metrics(str(tmp_path), "worker-1", finds(all_well | {(2, "read"): True})),
        await serve_metrics(
            str(tmp_path), "worker-2", finds(all_well | {(2, "read"): True, (2, "append"): True})
        ),
        await serve_metrics(str(tmp_path), "upkeep", finds(all_well)),
    ]
    assert await slow_disks(str(tmp_path)) == {
        2: "appends take long beside its peers', say 1 of 3 processes;"
        " reads come late beside its peers', say 2 of 3 processes"
    }
    for server in servers:
        server.close()
    assert await slow_disks(str(tmp_path / "none")) == {}
