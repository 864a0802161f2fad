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
LAST = 210  # Minutes: more than the longest range, and `for` where it is shorter than three hours.

# A store that is well: every series that an alert reads, minute by minute. It has run for a day before.
WELL = {
    'up{job="objstore",instance="a"}': f"1x{LAST}",
    'objstore_uptime_seconds{instance="a"}': f"90000+60x{LAST}",
    'objstore_lost_stripes{instance="a"}': f"0x{LAST}",
    'objstore_failed_reads_total{instance="a"}': f"0x{LAST}",
    'objstore_unreadable_volumes{instance="a"}': f"0x{LAST}",
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
    'objstore_s3_rate_refusals_total{instance="a"}': f"0x{LAST}",
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
    'objstore_capacity_raw_bytes{instance="a"}': f"1000x{LAST}",
    'objstore_capacity_free_bytes{instance="a"}': f"900x{LAST}",
    'objstore_tls_cert_expiry_timestamp_seconds{port="s3",instance="a"}': f"9999999x{LAST}",
    'objstore_renting_alarms{instance="a"}': f"0x{LAST}",
    'objstore_member_up{member="n1",role="node",instance="a"}': f"1x{LAST}",
    'objstore_member_certificate_expiry_timestamp_seconds{member="n1",role="node",instance="a"}': (
        f"9999999x{LAST}"
    ),
    'objstore_tenant_requests_total{tenant="t",code_class="2xx",instance="a"}': f"0+6000x{LAST}",
    'objstore_tenant_requests_total{tenant="t",code_class="5xx",instance="a"}': f"0+60x{LAST}",
    'objstore_tenant_refusals_total{tenant="t",reason="rate",instance="a"}': f"0+30x{LAST}",
    'objstore_pool_usable_bytes{pool="p",instance="a"}': f"1000x{LAST}",
    'objstore_pool_used_bytes{pool="p",instance="a"}': f"700x{LAST}",
    'objstore_pool_sold_bytes{pool="p",kind="guaranteed",instance="a"}': f"1000x{LAST}",
    'objstore_pool_sold_bytes{pool="p",kind="best_effort",instance="a"}': f"500x{LAST}",
    'objstore_pool_runway_days{pool="p",instance="a"}': f"365x{LAST}",
    'objstore_pool_lead_days{pool="p",instance="a"}': f"365x{LAST}",
    'objstore_leases_at_risk{instance="a"}': f"0x{LAST}",
    'objstore_leases_ending{days="60",instance="a"}': f"0x{LAST}",
    'objstore_metering_hours_waiting{instance="a"}': f"1x{LAST}",
    'objstore_usage_counters_lost_total{instance="a"}': f"0x{LAST}",
    'objstore_metering_clock_ahead_hours{instance="a"}': f"0x{LAST}",
    'objstore_upkeep_failures_total{service="invoices",instance="a"}': f"0x{LAST}",
    'objstore_billing_waiting{alarm="invoices",instance="a"}': f"0x{LAST}",
    'objstore_billing_late_drafts{instance="a"}': f"0x{LAST}",
    'objstore_billing_overdue_minor_units{currency="DZD",instance="a"}': f"0x{LAST}",
    'objstore_billing_oldest_due_timestamp_seconds{instance="a"}': f"0x{LAST}",
    'objstore_audit_broken{instance="a"}': f"0x{LAST}",
    'objstore_service_unserved_minutes{instance="a"}': f"43x{LAST}",
    'objstore_purge_oldest_timestamp_seconds{instance="a"}': f"0x{LAST}",
    'objstore_audit_verified_timestamp_seconds{instance="a"}': f"1+60x{LAST}",
    'objstore_master_key_rotation_began_timestamp_seconds{instance="a"}': f"0x{LAST}",
    'objstore_master_key_rotation_sealed{instance="a"}': f"7x{LAST}",
}

