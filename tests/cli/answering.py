"""A store that answers what a test tells it to: for what the command line makes of answers."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typer.testing import CliRunner, Result

from objstore.cli.main import app


@dataclass(frozen=True)
class Asked:
    method: str
    path: str  # Without its query.
    key: str | None  # The Idempotency-Key.
    body: bytes
    query: str = ""


@dataclass
class Answering:
    """Such a store, and what it was asked."""

    address: str = ""
    asked: list[Asked] = field(default_factory=list)


Answer = Callable[[Asked], tuple[int, Any] | None]


@contextmanager
def answering(answer: Answer) -> Iterator[Answering]:
    """
    Args:
        answer: status and content, as JSON unless it is bytes; None: the connection is cut, whatever was
            done.
    """
    store = Answering()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            path, _, query = self.path.partition("?")
            asked = Asked(self.command, path, self.headers["Idempotency-Key"], body, query)
            store.asked.append(asked)
            found = answer(asked)
            if found is None:
                self.close_connection = True
                return
            status, document = found
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_PATCH = do_DELETE = do_POST  # noqa: N815  (http.server names them.)

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


def fixed(answers: Mapping[str, Any]) -> Answer:
    """Answers by path; what is not among them is not there."""
    return lambda asked: (200, answers[asked.path]) if asked.path in answers else (404, {"detail": "no"})


def run(store: Answering, *words: str) -> Result:
    environment = {"OBJSTORE_TOKEN": "token", "OBJSTORE_ADMIN": store.address}
    return CliRunner().invoke(app, list(words), env=environment)
