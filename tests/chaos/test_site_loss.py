"""A site is lost under load, and its replica takes over: nothing acknowledged before the lag is missing.

The short form loses one site. `make chaos` loses twelve, each while processes of both stores are killed; and
four whose metadata is in PostgreSQL, each a gateway and its nodes. The commands are those of
docs/operations.md, "Losing a site".
"""

import contextlib
import hashlib
import http.client
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from objstore.processes.dev import LocalCluster
from tests import postgres
from tests.processes.test_replication import in_step, row_of, wait_for
from tests.seed import SEED
from tests.server import Server, start_server

LONG = bool(os.environ.get("OBJSTORE_LONG"))
ROUNDS = {"lmdb": 12, "postgres": 4} if LONG else {"lmdb": 1}
TRAFFIC_S = 12.0 if LONG else 2.0
CLOCK_S = 0.5  # Between an acknowledgement and its client's look at the clock, on a busy machine.
DOUBT_S = 5.0  # A request that broke off may still be carried out so long, beside the client's next one.

Start = Callable[..., Server]
"""As `start_server`, with a directory and, for what is started again, its port."""


@dataclass
class Site(Server):
    """A gateway with its nodes."""

    cluster: LocalCluster = field(kw_only=True)

    def kill(self) -> None:
        self.cluster.kill(self.cluster.gateway, *self.cluster.members)


class Sites:
    """Starts sites whose metadata is in PostgreSQL, each in a database of its own."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._clusters: dict[Path, LocalCluster] = {}

    def start(self, directory: Path, port: int = 0) -> Server:
        """A cluster keeps its ports without being told."""
        cluster = self._clusters.get(directory)
        if cluster is None:
            url = self._stack.enter_context(postgres.database())
            cluster = LocalCluster(directory=directory, nodes=3, codec="2+1", url=url, bound=True)
            self._stack.callback(cluster.close)
            self._clusters[directory] = cluster
        cluster.start()
        gateway = cluster.gateway
        assert isinstance(gateway.running, subprocess.Popen)
        assert port in (0, cluster.port_of_s3)
        return Site(gateway.running, gateway.data, gateway.log, *cluster.root, cluster=cluster)


@dataclass
class Traffic:
    """Clients that write numbered versions of a few keys, each key by one of them."""

    s3: Any
    bucket: str
    seed: str
    acknowledged: dict[str, list[tuple[float, int | None]]] = field(default_factory=dict)
    """Key -> (when it was acknowledged, number of the version; None: deleted)."""
    doubtful: dict[str, list[tuple[float, int | None]]] = field(default_factory=dict)
    """The same of what was neither acknowledged nor refused: it may be there."""
    stop: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, clients: int = 3) -> None:
        for client in range(clients):
            self.threads.append(threading.Thread(target=self._write, args=(client,), daemon=True))
            self.threads[-1].start()

    def _write(self, client: int) -> None:
        chance = random.Random(f"{self.seed}.{client}")
        number = 0
        while not self.stop.is_set():
            number += 1
            key = f"{client}/{chance.randrange(8)}"
            gone = number > 20 and chance.random() < 0.15
            try:
                if gone:
                    self.s3.delete_object(Bucket=self.bucket, Key=key)
                else:
                    self.s3.put_object(Bucket=self.bucket, Key=key, Body=body(key, number))
                outcomes = self.acknowledged
            except (ClientError, BotoCoreError):  # In the end the site is lost.
                outcomes = self.doubtful
                time.sleep(0.05)
            outcomes.setdefault(key, []).append((time.time(), None if gone else number))
            time.sleep(0.002)

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(60)


def body(key: str, number: int) -> bytes:
    """A version's bytes: they name themselves, and cannot be mixed up or cut unnoticed."""
    head = b"%s %d " % (key.encode(), number)
    data = head + b"." * (number * 7919 % 300_000 if number % 10 == 0 else number * 31 % 3_000)
    return data + hashlib.md5(data).digest()