# Alert -> what is otherwise, as {series without its labels' braces closed: values}.
ILL: dict[str, dict[str, str]] = {
    "ObjstoreDataLost": {"objstore_lost_stripes{": f"3x{LAST}"},
    "ObjstoreReadsFail": {"objstore_failed_reads_total{": f"0+1x{LAST}"},
    "ObjstoreVolumesUnreadable": {"objstore_unreadable_volumes{": f"2x{LAST}"},
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
    "ObjstoreScrubLate": {"objstore_scrub_last_round_timestamp_seconds{": f"60x{LAST}"},
    "ObjstoreReplicationRefused": {"objstore_replication_refused{": f"1x{LAST}"},
    "ObjstoreReplicationLate": {"objstore_replication_lag_seconds{": f"0+60x{LAST}"},
    "ObjstoreReplicationKeysFail": {"objstore_replication_failing_keys{": f"2x{LAST}"},
    "ObjstoreDown": {"up{": f"0x{LAST}"},
    "ObjstoreRequestsFail": {'objstore_s3_requests_total{op="GetObject",code_class="5xx"': f"0+120x{LAST}"},
    "ObjstoreErrorBudgetBurns": {
        'objstore_s3_requests_total{op="GetObject",code_class="5xx"': f"0+88x{LAST}"
    },
    "ObjstoreErrorBudgetGoes": {'objstore_s3_requests_total{op="GetObject",code_class="5xx"': f"0+37x{LAST}"},
    "ObjstoreThrottles": {"objstore_s3_throttled_total{": f"0+90x{LAST}"},
    "ObjstoreCommitterAway": {"objstore_meta_commits_refused_total{": f"0+1x{LAST}"},
    "ObjstoreProcessesRestart": {"objstore_process_restarts_total{": f"0+1x{LAST}"},
    "ObjstoreSlow": {'objstore_s3_ttfb_seconds_bucket{op="GetObject",le="0.005"': f"0+5000x{LAST}"},
    "ObjstoreDiskSlow": {'objstore_disk_io_duration_seconds_total{disk="2"': f"0+600x{LAST}"},
    "ObjstoreDiskEjected": {"objstore_disk_ejected{": f"1x{LAST}"},
    "ObjstoreDiskErrors": {"objstore_disk_io_errors_total{": f"0+1x{LAST}"},
    "ObjstoreUpkeepFails": {'objstore_upkeep_failures_total{service="scrub"': f"0+1x{LAST}"},
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
    "ObjstoreRatesRefuse": {"objstore_tenant_refusals_total{": f"0+120x{LAST}"},
    "ObjstoreManyRefusedKeys": {"objstore_s3_auth_failures_total{": f"0+900x{LAST}"},
    "ObjstoreMachineDown": {"objstore_member_up{": f"0x{LAST}"},
    "ObjstoreMachineCertificateEnds": {
        "objstore_member_certificate_expiry_timestamp_seconds{": f"864000x{LAST}"
    },
    "ObjstoreOversold": {"objstore_pool_usable_bytes{": f"999x{LAST}"},
    "ObjstoreLeasesAtRisk": {"objstore_leases_at_risk{": f"1x{LAST}"},
    "ObjstoreRunwayShort": {"objstore_pool_runway_days{": f"364x{LAST}"},
    "ObjstorePoolFills": {"objstore_pool_used_bytes{": f"901x{LAST}"},
    "ObjstoreLeasesEnd": {"objstore_leases_ending{": f"1x{LAST}"},
    "ObjstoreHoursNotSealed": {"objstore_metering_hours_waiting{": f"3x{LAST}"},
    "ObjstoreHoursLongNotSealed": {"objstore_metering_hours_waiting{": f"25x{LAST}"},
    "ObjstoreClockAheadOfMeters": {"objstore_metering_clock_ahead_hours{": f"769x{LAST}"},
    "ObjstoreUsageLost": {"objstore_usage_counters_lost_total{": f"0+1x{LAST}"},
    "ObjstoreInvoiceRunFails": {'objstore_upkeep_failures_total{service="invoices"': "0x50 1x50 2x50 3x60"},
    "ObjstoreInvoicesWait": {"objstore_billing_waiting{": f"1x{LAST}"},
    "ObjstoreMonthNotClosed": {"objstore_billing_late_drafts{": f"1x{LAST}"},
    "ObjstoreInvoicesOverdue": {"objstore_billing_overdue_minor_units{": f"1x{LAST}"},
    "ObjstoreInvoiceLongOverdue": {"objstore_billing_oldest_due_timestamp_seconds{": f"60x{LAST}"},
    "ObjstoreTenantFails": {'objstore_tenant_requests_total{tenant="t",code_class="5xx"': f"0+120x{LAST}"},
    "ObjstoreMonthNotServed": {"objstore_service_unserved_minutes{": f"44x{LAST}"},
    "ObjstorePurgeStuck": {"objstore_purge_oldest_timestamp_seconds{": f"60x{LAST}"},
    "ObjstoreAuditLogBroken": {"objstore_audit_broken{": f"1x{LAST}"},
    "ObjstoreAuditLogNotVerified": {"objstore_audit_verified_timestamp_seconds{": f"60x{LAST}"},
    "ObjstoreMasterKeyRotationStuck": {
        "objstore_master_key_rotation_began_timestamp_seconds{": f"60x{LAST}",
    },
}
# What is nearly one of them and is none: a case's words -> the same.
NEAR: dict[str, dict[str, str]] = {
    "a store that is well": {},
    "a scrub that is not over yet in a young store": {
        "objstore_scrub_last_round_timestamp_seconds{": f"0x{LAST}",
        "objstore_uptime_seconds{": f"0x{LAST}",
    },
    "an alarm of renting, which has an alert of its own": {
        "objstore_alarms{": f"1x{LAST}",
        "objstore_renting_alarms{": f"1x{LAST}",
    },
    "a machine that was away for two minutes": {"objstore_member_up{": f"1x197 0x1 1x{LAST}"},
    "what is used up to the share at which repair still has room": {
        "objstore_pool_used_bytes{": f"900x{LAST}"
    },
    "a pool without disks": {
        "objstore_pool_usable_bytes{": f"0x{LAST}",
        "objstore_pool_used_bytes{": f"0x{LAST}",
        'objstore_pool_sold_bytes{pool="p",kind="guaranteed"': f"0x{LAST}",
        "objstore_pool_runway_days{": f"0x{LAST}",
    },
    "a pool that does not fill": {"objstore_pool_runway_days{": " ".join(["+Inf"] * LAST)},
    "an hour that is over and one before it": {"objstore_metering_hours_waiting{": f"2x{LAST}"},
    "a run of invoices that failed twice": {
        'objstore_upkeep_failures_total{service="invoices"': f"0x50 1x50 2x{LAST}"
    },
    "drafts that became late an hour ago": {"objstore_billing_late_drafts{": f"0x140 1x{LAST}"},
    "clients that are past their rates": {
        'objstore_s3_requests_total{op="GetObject",code_class="5xx"': f"0+55x{LAST}",
        "objstore_s3_rate_refusals_total{": f"0+50x{LAST}",
    },
    "errors that were over an hour ago": {
        'objstore_s3_requests_total{op="GetObject",code_class="5xx"': f"0+50x140 7000x{LAST}"
    },
    "a customer at fault": {
        'objstore_tenant_requests_total{tenant="t",code_class="5xx"': f"0+3000x{LAST}",
        "objstore_tenant_refusals_total{": f"0+2970x{LAST}",
        # So many a second are past its rate, which is told.
    },
    "a change of the master key that goes on": {
        "objstore_master_key_rotation_began_timestamp_seconds{": f"60x{LAST}",
        "objstore_master_key_rotation_sealed{": f"0+1x{LAST}",
    },
}
# What comes along, since it is implied; also of what is nearly one.
ALSO = {
    "ObjstoreDisksDownTogether": {"ObjstoreDiskNotHealthy"},
    "ObjstoreCertificateEndsNow": {"ObjstoreCertificateEnds"},
    "ObjstoreHoursLongNotSealed": {"ObjstoreHoursNotSealed"},
    "ObjstoreRequestsFail": {"ObjstoreErrorBudgetBurns", "ObjstoreErrorBudgetGoes"},
    "ObjstoreErrorBudgetBurns": {"ObjstoreErrorBudgetGoes", "ObjstoreRequestsFail"},
    "a customer at fault": {"ObjstoreRatesRefuse"},
}
AT = "200m"  # When they are looked at.
# Time begins in 1970 for promtool: what is days ago is minutes ago there.
AGE = re.compile(r"((?:time\(\) - objstore_\w+|objstore_uptime_seconds) > \d+) \* 86400")


