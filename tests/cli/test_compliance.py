"""One document for an auditor: what is so is in it, what is not so is not claimed."""

import copy
import json
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner, Result

from objstore.cli.compliance import code_of, findings, markdown, sections
from objstore.cli.main import app
from tests.server import Server

WELL: Final[dict[str, Any]] = {
    "cluster": "c0ffee",
    "version": "1",
    "made": "2026-11-22T10:00:00Z",
    "encryption": {
        "ports": [
            {"port": "S3", "listen": ":9000", "tls": True, "certificate_ends": "2027", "words": "TLS"},
            {"port": "between machines", "listen": "", "tls": False, "certificate_ends": None, "words": ""},
        ],
        "at_rest": "nothing is encrypted at rest",
        "secrets": "sealed",
        "master_key_given": True,
        "master_key_place": "given",
        "rotation": {"master_key": "ab", "state": "none", "done": 0, "began": "", "needed": []},
    },
    "residency": {
        "verdict": "proven",
        "reasons": [],
        "began": "a",
        "ended": "b",
        "counts": {
            "disks": 6, "disks_unreachable": 0, "files": 9, "trash": 0, "forbidden": 0, "unknown": 0,
        },
        "sites": ["oran"],
        "notes": [],
        "bound_buckets": [
            {
                "tenant": "t", "allowed": ["oran"], "bucket": "b", "policy": "oran", "admitted": True,
                "volumes": 3, "sites": ["oran"], "outside": 0, "unseen": 0,
            }
        ],
        "more_bound_buckets": False,
    },
    "backups": {
        "engine": "LMDB",
        "disks_with_journal": 2,
        "copy_in_volumes": {"began": "a", "age_seconds": 3_600, "bytes": 10},
        "copy_every_hours": 24.0,
        "elsewhere": "not known",
    },
    "retention": [{"what": "w", "how_long": "h"}],
    "access": {
        "tenants": [{"name": "t"}],
        "users": [{"name": "u", "tenant": "t", "role": "owner", "root": False, "disabled": False}],
        "keys": [
            {
                "access_key": "OS1", "user": "u", "disabled": False, "project": "", "networks": [],
                "created": "2026-01-01T00:00:00Z", "expires": "2027-01-01T00:00:00Z",
                "last_used": "2026-11-22T09:00:00Z", "has_policy": True,
            }
        ],
        "tokens": [
            {
                "id": "OT1", "user": "u", "role": "owner", "tenant": "t", "comment": "laptop",
                "created": "2026-07-01T00:00:00Z", "expires": "2027-01-01T00:00:00Z", "expired": False,
                "last_used": "2026-11-21T09:00:00Z",
            }
        ],
    },
    "audit_log": {"records": 7, "finding": "", "anchor": "7:ab"},
}  # fmt: skip
HARMS: Final[dict[str, tuple[str, Any, int]]] = {
    # Words of the finding: where, what is there instead, the exit code.
    "S3 port speaks without TLS": ("encryption.ports.0.tls", False, 0),
    "the master key is": ("encryption.master_key_given", False, 0),
    "secrets still need master key old": (
        "encryption.rotation.needed", [{"master_key": "old", "keys": 2, "targets": 0, "authorities": 1}],
        0,
    ),
    "residency: it is elsewhere": ("residency", {"verdict": "violated", "reasons": ["it is elsewhere"]}, 4),
    "residency: a disk is away": ("residency", {"verdict": "incomplete", "reasons": ["a disk is away"]}, 3),
    "1 of its 3 volumes have files outside of oran": ("residency.bound_buckets.0.outside", 1, 4),
    "0 of its 3 volumes have files outside": ("residency.bound_buckets.0.admitted", False, 4),
    "volumes were not seen": ("residency.bound_buckets.0.unseen", 2, 3),
    "not every bucket": ("residency.more_bound_buckets", True, 3),
    "no copy of metadata": ("backups.copy_in_volumes", None, 3),
    "72 hours old": ("backups.copy_in_volumes.age_seconds", 72 * 3_600, 3),
    "1 access keys were not used for 90 days": ("access.keys.0.last_used", "2026-01-01T00:00:00Z", 0),
    "1 bearer tokens were not used for 90 days": ("access.tokens.0.last_used", None, 0),
    "never expire": ("access.keys.0.expires", None, 0),
    "the audit log: record 3": ("audit_log.finding", "record 3 is missing", 4),
}  # fmt: skip


def with_(place: str, value: Any) -> dict[str, Any]:
    facts: Any = copy.deepcopy(WELL)
    *path, last = place.split(".")
    inner = facts
    for name in path:
        inner = inner[int(name)] if name.isdigit() else inner[name]
    inner[last] = {**inner[last], **value} if isinstance(value, dict) else value
    whole: dict[str, Any] = {**facts, "findings": findings(facts)}
    return whole


@pytest.mark.parametrize("words", HARMS)
def test_what_is_not_as_it_should_be_is_found_and_ends_with_its_code(words: str) -> None:
    assert [one["words"] for one in findings(WELL)] == ["nothing is encrypted at rest"]
    place, value, code = HARMS[words]
    facts = with_(place, value)
    assert any(words in one["words"] for one in facts["findings"]), facts["findings"]
    assert code_of(facts) == code
    assert words in markdown("t", sections(facts))


def run(server: Server, *words: str) -> Result:
    return CliRunner().invoke(app, ["compliance", "report", *words, "--data", str(server.data)])


def test_a_running_store_is_reported_on_as_it_is(store_server: Server, tmp_path: Path) -> None:
    store_server.command("user", "create", "audited", "--tenant", "audited", "--role", "reader")
    words = ("user", "token", "audited", "--days", "7", "--comment", "review", "-o", "json")
    token = json.loads(store_server.command(*words).stdout)[0]
    name, _, secret = token["token"].partition(".")
    done = run(store_server, "-o", "json")
    assert done.exit_code in (0, 3), done.output  # A young store may have no copy of its metadata yet.
    facts = json.loads(done.stdout)
    assert facts["residency"]["verdict"] == "proven"
    assert facts["residency"]["counts"]["disks"] > 0
    assert not any(port["tls"] for port in facts["encryption"]["ports"])
    assert "does not encrypt" in facts["encryption"]["at_rest"]
    assert facts["encryption"]["master_key_given"] is False
    assert {"name": "audited", "tenant": "audited", "role": "reader", "root": False, "disabled": False} in (
        facts["access"]["users"]
    )
    assert (facts["audit_log"]["finding"], facts["audit_log"]["records"] > 0) == ("", True)
    [listed] = [one for one in facts["access"]["tokens"] if one["id"] == name]
    assert (listed["user"], listed["role"], listed["tenant"]) == ("audited", "reader", "audited")
    assert (listed["comment"], listed["expires"]) == ("review", token["expires"])
    assert (listed["created"] < listed["expires"], listed["expired"]) == (True, False)
    assert secret not in done.stdout
    assert "secret" not in json.dumps(facts["access"])
    page = run(store_server, "-o", "md").stdout
    assert "| audited | audited | reader | no | no |" in page
    assert f"| {name} | audited | reader | audited | review | {listed['created']} |" in page
    pdf = tmp_path / "report.pdf"
    assert run(store_server, "-o", "pdf", "--out", str(pdf)).exit_code in (0, 3)
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert run(store_server, "-o", "pdf").exit_code != 0
