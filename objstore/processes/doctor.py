"""`objstore doctor`: what will hurt later, found now, each with what to do about it."""

import asyncio
import os
import resource
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from objstore.blobs.placement import Placement, Promise, place_volume, promised
from objstore.blobs.topology import DEFAULT_POLICY, TOP_DOWN, Layout, Level, Policy, Topology
from objstore.config import Config
from objstore.errors import BadArgument, StoreError, TooFewDisks, WeakerPromise
from objstore.meta.client import MetaClient
from objstore.meta.kv_lmdb import library_version
from objstore.meta.schema import MemberRecord
from objstore.node.authority import NODE
from objstore.objects.adoption import Unadopted, unadopted
from objstore.processes.control import Snapshot, ask
from objstore.processes.outlook import Counts, Outlook
from objstore.processes.parts import Parts, survey_of, writer_limits
from objstore.processes.rotation import Rotation
from objstore.rental.records import SellerRecord
from objstore.rental.sellers import check_timezone, list_sellers
from objstore.upkeep.context import named

FILES_WANTED = 16_384  # Open files per process: connections, and fragment files of every disk.
EXPIRY_DAYS = 14.0
AUTHORITY_DAYS = 365.0  # Of the root of the machines' certificates, which has ten years.
MEMBER_DAYS = 20.0  # Of a member's certificate: it is renewed 30 days before its end.
NAMED_MAX = 10  # Buckets, disks or nodes that a finding names.
READER_LAG_MAX = 100_000  # Transactions. A read lives for one call: microseconds.
KNOWN_LMDB = "0.9."  # Files of LMDB 1.0 differ.

LOOK = "look at the store's log"

Finding = dict[str, Any]


def finding(check: str, level: str, text: str, remedy: str = "") -> Finding:
    assert level in ("ok", "warning", "problem")
    return {"check": check, "level": level, "finding": text, "remedy": remedy}


async def examine(
    parts: Parts,
    disks: list[dict[str, Any]],
    state: dict[str, Any],
    alarms: dict[str, str],
    outlook: Outlook,
    counts: Counts,
    silent: Mapping[bytes, int],
) -> list[Finding]:
    """
    Args:
        disks: as the admin port shows them.
        state: the supervisor's.
        alarms: the services', by name.
        silent: members that do not answer this gateway, noted or not (Heartbeats.silent).
    """
    layout = await parts.store.ledger.layout()
    members = as_heard(await parts.store.ledger.members(), silent)
    nodes = [member for member in members.values() if member.role == NODE and member.state == "joined"]
    return [
        *_processes(state),
        *service(outlook, counts),
        *_disks(disks, {node.name for node in nodes if node.away_us}),
        *_devices(disks),
        *(
            finding("upkeep", "problem", f"{name}: {words}", "see the store's log")
            for name, words in alarms.items()
        ),
        *placements(layout, await survey_of(parts, layout), *parts.spec.cluster.codec),
        _space(disks),
        *small(disks, writer_limits(parts.spec.config).disk_free_min),
        _codec(parts),
        *(await _engine(parts)),
        *unmetered(await unadopted(parts.store)),
        *_certificates(parts.spec.config),
        *(master_keys(await Rotation.of(parts, parts.kv).needs())),
        *machines(members, time.time(), {spot.node: spot.site for spot in layout.spots.values()}),
        *(authority(Path(parts.spec.cluster.tls), time.time()) if parts.spec.cluster.tls else ()),
        *time_zones(await list_sellers(parts.kv)),
        _open_files(),
        await asyncio.to_thread(_clock),
    ]


def as_heard(members: Mapping[bytes, MemberRecord], silent: Mapping[bytes, int]) -> dict[bytes, MemberRecord]:
    """The members with those away that do not answer: while metadata takes no commits nobody can note it."""
    return {
        id_: msgspec.structs.replace(record, away_us=record.away_us or silent.get(id_, 0))
        for id_, record in members.items()
    }


def service(outlook: Outlook, counts: Counts) -> list[Finding]:
    """What clients get just now."""
    found = []
    if not outlook.known:
        found.append(finding("reads", "warning", outlook.words, "ask again"))
    elif outlook.count:
        back = f"bring back disks {named(outlook.away, len(outlook.away))}; " if outlook.away else ""
        found.append(finding("reads", "problem", outlook.words, f"{back}objstore volume list --damaged"))
    else:
        found.append(finding("reads", "ok", "every volume can be read"))
    if counts.unwritable:
        remedy = "bring back disks that are away: objstore disk list"
        found.append(finding("writes", "problem", counts.unwritable, remedy))
    else:
        found.append(finding("writes", "ok", f"{counts.healthy} disks take new files"))
    return found


