"""The admin port of a running store: who may, what it says, and one page of numbers for all workers."""

import re
import socket

import pytest

from tests.server import Server

PATHS = ["/metrics"] + [
    f"/api/v1/{name}" for name in ("status", "doctor", "tenants", "tenants/default", "users", "keys", "disks")
]


@pytest.mark.parametrize("path", [*PATHS, "/api/v1/nothing", "/"])
def test_nothing_but_health_is_told_without_the_token(store_server: Server, path: str) -> None:
    for token in (None, "wrong", "é"):
        status, answer = store_server.admin("GET", path, token=token)
        assert status == 401
        assert "token is needed" in answer["detail"]


@pytest.mark.parametrize("path", PATHS)
def test_everything_answers_with_the_token(store_server: Server, path: str) -> None:
    assert store_server.admin("GET", path)[0] == 200


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/health/cluster", "/minio/health/live"])
def test_health_is_open(store_server: Server, path: str) -> None:
    assert store_server.admin("GET", path, token=None)[0] == 200


def test_an_unknown_path_and_a_wrong_method_are_told_apart(store_server: Server) -> None:
    assert store_server.admin("GET", "/api/v1/nothing")[0] == 404
    assert store_server.admin("POST", "/metrics")[0] == 405


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "name is missing"),
        ([], "Expected `object`"),
        ({"name": 1, "tenant": "a"}, "Expected `str`"),
        ({"tenant": "a"}, "name is missing"),
        ({"name": "x", "tenant": "a", "colour": "red"}, "unknown field colour"),
        ({"name": "../x", "tenant": "a"}, "a user's name"),
        ({"name": "x", "tenant": "A B"}, "a tenant's name"),
        ({"name": "root", "tenant": "default"}, "exists"),
        ({"name": "x", "tenant": "a", "email": "\ud800"}, "not JSON"),
        ({"name": "x", "tenant": "a", "email": "\u0007"}, "cannot be printed"),
    ],
)
def test_a_bad_request_is_answered_in_words(store_server: Server, content: object, words: str) -> None:
    status, answer = store_server.admin("POST", "/api/v1/users", content)
    assert status == 400
    assert words in answer["detail"]


def test_a_body_beyond_the_bound_is_refused(store_server: Server) -> None:
    status, _ = store_server.admin("POST", "/api/v1/users", {"name": "x" * 100_000, "tenant": "a"})
    assert status == 413


def test_a_body_nested_without_end_is_no_bug(store_server: Server) -> None:
    with socket.create_connection(("127.0.0.1", store_server.admin_port), timeout=10) as connection:
        connection.sendall(
            b"POST /api/v1/users HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n"
            b"Authorization: Bearer " + store_server.token.encode() + b"\r\n\r\n" + b"[" * 60_000
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "wire", [b"GARBAGE\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nA: \0\r\n\r\n"]
)
def test_what_is_no_http_is_refused_and_leaves_no_traceback(store_server: Server, wire: bytes) -> None:
    with socket.create_connection(("127.0.0.1", store_server.admin_port), timeout=10) as connection:
        connection.sendall(wire)
        assert b" 400 " in connection.recv(1000)
    assert store_server.admin("GET", "/health/live", token=None)[0] == 200
    assert "http_exceptions" not in store_server.text()


def test_every_user_that_can_be_made_can_be_disabled(store_server: Server) -> None:
    name = "a.b_c@d+e=f,g-h"
    assert store_server.admin("POST", "/api/v1/users", {"name": name, "tenant": "odd"})[0] == 201
    status, user = store_server.admin("POST", f"/api/v1/users/{name}/disable")
    assert (status, user["disabled"]) == (200, True)


def test_what_is_done_to_machines_is_in_the_audit_log_before_and_after(store_server: Server) -> None:
    assert store_server.admin("POST", "/api/v1/meta/copy")[0] == 200
    assert store_server.admin("POST", "/api/v1/disks/999/verify")[0] == 404
    acts = store_server.admin("GET", "/api/v1/audit?limit=1000")[1]["items"]
    outcomes = {(act["action"], act["target"], act["outcome"]) for act in acts}
    assert {("copy_metadata", "meta/copy", words) for words in ("begun", "done")} <= outcomes
    assert ("verify_disk", "disks/999/verify", "failed: there is no disk 999") in outcomes
    verdict = store_server.admin("GET", "/api/v1/audit/verify")[1]
    assert (verdict["finished"], verdict["finding"]) == (True, "")


def test_one_scrape_counts_the_requests_of_all_workers(store_server: Server) -> None:
    def counted() -> dict[str, float]:
        page = store_server.admin("GET", "/metrics")[1]
        pattern = r'objstore_s3_requests_total\{code_class="4xx",gateway="(\d)",op="Unknown"\} (\S+)'
        return {gateway: float(value) for gateway, value in re.findall(pattern, page)}

    before = counted()
    wanted = {"1", "2"}
    for _ in range(200):  # The kernel spreads connections by a hash of their ports.
        with socket.create_connection(("127.0.0.1", store_server.port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while connection.recv(65536):
                pass
        after = counted()
        grown = {gateway for gateway in after if after[gateway] > before.get(gateway, 0)}
        if grown == wanted:
            break
    assert grown == wanted


def test_the_page_has_what_operators_watch(store_server: Server) -> None:
    page = store_server.admin("GET", "/metrics")[1]
    for name in (
        "objstore_build_info{",
        "objstore_uptime_seconds ",
        "objstore_disk_up{",
        "objstore_disk_total_bytes{",
        "objstore_capacity_raw_bytes ",
        "objstore_meta_transactions_total ",
        "objstore_meta_db_size_bytes ",
        "objstore_degraded_reads_total ",
        'objstore_process_restarts_total{process="worker-1"}',
    ):
        assert f"\n{name}" in page, name
    assert not re.search(r"secret|AKTESTROOT", page)


def test_a_head_that_never_ends_is_cut_off_and_others_are_served_meanwhile(store_server: Server) -> None:
    with socket.create_connection(("127.0.0.1", store_server.admin_port), 60) as silent:
        silent.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n")
        assert store_server.admin("GET", "/health/live", token=None)[0] == 200
        assert silent.recv(1) == b""  # Ended by the other side.