def number_in(key: str, data: bytes) -> int:
    """Of a whole version of this key."""
    assert hashlib.md5(data[:-16]).digest() == data[-16:], f"a torn version of {key}"
    name, number, _ = data.split(b" ", 2)
    assert name.decode() == key
    return int(number)


def put_until_taken(s3: Any, bucket: str, body: bytes, **more: Any) -> None:
    """The object "before", into a store that has just started: its worker may not have seen all nodes yet."""

    def taken() -> bool:
        try:
            s3.put_object(Bucket=bucket, Key="before", Body=body, **more)
        except ClientError as failure:
            if failure.response["Error"]["Code"] == "ServiceUnavailable":
                return False
            raise
        return True

    wait_for("room for an object", taken)


def look(s3: Any, bucket: str, seen: dict[str, int]) -> dict[str, int]:
    """Key -> number of its version there, each whole; no key goes back behind what was seen before."""
    held: dict[str, int] = {}
    for one in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
        key = one["Key"]
        try:
            data = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as failure:
            if failure.response["Error"]["Code"] == "NoSuchKey":
                continue
            raise
        held[key] = 0 if key == "before" else number_in(key, data)
        assert held[key] >= seen.get(key, 0), f"{key} went back from {seen[key]} to {held[key]}"
        seen[key] = held[key]
    return held


def send_to(source: Server, target: Server, bucket: str, **more: str) -> tuple[int, Any]:
    """Give a bucket the bucket of the same name in the other store as its target: status and answer."""
    given = {
        "endpoint": target.endpoint,
        "bucket": bucket,
        "access_key": target.access_key,
        "secret_key": target.secret_key,
        **more,
    }
    return source.admin("POST", f"/api/v1/replication/{bucket}", given)


def disturb(start: Start, chance: random.Random, near: Server, far: Server, until: float) -> Server:
    """Kill processes of both stores, and the far one as a whole, under traffic. Returns the far one."""
    while time.monotonic() < until:
        time.sleep(chance.uniform(0.5, 2.0))
        victim = chance.choice(("upkeep", "worker-1", "far upkeep", "far committer", "far"))
        if victim == "far":
            port = far.port
            far.kill()
            time.sleep(chance.uniform(0, 1))
            far = start(far.data.parent, port=port)
        else:
            store, child = (far, victim[4:]) if victim.startswith("far ") else (near, victim)
            with contextlib.suppress(KeyError, ProcessLookupError, OSError, ValueError):
                os.kill(store.children()[child], signal.SIGKILL)
    return far


def lag_of(server: Server, bucket: str) -> float:
    """What the store says it is behind; asked until its admin port answers."""
    found: list[float] = []

    def answered() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            found.append(float(row_of(server, bucket)["lag_seconds"]))
        return bool(found)

    wait_for("the lag", answered)
    return found[-1]


def assert_nothing_older_than_the_lag_is_missing(
    traffic: Traffic, held: dict[str, int], before: float
) -> None:
    """Of each key there is what was acknowledged last before then, or what its client did with it later.

    Args:
        before: when the site was lost, less its lag then.
    """
    for key in traffic.acknowledged.keys() | traffic.doubtful.keys():
        versions = traffic.acknowledged.get(key, [])
        sure = [one for one in versions if one[0] < before]
        since = sure[-1][0] - DOUBT_S if sure else 0.0
        possible = {number for at, number in versions if at >= before}
        possible |= {number for at, number in traffic.doubtful.get(key, []) if at >= since}
        possible.add(sure[-1][1] if sure else None)
        assert held.get(key) in possible, (key, held.get(key), sure[-3:], sorted(possible, key=str), before)
    assert held.keys() <= traffic.acknowledged.keys() | traffic.doubtful.keys(), "what nobody has written"