def master_keys(needs: dict[str, dict[str, int]]) -> list[Finding]:
    """Args: needs: what each of the other master keys still opens (rotation.py)."""
    found = []
    for name, counts in needs.items():
        words = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        if words:
            text = f"{words} are still sealed under master key {name}"
            found.append(finding("master key", "warning", text, "objstore key rotate-master"))
        else:
            text = f"nothing needs master key {name} any more: take it out of security.other_master_keys"
            found.append(finding("master key", "ok", text))
    return found


def time_zones(sellers: Sequence[SellerRecord]) -> list[Finding]:
    """Without its seller's time zone this machine cannot say in which year an invoice is issued."""
    found = []
    for seller in sellers:
        try:
            check_timezone(seller.timezone)
        except BadArgument as failure:
            text = f"invoices of seller {seller.id} do not become final here: {failure}"
            found.append(finding("time zones", "problem", text, "apt-get install tzdata"))
    return found


def unmetered(buckets: Sequence[Unadopted]) -> list[Finding]:
    """Buckets from before there were meters: nothing of them is billed, and no quota holds in them."""
    waiting = [bucket.name for bucket in buckets if not bucket.adoption.begun_us and bucket.uploads]
    if waiting:
        names = named(waiting, len(waiting), NAMED_MAX)
        text = f"not metered yet, since uploads are under way in them: {names}"
        remedy = "complete or abort the uploads: aws s3api list-multipart-uploads --bucket NAME"
        return [finding("meters", "warning", text, remedy)]
    if buckets:
        return [finding("meters", "ok", f"{len(buckets)} buckets from before there were meters are adopted")]
    return [finding("meters", "ok", "every bucket is metered")]


def _processes(state: dict[str, Any]) -> list[Finding]:
    away = {name: child.get("words", "") for name, child in state["children"].items() if not child["ready"]}
    restarted = {n: child["restarts"] for n, child in state["children"].items() if child["restarts"]}
    if away:
        names = ", ".join(f"{name} ({words})" if words else name for name, words in away.items())
        return [finding("processes", "problem", f"not ready: {names}", LOOK)]
    if restarted:
        text = ", ".join(f"{name} {count} times" for name, count in restarted.items())
        return [finding("processes", "warning", f"started again since the start: {text}", LOOK)]
    return [finding("processes", "ok", f"{len(state['children'])} run, none was started again")]


def _disks(disks: list[dict[str, Any]], away: Collection[str] = ()) -> list[Finding]:
    """Args: away: names of the machines that do not answer: it is not their disks that ail."""
    remedies = {
        "suspect": "check the device and its cabling, then: objstore disk verify N",
        "read-only": "see dmesg; repair the file system, mount it writable, then: objstore disk verify N",
        "full": "free or add space",
        "failed": "replace the device: objstore disk replace N PATH; when nothing counts on it any more, and"
        " for the disks of a machine that is removed: objstore disk remove N",
        "draining": "wait until objstore disk list shows no files on it, then: objstore disk remove N",
        "missing": "mount it; a path without its disk is never taken for an empty one",
        "foreign": "put the right disk at the path",
    }
    bad = [
        finding(
            "disks",
            "problem",
            f"disk {disk['disk']} ({disk['path']}) is {disk['state']}: {disk['reason']}",
            remedies.get(disk["state"], "").replace(" N", f" {disk['disk']}"),
        )
        for disk in disks
        if disk["state"] != "healthy" and disk["node"] not in away
    ]
    if unknown := [str(disk["disk"]) for disk in disks if disk["node"] in away]:
        text = f"of machines that do not answer: {named(unknown, len(unknown), NAMED_MAX)}"
        bad.append(finding("disks", "problem", text, "see the machines"))
    slow = [
        finding(
            "disks",
            "warning",
            f"disk {disk['disk']} ({disk['path']}) is slow and avoided: {disk['slow']}",
            "SMART, dmesg and the network to its node; it is used again by itself when it is quick",
        )
        for disk in disks
        if disk["slow"]
    ]
    return [*bad, *slow] or [finding("disks", "ok", f"all {len(disks)} are healthy")]


