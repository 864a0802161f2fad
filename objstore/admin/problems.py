"""Answers that are errors: RFC 9457, with pointers to the fields that are wrong."""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from aiohttp import web


class FieldError(NamedTuple):
    pointer: str  # RFC 6901, into the request's body: /limits/bytes_max.
    detail: str


class Problem(Exception):
    """An answer that is an error: status, words, and which fields of the body are wrong."""

    def __init__(self, status: int, detail: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors


def problem_answer(status: int, detail: str, errors: Sequence[FieldError] = ()) -> web.Response:
    headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content: dict[str, Any] = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if errors:
        content["errors"] = [error._asdict() for error in errors]
    return web.Response(status=status, body=json.dumps(content).encode(), headers=headers)
