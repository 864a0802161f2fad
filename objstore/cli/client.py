"""The admin API from the command line: plain HTTP with the token that the first start left under the data
directory. Standard library only, so that a command starts quickly."""

import http.client
import json
import os
import ssl
from pathlib import Path
from typing import Annotated, Any

import typer

from objstore.config import ConfigError, Loaded, host_and_port, load

TIMEOUT_SECONDS = 30.0
LONG_SECONDS = 130.0  # Of silence, in long work: the store ends a request after 120 (admin/guard.py).
TOKEN_NAME = "admin.token"  # noqa: S105  (A file's name.)


class Unreachable(Exception):
    """The store does not answer."""


class Unsure(Unreachable):
    """No answer came to a change that was sent: it may have been carried out."""


class Refused(Exception):
    """The store answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Data directory of the store.", show_default=False),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Configuration file.", show_default=False)
]
AdminOption = Annotated[
    str | None,
    typer.Option(
        "--admin",
        envvar="OBJSTORE_ADMIN",
        help="Admin address host:port, for a store elsewhere (token in OBJSTORE_TOKEN).",
    ),
]
Flag = tuple[str, str, object]  # The setting, the flag as typed, its value: None or [] if it was not given.


def config_file(given: Path | None) -> Path | None:
    if given is not None:
        return given
    if named := os.environ.get("OBJSTORE_CONFIG"):
        return Path(named)
    usual = Path("/etc/objstore/objstore.toml")
    return usual if usual.exists() else None


def settings(data: Path | None, config: Path | None, *flags: Flag) -> Loaded:
    """The configuration in force, with a command's --data, --config and other flags. Raises: ConfigError."""
    directory = None if data is None else str(data)
    given = {
        setting: (flag, value)
        for setting, flag, value in (("server.data", "--data", directory), *flags)
        if value is not None and value != []
    }
    return load(config_file(config), os.environ, given)


class AdminClient:
    """One store. Finds address, token and TLS from the running store's state, else from the configuration."""

    def __init__(self, data: Path | None, config: Path | None, admin: str | None) -> None:
        found = settings(data, config).config
        self._directory = Path(found.server.data)
        self._listen = found.server.admin_listen
        self._tls = found.tls.admin and bool(found.tls.admin_certificate or found.tls.certificate)
        self._elsewhere = admin is not None
        if admin is not None:
            self._listen = admin.removeprefix("https://").removeprefix("http://").rstrip("/")
            self._tls = admin.startswith("https://")
            return
        try:
            state = json.loads((self._directory / "run" / "state.json").read_text())
            self._listen, self._tls = state["admin_listen"], state["admin_tls"]
        except (OSError, ValueError, KeyError):
            pass  # It is not running, or ran with other settings: the request will say so.

    def token(self) -> str:
        if token := os.environ.get("OBJSTORE_TOKEN"):
            return token
        place = self._directory / TOKEN_NAME
        try:
            return place.read_text().strip()
        except FileNotFoundError:
            raise ConfigError(
                f"no admin token at {place}: name the store with --data DIR, or set OBJSTORE_TOKEN"
            ) from None
        except PermissionError:
            raise ConfigError(f"{place} is not yours to read: run this as the store's user") from None

    def get(self, path: str, *, token: bool = True, seconds: float = TIMEOUT_SECONDS) -> Any:
        return self.call("GET", path, token=token, seconds=seconds)[1]

    def post(self, path: str, content: object = None) -> Any:
        return self.call("POST", path, content)[1]

    def connect(self, seconds: float = TIMEOUT_SECONDS) -> http.client.HTTPConnection:
        """A connection to the admin port, for one request or many; how long it may be silent."""
        host, port = host_and_port(self._listen, "admin address")
        if host in ("0.0.0.0", "::"):  # noqa: S104  (It listens everywhere; we are one of these places.)
            host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
        if self._tls:
            context = ssl.create_default_context()
            if not self._elsewhere and host in ("127.0.0.1", "::1", "localhost"):
                # The token is read from our own disk, the peer is this machine: names do not matter.
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
        return http.client.HTTPConnection(host, port, timeout=seconds)

    def unreachable(self, failure: Exception) -> Unreachable:
        return Unreachable(
            f"the store does not answer at {self._listen} ({failure}).\n"
            f"Is it running? objstore serve --data {self._directory}"
        )

    def call(
        self,
        method: str,
        path: str,
        content: object = None,
        *,
        token: bool = True,
        accept_errors: bool = False,
        whole: bool = False,
        key: str = "",
        seconds: float = TIMEOUT_SECONDS,
    ) -> tuple[int, Any]:
        """Status and answer, decoded where it is JSON.

        Args:
            whole: the answer is a file: bytes.
            key: of a POST that the store carries out once for each key: where its answer is lost it is sent
                once more.
            seconds: how long to wait for the answer.

        Raises: Unreachable, Unsure, Refused.
        """
        headers = {"Authorization": f"Bearer {self.token()}"} if token else {}
        body = None
        if content is not None:
            body = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        if not key:
            status, answer = self._exchange(method, path, body, headers, seconds)
        else:
            headers["Idempotency-Key"] = key
            try:
                status, answer = self._exchange(method, path, body, headers, seconds)
            except Unsure as lost:
                try:
                    status, answer = self._exchange(method, path, body, headers, seconds)
                except Unreachable:  # Also where the store is gone: the first one may have been carried out.
                    raise lost from None
                if _in_doubt(status):
                    raise Unsure(f"{_words(_decoded(answer))}\n{lost}") from None
        if whole and status < 400:
            return status, answer
        document = _decoded(answer)
        if status >= 400 and not accept_errors:
            raise Refused(status, _words(document))
        return status, document

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], seconds: float
    ) -> tuple[int, bytes]:
        """Status and answer of one request.

        Raises: Unreachable, Unsure (a change was sent, and no answer came).
        """
        connection = self.connect(seconds)
        try:
            try:
                connection.connect()
            except (OSError, http.client.HTTPException) as failure:
                raise self.unreachable(failure) from None
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                return response.status, response.read()
            except (OSError, http.client.HTTPException) as failure:
                raise self._unanswered(failure, changes=method != "GET") from None
        finally:
            connection.close()

    def _unanswered(self, failure: Exception, *, changes: bool) -> Unreachable:
        words = f"no answer came from the store at {self._listen} ({failure})"
        if changes:
            return Unsure(
                f"{words}.\nWhat was asked may have been carried out: look before you ask for it again."
            )
        return Unreachable(f"{words}: ask again, or see what is slow: objstore status")


def _in_doubt(status: int) -> bool:
    """Whether what a repeat was answered leaves open what became of the first one: that is under way still or
    its answer is lost (409), or nobody looked for it (too many requests, a store that has just come back)."""
    return status in (http.client.CONFLICT, http.client.TOO_MANY_REQUESTS) or status >= 500


def _decoded(answer: bytes) -> Any:
    try:
        return json.loads(answer) if answer else None
    except ValueError:
        return answer.decode(errors="replace")


def _words(document: Any) -> str:
    """What an answer that is an error says."""
    return document.get("detail", str(document)) if isinstance(document, dict) else str(document)
