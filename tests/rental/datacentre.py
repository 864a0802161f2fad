"""A datacentre in one process: fourteen nodes in memory, S3 on loopback, the services of renting, one clock.

The clock is the month's and stands still unless it is sent on; signatures go by the real one. All that time
brings (hours sealed, leases, invoices, dunning) comes when `go_to` passes by.
"""

import asyncio
import socket
from dataclasses import replace
from typing import Any

import boto3
import msgspec
from botocore.config import Config
from botocore.exceptions import ClientError

from objstore.blobs.topology import Policy
from objstore.clock import SECOND_US
from objstore.iam.directory import Directory
from objstore.iam.keys import KeyTerms
from objstore.meta.kv import Transaction
from objstore.meta.schema import DiskRecord, MemberRecord, disk_key, encode, member_key
from objstore.objects.layout import LAYOUT_KEY, Plan, read_layout
from objstore.objects.ledger import MetaLedger
from objstore.objects.store import Store
from objstore.rental.availability import DAY_MINUTES, MINUTE_S, served_key
from objstore.rental.projects import create_project
from objstore.s3.app import App
from objstore.s3.availability import Availability
from objstore.s3.limits import Limits
from objstore.s3.routes import ROUTES, choose
from objstore.s3.server import serve_s3
from objstore.s3.traffic import Scopes, Traffic
from objstore.upkeep.invoicing import Invoicing
from objstore.upkeep.leasing import Leasing
from objstore.upkeep.metering import Metering
from tests.upkeep.rig import Yard
from tests.waiting import until

TB = 10**12
DAY_S = 86_400
NOON_S = DAY_S // 2
SHARED, OWN = range(1, 9), range(9, 15)  # The disks of nodes that all share, and of the dedicated lease.
COLD = "STANDARD_IA"
PATIENT = Limits(
    header_seconds=600.0, idle_seconds=600.0, body_seconds=600.0, rate_after_seconds=600.0
)  # A starved machine is no reason to refuse anybody here.


class MonthClock:
    """Stands still, but for a microsecond at each look: no two moments are the same."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        self._now_us += 1
        return self._now_us

    def monotonic(self) -> float:
        return self.now_us() / 1e6

    def set(self, at_s: int) -> None:
        """A tenth of a second into this second, which looks do not lead out of."""
        assert at_s * SECOND_US + SECOND_US // 10 >= self._now_us, "time goes forward"
        self._now_us = at_s * SECOND_US + SECOND_US // 10


def node(number: int) -> bytes:
    """The id of the node that has this disk."""
    return bytes([number]) * 16


class Datacentre(Yard):
    """Nodes with a disk of 1 TB each, code 4+2."""

    def __init__(self, begin_s: int) -> None:
        super().__init__("+" * len((*SHARED, *OWN)))
        self.month_clock = MonthClock(begin_s * SECOND_US)
        self.ledger = MetaLedger(self.kv, clock=self.month_clock)
        self.clients: dict[str, Any] = {}
        self.availability = Availability()
        self.down: frozenset[int] = frozenset()  # Minutes since 1970 in which no gateway serves.
        self._noted = begin_s // MINUTE_S  # Up to here minutes were noted as served.

    async def open(self) -> "Datacentre":
        """Join the nodes, and listen."""
        await super().start()
        put: dict[bytes, bytes] = {}
        for number, disk in self.disks.items():
            disk.total = TB
            put[disk_key(number)] = encode(
                DiskRecord(uuid=disk.uuid, path=disk.path, state="healthy", node=node(number), size=TB)
            )
            put[member_key(node(number))] = encode(
                MemberRecord(role="node", name=f"n{number}", state="joined", addresses=["h:1"])
            )
        _, layout = await read_layout(self.kv)
        cold = Plan(policies={"cold": Policy(name="cold", storage_class=COLD)})
        put[LAYOUT_KEY] = encode(msgspec.structs.replace(layout, serial=1, version=1, current=cold))
        await self.kv.commit(Transaction(put=put))
        self.writer, self.reader = self.new_writer(), self.new_reader()
        self.store = Store(
            kv=self.kv, writer=self.writer, reader=self.reader, ledger=self.ledger, clock=self.month_clock
        )
        self.store.placing.layout = await self.ledger.layout()
        self.ctx = replace(self.context(), clock=self.month_clock)
        self.metering = Metering(self.kv, self.month_clock)
        self.leasing = Leasing(self.ctx, self.store)
        self.invoicing = Invoicing(self.kv, self.month_clock, self.ctx.alarms, randomness=self.rng.randbytes)
        self.directory = Directory(self.kv, bytes(32), clock=self.month_clock, randomness=self.rng.randbytes)
        self.traffic = Traffic(self.store.buckets, Scopes())
        self.app = App(
            store=self.store,
            directory=self.directory,
            routes=ROUTES,
            choose=choose,
            traffic=self.traffic,
            availability=self.availability,
            limits=PATIENT,
        )
        self.runner = await serve_s3(self.app, [socket.create_server(("127.0.0.1", 0))])
        return self

    async def close(self) -> None:
        for client in self.clients.values():
            client.close()
        await self.runner.stop(1.0)
        await self.writer.close()
        self.app.close()

    @property
    def now_us(self) -> int:
        return self.month_clock.now_us()

    async def admit(self, tenant: str, project: str = "") -> None:
        """Give a tenant a user with a key, and boto3. All that it does is in a project, if one is named."""
        await self.directory.create_user(f"{tenant}-root", tenant=tenant, role="owner")
        if project:
            await create_project(self.kv, tenant, project, now_us=self.now_us)
        key, secret = await self.directory.create_key(f"{tenant}-root", terms=KeyTerms(project=project))
        self.clients[tenant] = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.runner.port}",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            region_name="us-east-1",
            config=Config(
                connect_timeout=300,
                read_timeout=300,
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
                proxies={},
            ),
        )

    async def ask(self, tenant: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """One request by boto3: its answer, or the error's; a body that came is at "Content"."""

        def work() -> dict[str, Any]:
            try:
                answer: dict[str, Any] = getattr(self.clients[tenant], operation)(**arguments)
            except ClientError as refusal:
                return dict(refusal.response)
            if operation == "get_object":
                answer["Content"] = answer["Body"].read()
            return answer

        answer = await asyncio.to_thread(work)
        await until(lambda: self.app.observer.in_flight == 0)  # The client has its answer before the meters.
        await self.traffic.commit(self.kv, self.now_us // SECOND_US)
        self.availability.turn(self.now_us // SECOND_US)
        await self.availability.commit(self.kv)
        return answer

    async def go_to(self, at_s: int) -> None:
        """Let time go by. At each noon on the way hours are sealed, and leases are looked after."""
        noon = self.now_us // SECOND_US // DAY_S * DAY_S + NOON_S
        while noon < at_s:
            if noon * SECOND_US > self.now_us:
                self.month_clock.set(noon)
                await self._note_minutes(noon)
                await self.metering.run()
                await self.leasing.run()
            noon += DAY_S
        self.month_clock.set(at_s)
        await self._note_minutes(at_s)

    async def _note_minutes(self, until_s: int) -> None:
        """The minutes that are over, but for those of `down`, as gateways note them.

        They look every second; a clock that goes from one day to the next has no seconds for it. So what they
        would commit is committed here, and nothing else of what service levels are measured by.
        """
        until = until_s // MINUTE_S
        while self._noted < until:
            last = min(until, self._noted + DAY_MINUTES)
            served = set(range(self._noted, last)) - self.down
            await self.kv.commit(Transaction(put={served_key(minute): b"" for minute in sorted(served)}))
            self._noted = last