@pytest.mark.timeout(120 + 180 * max(ROUNDS.values()))
@pytest.mark.parametrize("engine", ROUNDS)
def test_a_lost_site_is_replaced_by_its_replica(engine: str, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    with contextlib.ExitStack() as stack:
        start = start_server if engine == "lmdb" else Sites(stack).start
        far = start(tmp_path / "far")
        try:
            for number in range(ROUNDS[engine]):
                directory = tmp_path / f"near{number}"
                bucket = f"shop-{number}"
                far = lose_a_site(start, chance, directory, far, bucket, f"{SEED}.{number}")
                print(f"{engine}: {number + 1} sites lost and replaced", flush=True)
                if number == ROUNDS[engine] - 1:
                    come_back(start, directory, far, bucket)
        finally:
            far.kill()


def lose_a_site(
    start: Start, chance: random.Random, directory: Path, far: Server, bucket: str, seed: str
) -> Server:
    near = start(directory)
    try:
        s3, there = near.boto3(retries={"max_attempts": 0}), far.boto3(retries={"max_attempts": 5})
        s3.create_bucket(Bucket=bucket)
        there.create_bucket(Bucket=bucket)
        put_until_taken(s3, bucket, b"there before", Metadata={"a": "b"})
        assert send_to(near, far, bucket)[0] == 201
        wait_for("the first pass", lambda: in_step(near, bucket))
        with pytest.raises(ClientError, match="read-only until it is promoted"):
            there.put_object(Bucket=bucket, Key="mine", Body=b"x")

        traffic = Traffic(s3, bucket, seed)
        traffic.start()
        seen: dict[str, int] = {}
        until = time.monotonic() + TRAFFIC_S
        if LONG:
            far = disturb(start, chance, near, far, until)
            there = far.boto3(retries={"max_attempts": 5})
        else:
            while time.monotonic() < until:
                look(there, bucket, seen)
        # The lag is asked just before the loss: what it says holds for what was acknowledged before.
        lag_s = lag_of(near, bucket)
        lost = time.time()
        near.kill()
        traffic.end()
    finally:
        near.kill()
    far.wait_ready()
    done = far.command("replication", "promote", bucket, "--confirm", f"promote {bucket}")
    assert "takes writes" in done.stdout
    held = look(there, bucket, seen)
    assert held.pop("before") == 0
    assert_nothing_older_than_the_lag_is_missing(traffic, held, lost - lag_s - CLOCK_S)
    return far


def come_back(start: Start, directory: Path, far: Server, bucket: str) -> None:
    """The old site, with changes that it never sent, gets nothing in; then it is made the replica."""
    there = far.boto3(retries={"max_attempts": 5})
    there.put_object(Bucket=bucket, Key="before", Body=b"newer")
    near = start(directory)
    try:
        put_until_taken(near.boto3(), bucket, b"older in truth")
        wait_for("the refusal", lambda: row_of(near, bucket)["state"] == "refused")
        assert there.get_object(Bucket=bucket, Key="before")["Body"].read() == b"newer"
        shown = near.command("replication", "status", bucket, check=False)
        assert shown.returncode == 3
        assert "promoted" in shown.stdout
        [never_arrived, *_] = near.admin("GET", f"/api/v1/replication/{bucket}")[1]["oldest"]
        assert never_arrived["key"] in shown.stdout
        assert near.command("replication", "remove", bucket, check=False).returncode == 4
        assert near.admin("POST", f"/api/v1/replication/{bucket}/remove", {})[0] == 200
        status, answer = send_to(far, near, bucket)
        assert (status, "BucketNotEmpty" in answer["detail"]) == (409, True)
        assert send_to(far, near, bucket, overwrite="yes")[0] == 201
        wait_for("the pass back", lambda: in_step(far, bucket))
        assert look(near.boto3(), bucket, {}) == look(there, bucket, {})
        assert near.boto3().get_object(Bucket=bucket, Key="before")["Body"].read() == b"newer"
    finally:
        near.kill()
