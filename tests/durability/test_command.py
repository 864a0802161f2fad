"""`objstore durability`, as operators type it."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from objstore.cli.main import app
from objstore.cli.output import USAGE
from tests.server import Server, run_command


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["durability", *arguments], env={"COLUMNS": "200"})


def rows(*arguments: str) -> list[dict[str, Any]]:
    done = asked(*arguments, "-o", "json")
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_codes_are_compared_in_one_table() -> None:
    done = asked("--codec", "4+2,8+4,17+3", "--afr", "1.55%", "--latent", "0/year", "-o", "table")
    assert done.exit_code == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()[:1].isdigit()}
    assert [lines[code].split()[2] for code in ("4+2", "8+4", "17+3")] == ["8.77", "15.68", "10.63"]
    assert "no code protects from them" in done.stdout


def test_one_code_is_shown_with_what_would_lose_it_and_what_would_help() -> None:
    done = asked("--domain", "rack:fragments=3,afr=1%,repair=3d", "-o", "table")
    for words in (
        "at most 2 fragments in a rack",
        "repair of a rack in half the time",
        "codec 8+5",
        "loss shrinks by",
    ):
        assert words in done.stdout


def test_json_yaml_and_csv_say_the_same() -> None:
    asked_for = ["--codec", "4+2,8+4", "--volumes", "1e5", "--target", "11", "--burst", "3/100"]
    as_json = rows(*asked_for)
    as_yaml = yaml.safe_load(asked(*asked_for, "-o", "yaml").stdout)
    assert as_yaml == as_json
    as_csv = list(csv.DictReader(io.StringIO(asked(*asked_for, "-o", "csv").stdout)))
    for plain, nested in zip(as_csv, as_json, strict=True):
        for name, value in plain.items():
            assert str(nested[name]) == value
    assert as_json[0]["longest_repair_h"] < 2 < 300 < as_json[1]["longest_repair_h"]
    assert as_json[0]["burst_loss"] > 0
    assert as_json[1]["burst_loss"] == 0  # Three lost disks are one fewer than it survives.
    assert as_json[0]["objects_lost_per_year"] == pytest.approx(1e9 * as_json[0]["annual_loss"], rel=1e-4)
    assert as_json[1]["assumed"]["afr"] == pytest.approx(0.015)


def test_the_check_agrees_and_prints_its_seed() -> None:
    (row,) = rows("--codec", "4+2", "--check", "--cycles", "4000", "--seed", "7")
    exponential, fixed = row["checks"]
    assert (exponential["repairs"], fixed["repairs"]) == ("exponential", "fixed")
    for one in (exponential, fixed):
        assert one["seed"] == 7
        assert one["verdict"] == "agrees"
        assert one["nines_low"] < row["nines"] < one["nines_high"]
    assert "7" in asked("--codec", "4+2", "--check", "--cycles", "4000", "--seed", "7", "-o", "table").stdout
    (short,) = rows("--codec", "8+4", "--check", "--cycles", "10", "--seed", "7")
    assert short["checks"][0]["verdict"].startswith("not conclusive")


def test_nines_are_shown_and_drawn_against_repair_time(tmp_path: Path) -> None:
    place = tmp_path / "nines.svg"
    (row,) = rows("--plot", "--svg", str(place))
    nines = [point["nines"] for point in row["by_repair"]]
    assert len(nines) == 10
    assert nines == sorted(nines, reverse=True)
    assert place.read_text().startswith("<svg ")
    assert "30 d" in asked("--plot", "-o", "table").stdout
    missing = asked("--svg", str(tmp_path / "none" / "nines.svg"))
    assert missing.exit_code == 1
    assert "was not written" in missing.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--afr", "150%"], "--afr: 150% must be above 0% and below 100%"),
        (["--afr", "1.5"], "did you mean 1.5%?"),
        (["--repair", "24"], "--repair: '24' is not a time"),
        (["--codec", "8x4"], "'8x4' is not a codec"),
        (["--codec", ",".join(f"{k}+2" for k in range(2, 30))], "--codec: at most 20 at once"),
        (["--domain", "rack:afr=1%"], "--domain rack: fragments=N is missing"),
        (["--burst", "3/100"], "--burst needs --volumes"),
        (["--burst", "3/10", "--volumes", "5"], "--burst: 8+4 does not fit on 10 disks"),
        (["--target", "-3"], "--target: -3.0 nines"),
        (["--target", "nan"], "--target: nan nines"),
        (["--check", "--cycles", "1"], "--cycles: 1 must be from 2"),
        (["--objects", "0"], "--objects: 0"),
        (["--disk-size", "16"], "--disk-size: '16' is not a size"),
        (["--scrub", "14"], "--scrub: '14' is not a time"),
        (["--latent", "1"], "--latent: '1' is not a rate"),
    ],
)
def test_bad_input_is_refused_in_one_line_that_names_the_option(arguments: list[str], words: str) -> None:
    done = asked(*arguments)
    assert done.exit_code == USAGE
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_running_store_is_asked_for_its_code_and_says_what_it_has_not_measured(
    store_server: Server,
) -> None:
    done = store_server.command("durability", "--live", "-o", "json")
    (row,) = json.loads(done.stdout)
    assert row["codec"] == "4+2"
    assert row["origins"][0] == "codec 4+2: the store's"
    assert "repair 24 h: assumed, none has been measured yet" in row["origins"]
    assert any(words.startswith("scrub 336 h: ") for words in row["origins"])
    other = store_server.command("durability", "--live", "--codec", "8+4", "-o", "table").stdout
    assert "codec 8+4: given (the store's is 4+2)" in other


def test_a_store_that_does_not_run_is_said_not_to_answer(tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("token\n")
    done = run_command("durability", "--live", "--data", str(tmp_path), "--admin", "127.0.0.1:9", check=False)
    assert done.returncode == 1
    assert "the store does not answer at 127.0.0.1:9" in done.stderr
