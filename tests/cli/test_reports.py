"""Reports, as an operator asks for them."""

import csv
from pathlib import Path

import pytest

from objstore.cli.client import Refused
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
