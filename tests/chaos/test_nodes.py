"""Nodes of a cluster are killed under load: any m of k+m, then one more; and some come back with the past.

The short form has six nodes and 4+2, every choice of two. `make chaos` has twelve and 8+4, every one of the
495 choices of four.
"""

import itertools
import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.sigv4 import Credentials
from objstore.processes.dev import LocalCluster, Process
from tests.chaos.workload import RESTLESS, STALL_MAX_S, Load, NoAnswer, Pressure
from tests.processes.warm import WarmCluster
from tests.seed import SEED
from tests.waiting import wait_until

LONG = bool(os.environ.get("OBJSTORE_LONG"))
K, M = (8, 4) if LONG else (4, 2)
# Of 15, others in every run; the long form takes every one of its 495. Or as many as it is told, or which in
# the order of a seed: "250", "250:495".
_TOLD = os.environ.get("OBJSTORE_TEST_CHOICES") or ("495" if LONG else "4")
CHOICES = slice(*map(int, _TOLD.split(":")))
WRITES = 24 if LONG else 60  # Acknowledged without each choice: a few of every client.
NODES = K + M
MENDED_S = 90.0  # For repair to have put everything in order again.
ANSWER_S = 30.0  # An answer, whatever is away: the longest of our own deadlines, and some.
# A disk that was doubted is verified within seconds, as everything that usually happens in minutes.
# Repair looks every 0.6 s: at RESTLESS's 0.2 s twelve nodes without a client take half a processor to answer.
SOON = {name: value for name, value in RESTLESS.items() if name != "OBJSTORE_UPKEEP__SCRUB_DAYS"}
SOON["OBJSTORE_UPKEEP__PERIOD_FACTOR"] = "0.01"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    made = WarmCluster(directory=tmp_path, nodes=NODES, codec=f"{K}+{M}", environment=SOON, bound=True)
    try:
        made.start()
        yield made
    finally:
        made.close()


def load_of(cluster: LocalCluster, keys: int = 12) -> Load:
    return Load(
        port=cluster.port_of_s3,
        credentials=Credentials(*cluster.root),
        seed=SEED,
        clients=4,
        keys=keys,
        multipart=False,
        answer_s=ANSWER_S,
    )


def wait_until_mended(cluster: LocalCluster) -> None:
    """All disks are healthy, and no fragment file lacks anything: the next loss may come."""
    cluster.wait_for_disks(NODES, MENDED_S)
    limit = time.monotonic() + MENDED_S
    while True:
        status, found = cluster.admin("GET", "/api/v1/upkeep")
        _, whole = cluster.admin("GET", "/api/v1/cluster")
        if status == 200 and not found["intents"] and isinstance(whole, dict) and not whole["away"]:
            _, damaged = cluster.admin("GET", "/api/v1/volumes?damaged=true")
            if isinstance(damaged, dict) and damaged["volumes"] == []:
                return
        if time.monotonic() > limit:
            pytest.fail(f"seed {SEED}: not mended in {MENDED_S:.0f} s: {found}\n{cluster.gateway.words()}")
        time.sleep(0.1)


def wait_until_safe(cluster: LocalCluster, nodes: Sequence[Process]) -> None:
    """Until the store itself would have these nodes go: metadata has its copies elsewhere, too."""
    limit = time.monotonic() + MENDED_S
    names = "&".join(f"what={node.name}" for node in nodes)
    while True:
        status, found = cluster.admin("GET", f"/api/v1/safe-to-stop?{names}")
        if status == 200 and found["safe"]:
            return
        if time.monotonic() > limit:
            pytest.fail(f"seed {SEED}: not safe in {MENDED_S:.0f} s: {found}\n{cluster.gateway.words()}")
        time.sleep(0.1)


def bring_back(cluster: LocalCluster, nodes: Sequence[Process], load: Load) -> None:
    """Start the nodes again; returns when everything has all its fragments."""
    for node in nodes:
        cluster.start_node(node)
    with load.pause():
        # A writer seals a volume that lost a disk 30 s after its last stripe, and only then it is repaired.
        # One that ends seals at once, which spares this test eight minutes.
        renew(cluster)
        for client in load.clients:
            client.disconnect()  # From the processes that ended.
        wait_until_mended(cluster)


def renew(cluster: LocalCluster) -> None:
    """Have every process that writes objects end in peace, and another take its place."""

    def writers() -> dict[str, int]:
        state = json.loads((cluster.gateway.data / "run" / "state.json").read_text())
        return {
            name: child["pid"]
            for name, child in state["children"].items()
            if name != "committer" and child["ready"]
        }

    before = writers()
    for pid in before.values():
        os.kill(pid, signal.SIGTERM)
    limit = time.monotonic() + MENDED_S
    while (after := writers()).keys() != before.keys() or set(after.values()) & set(before.values()):
        assert time.monotonic() < limit, f"seed {SEED}: {cluster.gateway.words()}"
        time.sleep(0.02)


