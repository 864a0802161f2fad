"""Machines of the cluster as metrics: who answers, until when its certificate holds, which disk is whose.

Pure. A store that is one machine has no members; the families are there all the same, without samples.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from objstore.metrics import Family, Labels

LOCAL: Final = "this machine"  # In a node's place: a name has no space.


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A joined machine as this gateway saw it last."""

    name: str
    role: str  # node | gateway
    up: bool  # It answered the last question.
    answered_s: float  # Since 1970, its last answer; 0: none since this process began.
    certificate_ends_s: float  # 0: it has not said.
    version: str = ""


def member_families(seen: Iterable[Seen] = ()) -> list[Family]:
    """Names are unique within a role."""
    up: list[tuple[Labels, list[float]]] = []
    answered: list[tuple[Labels, list[float]]] = []
    ends: list[tuple[Labels, list[float]]] = []
    versions: list[tuple[Labels, list[float]]] = []
    for one in sorted(seen, key=lambda each: (each.role, each.name)):
        labels = (one.name, one.role)
        up.append((labels, [float(one.up)]))
        answered.append((labels, [one.answered_s]))
        if one.certificate_ends_s:
            ends.append((labels, [one.certificate_ends_s]))
        if one.version:
            versions.append(((*labels, one.version), [1]))
    names = ("member", "role")
    return [
        Family(
            "member_up", "gauge", "Whether the machine answered this gateway's last question.", names, (), up
        ),
        Family(
            "member_answered_timestamp_seconds",
            "gauge",
            "When the machine answered last; 0: not since this gateway began.",
            names,
            (),
            answered,
        ),
        Family(
            "member_certificate_expiry_timestamp_seconds",
            "gauge",
            "When the certificate that the machine shows ends.",
            names,
            (),
            ends,
        ),
        Family(
            "member_info", "gauge", "The version that the machine runs.", (*names, "version"), (), versions
        ),
    ]


def disk_info(nodes: Mapping[int, str]) -> Family:
    """To be joined with all that is told by disk. nodes: by number; empty: it is this machine's."""
    samples: list[tuple[Labels, list[float]]] = [
        ((str(number), node or LOCAL), [1]) for number, node in sorted(nodes.items())
    ]
    return Family("disk_info", "gauge", "On which node the disk is.", ("disk", "node"), (), samples)