def test_every_alert_has_a_case_and_none_is_silent_for_want_of_a_series() -> None:
    assert ILL.keys() == RULES.keys()
    there = {series.partition("{")[0] for series in WELL}
    for name, rule in RULES.items():
        assert _names(rule), name
        assert _names(rule) <= there, name


def test_promtool_finds_nothing_wrong_with_the_files() -> None:
    promtool = needs("promtool")
    for command in (
        ["check", "config", "--syntax-only", CONFIG / "prometheus/prometheus.yml"],
        ["check", "rules", FILE],
    ):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def _names(rule: dict[str, Any]) -> set[str]:
    """Of the metrics that an alert reads."""
    return set(re.findall(r"\b(?:objstore_\w+|up(?=\{))", rule["expr"]))


def _series(case: str, changes: dict[str, str]) -> list[dict[str, str]]:
    """A store of its own for each case: no rule adds up what several of them show.

    It has what those alerts read that read what is changed: all others see what they see of one that is well.
    """
    series = dict(WELL)
    for start, values in changes.items():
        found = [one for one in series if one.startswith(start)]
        assert len(found) == 1, (case, start, found)
        series[found[0]] = values
    changed = {start.partition("{")[0] for start in changes}
    read = set().union(*(_names(rule) for rule in RULES.values() if not changes or changed & _names(rule)))
    named: list[dict[str, str]] = []
    for one, values in series.items():
        if one.partition("{")[0] not in read:
            continue
        labels = one.replace('instance="a"', f'instance="{case}"')
        if "job=" not in labels:
            labels = labels.replace("{", f'{{job="{case}",', 1)
        named.append({"series": labels, "values": values})
    return named