@pytest.mark.timeout(36_000 if LONG else 400)
def test_any_m_nodes_killed_under_load_cost_no_read_and_no_byte_and_writes_go_on(
    cluster: LocalCluster,
) -> None:
    print(f"seed {SEED}")
    choices = list(itertools.combinations(range(NODES), M))
    random.Random(SEED).shuffle(choices)
    choices = choices[CHOICES]
    load = load_of(cluster)
    findings = load.findings
    with Pressure() as pressure, load:
        load.work_until(100)
        for choice in choices:
            nodes = [cluster.members[number] for number in choice]
            names = ", ".join(node.name for node in nodes)
            wait_until_safe(cluster, nodes)
            before = findings.acknowledged
            cluster.kill(*nodes)
            load.work_until(WRITES)
            load.check_everything()
            assert findings.acknowledged >= before + WRITES, f"seed {SEED}: no writes without {names}"
            assert findings.read_failures == [], f"seed {SEED}, without {names}: {findings.read_failures[:5]}"
            assert findings.broken == [], f"seed {SEED}, without {names}: {findings.broken[:5]}"
            print(f"without {names}: {load.report()}", flush=True)
            bring_back(cluster, nodes, load)
        load.check_everything()
    print(f"{len(choices)} choices: {load.report()}; pressure {pressure.factor:.1f}")
    assert findings.read_failures == []
    assert findings.broken == []
    longest, what = findings.longest_stall()
    assert longest <= STALL_MAX_S * pressure.factor, f"seed {SEED}: {what} took {longest:.1f} s"


def wait_until_they_listen(nodes: Sequence[Process]) -> None:
    """Not until anybody has heard of it."""
    limit = time.monotonic() + MENDED_S
    for node in nodes:
        [listen] = [word for word in node.command if word.startswith("--listen=")]
        host, _, port = listen.partition("=")[2].rpartition(":")
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < limit, f"seed {SEED}: {node.words()}"
                time.sleep(0.005)


if LONG:

    @pytest.mark.timeout(3_600)
    def test_m_nodes_come_back_and_m_others_are_killed_at_that_moment(cluster: LocalCluster) -> None:
        print(f"seed {SEED}")
        source = random.Random(SEED)
        load = load_of(cluster)
        findings = load.findings
        with load:
            load.work_until(100)
            for _ in range(5):
                chosen = source.sample(cluster.members, 2 * M)
                back, others = chosen[:M], chosen[M:]
                wait_until_safe(cluster, back)
                cluster.kill(*back)
                load.work_until(WRITES)
                with load.pause():
                    for node in back:
                        cluster.start_node(node)
                    wait_until_they_listen(back)
                    cluster.kill(*others)
                load.check_everything()
                print(f"others killed: {load.report()}", flush=True)
                assert findings.read_failures == [], f"seed {SEED}: {findings.read_failures[:5]}"
                assert findings.broken == [], f"seed {SEED}: {findings.broken[:5]}"
                load.work_until(WRITES)
                bring_back(cluster, others, load)


@pytest.mark.timeout(300)
def test_with_one_node_more_than_m_down_answers_are_clean_and_everything_is_there_when_they_return(
    cluster: LocalCluster,
) -> None:
    print(f"seed {SEED}")
    load = load_of(cluster)
    with load:
        load.work_until(150)
    assert load.findings.broken == []
    large = {f"/{load.bucket}/large{number}": random.Random(number).randbytes(4_000_000) for number in (1, 2)}
    for path, body in large.items():
        load.clients[0].until_answered("PUT", path, body=body)
    nodes = random.Random(SEED).sample(cluster.members, M + 1)
    cluster.kill(*nodes)
    served = 0
    refusals: list[str] = []
    for client in load.clients:
        for key, entry in client.entries.items():
            if entry.may_be == {0}:
                continue
            started = time.monotonic()
            try:
                status, data, _ = client.once("GET", f"/{load.bucket}/{key}")
                client.judge(key, status, data)
                served += 1
            except NoAnswer as failure:
                refusals.append(str(failure))
            assert time.monotonic() - started < ANSWER_S
    print(f"without {M + 1} nodes: {served} served, {len(refusals)} refused")
    check_that_the_store_says_so(cluster)
    for path, body in large.items():
        check_that_it_is_not_cut_for_long(load, path, body)
    written, _ = answered(load, "PUT", f"/{load.bucket}/meanwhile", b"meanwhile")
    assert written in (200, 503), f"seed {SEED}: {written}"
    # 503 at the beginning, or a cut in the middle of what began before the loss was known.
    unclean = [words for words in refusals if "503" not in words and "IncompleteRead" not in words]
    assert unclean == [], f"seed {SEED}: {unclean[:5]}"
    assert load.findings.broken == [], f"seed {SEED}: {load.findings.broken[:5]}"
    assert refusals, "with m+1 of k+m fragments away nothing of a volume can be read"
    for node in nodes:
        cluster.start_node(node)
    cluster.wait_for_disks(NODES, MENDED_S)
    for client in load.clients:
        client.check_everything()
    assert load.findings.broken == [], f"seed {SEED}: {load.findings.broken[:5]}"
    for path, body in large.items():
        assert load.clients[0].until_answered("GET", path)[:2] == (200, body)
    status, body, _ = load.clients[0].until_answered("GET", f"/{load.bucket}/meanwhile")
    assert (status, body) == (200, b"meanwhile") or (status, written) == (404, 503)
    with load_again(load) as again:
        again.work_until(50)
    assert again.findings.broken == []
    for path in ("/health/cluster", "/health/cluster?read"):
        asked(cluster, path, 200, MENDED_S)


