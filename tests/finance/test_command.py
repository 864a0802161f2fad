"""`objstore finance`, as operators type it."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner, Result

from objstore.cli.main import app
from objstore.cli.output import FAILURE, USAGE
from objstore.finance.inputs import DOCS


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["finance", *arguments], env={"COLUMNS": "200"})


def facts(*arguments: str) -> dict[str, Any]:
    done = asked(*arguments, "-o", "json")
    assert done.exit_code == 0, done.output
    [found] = json.loads(done.stdout)
    return dict(found)


def test_the_example_in_json_and_yaml() -> None:
    found = facts("--price", "6.99")
    assert (found["payback_month"], found["payback_month_discounted"]) == (35, 41)
    assert (found["nodes"], found["usable_tb"], found["power_kw"]) == (214, "172992", "294.5")
    assert (found["opex_a_month"], found["capex"]) == ("214837.77", "20000000.00")
    assert (found["break_even_price"], found["break_even_price_exact"]) == ("6.68", "6.680020")
    assert len(found["tornado"]) == 5
    assert found["inputs"]["price"] == "6.99"
    assert found["inputs"]["fill"] == "80%"
    assert yaml.safe_load(asked("--price", "6.99", "-o", "yaml").stdout) == [found]


def test_csv_is_the_table_of_months_and_adds_up() -> None:
    rows = list(csv.DictReader(io.StringIO(asked("-o", "csv").stdout)))
    assert [row["month"] for row in rows] == [str(month) for month in range(1, 121)]
    left = -2_000_000_000
    for row in rows:
        amounts = {name: value for name, value in row.items() if name not in ("sold", "dscr")}
        whole = {name: round(float(value) * 100) for name, value in amounts.items()}
        parts = ("energy", "replacement", "maintenance", "staff", "connectivity", "other")
        assert whole["opex"] == sum(whole[part] for part in parts)
        assert whole["net"] == whole["revenue"] - whole["opex"]
        left += whole["net"]
        assert whole["cumulative"] == left
    assert rows[0]["sold"] == "6.67%"
    assert rows[35]["dscr"]
    assert rows[36]["dscr"] == ""


def test_every_input_is_an_option_and_an_entry_of_the_file(tmp_path: Path) -> None:
    help_text = asked("--help").stdout
    for name in DOCS:
        assert f"--{name.replace('_', '-')} " in help_text
    file = tmp_path / "plan.toml"
    file.write_text('price = 6.00\nramp = 24\nfill = "90%"\n')
    assert facts("--file", str(file)) == facts("--price", "6.00", "--ramp", "24", "--fill", "90%")
    over = facts("--file", str(file), "--ramp", "6")
    assert (over["inputs"]["ramp"], over["inputs"]["price"]) == ("6", "6")


def test_people_are_told_what_it_is_made_of() -> None:
    shown = asked("-o", "table").stdout
    for words in ("payback month", "break even price", "disk_tb", "All inputs are assumptions"):
        assert words in shown
    assert "214837.77" in shown


def test_drawings_are_written_and_a_place_that_is_none_is_an_error(tmp_path: Path) -> None:
    bars, flow = tmp_path / "bars.svg", tmp_path / "flow.svg"
    assert asked("--tornado", str(bars), "--cash-flow", str(flow)).exit_code == 0
    assert bars.read_text().count("<rect") == 11
    assert flow.read_text().count("<polyline") == 2
    done = asked("--tornado", str(tmp_path / "no" / "bars.svg"))
    assert done.exit_code == FAILURE
    assert "was not written" in done.output


def test_what_cannot_be_is_refused_with_its_name(tmp_path: Path) -> None:
    for arguments, words in (
        (("--fill", "0.8"), "--fill: '0.8' is no percentage"),
        (("--price", "much"), "--price: 'much' is no number"),
        (("--file", str(tmp_path / "none.toml")), "cannot be read"),
    ):
        done = asked(*arguments)
        assert done.exit_code == USAGE
        assert words in done.output
