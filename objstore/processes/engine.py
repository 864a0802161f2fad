"""The metadata engine as a process opens it: LMDB behind this machine's committer, or PostgreSQL.

With PostgreSQL several gateway machines are one cluster. What the committer is to one machine, records are to
them: claims say who does what only one should do (upkeep/claims.py), the volumes' records who may write
where, and the *term*, a counter, what a node takes requests from. Every process names the term's last number
to the nodes (meta/journal.py); raising it and fencing the nodes shuts out a gateway that reaches the nodes
but not PostgreSQL.

    N term    counter: the term in force
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from objstore.errors import Conflict, StoreError
from objstore.meta.client import MetaClient
from objstore.meta.journal import first_epoch, last_epoch
from objstore.meta.kv import Add, Kv, Transaction, counter, counter_value
from objstore.meta.schema import serial_key
from objstore.objects.ledger import MetaLedger
from objstore.processes.spec import Opener, Place, Spec

if TYPE_CHECKING:  # Loads asyncpg, which a store of one machine does without.
    from objstore.meta.kv_postgres import PostgresKv

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0  # A process that names an old term asks itself so long whether it is old.
TERM: Final = serial_key("term")


def is_shared(spec: Spec) -> bool:
    """Whether other gateway machines work with the same metadata."""
    return bool(spec.config.meta.url)


def open_kv(spec: Spec) -> "MetaClient | PostgresKv":
    """Not yet started."""
    if not is_shared(spec):
        return MetaClient(spec.committer_socket, beacon=spec.beacon)
    from objstore.meta.kv_postgres import PostgresKv

    return PostgresKv(spec.config.meta.url)


class Term:
    """The term in force, as this process knows it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def epoch(self) -> int:
        """What requests to nodes name."""
        return last_epoch(self.number)

    async def begin(self, kv: Kv, least: int) -> bool:
        """Read it; the first process of a cluster sets it. Whether this one did. Raises: StoreError.

        Args:
            least: the first term is at least this: what used these disks before is shut out by a fence.
        """
        while True:
            value = await kv.get(TERM)
            if value is not None:
                self.number = counter(value)
                return False
            try:
                # The trust says where metadata is: every member is to hear of it.
                await kv.commit(
                    Transaction(
                        expect={TERM: None},
                        put={TERM: counter_value(least)},
                        add={serial_key("trust"): Add(1)},
                    )
                )
            except Conflict:
                continue  # Another gateway was quicker.
            self.number = least
            return True

    async def follow(self, kv: Kv) -> None:
        """Never ends. While metadata is away the term stays: who cannot see a newer one is to be refused."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self.number = max(self.number, counter(await kv.get(TERM)))
            except StoreError:
                continue


async def places_in(ledger: MetaLedger) -> list[Place]:
    """Every disk of the cluster, by metadata. Raises: StoreError."""
    return [
        Place(number, record.uuid, record.path, record.node)
        for number, record in (await ledger.disks()).items()
        if record.state != "retired" and record.node
    ]


async def fence(opener: Opener, places: list[Place], term: int) -> list[int]:
    """Shut out every earlier term at the disks that can be reached; the numbers of the others."""
    missed: list[int] = []
    for place in places:
        try:
            await opener.open(place).fence(first_epoch(term))
        except StoreError as failure:
            log.warning("a disk was not fenced", extra={"disk": place.number, "failure": str(failure)})
            missed.append(place.number)
    return missed
