"""Deaths while requests run: single children, one that hangs, and stops that must lose nothing."""

import contextlib
import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import Server, running_server, start_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("deaths"), workers=2) as running:
        running.boto3().create_bucket(Bucket="bucket")
        yield running


def back(server: Server, name: str, old: int) -> None:
    limit = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError, ValueError):
            child = server.state["children"][name]
            if child["pid"] not in (0, old) and child["ready"]:
                return
        assert time.monotonic() < limit, server.text()[-4000:]
        time.sleep(0.01)


def until_counted(server: Server, *, failures: int) -> None:
    """Until five-minute error rates have what was refused while nothing could be committed."""
    limit = time.monotonic() + 60
    service = None
    while True:
        with contextlib.suppress(OSError):
            _, service = server.admin("GET", "/api/v1/tenants/default/service")
            if service["open_failures"] >= failures:
                assert service["open_requests"] > service["open_failures"]
                return
        assert time.monotonic() < limit, service
        time.sleep(0.1)


class Load(threading.Thread):
    """Puts one object after another until stopped; notes what was acknowledged and what failed."""

    def __init__(self, server: Server, prefix: str) -> None:
        super().__init__(daemon=True)
        self.client = server.boto3(retries={"max_attempts": 0})
        self.prefix = prefix
        self.acknowledged: list[str] = []
        self.failed = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.stopped.is_set():
            number += 1
            key = f"{self.prefix}/{number}"
            try:
                self.client.put_object(Bucket="bucket", Key=key, Body=key.encode() * 20)
                self.acknowledged.append(key)
            except Exception:
                self.failed += 1
                time.sleep(0.01)

    def wait_for(self, count: int) -> None:
        """Until `count` more puts were acknowledged."""
        target = len(self.acknowledged) + count
        limit = time.monotonic() + 60
        while len(self.acknowledged) < target:
            assert time.monotonic() < limit, f"no progress: {self.failed} failed"
            time.sleep(0.005)


@contextlib.contextmanager
def load(server: Server, prefix: str) -> Iterator[list[Load]]:
    """Two clients that put. At the end, everything acknowledged must be there, whole."""
    loads = [Load(server, f"{prefix}-{number}") for number in range(2)]
    for one in loads:
        one.start()
    try:
        loads[0].wait_for(5)
        yield loads
    finally:
        for one in loads:
            one.stopped.set()
        for one in loads:
            one.join(60)
    s3 = server.boto3()
    for one in loads:
        for key in one.acknowledged:
            assert s3.get_object(Bucket="bucket", Key=key)["Body"].read() == key.encode() * 20, key


@pytest.mark.parametrize("name", ["worker-1", "committer", "upkeep"])
def test_a_killed_child_is_replaced_under_load_and_nothing_acknowledged_is_lost(
    server: Server, name: str
) -> None:
    with load(server, name) as loads:
        for _ in range(2):
            old = server.children()[name]
            os.kill(old, signal.SIGKILL)
            back(server, name, old)
            for one in loads:
                one.wait_for(3)


def test_while_no_committer_can_start_writes_are_refused_unread_and_reads_go_on(server: Server) -> None:
    s3 = server.boto3()
    s3.put_object(Bucket="bucket", Key="before", Body=b"there")
    signer = server.boto3(signature_version="s3v4")
    url = signer.generate_presigned_url("put_object", {"Bucket": "bucket", "Key": "refused"})
    os.kill(server.pid, signal.SIGSTOP)  # It starts no other.
    try:
        os.kill(server.children()["committer"], signal.SIGKILL)
        with pytest.raises(Exception, match="ServiceUnavailable"):  # The patience with a restart.
            s3.put_object(Bucket="bucket", Key="waits", Body=b"x" * 100)
        assert s3.get_object(Bucket="bucket", Key="before")["Body"].read() == b"there"
        # Each worker has its own connection to the committer, and its own patience.
        limit = time.monotonic() + 60
        refused = 0
        while refused < 10:
            assert time.monotonic() < limit
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            connection.putrequest("PUT", url.partition(str(server.port))[2])
            connection.putheader("Content-Length", str(1 << 30))
            connection.endheaders()  # And not one byte of the body.
            response = connection.getresponse()
            assert response.status == 503
            assert b"ServiceUnavailable" in response.read()
            connection.close()
            refused += 1
    finally:
        os.kill(server.pid, signal.SIGCONT)
    limit = time.monotonic() + 60
    while True:
        with contextlib.suppress(Exception):
            s3.put_object(Bucket="bucket", Key="after", Body=b"x")
            break
        assert time.monotonic() < limit, server.text()[-4000:]
        time.sleep(0.05)
    server.wait_ready()
    until_counted(server, failures=refused + 1)
    keys = {entry["Key"] for entry in s3.list_objects_v2(Bucket="bucket")["Contents"]}
    assert "after" in keys
    assert "refused" not in keys


