"""The alerts: each is set off by what it is for, and silent for a store that is well. Asked of promtool."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.files import CONFIG, ROOT, needs

FILE = CONFIG / "prometheus/alerts.yml"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]
}
LAST = 210  # Minutes: more than the longest `for` and its range.

# A store that is well: every series that an alert reads, minute by minute. It has run for a day before.
WELL = {
    'up{job="objstore",instance="a"}': f"1x{LAST}",
    'objstore_uptime_seconds{instance="a"}': f"90000+60x{LAST}",
    'objstore_lost_stripes{instance="a"}': f"0x{LAST}",
    'objstore_failed_reads_total{instance="a"}': f"0x{LAST}",
    'objstore_endangered_volumes{instance="a"}': f"0x{LAST}",
    'objstore_alarms{instance="a"}': f"0x{LAST}",
    'objstore_disk_up{disk="1",instance="a"}': f"1x{LAST}",
    'objstore_disk_up{disk="2",instance="a"}': f"1x{LAST}",
    'objstore_disk_up{disk="3",instance="a"}': f"1x{LAST}",
    'objstore_disk_state{disk="1",state="full",instance="a"}': f"0x{LAST}",
    'objstore_repair_queue_files{instance="a"}': f"0x{LAST}",
    'objstore_upkeep_paced_bytes_total{instance="a"}': f"0+1000000x{LAST}",
    'objstore_corrupt_fragments_total{instance="a"}': f"0x{LAST}",
    'objstore_degraded_writes_total{instance="a"}': f"0x{LAST}",
    'objstore_scrub_last_round_timestamp_seconds{instance="a"}': f"1+60x{LAST}",
    'objstore_s3_requests_total{op="PutObject",code_class="2xx",instance="a"}': f"0+6000x{LAST}",
    'objstore_s3_requests_total{op="GetObject",code_class="5xx",instance="a"}': f"0+1x{LAST}",
    'objstore_s3_throttled_total{instance="a"}': f"0x{LAST}",
    'objstore_s3_auth_failures_total{reason="AccessDenied",instance="a"}': f"0+5x{LAST}",
    'objstore_s3_ttfb_seconds_bucket{op="GetObject",le="0.005",instance="a"}': f"0+6000x{LAST}",
    'objstore_s3_ttfb_seconds_bucket{op="GetObject",le="5.0",instance="a"}': f"0+6000x{LAST}",
    'objstore_s3_ttfb_seconds_bucket{op="GetObject",le="+Inf",instance="a"}': f"0+6000x{LAST}",
    'objstore_meta_commits_refused_total{instance="a"}': f"0x{LAST}",
    'objstore_process_restarts_total{process="worker-1",instance="a"}': f"0x{LAST}",
    'objstore_disk_operations_total{disk="1",op="append",instance="a"}': f"0+6000x{LAST}",
    'objstore_disk_operations_total{disk="2",op="append",instance="a"}': f"0+6000x{LAST}",
    'objstore_disk_operations_total{disk="3",op="append",instance="a"}': f"0+6000x{LAST}",
    'objstore_disk_io_duration_seconds_total{disk="1",op="append",instance="a"}': f"0+30x{LAST}",
    'objstore_disk_io_duration_seconds_total{disk="2",op="append",instance="a"}': f"0+30x{LAST}",
    'objstore_disk_io_duration_seconds_total{disk="3",op="append",instance="a"}': f"0+30x{LAST}",
    'objstore_disk_ejected{disk="1",op="read",instance="a"}': f"0x{LAST}",
    'objstore_disk_io_errors_total{disk="1",instance="a"}': f"0x{LAST}",
    'objstore_upkeep_failures_total{service="scrub",instance="a"}': f"0x{LAST}",
    'objstore_upkeep_runs_total{service="repair",instance="a"}': f"0+1x{LAST}",
    'objstore_meta_damaged{instance="a"}': f"0x{LAST}",
    'objstore_meta_rotten_records_total{instance="a"}': f"0x{LAST}",
    'objstore_meta_commit_timeouts_total{instance="a"}': f"0x{LAST}",
    'objstore_meta_journal_rolls_total{instance="a"}': f"0x{LAST}",
    'objstore_meta_db_size_bytes{instance="a"}': f"1000000x{LAST}",
    'objstore_replication_refused{bucket="b",instance="a"}': f"0x{LAST}",
    'objstore_replication_lag_seconds{bucket="b",instance="a"}': f"3x{LAST}",
    'objstore_replication_failing_keys{bucket="b",instance="a"}': f"0x{LAST}",
    'objstore_tenant_used_bytes{tenant="t",instance="a"}': f"800x{LAST}",
    'objstore_tenant_used_bytes{tenant="other",instance="a"}': f"5000x{LAST}",
    'objstore_tenant_quota_bytes{tenant="t",instance="a"}': f"1000x{LAST}",
    'objstore_quota_scopes_at_level{level="100",instance="a"}': f"0x{LAST}",
    'objstore_quota_scopes_over_soft{instance="a"}': f"0x{LAST}",
    'objstore_s3_rate_refusals_total{instance="a"}': f"0+30x{LAST}",
    'objstore_capacity_raw_bytes{instance="a"}': f"1000x{LAST}",
    'objstore_capacity_free_bytes{instance="a"}': f"900x{LAST}",
    'objstore_tls_cert_expiry_timestamp_seconds{port="s3",instance="a"}': f"9999999x{LAST}",
}

# Alert -> what is otherwise, as {series without its labels' braces closed: values}.
ILL: dict[str, dict[str, str]] = {
    "ObjstoreDataLost": {"objstore_lost_stripes{": f"3x{LAST}"},
    "ObjstoreReadsFail": {"objstore_failed_reads_total{": f"0+1x{LAST}"},
    "ObjstoreVolumesEndangered": {"objstore_endangered_volumes{": f"2x{LAST}"},
    "ObjstoreAlarm": {"objstore_alarms{": f"1x{LAST}"},
    "ObjstoreDiskNotHealthy": {'objstore_disk_up{disk="2"': f"0x{LAST}"},
    "ObjstoreDisksDownTogether": {
        'objstore_disk_up{disk="2"': f"0x{LAST}",
        'objstore_disk_up{disk="3"': f"0x{LAST}",
    },
    "ObjstoreRepairStuck": {
        "objstore_repair_queue_files{": f"4x{LAST}",
        "objstore_upkeep_paced_bytes_total{": f"77x{LAST}",
    },
    "ObjstoreCorruptFragments": {"objstore_corrupt_fragments_total{": f"0+1x{LAST}"},
    "ObjstoreDegradedWrites": {"objstore_degraded_writes_total{": f"0+1x{LAST}"},
    "ObjstoreScrubLate": {"objstore_scrub_last_round_timestamp_seconds{": "LONG AGO"},
    "ObjstoreReplicationRefused": {"objstore_replication_refused{": f"1x{LAST}"},
    "ObjstoreReplicationLate": {"objstore_replication_lag_seconds{": f"0+60x{LAST}"},
    "ObjstoreReplicationKeysFail": {"objstore_replication_failing_keys{": f"2x{LAST}"},
    "ObjstoreDown": {"up{": f"0x{LAST}"},
    "ObjstoreRequestsFail": {'objstore_s3_requests_total{op="GetObject",code_class="5xx"': f"0+120x{LAST}"},
    "ObjstoreThrottles": {"objstore_s3_throttled_total{": f"0+90x{LAST}"},
    "ObjstoreCommitterAway": {"objstore_meta_commits_refused_total{": f"0+1x{LAST}"},
    "ObjstoreProcessesRestart": {"objstore_process_restarts_total{": f"0+1x{LAST}"},
    "ObjstoreSlow": {'objstore_s3_ttfb_seconds_bucket{op="GetObject",le="0.005"': f"0+5000x{LAST}"},
    "ObjstoreDiskSlow": {'objstore_disk_io_duration_seconds_total{disk="2"': f"0+600x{LAST}"},
    "ObjstoreDiskEjected": {"objstore_disk_ejected{": f"1x{LAST}"},
    "ObjstoreDiskErrors": {"objstore_disk_io_errors_total{": f"0+1x{LAST}"},
    "ObjstoreUpkeepFails": {"objstore_upkeep_failures_total{": f"0+1x{LAST}"},
    "ObjstoreUpkeepStands": {"objstore_upkeep_runs_total{": f"9x{LAST}"},
    "ObjstoreMetadataRots": {"objstore_meta_rotten_records_total{": f"0x100 1x{LAST}"},
    "ObjstoreCommitOutcomesUnknown": {"objstore_meta_commit_timeouts_total{": f"0+1x{LAST}"},
    "ObjstoreJournalChangesDisks": {"objstore_meta_journal_rolls_total{": f"0+1x{LAST}"},
    "ObjstoreSpaceLow": {"objstore_capacity_free_bytes{": f"100x{LAST}"},
    "ObjstoreSpaceEnds": {"objstore_capacity_free_bytes{": f"900-0.1x{LAST}"},
    "ObjstoreDiskFull": {"objstore_disk_state{": f"1x{LAST}"},
    "ObjstoreMetadataLarge": {"objstore_meta_db_size_bytes{": f"250000000000x{LAST}"},
    "ObjstoreCertificateEnds": {"objstore_tls_cert_expiry_timestamp_seconds{": f"864000x{LAST}"},
    "ObjstoreCertificateEndsNow": {"objstore_tls_cert_expiry_timestamp_seconds{": f"100000x{LAST}"},
    "ObjstoreQuotaNear": {'objstore_tenant_used_bytes{tenant="t"': f"950x{LAST}"},
    "ObjstoreQuotaReached": {'objstore_quota_scopes_at_level{level="100"': f"1x{LAST}"},
    "ObjstoreSoftQuotaPassed": {"objstore_quota_scopes_over_soft{": f"2x{LAST}"},
    "ObjstoreRatesRefuse": {"objstore_s3_rate_refusals_total{": f"0+120x{LAST}"},
    "ObjstoreManyRefusedKeys": {"objstore_s3_auth_failures_total{": f"0+900x{LAST}"},
}
# What comes along, since it is implied.
ALSO = {
    "ObjstoreDisksDownTogether": {"ObjstoreDiskNotHealthy"},
    "ObjstoreCertificateEndsNow": {"ObjstoreCertificateEnds"},
}
AT = "200m"  # When they are looked at.


def test_every_alert_has_a_case() -> None:
    assert ILL.keys() == RULES.keys()


def test_promtool_finds_nothing_wrong_with_the_files() -> None:
    promtool = needs("promtool")
    for command in (
        ["check", "config", "--syntax-only", CONFIG / "prometheus/prometheus.yml"],
        ["check", "rules", FILE],
    ):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def _case(name: str, changes: dict[str, str], firing: set[str]) -> dict[str, Any]:
    series = dict(WELL)
    for start, values in changes.items():
        found = [one for one in series if one.startswith(start)]
        assert len(found) == 1, (name, start, found)
        series[found[0]] = values
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": AT,
                "exp_samples": [{"labels": f'{{alertname="{one}"}}', "value": 1} for one in sorted(firing)],
            }
        ],
    }


def test_each_alert_fires_for_what_it_is_for_and_no_other_does(tmp_path: Path) -> None:
    """Time begins in 1970 for promtool: a scrub of long ago cannot be told there, see the next test."""
    cases = [_case("a store that is well", {}, set())]
    for name, changes in ILL.items():
        if name == "ObjstoreScrubLate":
            continue
        case = _case(name, changes, {name} | ALSO.get(name, set()))
        if name == "ObjstoreDisksDownTogether":  # Two disks are down, so it is said twice.
            case["promql_expr_test"][0]["exp_samples"][0]["value"] = 2
        cases.append(case)
    _run(tmp_path, FILE.read_text(), cases)


def test_a_scrub_that_is_late_or_has_never_ended_is_told(tmp_path: Path) -> None:
    """The same rule with minutes for days."""
    text = FILE.read_text()
    assert text.count("16 * 86400") == 2
    text = text.replace("16 * 86400", "16 * 60")
    name = "ObjstoreScrubLate"
    series = "objstore_scrub_last_round_timestamp_seconds{"
    cases = [
        _case("a round ended 16 minutes ago at most", {}, set()),
        _case("the last round ended in the first minute", {series: f"60x{LAST}"}, {name}),
        _case("no round has ended yet", {series: f"0x{LAST}"}, {name}),
    ]
    _run(tmp_path, text, cases)


def _run(directory: Path, rules: str, cases: list[dict[str, Any]]) -> None:
    (directory / "alerts.yml").write_text(rules)
    test = {"rule_files": ["alerts.yml"], "evaluation_interval": "10m", "tests": cases}
    (directory / "test.yml").write_text(json.dumps(test))
    done = subprocess.run(
        [needs("promtool"), "test", "rules", directory / "test.yml"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_what_is_wrong_and_what_to_do_and_where_to_read_on(name: str) -> None:
    rule = RULES[name]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "action", "page"}
    page = (ROOT / "docs/operations.md").read_text()
    headings = re.findall(r"^#+ (.*)$", page, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert rule["annotations"]["page"] in anchors
