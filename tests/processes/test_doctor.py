"""What `objstore doctor` says of disks."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from objstore.blobs.placement import Promise
from objstore.blobs.topology import Layout, Policy, Spot, Topology
from objstore.meta.committer import CommitterStats
from objstore.meta.schema import MemberRecord
from objstore.node.authority import make_authority
from objstore.node.tls import Trust, save_trust
from objstore.processes.committer import _families
from objstore.processes.control import Snapshot
from objstore.processes.doctor import _disks, _records, authority, code_now, machines, placements, small


def row(number: int, state: str, reason: str = "", node: str = "") -> dict[str, Any]:
    """A disk as the admin port shows it."""
    return {"disk": number, "node": node, "path": "/d", "state": state, "reason": reason, "slow": ""}


@pytest.mark.parametrize(
    ("state", "reason", "remedy"),
    [
        ("suspect", "append took 12 s", "check the device and its cabling, then: objstore disk verify 2"),
        ("read-only", "Read-only file system", "mount it writable, then: objstore disk verify 2"),
        ("full", "0 bytes free, 6291456 are kept", "free or add space"),
        ("missing", "no objstore.id at its path", "a path without its disk is never taken for an empty one"),
        ("failed", "given up with its node m3", "of a machine that is removed: objstore disk remove 2"),
        ("foreign", "disk 3 lies at /d: swapped?", "put the right disk at the path"),
    ],
)
def test_a_disk_that_is_not_well_is_told_with_what_to_do(state: str, reason: str, remedy: str) -> None:
    [found] = _disks([row(2, state, reason)])
    assert (found["check"], found["level"]) == ("disks", "problem")
    assert found["finding"] == f"disk 2 (/d) is {state}: {reason}"
    assert remedy in found["remedy"]


def test_a_disk_that_is_well_and_slow_is_a_warning() -> None:
    disk = row(2, "healthy", "x") | {"slow": "reads come late"}
    [found] = _disks([disk])
    assert (found["check"], found["level"]) == ("disks", "warning")
    assert found["finding"] == "disk 2 (/d) is slow and avoided: reads come late"
    assert _disks([disk | {"slow": ""}])[0]["level"] == "ok"


def test_disks_of_machines_that_do_not_answer_are_not_told_to_ail() -> None:
    disks = [row(number, "suspect", "away", node="n1") for number in (2, 3)]
    [found] = _disks([*disks, row(4, "healthy", node="n2")], away={"n1"})
    assert (found["level"], found["finding"]) == ("problem", "of machines that do not answer: 2, 3")
    assert "objstore disk verify" not in found["remedy"]
    found, last = _disks([*disks, row(4, "suspect", "append took 12 s", node="n2")], away={"n1"})
    assert found["finding"] == "disk 4 (/d) is suspect: append took 12 s"
    assert "2, 3" in last["finding"]


@pytest.mark.parametrize(
    ("found", "now", "level", "words"),
    [
        (0, 0, "ok", "none failed its checksum"),
        (3, 0, "warning", "3 failed their checksums since the committer's start, and were put back"),
        (3, 2, "problem", "2 fail their checksums; they are looked up in the journal"),
    ],
)
def test_damaged_records_of_metadata_are_told(found: int, now: int, level: str, words: str) -> None:
    stats = CommitterStats(rotten=found, damaged=now)
    told = _records(Snapshot("", _families(stats)))
    assert (told["level"], told["finding"]) == (level, words)


@pytest.mark.parametrize(
    ("days", "away_us", "state", "told"),
    [
        (60, 0, "joined", [("ok", "all 1 answer")]),
        (21, 0, "joined", [("ok", "all 1 answer")]),
        (19, 0, "joined", [("warning", "the certificate of node n1 ends in 19 days")]),
        (-1, 0, "joined", [("problem", "the certificate of node n1 has ended")]),
        (60, 86_400_000_000, "joined", [("problem", "node n1 has not answered since 1970-01-02 00:00:00")]),
        (-1, 86_400_000_000, "removed", []),
    ],
)
def test_a_machine_that_is_away_or_does_not_renew_its_certificate_is_told(
    days: float, away_us: int, state: str, told: list[tuple[str, str]]
) -> None:
    now_s = 1_800_000_000
    record = MemberRecord(
        role="node",
        name="n1",
        state=state,
        addresses=[],
        away_us=away_us,
        ends_s=int(now_s + days * 86_400),
    )
    found = machines({b"1" * 16: record}, now_s)
    assert [one["level"] for one in found] == [level for level, _ in told]
    for one, (_, words) in zip(found, told, strict=True):
        assert words in one["finding"]
    assert machines({}, now_s) == [], "one machine has no others"


def test_a_site_of_which_no_node_answers_is_told_as_one() -> None:
    def node(name: str, site: str, away_s: int) -> MemberRecord:
        return MemberRecord(
            role="node",
            name=name,
            state="joined",
            addresses=[],
            site=site,
            away_us=away_s * 1_000_000,
            ends_s=9**10,
        )

    members = {
        bytes([at]) * 16: node(*one)
        for at, one in enumerate([("a", "x", 0), ("b", "y", 60), ("c", "y", 86_400)])
    }
    [found] = machines(members, 0)
    assert found["finding"] == "site y: no node has answered since 1970-01-02 00:00:00 UTC: b, c"
    assert (found["level"], "objstore cluster remove NAME --lost" in found["remedy"]) == ("problem", True)

    said = [one["finding"] for one in machines(members, 0, {(bytes([2]) * 16).hex(): "x"})]
    assert [words.split(" has")[0] for words in said] == ["site y: no node", "node c"], (
        "the layout has it elsewhere"
    )
    alone = {
        id_: msgspec.structs.replace(record, site="y") for id_, record in members.items() if record.away_us
    }
    assert [one["finding"].split(" has")[0] for one in machines(alone, 0)] == ["node b", "node c"], "no sites"


def test_an_authority_that_ends_within_a_year_is_told(tmp_path: Path) -> None:
    made = make_authority(b"c" * 16, 7, time.time_ns() // 1000)
    root = made.signing
    save_trust(tmp_path, Trust(cluster=made.cluster.hex(), number=1, roots=[root.pem], signer=root.name))
    [found] = authority(tmp_path, time.time())
    assert (found["level"], found["finding"]) == ("ok", "the cluster's authority ends in 10 years")
    [found] = authority(tmp_path, time.time() + 3_300 * 86_400)
    assert found["level"] == "warning"
    assert "objstore cluster renew" in found["remedy"]
    [found] = authority(tmp_path / "nowhere", time.time())
    assert found["level"] == "problem"


def test_a_committer_that_does_not_say_what_it_found_is_a_problem() -> None:
    assert _records(None)["level"] == "problem"


def disks(devices: str, states: str = "", node: str = "") -> Topology:
    """Disks by the letters of their devices (with `node`: of their nodes); + takes writes, - is away."""
    return Topology(
        Spot(number, 1 << 40, 1 << 40, node=node and letter, device=ord(letter), usable=state == "+")
        for number, (letter, state) in enumerate(zip(devices, states or "+" * len(devices), strict=True), 1)
    )


NO_POLICIES = Layout(0, {}, {})


@pytest.mark.parametrize(
    ("devices", "states", "level", "words"),
    [
        ("abcdef", "", "ok", "any one failure domain may be lost, with parity to spare"),
        ("abcdea", "", "warning", "and then nothing more"),
        ("aaaaaa", "", "warning", "there is a failure domain whose loss loses data"),
        ("abcdef", "+++++-", "warning", "3+2 instead of 4+2, for want of disks"),
        ("abcdef", "++----", "warning", "no new volume can be made: 3 disks wanted, 2 usable"),
    ],
)
def test_what_placement_promises_is_named(devices: str, states: str, level: str, words: str) -> None:
    [found] = placements(NO_POLICIES, disks(devices, states), 4, 2)
    assert (found["check"], found["level"]) == ("placement", level)
    assert words in found["finding"]


@pytest.mark.parametrize(
    ("states", "code"), [("++++++", (4, 2)), ("+++++-", (3, 2)), ("+++---", (1, 2)), ("++----", (0, 2))]
)
def test_the_code_of_a_new_volume_is_what_the_disks_that_take_writes_allow(
    states: str, code: tuple[int, int]
) -> None:
    assert code_now(disks("abcdef", states), 4, 2) == code


def test_a_disk_that_is_well_and_too_small_for_a_new_volume_is_told() -> None:
    rows = [
        {**row(1, "healthy"), "free": 64 << 20},
        {**row(2, "healthy"), "free": (64 << 20) - 1},
        {**row(3, "full", "0 bytes free"), "free": 0},  # Told as that.
        {**row(4, "missing"), "free": None},
    ]
    [found] = small(rows, 64 << 20)
    assert found["finding"].startswith("disk 2 (/d) takes no new volume: 67,108,863 bytes are free")
    assert found["remedy"].endswith("objstore disk replace 2 PATH")


def test_a_policy_that_promises_less_or_has_too_few_disks_is_told() -> None:
    weak, gone = Policy(name="weak", spread="site"), Policy(name="gone", sites=("nowhere",))
    layout = NO_POLICIES._replace(policies={"weak": weak, "gone": gone, "fine": Policy(name="fine")})
    found = placements(layout, disks("abcdef", node="node"), 4, 2)
    assert [(one["level"], one["finding"]) for one in found] == [
        (
            "ok",
            f"a new volume lies on 6 disks of 6 nodes: {Promise.SPARE.words()}",
        ),
        ("warning", f"policy weak: a new volume lies on 6 disks of 1 sites: {Promise.NONE.words()}"),
        ("problem", "policy gone: no new volume can be made: 3 disks wanted, 0 usable"),
    ]


@pytest.mark.parametrize(
    ("sites", "usable", "words"),
    [
        ("aabbcc", "++++++", f"{Promise.SPARE.words()}; any one site may be lost, and then nothing more"),
        ("aabbcc", "++++--", "; any one site may be lost, and then nothing more; 2+2 instead of 4+2"),
        ("aaabbb", "++++++", f"{Promise.SPARE.words()}; there is a site whose loss loses data"),
        ("abcdef", "++++++", Promise.SPARE.words()),
        ("aaaaaa", "++++++", Promise.SPARE.words()),
    ],
)
def test_what_becomes_of_a_volume_with_a_site_is_named_beside_the_smaller_domain(
    sites: str, usable: str, words: str
) -> None:
    topology = Topology(
        Spot(number, 1 << 40, 1 << 40, site=site, node=f"{site}{number}", device=number, usable=state == "+")
        for number, (site, state) in enumerate(zip(sites, usable, strict=True), 1)
    )
    [found] = placements(NO_POLICIES, topology, 4, 2)
    assert words in found["finding"]
    assert ("site" in found["finding"].partition(": ")[2]) == ("site" in words)
