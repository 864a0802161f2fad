"""What the command line does where the store's answers are lost."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typer.testing import CliRunner, Result

from objstore.cli.client import Unreachable, Unsure
from objstore.cli.main import app

PAID = {
    "id": "01K", "tenant": "lib", "method": "cheque", "amount": 10_000, "currency": "DZD", "reference": "A1",
    "received": None, "state": "received", "to_wallet": 10_000,
}  # fmt: skip


@dataclass
class Lossy:
    """A store whose first answers do not arrive; what it was asked."""

    address: str
    lost: int
    status: int
    answer: dict[str, Any]
    keys: list[str | None] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


@contextmanager
def losing(lost: int, answer: dict[str, Any], status: int = 200) -> Iterator[Lossy]:
    store = Lossy("", lost, status, answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            store.keys.append(self.headers["Idempotency-Key"])
            store.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer()

        def do_PUT(self) -> None:
            self.do_POST()

        def do_GET(self) -> None:
            store.keys.append(None)
            self._answer()

        def _answer(self) -> None:
            if len(store.keys) <= store.lost:
                self.close_connection = True
                return  # Carried out, and nobody is told.
            content = json.dumps(store.answer).encode()
            self.send_response(store.status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(store: Lossy, line: str) -> Result:
    words = [*line.split(), "--admin", store.address, "-o", "json"]
    return CliRunner().invoke(app, words, env={"OBJSTORE_TOKEN": "token"})


RECEIVE = "payment receive lib 100 --method cheque --reference A1"


def test_a_payment_whose_answer_is_lost_is_sent_once_more_under_the_same_key() -> None:
    with losing(1, PAID) as store:
        done = run(store, RECEIVE)
    assert done.exit_code == 0, done.exception
    first, second = store.keys
    assert first
    assert first == second
    assert store.bodies[0] == store.bodies[1]
    assert json.loads(done.stdout)[0]["amount"] == "100.00 DZD"


def test_two_payments_have_keys_of_their_own() -> None:
    with losing(0, PAID) as store:
        assert [run(store, RECEIVE).exit_code for _ in range(2)] == [0, 0]
    assert len(set(store.keys)) == 2


def test_whoever_is_answered_twice_by_nobody_is_told_to_look_first() -> None:
    with losing(2, PAID) as store:
        done = run(store, RECEIVE)
    assert isinstance(done.exception, Unsure)
    assert "may have been carried out: look before you ask for it again" in str(done.exception)
    assert "Is it running" not in str(done.exception)
    assert len(store.keys) == 2


def test_a_repeat_that_is_refused_because_the_first_is_under_way_is_told_as_unsure() -> None:
    with losing(1, {"detail": "a request with this Idempotency-Key is under way"}, status=409) as store:
        done = run(store, RECEIVE)
    assert isinstance(done.exception, Unsure)
    assert "is under way" in str(done.exception)
    assert "look before" in str(done.exception)


def test_a_change_without_a_key_is_never_sent_twice() -> None:
    with losing(1, {}) as store:
        done = run(store, "tenant sites lib --anywhere")
    assert isinstance(done.exception, Unsure)
    assert store.keys == [None]


def test_a_question_that_is_not_answered_leaves_nothing_in_doubt() -> None:
    with losing(1, {}) as store:
        done = run(store, "tenant show lib")
    assert isinstance(done.exception, Unreachable)
    assert not isinstance(done.exception, Unsure)


def test_a_secret_whose_only_answer_was_lost_is_not_shown_as_an_empty_one() -> None:
    made = {"id": "01T", "token": "", "user": "u", "expires": None}
    with losing(1, made) as store:
        done = run(store, "user token u")
    assert isinstance(done.exception, Unsure)
    assert "objstore user revoke 01T" in str(done.exception)
