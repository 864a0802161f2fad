"""A gateway's part in its cluster, in the upkeep process: cluster port, heartbeats, operators' questions.

Concurrency: one event loop, the upkeep process's.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from objstore.admin.app import ClusterAdmin, Problem
from objstore.admin.cluster_port import ClusterApi, ClusterPort
from objstore.clock import utc_text
from objstore.errors import BadArgument, Denied, StoreError
from objstore.meta.schema import DiskRecord
from objstore.node.authority import GATEWAY, NODE
from objstore.node.membership import JoinRequest, Registered, Registration, Roots, Standing, Welcome
from objstore.node.port import standing_of
from objstore.node.tls import Peer, Trust
from objstore.processes import joining
from objstore.processes.engine import is_shared
from objstore.processes.founding import own_credentials, read_authority
from objstore.processes.heartbeats import Heartbeats
from objstore.processes.members import JOINED, Members
from objstore.processes.parts import Parts
from objstore.processes.verdicts import Verdicts


class ClusterGateway:
    """Begins with `start`, ends with `close`.

    Args:
        sockets: the cluster port's, bound already.
        leads: whether this process holds the claim on the upkeep.
        removed: told that this gateway is no member any more.
        remember: as in `Members`.

    Raises: CannotStart if this machine has no credentials, or an authority that does not open.
    """

    def __init__(
        self,
        parts: Parts,
        sockets: Sequence[socket.socket],
        leads: Callable[[], bool],
        removed: Callable[[str], None],
        remember: Callable[[int, DiskRecord], Awaitable[None]] | None,
    ) -> None:
        spec, config = parts.spec, parts.spec.config.cluster
        data = Path(spec.data)
        self._parts = parts
        self._sockets = sockets
        self.credentials = own_credentials(data)
        address = joining.advertised(sockets[0], config.address)
        about = joining.machine(config.name, address, config.site, config.rack)
        self.members = Members(
            kv=parts.kv,
            ledger=parts.store.ledger,
            clock=parts.store.clock,
            master_key=spec.cluster.master_key,
            other_master_keys=spec.cluster.other_master_keys,
            cluster=spec.cluster.cluster_id,
            checksum_secret=spec.cluster.checksum_secret,
            addresses=[address],
            epoch=self._epoch,
            data=data,
            known=read_authority(data, spec.cluster.master_key, spec.cluster.other_master_keys),
            sole=not is_shared(spec),
            remember=remember,
        )
        self.verdicts = Verdicts(spec.run_directory, parts.store.clock, lasts_s=config.away_seconds)
        self.heartbeats = Heartbeats(
            self.members,
            self.credentials,
            about,
            parts.store.clock,
            leads,
            beat_s=config.away_seconds / 3,
            away_s=config.away_seconds,
            removed=removed,
            verdicts=self.verdicts,
        )
        self._port = ClusterPort(
            ClusterApi(
                roots=self._roots,
                join=self._join,
                register=self._register,
                renew=self.members.renew,
                standing=lambda: standing_of(self.credentials, self.verdicts.own),
                take_trust=self._take_trust,
            ),
            self.credentials,
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self.heartbeats.run()),
            loop.create_task(self.credentials.watch()),
        ]
        await self._port.listen(self._sockets)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._port.close()
        await self.heartbeats.close()

    async def _roots(self) -> Roots:
        authority, _ = await self.members.authority()
        return Roots(roots=[root.pem for root in authority.roots])

    # Who has joined, and who has disks, is known here before it hears so: each process of this machine asks
    # this trust where a node is, and a store whose last node says that it is ready takes objects.

    async def _join(self, request: JoinRequest) -> Welcome:
        welcome = await self.members.join(request)
        await self.heartbeats.follow()
        return welcome

    async def _register(self, peer: Peer, request: Registration) -> Registered:
        registered = await self.members.register(peer, request)
        await self.heartbeats.follow()
        return registered

    async def _take_trust(self, trust: Trust) -> Standing:
        """Another gateway knows more. What counts is metadata; a newer number is followed all the same."""
        await self.credentials.take_trust(trust)
        return standing_of(self.credentials)

    async def _epoch(self) -> int:
        """The newest that any disk knows of: a disk that joins refuses what is older from the first."""
        epochs = [self._parts.spec.cluster.epoch]
        for disk in list(self._parts.disks.values()):
            try:
                epochs.append(await disk.noted_epoch())
            except StoreError:
                continue
        return max(epochs)

    # What operators ask.

    def admin(self) -> ClusterAdmin:
        return ClusterAdmin(
            status=self.status,
            token=self.token,
            members=self.listed,
            remove=self.remove,
            renew=self.renew,
        )

    async def status(self) -> dict[str, Any]:
        authority, _ = await self.members.authority()
        root = authority.signing.certificate
        rows = await self.listed()
        count = {role: sum(row["role"] == role for row in rows) for role in (NODE, GATEWAY)}
        return {
            "cluster": self.members.cluster.hex(),
            "gateway": self.credentials.name.id.hex(),
            "address": self.members.addresses[0],
            "authority": authority.signing.fingerprint.hex(),
            "authority_ends": utc_text(root.not_valid_after_utc.timestamp()),
            "certificate_ends": utc_text(self.credentials.certificate.not_valid_after_utc.timestamp()),
            "trust": self.credentials.trust.number,
            "renewal": (self.heartbeats.waits or "going on") if authority.changing else "",
            "nodes": count[NODE],
            "gateways": count[GATEWAY],
            "away": ", ".join(str(row["name"]) for row in rows if row["state"] == "away"),
        }

    async def token(self, role: str, member: str) -> dict[str, Any]:
        try:
            text = await self.members.token(role or NODE, member)
        except BadArgument as failure:
            raise Problem(400, str(failure)) from None
        return {"token": text, "role": role or NODE, "address": self.members.addresses[0]}

    async def listed(self) -> list[dict[str, Any]]:
        rows, silent = await self.members.listed(), self.heartbeats.silent()
        for row in rows:
            id_ = bytes.fromhex(str(row["id"]))
            standing = self.heartbeats.standings.get(id_)
            row["version"] = standing.version if standing is not None else ""
            row["trust"] = standing.number if standing is not None else None
            row["reason"] = self.heartbeats.failures.get(id_, "")
            row["certificate_ends"] = utc_text(float(row.pop("certificate_ends_s")))
            if row["state"] == JOINED and id_ in silent:
                row["state"], row["away_us"] = "away", silent[id_]
            row["joined"] = utc_text(row.pop("joined_us") / 1e6)
            away_us = row.pop("away_us")
            row["away_since"] = utc_text(away_us / 1e6) if away_us else ""
        return rows

    async def remove(self, text: str, lost: bool) -> dict[str, Any]:
        id_, record = await self._find(text)
        if id_ == self.credentials.name.id:
            raise Problem(409, "a gateway does not remove itself: ask another one, or stop it")
        try:
            given_up = await self.members.remove(id_, lost=lost)
        except Denied as failure:
            raise Problem(409, str(failure)) from None
        # Those who can be told are told now; the others with their next beat.
        await self.heartbeats.beat()
        return {"id": id_.hex(), "name": record.name, "state": "removed", "disks_given_up": given_up}

    async def renew(self) -> dict[str, Any]:
        try:
            name = await self.members.begin_root()
        except Denied as failure:
            raise Problem(409, str(failure)) from None
        return {"root": name}

    async def _find(self, text: str) -> tuple[bytes, Any]:
        try:
            return await self.members.find(text)
        except BadArgument as failure:
            raise Problem(404, str(failure)) from None
