"""Names of the files in a disk's `logs`, the journal's epochs and snapshots, and what a name tells.

journal.<epoch>             one epoch
journal.<epoch>.<by>        a closed one that had to be put together from several copies, by a later epoch
snapshot.<sequence>.<by>    what was merged up to a batch, while epoch `by` was written
"""

import re

_JOURNAL = re.compile(r"journal\.([0-9]{16})(?:\.[0-9]{16})?", re.ASCII)
_SNAPSHOT = re.compile(r"snapshot\.[0-9]{20}\.([0-9]{16})", re.ASCII)


def journal_name(epoch: int, repaired_by: int = 0) -> str:
    """A segment that had to be put together from several copies gets a name of its own."""
    return f"journal.{epoch:016d}" + (f".{repaired_by:016d}" if repaired_by else "")


def snapshot_name(sequence: int, attempt: int) -> str:
    """`attempt` is the newest epoch: a name is never used twice, whatever a dead fold left behind."""
    return f"snapshot.{sequence:020d}.{attempt:016d}"


def epoch_of_name(name: str) -> int:
    """0 if it is not a journal file."""
    found = _JOURNAL.fullmatch(name)
    return int(found[1]) if found else 0


def is_ours(name: str) -> bool:
    return _JOURNAL.fullmatch(name) is not None or _SNAPSHOT.fullmatch(name) is not None


def begun_under(name: str) -> int:
    """The epoch that was written when the file was begun: a journal's own; a snapshot is of those below it.
    0 if it is neither."""
    found = _JOURNAL.fullmatch(name) or _SNAPSHOT.fullmatch(name)
    return int(found[1]) if found else 0
