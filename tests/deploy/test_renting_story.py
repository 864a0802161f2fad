"""docs/renting.md does what it says: its blocks are run as they stand, in its order, on real stores.

The clock (objstore/clock.py) of the store on one machine is moved: the story begins in the last half day of
January 2027, goes on six hours behind it, and ends on the second of March. Signatures of requests keep the
real time (they do not go by that clock). Certificates of a cluster would go by it and be refused: its blocks
are told in real time.
"""

import csv
import json
import re
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from objstore.processes.dev import LocalCluster
from tests.deploy.files import CONFIG, ROOT
from tests.deploy.manual import Machine, blocks, environment_of, machine, ports
from tests.deploy.test_metrics_named import as_asked, queries
from tests.deploy.watching import Prometheus, prometheus
from tests.waiting import wait_until

PAGE = ROOT / "docs/renting.md"
BEGIN = datetime(2027, 1, 31, 12, tzinfo=UTC)
BEHIND = datetime(2027, 2, 1, 6, tzinfo=UTC)
MONTH_AFTER = datetime(2027, 3, 2, 6, tzinfo=UTC)
LIMIT_SECONDS = 120.0
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


def ask(root: Path, path: str) -> Any:
    """The admin API's answer. The command line would take longer to start than there is to wait."""
    token = (root / "var/objstore/admin.token").read_text().strip()
    request = urllib.request.Request(
        f"http://{admin_address(root)}/api/v1/{path}", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as answer:
        return json.load(answer)


def wait_until_sealed(root: Path, hours_until: str) -> None:
    path = "tenants/librairie/usage?limit=1"
    wait_until_so(root, path, lambda usage: usage["sealed_until"] == hours_until)


def wait_until_so(root: Path, path: str, holds: Callable[[Any], bool]) -> None:
    """Of what the admin API says there."""
    wait_until(lambda: holds(ask(root, path)), lambda: ask(root, path), limit_s=LIMIT_SECONDS)


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
    """The page's blocks for one kind of store, each of which is told once."""

    def __init__(self, store: Machine, run: str = "one machine") -> None:
        self._store = store
        self._left = [block for block in blocks(PAGE) if block.run == run]

    def tell(self, heading: str) -> str:
        """Run the next block, which is under this heading; what it said."""
        block = self._left.pop(0)
        assert block.heading == heading
        return self._store.run(block)

    @property
    def ended(self) -> bool:
        return not self._left


@pytest.mark.timeout(1_200)
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
            wait_until_sealed(tmp_path, "2027-02-01T05:00:00Z")
            total = bill(story, tmp_path)
            start_at(store, MONTH_AFTER)
            watcher.watch(admin_address(tmp_path))
            wait_until_sealed(tmp_path, "2027-03-02T05:00:00Z")
            # Services of their own, that begin when they like.
            wait_until_so(tmp_path, "tenants/wilaya", lambda wilaya: wilaya["state"] != "active")
            leases = "leases?tenant=minoterie"
            wait_until_so(tmp_path, leases, lambda found: found["items"][0]["renewals"] == 2)
            total += go_on(story)
            look_back(story, tmp_path, total)
            assert story.ended
            watched(watcher)


def sell(story: Story) -> None:
    assert "TVA 19 %" in story.tell("The seller")
    assert "plan wholesale version 1 is published" in story.tell("Plans")
    assert story.tell("Customers").count("\nstate\tactive\n") == 7
    said = story.tell("Customers")
    assert "plan tpe-pme version 2 is published" in said
    assert "\nplan_version\t1\n" in said
    assert "\nnext_plan_version\t2\n" in said
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
    said = story.tell("Capacity, and a lease")
    assert said.count("is signed") == 1, said


def bill(story: Story, place: Path) -> Decimal:
    """January. Returns: what librairie was invoiced."""
    said = story.tell("The month's end")
    assert said.count("\tdraft\t") == 4, said
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
    said = story.tell("Service levels")
    assert "\toutage\t2027-01-12T08:10:00Z\t2027-01-12T08:50:00Z\t" in said
    assert "\tmaintenance\t2027-03-07T01:00:00Z\t2027-03-07T03:00:00Z\tnuage\t" in said

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
    return total


def go_on(story: Story) -> Decimal:
    """A month later. Returns: what revendeur was invoiced for January, by itself since."""
    said = story.tell("Money")
    assert "\nwilaya\tFA-2027-000003\t" in said
    assert "\nstate\tread_only\n" in said
    of_reseller = Decimal(_one(r"\nrevendeur\tFA-2027-000004\t.*\t([\d.]+) DZD\n", said))
    owed = _one(r"\nwilaya\t.*\t([\d.]+ DZD)\n", said)
    said = story.tell("Money")
    assert re.search(r"\(AccountPastDue\).*\n(.*\n)*made\n$", said), said
    assert f"\tmandat_administratif\t{owed}\tMA 2027/31\t" in said

    said = story.tell("The month after")
    assert "\tAbonnement\t1/1\tMonths\t1800.00\t1800.00 DZD\n" in said  # The plan's second version.
    # Half of February 1 GB, the other half 2 GB.
    assert "\tCommitted capacity STANDARD\t3/2\tGB-Months\t5.90\t8.85 USD\n" in said
    assert "\tminoterie\tguaranteed\tactive\t5000000000\t2027-02-01T00:00:00Z\t2027-05-01T00:00:00Z\t" in said
    # 75.00 a month: 16 of the 31 days of March, and April.
    assert "ends on 2027-03-16T00:00:00Z; fee 113.71 DZD\n" in story.tell("The month after")
    return of_reseller


def look_back(story: Story, place: Path, total: Decimal) -> None:
    """Args: total: what librairie and its reseller were invoiced for January."""
    said = story.tell("Reports")
    assert re.search(rf"revendeur\t2027-01\tDZD\t.*\t{total - Decimal('1.19')}\t1\.19\t", said), said
    with (place / "january.csv").open() as file:
        assert {row["BillingAccountId"] for row in csv.DictReader(file)} == {
            "librairie",
            "nuage",
            "revendeur",
            "wilaya",
        }

    said = story.tell("Data handed back")
    assert "\n3 objects, 8.6 MiB: all is what the manifest says\n" in said
    handed = place / "librairie-export/records/documents"
    assert {path.read_bytes()[:5] for path in handed.glob("*.pdf")} == {b"%PDF-"}
    # An invoice and a credit note, each with its lines and as PDF; the lines of what is a draft.
    assert len(list(handed.iterdir())) == 5

    said = story.tell("The audit log")
    assert "terminate_lease" in said
    assert "nothing wrong. Anchor to keep: " in said
    assert "payback_month" in story.tell("Before you build")


def _one(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, text
    return found[1]


@pytest.mark.timeout(1_200)
def test_a_tenant_has_nodes_of_its_own_and_one_of_them_is_lost_as_the_page_says(tmp_path: Path) -> None:
    settings = {"OBJSTORE_UPKEEP__PERIOD_FACTOR": "0.05"}  # Leases are looked at every three seconds.
    cluster = LocalCluster(
        directory=tmp_path / "cluster", nodes=4, codec="1+1", environment=settings, bound=True
    )
    (tmp_path / "commands").mkdir()
    try:
        cluster.start()
        with machine(tmp_path / "commands", {}) as store:
            config = tmp_path / "gateway.toml"
            config.write_text(f'[server]\ndata = "{cluster.gateway.data}"\n')
            store.environment |= environment_of(config)
            lease_nodes(Story(store, "cluster"), cluster)
    finally:
        cluster.close()


def lease_nodes(story: Story, cluster: LocalCluster) -> None:
    a_customer(cluster)
    said = story.tell("Nodes of its own, and a node that is lost")
    assert "is signed" in said
    assert len(set(_one(r"\nnodes\t(.*)\n", said).split())) == 2
    pool = "lease-" + asked(cluster, "leases?tenant=nuage")["items"][0]["id"].lower()

    def capacity() -> Any:
        return asked(cluster, "capacity")["items"]

    wait_until(lambda: pool in {one["pool"] for one in capacity()}, capacity, limit_s=LIMIT_SECONDS)

    lost = cluster.members[3]
    cluster.kill(lost)
    too_few = f"policy {pool}: no new volume can be made: 2 disks wanted, 1 usable"

    def findings() -> str:
        return json.dumps(asked(cluster, "doctor"))

    def told() -> bool:
        found = findings()
        return too_few in found and "oversold capacity" in found

    wait_until(told, findings, limit_s=LIMIT_SECONDS)
    said = story.tell("Nodes of its own, and a node that is lost")
    assert re.search(rf"\npool\t{pool}\n(.*\n)*usable\t0\n(.*\n)*oversold\t1000000000\n", said), said
    assert f"leases at risk: {pool.removeprefix('lease-').upper()} of nuage" in said
    assert too_few in said
    cluster.start_node(lost)
    wait_until(lambda: not any(one["oversold"] for one in capacity()), capacity, limit_s=LIMIT_SECONDS)
    assert story.ended


def asked(cluster: LocalCluster, path: str, content: object = None) -> Any:
    """What the admin API answers. What it cannot answer just then is asked again, unless it is an act."""
    limit = time.monotonic() + LIMIT_SECONDS
    while True:
        status, answer = cluster.admin("GET" if content is None else "POST", f"/api/v1/{path}", content)
        if status in (200, 201):
            return answer
        assert content is None, answer
        assert status == 0 or status >= 500, answer
        assert time.monotonic() < limit, answer


def a_customer(cluster: LocalCluster) -> None:
    """What the page has by then on the other store: a seller, and nuage."""
    seller = {"id": "dz", "name": "Stockage d'Alger SPA", "address": ["16000 Alger"], "country": "DZ"}
    asked(cluster, "sellers", {**seller, "tax_ids": {"RC": "16/00-1234567B23"}})
    customer = {"name": "nuage", "kind": "wholesale", "seller": "dz", "legal_name": "Nuage Ltd"}
    more = {"address": ["Dublin"], "country": "IE", "tax_profile": "exempt", "trial_days": 0}
    asked(cluster, "tenants", {**customer, **more, "identity_checked": "2026-01-20T10:00:00Z"})


def test_every_page_that_the_story_points_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)", PAGE.read_text())
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
