"""TLS on both ports, and a certificate renewed under way."""

import socket
import ssl
import time
from pathlib import Path

import boto3
from botocore.config import Config
from cryptography import x509
from cryptography.x509.oid import NameOID

from tests.certificates import issue
from tests.server import running_server, start_server


def served_name(port: int) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="store") as connection,
    ):
        content = connection.getpeercert(binary_form=True)
        assert content is not None
    subject = x509.load_der_x509_certificate(content).subject
    return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_both_ports_speak_tls_and_take_up_a_renewed_certificate_without_a_restart(tmp_path: Path) -> None:
    issue(tmp_path, "first", days=5)
    environment = {
        "OBJSTORE_TLS__CERTIFICATE": str(tmp_path / "cert.pem"),
        "OBJSTORE_TLS__KEY": str(tmp_path / "key.pem"),
    }
    with running_server(tmp_path, environment=environment) as server:
        assert server.endpoint.startswith("https://")
        ports = (server.port, server.admin_port)
        assert [served_name(port) for port in ports] == ["first", "first"]
        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            verify=False,
            config=Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"}),
        )
        client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="k", Body=b"x" * 1_000_000)
        assert client.get_object(Bucket="bucket", Key="k")["Body"].read() == b"x" * 1_000_000
        assert server.command("health", "--ready").stdout == "ready\n"  # The command line speaks it too.
        doctor = server.command("doctor", check=False).stdout
        assert "the certificate ends in 5 days" in doctor
        pids = server.children()

        issue(tmp_path, "second")
        limit = time.monotonic() + 30
        while [served_name(port) for port in ports] != ["second", "second"]:
            assert time.monotonic() < limit
            time.sleep(0.1)
        assert server.children() == pids


def test_a_certificate_that_cannot_be_used_ends_the_start_in_words(tmp_path: Path) -> None:
    issue(tmp_path, "first", days=5)
    (tmp_path / "key.pem").write_text("not a key")
    server = start_server(
        tmp_path,
        environment={
            "OBJSTORE_TLS__CERTIFICATE": str(tmp_path / "cert.pem"),
            "OBJSTORE_TLS__KEY": str(tmp_path / "key.pem"),
        },
        wait=False,
    )
    assert server.process.wait(30) == 1
    assert "the certificate cannot be used" in server.text()
    assert "Traceback" not in server.text()
