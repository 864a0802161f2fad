"""docs/renting.md does what it says: its blocks are run as they stand, in its order, on one real store.

The store's clock (objstore/clock.py) is moved: the story begins in the last half day of January 2027, and
goes on six hours behind it. Signatures of requests keep the real time (they do not go by that clock).
"""

import csv
import json
import re
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import CONFIG, ROOT
from tests.deploy.manual import Block, Machine, blocks, environment_of, machine, ports
from tests.deploy.test_metrics_named import as_asked, queries
from tests.deploy.watching import Prometheus, prometheus

PAGE = ROOT / "docs/renting.md"
BEGIN = datetime(2027, 1, 31, 12, tzinfo=UTC)
BEHIND = datetime(2027, 2, 1, 6, tzinfo=UTC)
SEALED_SECONDS = 120.0
# Metrics that are gone after a start: what was asked and refused before it.
OF_SALES = {"objstore_tenant_refusals_total", "objstore_s3_auth_failures_total"}
# What a store on one machine, without TLS and without a second site, has nothing to say of.
ELSEWHERE = {
    "objstore_member_answered_timestamp_seconds",
    "objstore_member_certificate_expiry_timestamp_seconds",
    "objstore_member_info",
    "objstore_member_up",
    "objstore_replication_failing_keys",
    "objstore_replication_lag_seconds",
    "objstore_replication_pending_changes",
    "objstore_replication_refused",
    "objstore_replication_sent_bytes_total",
    "objstore_tls_cert_expiry_timestamp_seconds",
}

STORE = """
[server]
data = "/var/lib/objstore"
listen = "0.0.0.0:9000"
admin_listen = "127.0.0.1:0"
workers = 1

[disks]
paths = ["/srv/objstore/d1", "/srv/objstore/d2", "/srv/objstore/d3"]

[blobs]
codec = "2+1"
"""
CLOCK = """import os, time
_real, _by = time.time_ns, int(os.environ["STORY_CLOCK_S"]) * 10**9
time.time_ns = lambda: _real() + _by
"""


def start_at(store: Machine, moment: datetime) -> None:
    """(Re)start the store with its clock at a moment."""
    store.stop("objstore")
    store.settings = {
        **store.settings,
        "PYTHONPATH": str(store.root / "clock"),
        "STORY_CLOCK_S": str(int(moment.timestamp() - time.time())),
    }
    store.start("objstore", *store.unit("objstore"))


def wait_until_sealed(store: Machine, hours_until: str) -> None:
    limit = time.monotonic() + SEALED_SECONDS
    while hours_until not in (said := store.run(Block("", "", "sh", "objstore usage show librairie\n"))):
        assert time.monotonic() < limit, said
        time.sleep(0.2)


def admin_address(root: Path) -> str:
    state = json.loads((root / "var/objstore/run/state.json").read_text())
    return str(state["admin_listen"])


def wait_until_scraped(watcher: Prometheus, names: set[str]) -> None:
    """Figures are looked at every few seconds, and a scrape shows the last look."""

    def missing() -> list[str]:
        return sorted(names - set(watcher.ask("label/__name__/values")))

    watcher.wait(lambda: not missing(), missing)


def watched(watcher: Prometheus) -> None:
    """Of all that alerts and dashboards name there is something, and Prometheus can make sense of each."""
    named = {name for _, query in queries() for name in re.findall(r"\bobjstore_\w+", query)}
    assert named >= ELSEWHERE
    wait_until_scraped(watcher, named - ELSEWHERE)

    def rules() -> list[Any]:
        return [rule for group in watcher.ask("rules")["groups"] for rule in group["rules"]]

    watcher.wait(lambda: all(rule["health"] != "unknown" for rule in rules()), rules)
    found = rules()
    assert len(found) == sum(where.startswith("Objstore") for where, _ in queries())
    assert [(rule["name"], rule["lastError"]) for rule in found if rule["health"] != "ok"] == []
    for _, query in queries():
        watcher.ask("query", query=as_asked(query))


class Story:
    """The page's blocks, each of which is told once."""

    def __init__(self, store: Machine) -> None:
        self._store = store
        self._left = [block for block in blocks(PAGE) if block.run]

    def tell(self, heading: str) -> str:
        """Run the next block, which is under this heading; what it said."""
        block = self._left.pop(0)
        assert block.heading == heading
        return self._store.run(block)

    @property
    def ended(self) -> bool:
        return not self._left


