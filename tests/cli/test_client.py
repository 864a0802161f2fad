"""What the command line does where the store's answers are lost."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from objstore.admin.guard import REQUEST_SECONDS
from objstore.cli.client import LONG_SECONDS, AdminClient, Refused, Unreachable, Unsure
from tests.cli.answering import Answering, Asked, answering
from tests.cli.answering import run as answering_run

PAID = {
    "id": "01K", "tenant": "lib", "method": "cheque", "amount": 10_000, "currency": "DZD", "reference": "A1",
    "received": None, "state": "received", "to_wallet": 10_000,
}  # fmt: skip


@contextmanager
def losing(lost: int, answer: dict[str, Any], status: int = 200) -> Iterator[Answering]:
    """A store whose first answers do not arrive."""
    left = lost

    def answered(asked: Asked) -> tuple[int, Any] | None:
        nonlocal left
        left -= 1
        return None if left >= 0 else (status, answer)

    with answering(answered) as store:
        yield store


def run(store: Answering, line: str) -> Result:
    return answering_run(store, *line.split(), "-o", "json")


RECEIVE = "payment receive lib 100 --method cheque --reference A1"


def test_a_payment_whose_answer_is_lost_is_sent_once_more_under_the_same_key() -> None:
    with losing(1, PAID) as store:
        done = run(store, RECEIVE)
    assert done.exit_code == 0, done.exception
    first, second = store.asked
    assert first.key
    assert first == second
    assert json.loads(done.stdout)[0]["amount"] == "100.00 DZD"


def test_two_payments_have_keys_of_their_own() -> None:
    with losing(0, PAID) as store:
        assert [run(store, RECEIVE).exit_code for _ in range(2)] == [0, 0]
    assert len({one.key for one in store.asked}) == 2


def test_whoever_is_answered_twice_by_nobody_is_told_to_look_first() -> None:
    with losing(2, PAID) as store:
        done = run(store, RECEIVE)
    assert isinstance(done.exception, Unsure)
    assert "may have been carried out: look before you ask for it again" in str(done.exception)
    assert "Is it running" not in str(done.exception)
    assert len(store.asked) == 2


def test_a_store_that_is_gone_after_a_lost_answer_leaves_it_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Unreachable] = [Unsure("may have been carried out"), Unreachable("Is it running?")]

    def exchange(*arguments: object) -> None:
        raise failures.pop(0)

    monkeypatch.setattr(AdminClient, "_exchange", exchange)
    with losing(0, PAID) as store:
        done = run(store, RECEIVE)
    assert isinstance(done.exception, Unsure)
    assert failures == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (409, "a request with this Idempotency-Key is under way"),
        (429, "more changes than a tenant makes in an hour"),
        (500, "an unexpected error"),
        (503, "the committer is away"),
    ],
)
def test_a_repeat_whose_answer_does_not_say_what_became_of_the_first_is_told_as_unsure(
    status: int, words: str
) -> None:
    with losing(1, {"detail": words}, status=status) as store:
        done = run(store, RECEIVE)
    assert isinstance(done.exception, Unsure)
    assert words in str(done.exception)
    assert "look before" in str(done.exception)
    assert len(store.asked) == 2


def test_a_repeat_that_is_refused_for_what_it_asks_leaves_nothing_in_doubt() -> None:
    with losing(1, {"detail": "'lib' is no administration"}, status=400) as store:
        done = run(store, RECEIVE)
    assert isinstance(done.exception, Refused)


def test_a_change_without_a_key_is_never_sent_twice() -> None:
    with losing(1, {}) as store:
        done = run(store, "tenant sites lib --anywhere")
    assert isinstance(done.exception, Unsure)
    assert [one.key for one in store.asked] == [None]


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


def test_a_months_file_may_be_silent_for_longer_than_the_store_bears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    connect = AdminClient.connect

    def noted(client: AdminClient, seconds: float = 0.0) -> http.client.HTTPConnection:
        waited.append(seconds)
        return connect(client, seconds)

    monkeypatch.setattr(AdminClient, "connect", noted)
    head = json.dumps({"customers": 0, "done": 0, "bytes": 0, "finished": True}).encode() + b"\n"
    with answering(lambda asked: (200, head)) as store:
        assert run(store, f"report focus --month 2026-01 --out {tmp_path / 'x.csv'}").exit_code == 0
    assert waited == [LONG_SECONDS]
    assert LONG_SECONDS > REQUEST_SECONDS