def answered(load: Load, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of one answer, 503 among them. Raises: NoAnswer if it is another failure, or is cut."""
    try:
        return load.clients[0].once(method, path, body=body)[:2]
    except NoAnswer as failure:
        if not str(failure).startswith("503"):
            raise
        return 503, b""


def is_clean(load: Load, path: str, body: bytes) -> bool:
    """Whether a GET is refused, or brings all bytes: neither is cut nor fails otherwise."""
    try:
        status, found = answered(load, "GET", path)
    except NoAnswer as failure:
        print(f"{path}: {failure}")
        return False
    assert (status, found) in ((503, b""), (200, body)), f"seed {SEED}: {path}: {status} {found[:80]!r}"
    return True


def check_that_it_is_not_cut_for_long(load: Load, path: str, body: bytes) -> None:
    """A worker that has not heard yet who is away cuts the first GET; from then on it knows."""
    wait_until(lambda: is_clean(load, path, body), lambda: f"seed {SEED}: {path} is cut each time")
    assert is_clean(load, path, body), f"seed {SEED}: {path} is cut although it is known who is away"


def asked(cluster: LocalCluster, path: str, wanted: int, limit_s: float) -> Any:
    """The answer, once it comes with this status."""
    answer: tuple[int, Any] = (0, None)

    def comes() -> bool:
        nonlocal answer
        answer = cluster.admin("GET", path)
        return answer[0] == wanted

    wait_until(comes, lambda: f"seed {SEED}: {path}: {answer}", limit_s=limit_s)
    return answer[1]


def check_that_the_store_says_so(cluster: LocalCluster) -> None:
    """With more than m nodes away operators and monitors hear of it at once, not when repair begins."""
    asked(cluster, "/health/cluster", 503, MENDED_S)
    found = asked(cluster, "/health/cluster?read", 503, MENDED_S)
    assert found["unreadable_volumes"] > 0
    assert "of their fragment files are away or damaged" in found["status"]
    status = asked(cluster, "/api/v1/status", 200, MENDED_S)
    assert status["degraded"]
    assert status["facts"]["unreadable_volumes"] > 0
    findings = asked(cluster, "/api/v1/doctor", 200, MENDED_S)["findings"]
    [reads] = [one for one in findings if one["check"] == "reads"]
    assert (reads["level"], reads["remedy"][:17]) == ("problem", "bring back disks ")
    volumes = asked(cluster, "/api/v1/volumes?damaged=true", 200, MENDED_S)["volumes"]
    assert any(volume["spare"] < 0 for volume in volumes)


def load_again(load: Load) -> Load:
    """More of the same, beside what is there."""
    made = Load(
        port=load.port,
        credentials=load.credentials,
        seed=SEED + 1,
        clients=2,
        keys=6,
        multipart=False,
        answer_s=ANSWER_S,
    )
    made.bucket = "more"
    return made


@pytest.mark.timeout(300)
def test_a_node_that_comes_back_with_stale_and_deleted_files_changes_nothing(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    source = random.Random(SEED)
    load = load_of(cluster)
    findings = load.findings
    with load:
        load.work_until(120)
        first, second = source.sample(cluster.members, 2)
        # One comes back as it was: files of volumes that were removed meanwhile, and journals of the past.
        cluster.kill(first)
        shutil.copytree(first.data, tmp_path / "past")
        load.work_until(80)
        bring_back(cluster, [first], load)
        load.work_until(80)
        cluster.kill(first)
        for name in ("disk1/fragments", "disk1/logs"):
            shutil.rmtree(first.data / name)
            shutil.copytree(tmp_path / "past" / name, first.data / name)
        # Another has lost some files, and half of others.
        cluster.kill(second)
        files = [path for path in sorted(second.data.glob("disk1/fragments/*/*")) if path.is_file()]
        for path in files:
            dice = source.random()
            if dice < 0.4:
                path.unlink()
            elif dice < 0.7:
                os.truncate(path, path.stat().st_size // 2)
        load.work_until(40)
        bring_back(cluster, [first, second], load)
        load.check_everything()
        assert findings.broken == [], f"seed {SEED}: {findings.broken[:5]}"
        assert findings.read_failures == [], f"seed {SEED}: {findings.read_failures[:5]}"
        # What was mended counts: two others may go.
        others = [node for node in cluster.members if node not in (first, second)]
        cluster.kill(*source.sample(others, M))
        load.check_everything()
    print(load.report())
    assert findings.broken == [], f"seed {SEED}: {findings.broken[:5]}"
    assert findings.read_failures == [], f"seed {SEED}: {findings.read_failures[:5]}"
