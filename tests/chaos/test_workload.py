"""The judge is judged: each broken promise is seen, and nothing else is called one."""

import http.server
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from bench.sigv4 import Credentials
from tests.chaos.workload import Client, Load, NoAnswer, content, version_of


def client() -> Client:
    return Load(port=1, credentials=Credentials("a", "b"), seed=1, clients=1, keys=3).clients[0]


def broken(one: Client) -> list[str]:
    return [line.partition(": ")[2] for line in one.load.findings.broken]


def test_bytes_tell_their_key_and_version_and_any_change_shows() -> None:
    body = content("c0/001", 7)
    assert version_of("c0/001", body) == 7
    assert version_of("c0/002", body) is None
    assert version_of("c0/001", body[:-1]) is None
    assert version_of("c0/001", body[:30] + bytes([body[30] ^ 1]) + body[31:]) is None
    assert version_of("c0/001", b"") is None


@pytest.mark.parametrize(
    ("may_be", "status", "version", "verdict"),
    [
        ({3}, 200, 3, ""),
        ({3, 4}, 200, 3, ""),
        ({3, 4}, 200, 4, ""),
        ({0}, 404, None, ""),
        ({0, 4}, 404, None, ""),
        ({3}, 200, 2, "OLD OR UNKNOWN"),
        ({3}, 200, 4, "OLD OR UNKNOWN"),
        ({0}, 200, 3, "BACK FROM THE DEAD"),
        ({3}, 404, None, "LOST"),
        ({3, 4}, 404, None, "LOST"),
        ({3}, 403, None, "GET c0/000: 403"),
    ],
)
def test_an_answer_is_held_against_what_was_promised(
    may_be: set[int], status: int, version: int | None, verdict: str
) -> None:
    one = client()
    one.entries["c0/000"].may_be = may_be
    one.judge("c0/000", status, content("c0/000", version) if version else b"")
    assert [line[: len(verdict)] for line in broken(one)] == ([verdict] if verdict else [])


def test_a_torn_body_and_another_keys_body_are_torn_reads() -> None:
    one = client()
    one.entries["c0/000"].may_be = {3}
    one.judge("c0/000", 200, content("c0/000", 3)[:-5])
    one.judge("c0/000", 200, content("c0/001", 3))
    assert [line[:4] for line in broken(one)] == ["TORN", "TORN"]


class Forgetful(http.server.BaseHTTPRequestHandler):
    """A store with a mood: it acknowledges everything and keeps what the mood lets it keep."""

    protocol_version = "HTTP/1.1"
    mood = "well"  # well | forgets writes | forgets deletes | hides from listings
    objects: dict[str, bytes] = {}
    lock = threading.Lock()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        import hashlib

        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            if not (self.mood == "forgets writes" and len(self.objects) > 5):
                self.objects[self.path] = body
        self.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def do_DELETE(self) -> None:
        with self.lock:
            if self.mood != "forgets deletes":
                self.objects.pop(self.path, None)
        self.answer(204)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if "list-type" in parts.query:
            with self.lock:
                names = [path.split("/", 2)[2] for path in self.objects if path.count("/") > 1]
            if self.mood == "hides from listings":
                names = names[::2]
            self.answer(200, "".join(f"<Key>{name}</Key>" for name in names).encode())
            return
        with self.lock:
            body = self.objects.get(self.path)
        self.answer(404) if body is None else self.answer(200, body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def forgetful(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    handler = type("Handler", (Forgetful,), {"mood": request.param, "objects": {}, "lock": threading.Lock()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield request.param, server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "forgetful", ["well", "forgets writes", "forgets deletes", "hides from listings"], indirect=True
)
def test_a_store_that_forgets_is_caught_and_one_that_does_not_is_not(forgetful: tuple[str, int]) -> None:
    mood, port = forgetful
    load = Load(
        port=port, credentials=Credentials("a", "b"), seed=1, clients=3, keys=8, multipart=False, think_s=0
    )
    with load:
        load.work_until(300)
        load.check_everything()
    verdicts = {line.partition(": ")[2].partition(":")[0] for line in load.findings.broken}
    expected = {
        "well": set(),
        "forgets writes": {"LOST", "OLD OR UNKNOWN"},
        "forgets deletes": {"BACK FROM THE DEAD"},
        "hides from listings": {"LOST"},
    }[mood]
    assert verdicts <= expected
    assert bool(verdicts) == bool(expected)


def test_no_answer_at_all_is_an_unknown_outcome_not_a_failure() -> None:
    one = client()
    with pytest.raises(NoAnswer, match="refused"):
        one.once("PUT", "/chaos/c0/000", body=b"x")
    assert broken(one) == []
