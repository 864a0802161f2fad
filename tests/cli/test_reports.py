"""Reports, as an operator asks for them."""

import csv
from pathlib import Path

import pytest

from objstore.cli.client import Refused
from objstore.cli.reports import summed
from objstore.config import ConfigError
from objstore.rental.focus import COLUMNS
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