def _devices(disks: list[dict[str, Any]]) -> list[Finding]:
    shared: dict[str, list[int]] = {}
    for disk in disks:
        if disk["device"] is not None:
            shared.setdefault(disk["device"], []).append(disk["disk"])
    together = {device: numbers for device, numbers in shared.items() if len(numbers) > 1}
    if not together:
        return [finding("devices", "ok", "every disk has a device of its own")]
    return [
        finding(
            "devices",
            "warning",
            f"disks {', '.join(map(str, numbers))} are directories on one device ({device}): a convenience"
            " that survives no disk; its capacity counts once",
            "for data that matters give each --disk a device of its own",
        )
        for device, numbers in together.items()
    ]


def code_now(topology: Topology, k: int, m: int) -> tuple[int, int]:
    """The code that a new volume gets over the disks that take writes now; k is 0 where none can be made."""
    try:
        return place_volume(topology, DEFAULT_POLICY, k=k, m=m, chance=lambda: 0.5).k, m
    except (TooFewDisks, WeakerPromise):
        return 0, m


def placement(topology: Topology, policy: Policy, k: int, m: int) -> tuple[Promise, str]:
    """What a new volume would promise over the disks that take writes now, and that in words.

    Args:
        k, m: the code of a policy that has none of its own.
    """
    k, m = policy.code(k, m)
    try:
        chosen = place_volume(topology, policy, k=k, m=m, chance=lambda: 0.5)
    except (TooFewDisks, WeakerPromise) as failure:
        return Promise.NONE, f"no new volume can be made: {failure}"
    narrow = f"; {chosen.k}+{m} instead of {k}+{m}, for want of disks" if chosen.k < k else ""
    domains = len({topology.paths[number][chosen.level] for number in chosen.disks})
    words = f"a new volume lies on {len(chosen.disks)} disks of {domains} {chosen.level.word}s"
    above = _above(topology, policy, chosen, m)
    return chosen.promise, f"{words}: {chosen.promise.words()}{above}{narrow}"


def _above(topology: Topology, policy: Policy, chosen: Placement, m: int) -> str:
    """What becomes of a new volume with a site or a rack, where what it is spread over is smaller."""
    promises = promised(topology, policy, chosen.k, m, takes=True)
    words, more_than = "", 1
    for level in TOP_DOWN:
        domains = len({topology.paths[number][level] for number in topology.view(policy, takes=True).numbers})
        if level > chosen.level and domains > more_than:  # A rack that is a site's only one says nothing new.
            words += f"; {promises[level].words(level.word)}"
        more_than = max(more_than, domains)
    return words


def placements(layout: Layout, topology: Topology, k: int, m: int) -> list[Finding]:
    """The same for every policy: the default one, and those whose promise is not the best."""
    found: list[Finding] = []
    for policy in (DEFAULT_POLICY, *layout.policies.values()):
        promise, words = placement(topology, policy, k, m)
        text = f"policy {policy.name}: {words}" if policy.name else words
        if promise is not Promise.SPARE or "instead of" in words:
            level = "problem" if policy.name and "no new volume" in words else "warning"
            remedy = "disks on more nodes, or of the policy's sites and pool: objstore layout show"
            one_machine = topology.base is Level.DEVICE
            found.append(
                finding(
                    "placement",
                    level,
                    text,
                    "disks on more devices: objstore disk add PATH" if one_machine else remedy,
                )
            )
        elif not policy.name:
            found.append(finding("placement", "ok", text))
    return found


def machines(
    members: Mapping[bytes, MemberRecord], now_s: float, sites: Mapping[str, str] = MappingProxyType({})
) -> list[Finding]:
    """The machines of a cluster: who is away, and whose certificate is not renewed as it should be.

    Args:
        sites: where the layout has a machine, by the hex digits of its id; others are where they say.
    """
    joined = {id_: record for id_, record in members.items() if record.state == "joined"}
    found: list[Finding] = []
    together: set[bytes] = set()
    for site, ids in _silent_sites(joined, sites).items():
        found.append(_silent_site(site, [joined[id_] for id_ in ids]))
        together.update(ids)
    found += [
        finding(
            "machines",
            "problem",
            f"{record.role} {record.name} has not answered since {_moment(record.away_us)}",
            "start it, or look at the network between; a machine that is lost: objstore cluster remove NAME",
        )
        for id_, record in joined.items()
        if record.away_us and id_ not in together
    ]
    for record in joined.values():
        days = (record.ends_s - now_s) / 86_400
        if days < MEMBER_DAYS:
            what = "has ended" if days < 0 else f"ends in {days:.0f} days and was to be renewed before"
            found.append(
                finding(
                    "machines",
                    "problem" if days < 0 else "warning",
                    f"the certificate of {record.role} {record.name} {what}",
                    "it renews by itself when it reaches a gateway: see its log; once it has ended, start it"
                    f" with --join and a token of: objstore cluster token --for {record.name}",
                )
            )
    if not found and joined:
        found.append(finding("machines", "ok", f"all {len(joined)} answer, and renew their certificates"))
    return found


