"""HAProxy as config/haproxy/haproxy.cfg sets it up, in front of a real store: S3 comes through unchanged."""

import http.client
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.deploy.files import CONFIG, free_port, needs
from tests.server import Server, running_server, start_server

FILE = CONFIG / "haproxy/haproxy.cfg"
WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Proxy:
    store: Server
    port: int
    statistics_port: int

    def boto3(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id=self.store.access_key,
            aws_secret_access_key=self.store.secret_key,
            config=Config(
                retries={"max_attempts": 0}, signature_version="s3v4", s3={"addressing_style": "path"}
            ),
        )

    def get(self, port: int, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def up(self, gateway: str) -> bool:
        """Whether HAProxy sends requests to that gateway."""
        _, page = self.get(self.statistics_port, "/metrics")
        found = re.search(rf'haproxy_server_status{{[^}}]*server="{gateway}",state="UP"}} (\d)', page)
        assert found, page[:2000]
        return found[1] == "1"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    program = needs("haproxy")
    directory = tmp_path_factory.mktemp("haproxy")
    with running_server(directory / "store") as store:
        port, statistics_port = free_port(), free_port()
        away = free_port()  # Nobody listens there, nor would its health be asked for elsewhere.
        text = FILE.read_text()
        for ours, theirs in (
            ("gateway-1 gateway-1:9000", f"gateway-1 127.0.0.1:{store.port}"),
            ("gateway-2 gateway-2:9000", f"gateway-2 127.0.0.1:{away} port {away}"),
            ("check port 9001", f"check port {store.admin_port}"),
            ("bind :9000", f"bind 127.0.0.1:{port}"),
            ("bind :8404", f"bind 127.0.0.1:{statistics_port}"),
            ("inter 2s", "inter 200ms"),
            ("    maxconn 20000", "    maxconn 200"),  # Two descriptors each, more than a test may have.
        ):
            assert text.count(ours) == 1, ours
            text = text.replace(ours, theirs)
        configuration = directory / "haproxy.cfg"
        configuration.write_text(text)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen([program, "-db", "-f", configuration], stdout=log, stderr=log)
        try:
            found = Proxy(store, port, statistics_port)
            limit = time.monotonic() + WAIT_SECONDS
            while True:
                assert process.poll() is None, (directory / "log").read_text()
                try:
                    if found.up("gateway-1") and not found.up("gateway-2"):
                        break
                except OSError:
                    pass
                assert time.monotonic() < limit, (directory / "log").read_text()
                time.sleep(0.05)
            yield found
        finally:
            process.terminate()
            process.wait(60)


def test_objects_with_odd_names_come_through_byte_for_byte(proxy: Proxy) -> None:
    s3 = proxy.boto3()
    s3.create_bucket(Bucket="through")
    # A proxy that decodes, merges slashes, resolves dots or cases a name would break the signature.
    for key in ("plain", "dir with space/ü+%41&=~'(1)!.txt", "a//b/../c/./d", "%2F%2f", "x" * 1024):
        body = key.encode() * 20
        s3.put_object(Bucket="through", Key=key, Body=body)
        assert s3.get_object(Bucket="through", Key=key)["Body"].read() == body
    large = bytes(range(256)) * 32_768  # 8 MiB: many buffers of HAProxy.
    s3.put_object(Bucket="through", Key="large", Body=large)
    assert s3.get_object(Bucket="through", Key="large")["Body"].read() == large
    assert (
        s3.get_object(Bucket="through", Key="large", Range="bytes=300-999")["Body"].read() == large[300:1000]
    )


def test_multipart_and_presigned_requests_come_through(proxy: Proxy) -> None:
    s3 = proxy.boto3()
    s3.create_bucket(Bucket="parts")
    upload = s3.create_multipart_upload(Bucket="parts", Key="m")["UploadId"]
    bodies = [b"1" * (5 << 20), b"2"]
    parts = [
        {
            "PartNumber": number,
            "ETag": s3.upload_part(Bucket="parts", Key="m", UploadId=upload, PartNumber=number, Body=body)[
                "ETag"
            ],
        }
        for number, body in enumerate(bodies, start=1)
    ]
    s3.complete_multipart_upload(Bucket="parts", Key="m", UploadId=upload, MultipartUpload={"Parts": parts})
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "parts", "Key": "m"})
    status, text = proxy.get(proxy.port, url.split(str(proxy.port), 1)[1])
    assert (status, text.encode()) == (200, b"".join(bodies))


def test_a_gateway_that_is_not_ready_gets_no_requests_and_gets_them_again_when_it_is(proxy: Proxy) -> None:
    assert proxy.up("gateway-1")
    assert not proxy.up("gateway-2")  # Nobody listens there; requests above never met it.
    store = proxy.store
    port, admin = store.port, store.state["admin_listen"]
    store.stop()
    limit = time.monotonic() + WAIT_SECONDS
    while proxy.up("gateway-1"):
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert proxy.get(proxy.port, "/")[0] == 503  # By HAProxy, at once: nobody is there.
    again = start_server(store.data.parent, port=port, arguments=[f"--admin-listen={admin}"])
    try:
        limit = time.monotonic() + WAIT_SECONDS
        while not proxy.up("gateway-1"):
            assert time.monotonic() < limit
            time.sleep(0.05)
        assert proxy.get(proxy.port, "/")[0] == 403  # By the store: nobody signed it.
    finally:
        again.stop()
