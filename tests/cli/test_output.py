"""Tables for people: nothing that is copied is broken, sizes have units, colours are for values."""

from collections.abc import Sequence
from typing import Any

import pytest

from objstore.cli.output import Format, show, sold_text

ID = "01KNAWM5010000000000000001"
LEASE = {
    "id": ID, "tenant": "nuage", "kind": "guaranteed", "state": "signed", "capacity": 10**15,
    "begin": "2027-01-31T00:00:00Z", "end": "2028-01-31T00:00:00Z", "unit_price": "5.90", "unit": "GB",
    "currency": "USD",
}  # fmt: skip
BOLD_RED = "\x1b[1;31m"


def printed(
    rows: Sequence[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    width: int = 200,
    **environment: str,
) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": str(width), "TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    show(rows, list(rows[0]), Format.TABLE)
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [40, 80, 140, 200])
def test_an_id_a_moment_and_a_capacity_stand_whole_however_narrow_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed([LEASE, {**LEASE, "id": ID[::-1]}], monkeypatch, capsys, width=width)
    for whole in (ID, ID[::-1], "2027-01-31T00:00:00Z", "1 PB", "guaranteed"):
        assert whole in text
    assert max(map(len, text.splitlines())) <= width


def test_words_are_wrapped_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": ID, "description": "a line of an invoice that is quite long " * 3, "net": "5.90 DZD"}
    text = printed([row], monkeypatch, capsys, width=80)
    assert any(ID in line and "5.90 DZD" in line for line in text.splitlines())


def test_what_is_sold_and_what_lies_on_disks_have_their_units(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"raw": 270_553_174_016, "limits.bytes_max": 10**13, "used_bytes": 1 << 30, "objects": 1_000_000}
    rows = [{"what": what, "value": value} for what, value in facts.items()]
    text = printed(rows, monkeypatch, capsys)
    for words in ("270.55 GB", "10 TB", "1.0 GiB", "1000000"):
        assert words in text


def test_a_field_that_is_called_failed_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"what": "failed", "value": 0}]
    assert BOLD_RED not in printed(rows, monkeypatch, capsys, FORCE_COLOR="1")
    rows = [{"what": "state", "value": "failed"}]
    assert BOLD_RED in printed(rows, monkeypatch, capsys, FORCE_COLOR="1")
    assert "\x1b" not in printed(rows, monkeypatch, capsys, FORCE_COLOR="1", NO_COLOR="1")


def test_what_is_nested_is_words_in_a_table_and_json_for_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    level = {"id": "gold", "tiers": [{"below": "0.999", "credit": "0.10"}, {"below": "0.99", "credit": "1"}]}
    assert "below 0.999, credit 0.10; below 0.99, credit 1" in printed([level], monkeypatch, capsys)
    show([level], list(level), Format.TSV)
    assert '[{"below": "0.999", "credit": "0.10"}, {' in capsys.readouterr().out


def test_lines_of_an_address_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"address": ["1, rue", "Alger"], "nodes": ["a", "b"]}], ["address", "nodes"], Format.TSV)
    assert capsys.readouterr().out.splitlines()[1] == "1, rue; Alger\ta b"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (1_500_000_000_000, "1.5 TB"), (10**13, "10 TB"),
        (10**18, "1000 PB"), (-480 * 10**12, "-480 TB"),
    ],
)  # fmt: skip
def test_bytes_are_shown_as_they_are_sold(size: int, text: str) -> None:
    assert sold_text(size) == text
