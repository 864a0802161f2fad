"""A gateway asks the other machines how they stand, and tells them what is new. In the upkeep process.

At every beat each joined member is asked; one that follows an older trust is given the newest. Who has not
answered for three beats is away: its disks take no new volumes until it answers again. Being away starts no
repair by itself. Only the process that holds the claim on the upkeep notes so, and moves a change of the root
on; every gateway asks, since each must tell the others what it knows.

This gateway's own certificate is renewed here too: it can sign for itself.

Concurrency: one task of the event loop; the questions of a beat run side by side, a bounded number at once.
What is remembered (who answered when) is a hint, and begins anew with the process.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from objstore.clock import Clock
from objstore.errors import StoreError
from objstore.meta.schema import MemberRecord
from objstore.node.authority import GATEWAY, NODE, make_key, make_request
from objstore.node.membership import Machine, RenewRequest, Standing
from objstore.node.peers import NoAnswer, PeerClient
from objstore.node.port import standing_of
from objstore.node.tls import Credentials, Trust
from objstore.processes.joining import CannotJoin, put_in_place
from objstore.processes.machine_families import Seen
from objstore.processes.members import JOINED, Members, Removed
from objstore.processes.verdicts import Verdicts

log = logging.getLogger(__name__)

AT_ONCE: Final = 32
LOOK_SECONDS: Final = 1.0  # Between looks whether another gateway has let somebody in.


class Heartbeats:
    """
    Args:
        about: what this gateway says of itself; its member record is kept so.
        leads: whether this process may note who is away: it holds the claim on the upkeep.
        beat_s, away_s: between two questions; of silence until a member is away.
        removed: told that this gateway is no member any more.
        verdicts: which disks are slow, for this machine and from it; None: nobody asks.
    """

    def __init__(
        self,
        members: Members,
        credentials: Credentials,
        about: Machine,
        clock: Clock,
        leads: Callable[[], bool],
        *,
        beat_s: float,
        away_s: float,
        removed: Callable[[str], None],
        verdicts: Verdicts | None = None,
    ) -> None:
        self.standings: dict[bytes, Standing] = {}  # Of those that answered the last question.
        self.failures: dict[bytes, str] = {}  # Why the others did not.
        self.waits = ""  # What a change of the root waits for.
        self._joined: dict[bytes, MemberRecord] = {}  # As of the last beat, this gateway among them.
        self._members = members
        self._credentials = credentials
        self._about = about
        self._clock = clock
        self._leads = leads
        self._beat_s = beat_s
        self._away_s = away_s
        self._removed = removed
        self._verdicts = verdicts
        self.cut_off = False  # No node answers, and there is another gateway, which may reach them.
        self._answered: dict[bytes, float] = {}  # Monotonic; at first, when it was asked.
        self._heard: dict[bytes, float] = {}  # The same, of real answers only.
        self._clients: dict[bytes, PeerClient] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """For ever. Run it as a task; cancel it to end."""
        while True:
            try:
                await self.beat()
            except Removed as end:
                self._removed(str(end))
            except (StoreError, OSError, CannotJoin) as failure:
                log.warning("a heartbeat failed", extra={"failure": str(failure)})
            until = self._clock.monotonic() + self._beat_s
            while (left_s := until - self._clock.monotonic()) > 0:
                await asyncio.sleep(min(left_s, LOOK_SECONDS))
                await self.follow()

    async def follow(self) -> None:
        """Take up what metadata has of the members if it is newer than what this gateway follows."""
        try:
            if await self._members.trust_number() > self._credentials.trust.number:
                await self._credentials.take_trust(await self._members.trust())
        except (StoreError, OSError) as failure:  # The next beat tries again, and says so.
            log.debug("the members are not followed", extra={"failure": str(failure)})

    def seen(self) -> list[Seen]:
        """Every machine that is joined, as of the last beat."""
        now_s, now = self._clock.now_us() / 1e6, self._clock.monotonic()
        found: list[Seen] = []
        for id_, record in self._joined.items():
            standing = self.standings.get(id_)
            own = id_ == self._credentials.name.id
            answered = now if own else self._heard.get(id_)
            found.append(
                Seen(
                    name=record.name,
                    role=record.role,
                    up=standing is not None,
                    answered_s=0.0 if answered is None else now_s - (now - answered),
                    certificate_ends_s=0.0 if standing is None else float(standing.ends_s),
                    version="" if standing is None else standing.version,
                )
            )
        return found

    def silent(self) -> dict[bytes, int]:
        """Members that have not answered for so long that they are away, and since when (us since 1970).

        As this gateway finds them. While metadata takes no commits, for want of these very machines, nobody
        can note it.
        """
        now_us, now = self._clock.now_us(), self._clock.monotonic()
        return {
            id_: now_us - round((now - answered) * 1e6)
            for id_, answered in self._answered.items()
            if id_ not in self.standings and now - answered >= self._away_s
        }

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    async def beat(self) -> None:
        """Ask everyone once. Raises: StoreError, OSError, CannotJoin."""
        own = self._credentials.name
        await self._stand_in_line()
        trust = await self._members.trust()
        if trust.number > self._credentials.trust.number:
            await self._credentials.take_trust(trust)
        records = await self._members.ledger.members()
        self._joined = {id_: record for id_, record in records.items() if record.state == JOINED}
        others = {id_: record for id_, record in self._joined.items() if id_ != own.id}
        for id_ in list(self._clients):
            if id_ not in others:
                await self._clients.pop(id_).close()
        for known in (self.standings, self.failures, self._answered, self._heard):
            for id_ in list(known):
                if id_ not in others:
                    known.pop(id_)
        await asyncio.gather(*[self._ask(id_, record, trust) for id_, record in others.items()])
        self.standings[own.id] = standing_of(self._credentials)
        followed = max(standing.number for standing in self.standings.values())
        if followed > trust.number:
            await self._members.catch_up(followed)
        roles = {record.role for record in others.values()}
        answer = {record.role for id_, record in others.items() if id_ in self.standings}
        self.cut_off = {GATEWAY, NODE} <= roles and NODE not in answer
        await self._share_verdicts(own.id)
        if self._leads() and not self.cut_off:
            await self._judge(others)
            self.waits = await self._members.advance_root(self.standings)

    async def _share_verdicts(self, own: bytes) -> None:
        """What others find slow is in what they answered; who does not answer says nothing any more."""
        if self._verdicts is None:
            return
        theirs = [standing.slow for id_, standing in self.standings.items() if id_ != own]
        try:
            await self._verdicts.gather()
            await self._verdicts.note([self._verdicts.own, *theirs])
        except OSError as failure:  # What was noted last ends by itself.
            log.warning("verdicts on disks are not shared", extra={"failure": str(failure)})

    async def _stand_in_line(self) -> None:
        """This gateway's own record and certificate."""
        credentials = self._credentials
        standing = standing_of(credentials)
        await self._members.introduce(
            credentials.name.id, credentials.name.role, self._about, standing.issuer, standing.ends_s
        )
        if not credentials.renewal_due:
            return
        key = await asyncio.to_thread(make_key)
        renewed = await self._members.issue(credentials.name, RenewRequest(csr=make_request(key)))
        await asyncio.to_thread(put_in_place, credentials, key, renewed)
        credentials.reload()
        log.info("own certificate renewed", extra={"ends": str(credentials.certificate.not_valid_after_utc)})

    async def _ask(self, id_: bytes, record: MemberRecord, trust: Trust) -> None:
        client = self._clients.get(id_)
        if client is None or client.addresses != record.addresses:
            if client is not None:
                await client.close()
            client = PeerClient(self._credentials, record.role, id_, record.addresses)
            self._clients[id_] = client
        self._answered.setdefault(id_, self._clock.monotonic())  # The benefit of the doubt, once.
        try:
            async with self._slots:
                standing = await client.standing()
                if standing.number < trust.number:
                    standing = await client.tell(trust)
        except NoAnswer as failure:
            self.standings.pop(id_, None)
            if self.failures.get(id_) != str(failure):
                log.warning("no answer", extra={"machine": record.name, "failure": str(failure)})
            self.failures[id_] = str(failure)
            return
        self.failures.pop(id_, None)
        self.standings[id_] = standing
        self._answered[id_] = self._heard[id_] = self._clock.monotonic()

    async def _judge(self, others: dict[bytes, MemberRecord]) -> None:
        now = self._clock.monotonic()
        for id_, record in others.items():
            # Only an answer ends an absence, and only silence begins one.
            back = id_ in self.standings
            away = not back and now - self._answered[id_] >= self._away_s
            if away and not record.away_us:
                log.warning(
                    "a machine is away", extra={"machine": record.name, "why": self.failures.get(id_)}
                )
                await self._members.set_away(id_, True)
            elif back and record.away_us:
                log.warning("a machine is back", extra={"machine": record.name})
                await self._members.set_away(id_, False)