@pytest.mark.timeout(300)
def test_an_operator_rents_out_capacity_as_the_page_says(tmp_path: Path) -> None:
    settings = {"OBJSTORE_UPKEEP__PERIOD_FACTOR": "0.01"}  # Rounds are minutes apart: here they come soon.
    with machine(tmp_path, settings) as store:
        store.places |= {**ports("0.0.0.0:9000"), "/opt/objstore/config/": f"{CONFIG}/"}
        config = tmp_path / "etc/objstore.toml"
        config.write_text(store.moved(STORE))
        store.environment |= environment_of(config)
        program = tmp_path / "bin/python3"  # One that has boto3; no link, which would lose its packages.
        program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        program.chmod(0o755)
        (tmp_path / "clock").mkdir()
        (tmp_path / "clock/sitecustomize.py").write_text(CLOCK)
        start_at(store, BEGIN)
        story = Story(store)
        with prometheus(tmp_path / "prometheus", tmp_path / "var/objstore/admin.token") as watcher:
            watcher.watch(admin_address(tmp_path))
            sell(story)
            wait_until_scraped(watcher, OF_SALES)
            start_at(store, BEHIND)
            watcher.watch(admin_address(tmp_path))
            wait_until_sealed(store, "2027-02-01T05:00:00Z")
            bill(story, tmp_path)
            assert story.ended
            watched(watcher)


def sell(story: Story) -> None:
    assert "TVA 19 %" in story.tell("The seller")
    assert "plan wholesale version 1 is published" in story.tell("Plans")
    assert story.tell("Customers").count("\nstate\tactive\n") == 3
    said = story.tell("Customers")
    assert "librairie\tno" in said
    assert "nuage" not in said  # Not the reseller's.
    assert said.endswith("refused\n")
    assert "at most your own: 1000000000000" in said
    assert "name\tboulangerie" in said
    assert "tags.env\tprod" in story.tell("Projects, users, keys")

    assert "limits.bytes_max\t10000000\n" in story.tell("Quotas")
    said = story.tell("Quotas")
    assert re.findall(r"stored (\d)", said) == ["0", "1", "2"]
    assert "(QuotaExceeded)" in said
    assert "(AccessDenied)" in said

    said = story.tell("What is used")
    # Three photos of 3,000,000 bytes, and their keys of 5.
    assert "\nbytes\t9000015\n" in said
    assert "stored_byte_seconds" not in said  # Of the hour that runs.

    assert "\tquote\t1000000000\t" in story.tell("Capacity, and a lease")
    said = story.tell("Capacity, and a lease")
    assert "is signed" in said
    assert "\nsold_guaranteed\t1000000000\n" in said


def bill(story: Story, place: Path) -> None:
    said = story.tell("The month's end")
    assert said.count("\tdraft\t") == 3, said
    assert "stored_byte_seconds" in said
    said = story.tell("The month's end")
    assert "\nreturned\t0.00 DZD\n" in said
    assert "FA-2027-000001\tinvoice\tlibrairie\tfinal" in said
    # A day of 31 of a month's 5.90 USD.
    assert re.search(r"FA-2027-000002\tinvoice\tnuage\tfinal\t[^\t]*\t0\.19 USD", said)
    total = Decimal(_one(r"\ntotal\t([\d.]+) DZD\n", said))

    said = story.tell("Service levels")
    assert "\nmonth\t2027-01\n" in said
    assert Decimal(_one(r"\nuptime\t([\d.]+)\n", said)) < 100  # The clock jumped.

    story.tell("Documents")
    documents = [(place / name).read_bytes() for name in ("facture.pdf", "facture-ar.pdf")]
    assert all(document.startswith(b"%PDF-") and len(document) > 10_000 for document in documents)
    assert len(set(documents)) == 2
    with (place / "facture.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(Decimal(row["BilledCost"]) for row in rows) == total
    assert {row["InvoiceId"] for row in rows} == {"FA-2027-000001"}

    said = story.tell("Money")
    assert "AV-2027-000001\tcredit_note\tlibrairie\tfinal" in said
    still = total - Decimal("10.00") - Decimal("1.19")  # 1.00 and 19 % of it.
    assert _one(r"librairie\tFA-2027-000001\t\S+\t\S+\t([\d.]+) DZD", said) == f"{still}"
    assert "\nnuage\tFA-2027-000002\t" in said
    said = story.tell("Money")
    assert "FA-2027-000001\tinvoice\tlibrairie\tpaid" in said
    assert f"{Decimal('50.00') - still} DZD" in said  # To the wallet.

    said = story.tell("Reports")
    assert re.search(rf"revendeur\t2027-01\tDZD\t.*\t{total - Decimal('1.19')}\t1\.19\t", said), said
    with (place / "january.csv").open() as file:
        assert {row["BillingAccountId"] for row in csv.DictReader(file)} == {"librairie", "nuage"}

    said = story.tell("Data handed back")
    assert "\n3 objects, 8.6 MiB: all is what the manifest says\n" in said
    handed = place / "librairie-export/records/documents"
    assert {path.read_bytes()[:5] for path in handed.glob("*.pdf")} == {b"%PDF-"}
    assert len(list(handed.iterdir())) == 4  # An invoice and a credit note, each with its lines and as PDF.

    said = story.tell("The audit log")
    assert "issue_credit_note" in said
    assert "nothing wrong. Anchor to keep: " in said
    assert "payback_month" in story.tell("Before you build")


def _one(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, text
    return found[1]


def test_every_page_that_the_story_points_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)", PAGE.read_text())
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
