"""Reports, as an operator asks for them."""

import csv
import errno
import json
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from objstore.cli.client import Refused, Unreachable
from objstore.cli.progress import Steps
from objstore.cli.reports import summed
from objstore.config import ConfigError
from objstore.rental.focus import COLUMNS
from tests.cli.answering import answering
from tests.cli.answering import run as answered
from tests.cli.test_renting import run, say
from tests.server import Server


def test_a_months_focus_file_is_written_whole_or_not_at_all(store_server: Server, tmp_path: Path) -> None:
    file = tmp_path / "march.csv"
    (told,) = say(store_server, "report focus --month 2026-03 --out", str(file))
    assert told == {"file": str(file), "bytes": file.stat().st_size}
    (header,) = csv.reader(file.open(newline=""))
    assert header == [column.name for column in COLUMNS]
    refused = run(store_server, "report focus --month 2026-13 --out", str(tmp_path / "no.csv"))
    assert isinstance(refused.exception, Refused)
    assert run(store_server, "report focus --month 2026-03 --out", str(tmp_path / "no.txt")).exit_code != 0
    assert [path.name for path in tmp_path.iterdir()] == ["march.csv"]
    pytest.importorskip("pyarrow")
    say(store_server, "report focus --month 2026-03 --out", str(tmp_path / "march.parquet"))
    assert (tmp_path / "march.parquet").read_bytes()[:4] == b"PAR1"


def framed(*pieces: bytes, finished: bool = True) -> bytes:
    """A month's file of ten customers a piece, with how far it is."""
    heads = [
        {"customers": 10 * len(pieces), "done": 10 * number, "bytes": len(piece), "finished": False}
        for number, piece in enumerate(pieces)
    ]
    sent = b"".join(
        json.dumps(head).encode() + b"\n" + piece for head, piece in zip(heads, pieces, strict=True)
    )
    last = {"customers": 10 * len(pieces), "done": 10 * len(pieces), "bytes": 0, "finished": True}
    return sent + (json.dumps(last).encode() + b"\n" if finished else b"")


def test_a_months_file_shows_how_many_customers_are_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int | None]] = []
    monkeypatch.setattr(Steps, "reached", lambda self, done, total=None: told.append((done, total)))
    content, to = (b"a,b\r\n1", b"", b",2\r\n"), tmp_path / "march.csv"
    with answering(lambda asked: (200, framed(*content))) as store:
        done = answered(store, "report", "focus", "--month", "2026-03", "--out", str(to), "-o", "json")
    assert (json.loads(done.stdout), done.stderr) == ([{"file": str(to), "bytes": 10}], "")
    assert to.read_bytes() == b"a,b\r\n1,2\r\n"
    assert told == [(0, 30), (10, 30), (20, 30), (30, 30)]
    assert parse_qs(store.asked[0].query)["progress"] == ["true"]


@pytest.mark.parametrize("cut_at", [0, 5, 70, -1])
def test_a_months_file_that_is_cut_off_is_none(tmp_path: Path, cut_at: int) -> None:
    sent = framed(b"a,b\r\n1,2\r\n" * 10, b"3,4\r\n", finished=False)
    whole = sent if cut_at == -1 else sent[:cut_at]
    with answering(lambda asked: (200, whole)) as store:
        done = answered(
            store, "report", "focus", "--month", "2026-03", "--out", str(tmp_path / "march.parquet")
        )
    assert isinstance(done.exception, Unreachable)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_months_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def reached(*given: object) -> None:
        raise failure

    monkeypatch.setattr(Steps, "reached", reached)
    with answering(lambda asked: (200, framed(b"a,b\r\n"))) as store:
        to = tmp_path / "march.csv"
        done = answered(store, "report", "focus", "--month", "2026-03", "--out", str(to))
    assert done.exit_code != 0
    assert list(tmp_path.iterdir()) == []


ROWS = [
    {"tenant": "big", "resellers": [], "currency": "EUR", "net": 1, "invoice": "a"},
    {"tenant": "lower", "resellers": ["upper"], "currency": "DZD", "net": 20, "invoice": "b"},
    {"tenant": "small", "resellers": ["big", "mid"], "currency": "EUR", "net": 300, "invoice": "c"},
    {"tenant": "upper", "resellers": [], "currency": "DZD", "net": 4_000, "invoice": "d"},
]


def test_a_resellers_row_is_the_sum_of_all_under_it_and_currencies_stay_apart() -> None:
    assert summed(ROWS, "tenant", ("currency",), ("net",)) == ROWS
    assert summed(ROWS, "reseller", ("currency",), ("net",)) == [
        {"tenant": "big", "currency": "EUR", "net": 301},
        {"tenant": "upper", "currency": "DZD", "net": 4_020},
    ]
    assert summed(ROWS, "all", ("currency",), ("net",)) == [
        {"tenant": "", "currency": "DZD", "net": 4_020},
        {"tenant": "", "currency": "EUR", "net": 301},
    ]
    with pytest.raises(ConfigError, match="tenant, reseller or all"):
        summed(ROWS, "month", (), ())


def test_reports_are_asked_for_by_month_and_sum(store_server: Server) -> None:
    for line in ("revenue --month 2026-01 --until 2026-03", "aging", "usage --month 2026-03 --by all"):
        assert run(store_server, f"report {line} -o csv").exit_code == 0, line
    assert isinstance(run(store_server, "report revenue --by month").exception, ConfigError)