def _silent_sites(joined: Mapping[bytes, MemberRecord], sites: Mapping[str, str]) -> dict[str, list[bytes]]:
    """Sites of which no storage node answers, with their nodes. A site that is the only one is none."""
    nodes: dict[str, list[bytes]] = {}
    for id_, record in joined.items():
        if record.role == NODE:
            nodes.setdefault(sites.get(id_.hex(), record.site), []).append(id_)
    if len(nodes) < 2:
        return {}
    return {site: ids for site, ids in nodes.items() if site and all(joined[id_].away_us for id_ in ids)}


def _silent_site(site: str, nodes: Sequence[MemberRecord]) -> Finding:
    names = sorted(record.name for record in nodes)
    since = _moment(max(record.away_us for record in nodes))
    return finding(
        "machines",
        "problem",
        f"site {site}: no node has answered since {since}: {named(names, len(names), NAMED_MAX)}",
        "nothing, if it comes back; if it is lost for good, add nodes elsewhere, then for each of its own:"
        " objstore cluster remove NAME --lost",
    )


def _moment(at_us: int) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(at_us / 1e6))} UTC"


def authority(tls: Path, now_s: float) -> list[Finding]:
    """The root of the machines' certificates, from the directory of this gateway's credentials."""
    from objstore.node.authority import from_pem
    from objstore.node.tls import TRUST, decode_trust

    try:
        newest = from_pem(decode_trust((tls / TRUST).read_bytes()).roots[-1])
    except (OSError, StoreError) as failure:
        return [finding("authority", "problem", f"{tls / TRUST}: {failure}", LOOK)]
    days = (newest.not_valid_after_utc.timestamp() - now_s) / 86_400
    if days < AUTHORITY_DAYS:
        text = f"the cluster's authority ends in {days:.0f} days, and every certificate with it"
        return [finding("authority", "warning", text, "objstore cluster renew: all goes on meanwhile")]
    return [finding("authority", "ok", f"the cluster's authority ends in {days / 365.25:.0f} years")]


def _space(disks: list[dict[str, Any]]) -> Finding:
    tight = [d for d in disks if d["total"] and d["free"] / d["total"] < 0.1]
    if tight:
        text = ", ".join(f"disk {d['disk']} {100 * d['free'] / d['total']:.0f}%" for d in tight)
        return finding("space", "warning", f"less than a tenth is free: {text}", "add disks or delete data")
    return finding("space", "ok", "every disk has more than a tenth free")


def small(disks: list[dict[str, Any]], least: int) -> list[Finding]:
    """Disks that are well and take no new volume: fewer than `least` bytes are free."""
    return [
        finding(
            "space",
            "warning",
            f"disk {disk['disk']} ({disk['path']}) takes no new volume: {disk['free']:,} bytes are free, and"
            f" one is begun from {least:,} on",
            f"free or add space, or objstore disk replace {disk['disk']} PATH",
        )
        for disk in disks
        if disk["state"] == "healthy" and disk["free"] is not None and disk["free"] < least
    ]


def _codec(parts: Parts) -> Finding:
    backend = parts.spec.backend
    if backend.accelerated:
        return finding("codec", "ok", backend.name)
    return finding(
        "codec",
        "warning",
        f"{backend.name}: {backend.note}",
        "apt-get install libisal2: 20 to 40 times faster",
    )


async def _engine(parts: Parts) -> list[Finding]:
    if not isinstance(parts.kv, MetaClient):
        if parts.kv.away:
            return [finding("metadata", "problem", "PostgreSQL does not answer", "see its own log")]
        return [finding("metadata", "ok", "PostgreSQL answers")]
    records = await ask(parts.spec.run_directory, "committer-metrics")
    return [*_metadata(parts), *_readers(parts.kv), _records(records)]


def _metadata(parts: Parts) -> list[Finding]:
    version = library_version()
    findings = [
        finding("lmdb", "ok", f"LMDB {version}")
        if version.startswith(KNOWN_LMDB)
        else finding("lmdb", "problem", f"LMDB {version}, written for 0.9", "install the pinned lmdb wheel")
    ]
    size, memory = state_size(parts), _memory()
    text = f"metadata has {size / 2**20:.0f} MiB, the machine {memory / 2**30:.1f} GiB of memory"
    if size > memory / 2:
        findings.append(
            finding("metadata size", "warning", text, "more memory: reads of cold metadata wait for the disk")
        )
    else:
        findings.append(finding("metadata size", "ok", text))
    return findings


