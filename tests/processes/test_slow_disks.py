"""Which disks the processes of a machine find slow, as operators are told."""

from pathlib import Path

from objstore.metrics import Family, Registry, RequestMetrics, TenantNumbers
from objstore.processes.control import EJECTED, ask, serve_metrics, slow_disks


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


async def test_only_a_scrape_is_told_what_a_process_counted_by_tenant_and_as_it_was_counted(
    tmp_path: Path,
) -> None:
    registry = finds({(1, "read"): True})
    RequestMetrics(registry).finished("GetObject", 200, 0.1, sent=9, tenant="acme")
    server = await serve_metrics(str(tmp_path), "worker-1", registry)
    assert len(await slow_disks(str(tmp_path))) == 1
    short = await ask(str(tmp_path), "worker-1")
    whole = await ask(str(tmp_path), "worker-1", by_tenant=True)
    assert short is not None
    assert whole is not None
    assert short.tenants == {}
    assert whole.tenants == {"acme": TenantNumbers(classes=[0, 0, 1, 0, 0, 0], sent=9)}
    assert not any(family.labels[:1] == ("tenant",) for family in whole.families)
    assert [family.name for family in short.families] == [family.name for family in whole.families]
    server.close()