def test_each_alert_fires_for_what_it_is_for_and_no_other_does_and_none_for_what_is_nearly_so(
    tmp_path: Path,
) -> None:
    cases = [(name, changes, {name} | ALSO.get(name, set())) for name, changes in ILL.items()]
    cases += [(name, changes, ALSO.get(name, set())) for name, changes in NEAR.items()]
    cases.append(
        (
            "no scrub has ended yet",
            {"objstore_scrub_last_round_timestamp_seconds{": f"0x{LAST}"},
            {"ObjstoreScrubLate"},
        )
    )
    # Rules by job have no instance any more, and all others have both.
    case_of = 'ALERTS{alertstate="firing"}'
    for label in ("job", "instance"):
        case_of = f'label_replace({case_of}, "case", "$1", "{label}", "(.+)")'
    test = {
        "name": "all of them",
        "interval": "1m",
        "input_series": [one for name, changes, _ in cases for one in _series(name, changes)],
        "promql_expr_test": [
            {
                "expr": f"group by (alertname, case) ({case_of})",
                "eval_time": AT,
                "exp_samples": [
                    {"labels": f'{{alertname="{alert}", case="{name}"}}', "value": 1}
                    for name, _, firing in cases
                    for alert in sorted(firing)
                ],
            }
        ],
    }
    text = FILE.read_text()
    assert len(AGE.findall(text)) == 5
    _run(tmp_path, AGE.sub(r"\1 * 60", text), [test])


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
    page, _, section = rule["annotations"]["page"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / page).read_text(), re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert section in anchors