def _readers(kv: MetaClient) -> list[Finding]:
    """A read transaction left open, or a slot of a dead process, makes LMDB's file grow for good."""
    try:
        slots = kv.reader.readers()
    except StoreError as failure:
        return [finding("metadata readers", "problem", str(failure), LOOK)]
    dead = sorted({process for process, _ in slots if not os.path.exists(f"/proc/{process}")})
    behind = max((lag for _, lag in slots if lag is not None), default=0)
    if dead:
        text = f"slots of dead processes: {', '.join(map(str, dead))}"
        return [finding("metadata readers", "warning", text, "the committer frees them within seconds")]
    if behind > READER_LAG_MAX:
        text = f"a read is open since {behind} transactions"
        return [finding("metadata readers", "warning", text, "a bug, if it stays: restart, and report it")]
    return [finding("metadata readers", "ok", f"{len(slots)} slots, none stale")]


def _records(committer: Snapshot | None) -> Finding:
    """Damage in LMDB: what the committer has found, and what it could not mend yet."""
    if committer is None:
        return finding("metadata records", "problem", "the committer does not answer", LOOK)
    counts = {one.name: one.samples[0][1][0] for one in committer.families if len(one.samples) == 1}
    found, now = int(counts.get("meta_rotten_records", 0)), int(counts.get("meta_damaged", 0))
    remedy = "check the memory and the disk that holds LMDB: it returned other bytes than were written"
    if now:
        text = f"{now} fail their checksums; they are looked up in the journal"
        return finding("metadata records", "problem", text, remedy)
    if found:
        text = f"{found} failed their checksums since the committer's start, and were put back"
        return finding("metadata records", "warning", text, remedy)
    return finding("metadata records", "ok", "none failed its checksum")


def state_size(parts: Parts) -> float:
    """Bytes that LMDB's file takes on its disk; 0 if it is not there, or not the engine."""
    if not isinstance(parts.kv, MetaClient):
        return 0.0
    try:
        return float(os.stat(Path(parts.kv.reader.path) / "data.mdb").st_blocks * 512)
    except (OSError, StoreError):
        return 0.0


def _memory() -> float:
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def certificates(config: Config) -> dict[str, str]:
    """Port -> its certificate's file."""
    found = {}
    if config.tls.certificate:
        found["s3"] = config.tls.certificate
    if config.tls.admin and (certificate := config.tls.admin_certificate or config.tls.certificate):
        found["admin"] = certificate
    return found


def expiry(certificate: str) -> float:
    """When the first certificate of a PEM file ends, seconds since 1970. Raises: OSError, ValueError."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(Path(certificate).read_bytes()).not_valid_after_utc.timestamp()


def _certificates(config: Config) -> list[Finding]:
    found = []
    for port, certificate in certificates(config).items():
        try:
            days = (expiry(certificate) - time.time()) / 86400
        except (OSError, ValueError) as failure:
            found.append(
                finding("tls", "problem", f"{port}: {certificate}: {failure}", "put a PEM file there")
            )
            continue
        level = "problem" if days < 0 else "warning" if days < EXPIRY_DAYS else "ok"
        text = f"{port}: the certificate ends in {days:.0f} days"
        found.append(finding("tls", level, text, "" if level == "ok" else "renew it; no restart is needed"))
    if not found and not config.server.listen.startswith(("127.", "[::1]", "localhost")):
        found.append(
            finding(
                "tls",
                "warning",
                f"plain HTTP on {config.server.listen}",
                "set tls.certificate and tls.key, or put a TLS proxy before it",
            )
        )
    return found


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES_WANTED:
        return finding(
            "limits",
            "warning",
            f"{soft} open files per process (at most {hard})",
            f"raise the limit to {FILES_WANTED}: ulimit -n, LimitNOFILE= or --ulimit nofile=",
        )
    return finding("limits", "ok", f"{soft} open files per process")


def _clock() -> Finding:
    """Whether the kernel considers the clock synchronised (adjtimex): signatures allow 15 minutes."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(512)  # struct timex, modes = 0: ask only.
    state = libc.adjtimex(buffer)
    if state < 0:
        return finding("clock", "ok", "the kernel does not say whether the clock is synchronised")
    if state == 5:  # TIME_ERROR
        return finding(
            "clock",
            "warning",
            "the clock is not synchronised",
            "run chrony or systemd-timesyncd: requests more than 15 minutes off are refused",
        )
    return finding("clock", "ok", "the clock is synchronised")
