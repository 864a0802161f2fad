"""Objects in memory as the verbs make them, and a context for the background services."""

import hashlib
from collections.abc import Callable

from objstore.blobs.volumes import Stored, VolumeState
from objstore.meta.kv import Transaction, counter
from objstore.meta.schema import (
    ExtentPage,
    Extra,
    Multipart,
    ObjectRecord,
    PartRecord,
    decode,
    encode,
    extent_page_key,
    object_key,
    part_key,
)
from objstore.node.fragments import Seal
from objstore.objects.ledger import live_adds, publish
from objstore.upkeep.context import Context, Pace
from objstore.upkeep.homes import open_home
from tests.blobs.rig import BACKEND, CLUSTER, SECRET, Rig

BUCKET = 1


async def no_sleep(seconds: float) -> None:
    """Pacing in tests costs no time."""


class Yard(Rig):
    """A Rig with objects: `objects` is what must be there, by home key."""

    objects: dict[bytes, bytes]

    async def start(self) -> "Yard":
        await super().start()
        self.objects = {}
        return self

    def context(self, crash_point: Callable[[str], None] = lambda name: None) -> Context:
        return Context(
            kv=self.kv,
            ledger=self.ledger,
            disks=self.disks,
            writer=self.new_writer(),
            reader=self.new_reader(),
            seal=Seal(CLUSTER, SECRET),
            codec=BACKEND.codec,
            k=self.k,
            m=self.m,
            pace=Pace(1e12, self.clock, no_sleep),
            clock=self.clock,
            chance=self.rng.random,
            crash_point=crash_point,
        )

    async def put_object(self, name: str, body: bytes, *, paged: bool = False) -> bytes:
        """As objects/writes.py does: overwrites drop the old extents' live bytes. Returns the home key."""
        home = object_key(BUCKET, name.encode())
        etag = hashlib.md5(body).digest()
        about = encode(ObjectRecord(1, self.clock.now_us(), b"", len(body), etag, b"", []))
        stored = await (
            self.put_stream_about(body, home, about)
            if len(body) > 128 * 1024
            else self.writer.put(body, home, about)
        )
        await self.publish_object(home, stored, len(body), etag, paged=paged)
        self.objects[home] = body
        return home

    async def put_stream_about(self, body: bytes, home: bytes, about: bytes) -> Stored:
        stream = self.writer.stream(home)
        try:
            await stream.write(body)
            return await stream.finish(about)
        finally:
            stream.abort()

    async def publish_object(
        self, home: bytes, stored: Stored, size: int, etag: bytes, *, paged: bool = False
    ) -> None:
        old = await open_home(self.kv, home)
        lost = [place.extent for place in old.places.values()] if old else []
        expect, put, _ = publish(stored)
        expect[home] = old.value if old else None
        inline, extra = stored.extents, None
        if paged:
            blob = self.rng.randbytes(16)
            inline, rest = stored.extents[:1], stored.extents[1:]
            put[extent_page_key(blob, 0)] = encode(ExtentPage(extents=rest, begin=inline[0].length))
            extra = Extra(blob=blob, pages=1)
        put[home] = encode(ObjectRecord(1, self.clock.now_us(), b"", size, etag, b"", inline, extra))
        await self.kv.commit(Transaction(expect, put, (), live_adds(stored.extents, lost)))

    async def put_multipart(self, name: str, parts: list[bytes]) -> bytes:
        """Parts keep their own records as homes; the object only lists them, and has a manifest."""
        upload = self.rng.randbytes(16)
        home = object_key(BUCKET, name.encode())
        for number, body in enumerate(parts, 1):
            key = part_key(upload, number)
            part = PartRecord(
                order=1, size=len(body), etag=hashlib.md5(body).digest(), checksum=b"", extents=[]
            )
            stored = await self.put_stream_about(body, key, encode(part))
            expect, put, add = publish(stored)
            record = PartRecord(
                order=1, size=len(body), etag=part.etag, checksum=b"", extents=stored.extents, home=home
            )
            await self.kv.commit(Transaction(expect, {**put, key: encode(record)}, (), add))
            self.objects[key] = body
        manifest = await self.writer.put(b"the part list", home, b"about")
        expect, put, add = publish(manifest)
        extra = Extra(multipart=Multipart(upload, len(parts), manifest.extents[0]))
        record = ObjectRecord(1, 1, b"", sum(map(len, parts)), b"e" * 18, b"", [], extra)
        await self.kv.commit(Transaction(expect, {**put, home: encode(record)}, (), add))
        return home

    async def delete(self, home: bytes) -> None:
        found = await open_home(self.kv, home)
        assert found is not None
        lost = [place.extent for place in found.places.values()]
        await self.kv.commit(Transaction(expect={home: found.value}, delete=[home], add=live_adds([], lost)))
        self.objects.pop(home, None)

    async def restart_writer(self) -> None:
        """Seal what is open and begin with fresh volumes."""
        await self.writer.close()
        self.writer = self.new_writer()

    async def body_of(self, home: bytes) -> bytes:
        found = await open_home(self.kv, home)
        assert found is not None, home
        extents = [place.extent for place in found.places.values() if place.at >= 0]
        return await self.read_all(extents)

    async def check(self) -> None:
        """Every object reads right, and every volume's live bytes are what its homes hold."""
        self.reader = self.new_reader()
        self.ledger._cache.clear()
        held: dict[int, int] = {}
        for key, _ in await self.kv.scan(b"o", b"q", 100_000):
            found = await open_home(self.kv, key)
            assert found is not None
            for place in found.places.values():
                held[place.extent.volume] = held.get(place.extent.volume, 0) + place.extent.length
            if key in self.objects:
                assert await self.body_of(key) == self.objects[key], key
        for key in self.objects:
            assert await self.kv.get(key) is not None, key
        live = {
            int.from_bytes(key[1:], "big"): counter(value)
            for key, value in await self.kv.scan(b"G", b"H", 100_000)
        }
        assert {volume: amount for volume, amount in live.items() if amount} == held

    async def states(self) -> dict[int, VolumeState]:
        return {record.id: VolumeState(record.state) for record in await self.ledger.volumes()}


def object_of(value: bytes) -> ObjectRecord:
    return decode(value, ObjectRecord)
