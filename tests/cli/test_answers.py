"""What the command line makes of the store's answers, and of words that it cannot take."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from objstore.admin.bodies import parse_body
from objstore.admin.resources.leases import LeaseFields, NewLease, OfferBody
from objstore.cli.output import check_writable
from objstore.cli.progress import Progress, Steps
from objstore.cli.renting import VERIFIED_AGAIN_MAX
from objstore.config import ConfigError
from tests.cli.answering import Asked, answering, fixed, run

POOL: dict[str, Any] = {
    "pool": "", "raw": 270_553_174_016, "failed": 0, "usable": 10**12, "sold_guaranteed": 0,
    "sold_share": "0/1", "fill": "1/4", "overhead": "3/2", "growth": None, "oversold": 0, "order_now": False,
    "sold_best_effort": 0, "used_logical": 1, "sellable": 5, "runway_days": None, "lead_days": 365,
}  # fmt: skip
TWO_POOLS = {"/api/v1/capacity": {"items": [POOL, {**POOL, "pool": "lease-01k"}]}}


def test_a_report_of_two_pools_is_one_json_document() -> None:
    with answering(fixed(TWO_POOLS)) as store:
        done = run(store, "capacity", "show", "-o", "json")
    assert [pool["pool"] for pool in json.loads(done.stdout)] == ["", "lease-01k"]


def test_a_report_of_two_pools_is_one_csv_table() -> None:
    with answering(fixed(TWO_POOLS)) as store:
        done = run(store, "capacity", "show", "-o", "csv")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["pool"] for row in rows if row["what"] == "raw"] == ["", "lease-01k"]
    assert {row["pool"] for row in rows} == {"", "lease-01k"}


USERS = [{"name": "leila", "role": "owner", "disabled": False, "email": ""}]
ONE_OF_EACH = {
    "/api/v1/tenants/lib": {"name": "lib", "state": "active"},
    "/api/v1/users": {"items": USERS, "next": None},
    "/api/v1/invoices/01K": {"id": "01K", "currency": "DZD", "total": 100},
    "/api/v1/invoices/01K/lines": {"items": [{"description": "a, b", "net": 100}]},
    "/api/v1/tenants/lib/service": {"month": "2026-01", "items": [{"begin": "x"}], "next": None},
}


@pytest.mark.parametrize("line", ["tenant show lib", "invoice show 01K", "usage service lib"])
def test_a_thing_with_a_list_is_one_csv_table(line: str) -> None:
    with answering(fixed(ONE_OF_EACH)) as store:
        done = run(store, *line.split(), "-o", "csv")
    header, *rows = csv.reader(done.stdout.splitlines())
    assert header == ["what", "value"]
    assert {len(row) for row in rows} == {2}
    listed = [json.loads(value) for what, value in rows if what in ("users", "lines", "items")]
    assert len(listed) == 1
    assert len(listed[0]) == 1


def test_documents_are_listed_by_their_type() -> None:
    with answering(fixed({"/api/v1/invoices": {"items": [], "next": None}})) as store:
        done = run(store, "invoice", "list", "--type", "credit_note", "-o", "json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, [])


@pytest.mark.parametrize(
    "line",
    [
        "compliance report --out {}",
        "tenant purge lib --yes --proof {}",
        "invoice pdf 01K {}",
        "invoice focus 01K {}",
        "report focus --month 2026-01 --out {}.csv",
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(line: str, tmp_path: Path) -> None:
    with answering(fixed({})) as store:
        done = run(store, *line.format(tmp_path / "absent" / "x.csv").split())
    assert isinstance(done.exception, ConfigError)
    assert "there is no directory" in str(done.exception)
    assert store.asked == []


def test_a_place_for_a_file_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        check_writable(tmp_path)
    check_writable(tmp_path / "new")
    (tmp_path / "old").write_bytes(b"")
    check_writable(tmp_path / "old")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("invoice credit 01K --reason sla --yes --line 1=--5", "NUMBER=AMOUNT"),
        ("invoice credit 01K --reason sla --yes --line 1=", "NUMBER=AMOUNT"),
        ("invoice credit 01K --reason sla --yes --line -1=5", "NUMBER=AMOUNT"),
        ("payment receive lib 5 --method especes --invoice 01K", "ID=AMOUNT"),
        ("payment receive lib 5 --method especes --invoice =5", "ID=AMOUNT"),
        ("quota set --tenant lib --objects 10TB", "is no number"),
        ("quota set --tenant lib --buckets 1.5", "is no number"),
        ("quota set --tenant lib --requests -1", "is no number"),
        ("invoice focus 01K x.parquet", "report focus"),
    ],
)
def test_words_that_cannot_be_taken_are_told_before_anything_is_sent(line: str, words: str) -> None:
    with answering(fixed({})) as store:
        done = run(store, *line.split())
    assert isinstance(done.exception, ConfigError)
    assert words in str(done.exception)
    assert store.asked == []


LEASE = {"id": "01K", "state": "quote"}
TERMS = (
    "--renews --ramp 2027-01-01T00:00:00Z=1TB --ramp 2027-02-01T00:00:00Z=2TB --billing advance"
    " --notice-days 60 --fee-share 0.5 --fee-months 3 --sla gold --storage-class COLD --product archive"
    " --purchase-order PO-7"
)


def test_every_term_of_a_lease_can_be_typed() -> None:
    answers = {"/api/v1/leases": LEASE, "/api/v1/leases/01K/admission": {"admitted": True, "why": ""}}
    line = f"lease quote lib 2TB --months 12 --price 7 --begin 2027-01-01T00:00:00Z {TERMS}"
    with answering(fixed(answers)) as store:
        assert run(store, *line.split()).exit_code == 0
    sent: Any = parse_body(store.asked[0].body, NewLease)
    missing = [name for name in NewLease.__struct_fields__ if name not in json.loads(store.asked[0].body)]
    assert missing == ["end"]  # It follows the term.
    assert (sent.sla, sent.fee_share, sent.fee_months, sent.notice_days) == ("gold", "0.5", 3, 60)
    assert (sent.billing, sent.storage_class, sent.product) == ("advance", "COLD", "archive")
    assert [step.capacity for step in sent.ramp] == [10**12, 2 * 10**12]


def test_what_is_not_typed_of_a_lease_stays_as_it_is() -> None:
    with answering(fixed({"/api/v1/leases/01K": LEASE})) as store:
        line = "lease set 01K --sla silver --no-renews --overage-max none"
        assert run(store, *line.split()).exit_code == 0
        assert isinstance(run(store, "lease", "set", "01K").exception, ConfigError)
        wrong = run(store, "lease", "set", "01K", "--ramp", "10TB").exception
        assert isinstance(wrong, ConfigError)
        assert "MOMENT=BYTES" in str(wrong)
        everything = run(store, "lease", "set", "01K", "--capacity", "1TB", *TERMS.split())
        assert everything.exit_code == 0
    first, second = store.asked
    assert json.loads(first.body) == {"sla": "silver", "renews": False, "overage_max": None}
    parse_body(second.body, LeaseFields)


def test_every_term_of_an_offer_can_be_typed() -> None:
    terms = TERMS.replace("--ramp 2027-01-01T00:00:00Z=1TB --ramp 2027-02-01T00:00:00Z=2TB ", "")
    terms = terms.replace(" --purchase-order PO-7", " --begin-days 30")
    with answering(fixed({"/api/v1/offers/small": {"name": "small"}})) as store:
        line = f"offer put small --least 1TB --most 2TB --months 12 --price 7 {terms}"
        assert run(store, *line.split()).exit_code == 0
    parse_body(store.asked[0].body, OfferBody)
    assert set(json.loads(store.asked[0].body)) == set(OfferBody.__struct_fields__)


def test_a_month_is_drafted_step_by_step_with_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int | None]] = []
    monkeypatch.setattr(Steps, "reached", lambda self, done, total=None: told.append((done, total)))
    sums = {"drafts": 0, "nothing": 0, "final": 0, "corrections": 0, "problems": [], "unpriced": []}
    steps = {
        "": {**sums, "customers": 5, "tenants": 3, "after": "c", "finished": False},
        "c": {**sums, "customers": 2, "tenants": 2, "after": "e", "finished": True},
    }
    with answering(lambda asked: (200, steps[json.loads(asked.body)["after"]])) as store:
        done = run(store, "invoice", "draft", "2026-03", "-o", "json")
    assert (done.exit_code, json.loads(done.stdout)[0]["tenants"]) == (0, 5)
    assert told == [(3, 5), (5, 5)]


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    with Steps("drafting", "customers", clock=lambda: now[0]) as progress:
        for now[0], done in ((2.0, 100), (12.0, 600), (13.0, 650), (24.0, 1_200)):
            progress.reached(done, 2_000)
    assert capsys.readouterr().err.splitlines() == [
        "drafting: 600 of 2000 customers, 50 customers/s, 28 s to go",
        "drafting: 1200 of 2000 customers, 50 customers/s, 16 s to go",
    ]


def test_a_change_of_the_master_key_shows_how_much_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int | None]] = []
    monkeypatch.setattr(Steps, "reached", lambda self, done, total=None: told.append((done, total)))
    monkeypatch.setattr("objstore.cli.accounts.LOOK_S", 0.0)
    needed = [{"master_key": "ab", "keys": 5, "targets": 1, "authorities": 1}]
    answers = {
        "/api/v1/master-key/rotate": {"state": "under way", "done": 3, "needed": needed},
        "/api/v1/master-key": {"state": "done", "done": 10, "needed": []},
    }
    with answering(fixed(answers)) as store:
        done = run(store, "key", "rotate-master", "--wait", "600", "-o", "json")
    assert (done.exit_code, told) == (0, [(3, 10)])


def usage_step(number: int, *, state: str = "00", last: int = 3) -> dict[str, Any]:
    """The `number`th of some steps of two records each; the first says that one more was removed."""
    return {
        "records": 2, "retired": int(number == 1), "wrong": [], "sealed": 2 * last + 1, "newest": f"0{last}",
        "pieces": [[f"0{number - 1}" if number > 1 else "", f"0{number}"]], "state": state,
        "next": None if number == last else f"0{number}",
    }  # fmt: skip


STEPS_OF_USAGE = "/api/v1/tenants/lib/usage/verify/steps"


def test_usage_is_verified_step_by_step_with_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int | None]] = []
    monkeypatch.setattr(Steps, "reached", lambda self, done, total=None: told.append((done, total)))
    steps = {"": usage_step(1), "cursor=01": usage_step(2), "cursor=02": usage_step(3)}
    with answering(lambda asked: (200, steps[asked.query])) as store:
        done = run(store, "usage", "verify", "lib", "-o", "json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, [{"records": 6, "retired": 1, "wrong": []}])
    assert told == [(2, 6), (4, 6), (6, 6)]
    assert {asked.path for asked in store.asked} == {STEPS_OF_USAGE}


@pytest.mark.parametrize(
    ("first", "asked_in_all", "code"),
    [
        ([usage_step(1, last=1), usage_step(1, last=1)], 1, 0),  # All is well at once.
        ([{**usage_step(1, last=1), "newest": "99"}] * 2, 2, 3),  # Nothing has changed: it is wrong.
        ([{**usage_step(1, last=1), "newest": "99"}, usage_step(1, state="01", last=1)], 2, 0),
    ],
)
def test_a_finding_stands_only_if_no_record_has_changed_meanwhile(
    first: list[dict[str, Any]], asked_in_all: int, code: int
) -> None:
    answers = iter(first)
    with answering(lambda asked: (200, next(answers))) as store:
        done = run(store, "usage", "verify", "lib", "-o", "json")
    assert (done.exit_code, len(store.asked)) == (code, asked_in_all)
    (found,) = json.loads(done.stdout)
    assert found["wrong"] == (
        ["the records are not one chain from the first to the last that was sealed"] if code else []
    )


def test_records_that_never_rest_are_not_verified_for_ever() -> None:
    states = itertools.count(10)
    step = {**usage_step(1, last=1), "newest": "99"}
    with answering(lambda asked: (200, {**step, "state": str(next(states))})) as store:
        done = run(store, "usage", "verify", "lib")
    assert (done.exit_code, len(store.asked)) == (1, VERIFIED_AGAIN_MAX + 1)
    assert "kept changing" in done.stderr


def test_where_there_is_no_terminal_what_is_verified_is_told_when_it_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    with Steps("verifying", "records", logged=False, clock=lambda: now[0]) as progress:
        for now[0], done in ((12.0, 100), (24.0, 200)):
            progress.reached(done, 2_000)
    assert capsys.readouterr() == ("", "")


def purge(state: str, waiting: str = "", *, volumes: int = 0, until: str | None = None) -> dict[str, Any]:
    proof = {"verdict": "proven"} if state == "proven" else None
    return {
        "tenant": "lib", "state": state, "objects": 10, "bytes": 1_000, "waiting": waiting,
        "volumes": volumes, "until": until, "proven": "2027-01-31T00:00:00Z", "proof": proof,
    }  # fmt: skip


def test_a_purge_shows_how_much_of_what_there_was_is_gone_and_when_the_trash_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deleted: list[tuple[int, int]] = []
    cleared: list[tuple[int, int | None, str]] = []
    monkeypatch.setattr(Progress, "add", lambda self, size, count=0: deleted.append((size, count)))
    monkeypatch.setattr(
        Steps, "reached", lambda self, done, total=None, left="": cleared.append((done, total, left))
    )
    monkeypatch.setattr("objstore.cli.departures.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)  # 2027-01-15T08:00:00Z
    purges = iter(
        [
            purge("deleting"),
            purge("deleting"),
            purge("clearing", "what was under way", until="2027-01-15T08:59:30Z"),
            purge("clearing", "3 volumes", volumes=3, until="2027-01-22T07:00:00Z"),
            purge("clearing", "1 volumes", volumes=1, until="2027-01-15T08:00:00Z"),
            purge("proven"),
        ]
    )
    uses = iter([{"bytes": 800, "objects": 9, "buckets": 1}, {"bytes": 300, "objects": 2, "buckets": 1}])

    def answer(asked: Asked) -> tuple[int, Any]:
        return 200, next(purges) if asked.path.endswith("/purge") else {"use": next(uses)}

    with answering(answer) as store:
        done = run(store, "tenant", "purge", "lib", "--yes", "--wait", "60", "-o", "json")
    assert done.exit_code == 0, done.output
    assert deleted == [(200, 1), (500, 7), (300, 2)]
    assert cleared == [(0, None, "1 h to go"), (0, 3, "6 d 23 h to go"), (2, 3, "")]
    assert done.stderr.splitlines() == [
        "waiting: deleting", "waiting: what was under way", "waiting: 3 volumes", "waiting: 1 volumes",
    ]  # fmt: skip
    assert json.loads(done.stdout)[0]["state"] == "proven"


def test_a_purge_is_waited_for_no_longer_than_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objstore.cli.departures.LOOK_SECONDS", 0.0)
    answers = {
        "/api/v1/tenants/lib/purge": purge("deleting", "5 bytes are still reserved"),
        "/api/v1/tenants/lib": {"use": {"bytes": 5, "objects": 1, "buckets": 1}},
    }
    with answering(fixed(answers)) as store:
        done = run(store, "tenant", "purge", "lib", "--yes", "--wait", "0.2")
    assert done.exit_code == 3
    assert done.stderr.splitlines() == [
        "waiting: 5 bytes are still reserved",
        "objstore: lib is not proven to be gone yet: 5 bytes are still reserved",
    ]


def test_the_time_to_go_is_shown_instead_of_a_rate_where_it_is_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    with Steps("clearing", "volumes", clock=lambda: now[0]) as progress:
        now[0] = 12.0
        progress.reached(0, 3, "6 d 23 h to go")
    assert capsys.readouterr().err == "clearing: 0 volumes, 6 d 23 h to go\n"
