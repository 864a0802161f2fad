"""docs/metrics.md, made of what the processes of a store say of their metrics.

    python -m tests.deploy.metrics_page RUN_DIRECTORY > docs/metrics.md

RUN_DIRECTORY: `run` in the data directory of a store that serves.
"""

import asyncio
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from objstore.metrics import PREFIX, Family
from objstore.processes.control import ask, processes
from objstore.processes.naming import Naming
from tests.deploy.files import ROOT

PAGE: Final = ROOT / "docs/metrics.md"
HEAD: Final = """# Metrics

`GET /metrics` on the admin port, with the token of `objstore token` (or with `metrics.public`), answers for
all processes behind it: scrape every gateway. This page is made of what the processes say of their metrics
(`tests/deploy/metrics_page.py`), and a test holds the two together. `config/prometheus` scrapes them and has
the alerts, `config/grafana` the dashboards ([monitoring](operations.md#monitoring)).

- Names begin with `objstore_`; a counter ends in `_total`. Units are seconds and bytes; amounts are in
  the smallest unit of their currency.
- Labels never hold a bucket (but one that is replicated), a key or a user. Of tenants 50 are named
  (`metrics.tenant_limit`): those that use most, those that ask most, those to whom most is promised; all
  others are one, `other`. A name among those that ask most is kept until another tenant asks twice as much,
  and nothing is counted twice. Of pools 100 are shown, those that need somebody first.
- What is sold, billed, sealed and stored by tenant is looked at every one to five minutes by the gateway
  that holds the claim on the upkeep, and told by that one only; a scrape reads nothing for it. With more
  than 2,000 volumes, disks and services are as of a minute ago at most.
- `gateway` is the number of a worker process; `member` and `role` name a machine of the cluster; `disk`
  is a disk's number (`objstore_disk_info` has its node); Prometheus adds `instance` and `job`.
"""
# What stands together: heading, and which names. The first that fits.
SECTIONS: Final = (
    ("Requests", r"s3_|usage_counters_lost|service_"),
    ("Tenants", r"tenants?($|_)|quota_|purge"),
    ("Pools and leases", r"pool_|lease|capacity_oversold"),
    ("Invoices and meters", r"billing_|customers|metering_"),
    ("The audit log and secrets", r"audit_|master_key_|tls_"),
    ("Machines and disks", r"member_|disk_|capacity_"),
    (
        "Damage and upkeep",
        r"repair_|scrub_|lost_|unreadable_|endangered|drain_|misplaced|rebalance|trash_|gc_|volumes|upkeep_|.*alarms",
    ),
    (
        "Reads and writes of stripes",
        r"blob_|carried_|degraded_|rewritten_|hedge|avoided_|corrupt_|missing_|failed_",
    ),
    ("Metadata", r"meta_"),
    ("Replication to a second site", r"replication_"),
    ("The store", r""),
)


async def families_of(run_directory: str) -> dict[str, Family]:
    """By name, of all processes of a store that serves."""
    found: dict[str, Family] = {}
    for process in processes(run_directory):
        snapshot = await ask(run_directory, process)
        assert snapshot is not None, f"{process} does not answer"
        found.update((family.name, family) for family in snapshot.families)
    found.update((family.name, family) for family in Naming(1).families())
    return found


def page_of(families: Iterable[Family]) -> str:
    """The whole page."""
    sections: dict[str, list[str]] = {heading: [] for heading, _ in SECTIONS}
    for family in sorted(families, key=lambda one: one.name):
        heading = next(heading for heading, names in SECTIONS if re.match(names, family.name))
        name = PREFIX + family.name + ("_total" if family.kind == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in family.labels)
        sections[heading].append(f"| `{name}` | {family.kind} | {labels} | {family.doc} |\n")
    text = HEAD
    for heading, rows in sections.items():
        assert rows, f"nothing stands under {heading}"
        text += f"\n## {heading}\n\n| name | type | labels | meaning |\n|---|---|---|---|\n{''.join(rows)}"
    return text


if __name__ == "__main__":
    sys.stdout.write(page_of(asyncio.run(families_of(str(Path(sys.argv[1]).resolve()))).values()))
