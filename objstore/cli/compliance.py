"""`objstore compliance report`: what an auditor asks for, in one document.

Gathered from the admin API: encryption, residency, backups and retention as the store says them; tenants,
users and access keys; the audit log, verified from its first record. Nothing is said that was not looked at;
what cannot be known from inside is named as such.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlencode

import typer

from objstore.cli.client import AdminOption, ConfigOption, DataOption
from objstore.cli.output import DEGRADED, OK, REFUSED, check_writable, harmless, write_file
from objstore.cli.store import Store
from objstore.cli.waiting import until_done
from objstore.config import ConfigError

if TYPE_CHECKING:
    from objstore.rental.documents.pdf import Section

FORMAT: Final = 1
TITLE: Final = "Compliance report"
UNUSED_DAYS: Final = 90
COPY_LATE: Final = 2  # Times the hours between two copies of metadata.
DAY_S: Final = 86_400
USER_FIELDS: Final = ("name", "tenant", "role", "root", "disabled")
KEY_FIELDS: Final = (
    "access_key", "user", "disabled", "project", "networks", "created", "expires", "last_used",
)  # fmt: skip

WHO: Final = ("tenants", "users", "keys", "tokens")
TOKEN_FIELDS: Final = (
    "id", "user", "role", "tenant", "comment", "created", "expires", "expired", "last_used",
)  # fmt: skip

Facts = dict[str, Any]

compliance_app = typer.Typer(help="What an auditor asks for.", no_args_is_help=True)


class Form(StrEnum):
    JSON = "json"
    MD = "md"
    PDF = "pdf"


@compliance_app.command("report")
def report(
    data: DataOption = None,
    config: ConfigOption = None,
    admin: AdminOption = None,
    form: Annotated[Form, typer.Option("-o", "--output", help="json, md or pdf.")] = Form.MD,
    out: Annotated[
        Path | None, typer.Option(help="The file; needed for pdf.  [standard output]", show_default=False)
    ] = None,
) -> None:
    """Encryption, residency, backups, who may do what, the audit log, retention: gathered into one document.

    Every disk is asked for its files, and every record of the audit log is verified. Ends with 4 if bytes lie
    where they must not or the audit log was altered, with 3 if one of it cannot be said."""
    if form is Form.PDF and out is None:
        raise ConfigError("a PDF needs a file: --out FILE")
    if out is not None:
        check_writable(out)
    facts = gather(Store(data, config, admin, None))
    _write(facts, form, out)
    raise SystemExit(code_of(facts))


def _write(facts: Facts, form: Form, out: Path | None) -> None:
    title = f"{TITLE}: {facts['cluster']}"
    if form is Form.JSON:
        text = json.dumps(facts, indent=2) + "\n"
    elif form is Form.MD:
        text = markdown(title, sections(facts))
    else:
        from objstore.rental.documents.pdf import render_report

        assert out is not None
        write_file(out, render_report(title, sections(facts), at=datetime.fromisoformat(facts["made"])))
        return
    if out is None:
        print(text, end="")
    else:
        write_file(out, text.encode())


# Gathering.


def gather(store: Store) -> Facts:
    """All facts, with what an auditor would ask about them. Raises: Refused, Unreachable."""
    found = until_done(store, "/api/v1/compliance", store.post("/api/v1/compliance", {}))
    facts = {
        "document": "objstore compliance report",
        "format": FORMAT,
        **found,
        "access": _access(store),
        "audit_log": _audit_log(store),
    }
    return {**facts, "findings": findings(facts)}


def _access(store: Store) -> Facts:
    users = store.listed("/api/v1/users")
    keys = store.listed("/api/v1/keys")
    tokens = store.listed("/api/v1/tokens")
    return {
        "tenants": store.listed("/api/v1/tenants"),
        "users": [{name: user[name] for name in USER_FIELDS} for user in users],
        "keys": [
            {**{name: key[name] for name in KEY_FIELDS}, "has_policy": bool(key["policy"])} for key in keys
        ],
        "tokens": [{name: token[name] for name in TOKEN_FIELDS} for token in tokens],
    }


def _audit_log(store: Store) -> Facts:
    """Every record, from the first one."""
    upto = ""
    while True:
        found: Facts = store.get("/api/v1/audit/verify" + (f"?{urlencode({'after': upto})}" if upto else ""))
        upto = found["upto"]
        if found["finding"] or found["finished"]:
            return {"records": found["records"], "finding": found["finding"], "anchor": upto}


# Judging.


def findings(facts: Facts) -> list[Facts]:
    """What an auditor would ask about: level (violated, open, note) and words."""
    return [
        *_of_encryption(facts["encryption"]),
        *_of_residency(facts["residency"]),
        *_of_backups(facts["backups"]),
        *_of_access(facts["access"], facts["made"]),
        *_of_audit_log(facts["audit_log"]),
    ]


def _finding(level: str, words: str) -> Facts:
    return {"level": level, "words": words}


def _of_encryption(found: Facts) -> list[Facts]:
    told = [
        _finding("note", f"the {port['port']} port speaks without TLS: {port['words']}")
        for port in found["ports"]
        if not port["tls"] and port["listen"]
    ]
    told.append(_finding("note", found["at_rest"]))
    if not found["master_key_given"]:
        told.append(_finding("note", f"the master key is {found['master_key_place']}"))
    rotation = found["rotation"]
    for one in rotation["needed"]:
        left = sum(one[what] for what in ("keys", "targets", "authorities"))
        if left:
            told.append(_finding("note", f"{left} secrets still need master key {one['master_key']}"))
    return told


def _of_residency(found: Facts) -> list[Facts]:
    level = {"proven": "", "incomplete": "open"}.get(found["verdict"], "violated")
    told = [_finding(level, f"residency: {reason}") for reason in found["reasons"]] if level else []
    for bucket in found["bound_buckets"]:
        name = f"bucket {bucket['bucket']} of {bucket['tenant']}"
        if bucket["outside"] or not bucket["admitted"]:
            words = f"{bucket['outside']} of its {bucket['volumes']} volumes have files outside"
            told.append(
                _finding("violated", f"{name}: {words} of {', '.join(bucket['allowed']) or 'its policy'}")
            )
        elif bucket["unseen"]:
            words = f"{bucket['unseen']} of its {bucket['volumes']} volumes were not seen on any disk"
            told.append(_finding("open", f"{name}: {words}"))
    if found["more_bound_buckets"]:
        told.append(_finding("open", "not every bucket of tenants that are bound to sites was looked at"))
    return told


def _of_backups(found: Facts) -> list[Facts]:
    copy = found["copy_in_volumes"]
    if copy is None:
        return [_finding("open", "there is no copy of metadata in volumes yet: objstore meta copy")]
    hours = copy["age_seconds"] / 3_600
    if hours > COPY_LATE * found["copy_every_hours"]:
        words = f"{hours:.0f} hours old, one is due every {found['copy_every_hours']:g}"
        return [_finding("open", f"the copy of metadata in volumes is {words}")]
    return []


def _of_access(found: Facts, made: str) -> list[Facts]:
    now = datetime.fromisoformat(made)
    disabled = {user["name"] for user in found["users"] if user["disabled"]}
    live = [key for key in found["keys"] if not key["disabled"] and key["user"] not in disabled]
    unused = [key for key in live if _days(key["last_used"] or key["created"], now) > UNUSED_DAYS]
    endless = [key for key in live if not key["expires"]]
    told = []
    if unused:
        told.append(_finding("note", f"{len(unused)} access keys were not used for {UNUSED_DAYS} days"))
    if endless:
        told.append(_finding("note", f"{len(endless)} access keys never expire"))
    good = [one for one in found["tokens"] if not one["expired"] and one["user"] not in disabled]
    idle = [one for one in good if _days(one["last_used"] or one["created"], now) > UNUSED_DAYS]
    if idle:
        told.append(_finding("note", f"{len(idle)} bearer tokens were not used for {UNUSED_DAYS} days"))
    return told


def _days(moment: str | None, now: datetime) -> float:
    return 0.0 if moment is None else (now - datetime.fromisoformat(moment)).total_seconds() / DAY_S


def _of_audit_log(found: Facts) -> list[Facts]:
    return [_finding("violated", f"the audit log: {found['finding']}")] if found["finding"] else []


def code_of(facts: Facts) -> int:
    """The exit code."""
    levels = {one["level"] for one in facts["findings"]}
    return REFUSED if "violated" in levels else DEGRADED if "open" in levels else OK


# The document.


def sections(facts: Facts) -> "list[Section]":
    """The same for people."""
    from objstore.rental.documents.pdf import Section

    encryption, residency, backups = facts["encryption"], facts["residency"], facts["backups"]
    access, log = facts["access"], facts["audit_log"]
    copy = backups["copy_in_volumes"]
    rotation = encryption["rotation"]
    return [
        Section(
            title="What was looked at, and what stands out",
            words=[
                f"Cluster {facts['cluster']}, objstore {facts['version']}, made {facts['made']}.",
                "violated: it is not as it must be. open: it could not be said. note: an auditor will ask.",
            ],
            columns=["level", "finding"],
            rows=[[one["level"], one["words"]] for one in facts["findings"]],
        ),
        Section(
            title="Encryption in transit",
            columns=["port", "listens on", "TLS", "certificate ends", "how"],
            rows=[
                _cells(port["port"], port["listen"], port["tls"], port["certificate_ends"], port["words"])
                for port in encryption["ports"]
            ],
        ),
        Section(
            title="Encryption at rest, secrets",
            words=[
                encryption["at_rest"],
                encryption["secrets"],
                f"Master key {rotation['master_key']} is {encryption['master_key_place']}.",
                f"Change of the master key: {rotation['state']}"
                + (f", begun {rotation['began']}" if rotation["began"] else "")
                + f", {rotation['done']} secrets sealed anew.",
            ],
        ),
        Section(
            title="Residency",
            words=[
                _inventory(residency),
                *residency["notes"],
                "Tenants that are bound to sites or to nodes of their own, bucket by bucket:"
                if residency["bound_buckets"]
                else "No tenant is bound to sites, or none of them has a bucket.",
            ],
            columns=["tenant", "allowed", "bucket", "policy", "volumes", "found at", "outside", "unseen"],
            rows=[
                _cells(
                    row["tenant"], row["allowed"], row["bucket"], row["policy"] or "(default)",
                    row["volumes"], row["sites"], row["outside"], row["unseen"],
                )
                for row in residency["bound_buckets"]
            ],
        ),
        Section(
            title="Backups of metadata",
            words=[
                f"Engine: {backups['engine']}; journal files on {backups['disks_with_journal']} disks.",
                "There is no copy in volumes yet."
                if copy is None
                else f"Copy in volumes: begun {copy['began']} ({copy['age_seconds'] // 60} minutes ago),"
                f" {copy['bytes']} bytes; one is due every {backups['copy_every_hours']:g} hours.",
                backups["elsewhere"],
            ],
        ),
        Section(
            title="Access: users",
            words=[", ".join(f"{len(access[what])} {what}" for what in WHO) + "."],
            columns=["user", "tenant", "role", "root", "disabled"],
            rows=[
                _cells(user["name"], user["tenant"], user["role"], user["root"], user["disabled"])
                for user in access["users"]
            ],
        ),
        Section(
            title="Access: keys",
            words=["Last use is known to the hour. Without a policy a key may what its user's role allows."],
            columns=["key", "user", "disabled", "policy", "project", "networks", "expires", "last used"],
            rows=[
                _cells(
                    key["access_key"], key["user"], key["disabled"], key["has_policy"], key["project"],
                    key["networks"], key["expires"] or "never", key["last_used"] or "not known",
                )
                for key in access["keys"]
            ],
        ),
        Section(
            title="Access: bearer tokens of the admin API",
            words=[
                "A token may what its user may, for its time. Last use is known to the hour.",
                "Beside them there is the operator's (objstore token), which may everything and has no end."
                " It lies with the store's data; what is done with it is in the audit log as operator.",
            ],
            columns=["token", "user", "role", "tenant", "comment", "made", "expires", "expired", "last used"],
            rows=[
                _cells(
                    one["id"], one["user"], one["role"], one["tenant"], one["comment"], one["created"],
                    one["expires"], one["expired"], one["last_used"] or "not known",
                )
                for one in access["tokens"]
            ],
        ),
        Section(
            title="Audit log",
            words=[
                f"{log['records']} records verified from the first one: {log['finding'] or 'nothing wrong'}.",
                f"Anchor to keep elsewhere: {log['anchor']}",
                "Whoever can write metadata could write all of it anew: an anchor kept elsewhere tells.",
            ],
        ),
        Section(
            title="How long records are kept",
            columns=["what", "how long"],
            rows=[_cells(row["what"], row["how_long"]) for row in facts["retention"]],
        ),
    ]  # fmt: skip


def _inventory(residency: Facts) -> str:
    counts = residency["counts"]
    sites = ", ".join(site or "(none named)" for site in residency["sites"])
    return (
        f"Inventory of {counts['disks']} disks ({counts['disks_unreachable']} did not answer) at sites"
        f" {sites}, from {residency['began']} to {residency['ended']}: {residency['verdict']}."
        f" {counts['files']} fragment files, {counts['trash']} of them trash; {counts['forbidden']} lie where"
        f" their policy does not allow it, {counts['unknown']} are nobody's."
    )


def _cells(*values: Any) -> list[str]:
    return [_cell(value) for value in values]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return harmless("" if value is None else str(value)).replace("\n", " ")


def markdown(title: str, parts: "Sequence[Section]") -> str:
    lines = [f"# {title}", ""]
    for part in parts:
        lines += [f"## {part.title}", ""]
        for sentence in part.words:
            lines += [harmless(sentence), ""]
        if part.rows:
            lines += [_row(part.columns), _row(["---"] * len(part.columns)), *map(_row, part.rows), ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