def test_a_worker_that_hangs_is_replaced_while_the_other_serves(server: Server) -> None:
    old = server.children()["worker-2"]
    os.kill(old, signal.SIGSTOP)
    back(server, "worker-2", old)
    assert "silent for 5 s" in server.text()
    server.boto3().put_object(Bucket="bucket", Key="after", Body=b"x")


def test_a_stop_lets_a_request_under_way_end_and_refuses_new_ones(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    server.boto3().create_bucket(Bucket="bucket")
    body = os.urandom(300_000)
    signer = server.boto3(signature_version="s3v4")
    url = signer.generate_presigned_url("put_object", {"Bucket": "bucket", "Key": "slow"})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("PUT", url.partition(str(server.port))[2])
    connection.putheader("Content-Length", str(len(body)))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    connection.sock.recv(1, socket.MSG_PEEK)  # Its leave to send: the request is under way.
    connection.send(body[:100_000])
    port = server.port
    server.process.send_signal(signal.SIGTERM)
    limit = time.monotonic() + 60
    while True:  # The port closes at once.
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except ConnectionRefusedError:
            break
        assert time.monotonic() < limit
        time.sleep(0.01)
    connection.send(body[100_000:])
    response = connection.getresponse()
    assert response.status == 200
    response.read()
    connection.close()
    assert server.stop() == 0
    assert "Stopped." in server.text()
    with running_server(tmp_path) as again:
        assert again.boto3().get_object(Bucket="bucket", Key="slow")["Body"].read() == body


def test_a_kill_in_the_middle_of_a_load_loses_nothing_acknowledged(tmp_path: Path) -> None:
    server = start_server(tmp_path, workers=2)
    server.boto3().create_bucket(Bucket="bucket")
    loads = [Load(server, f"kill-{number}") for number in range(2)]
    for one in loads:
        one.start()
    loads[0].wait_for(20)
    server.kill()
    for one in loads:
        one.stopped.set()
    for one in loads:
        one.join(60)
    with running_server(tmp_path, workers=2) as again:
        s3 = again.boto3()
        for one in loads:
            for key in one.acknowledged:
                assert s3.get_object(Bucket="bucket", Key=key)["Body"].read() == key.encode() * 20, key


def test_a_worker_that_cannot_read_the_metadata_state_has_it_built_again(server: Server) -> None:
    """A page of LMDB's file that the disk does not give back arrives as SIGBUS in whoever touches it."""
    old, committer = server.children()["worker-1"], server.children()["committer"]
    with load(server, "sigbus"):
        os.kill(old, signal.SIGBUS)
        back(server, "committer", committer)
        back(server, "worker-1", old)
    assert "SIGBUS in worker-1: the metadata state cannot be read" in server.text()
    recovered = [line for line in server.text().splitlines() if "metadata recovered" in line]
    assert '"rebuilt": true' in recovered[-1], recovered[-1]


def test_an_object_whose_record_rots_is_readable_again_without_a_word_from_anyone(server: Server) -> None:
    s3 = server.boto3()
    s3.put_object(Bucket="bucket", Key="rots", Body=b"whole", Metadata={"mark": "a-word-to-find-it-by"})
    committer = server.children()["committer"]
    os.kill(committer, signal.SIGKILL)  # What it remembers would be put back at once.
    back(server, "committer", committer)
    [state] = list(server.data.glob("**/meta/state-*/data.mdb"))
    held = state.read_bytes()
    at = held.find(b"a-word-to-find-it-by")
    assert at >= 0
    with state.open("r+b") as file:
        while at >= 0:  # Old pages, too: which one is in use is LMDB's secret.
            file.seek(at)
            file.write(b"A")
            at = held.find(b"a-word-to-find-it-by", at + 1)
    with pytest.raises(Exception, match="InternalError"):
        s3.get_object(Bucket="bucket", Key="rots")
    s3.put_object(Bucket="bucket", Key="beside", Body=b"others go on")
    limit = time.monotonic() + 60
    while True:
        with contextlib.suppress(Exception):
            assert s3.get_object(Bucket="bucket", Key="rots")["Body"].read() == b"whole"
            break
        assert time.monotonic() < limit, server.text()[-4000:]
        time.sleep(0.05)
    status, findings = server.admin("GET", "/api/v1/doctor")
    assert status == 200
    [told] = [one for one in findings["findings"] if one["check"] == "metadata records"]
    assert told["level"] == "warning"
    assert server.children()["committer"] != committer
    assert "fails its checksum" in server.text()
