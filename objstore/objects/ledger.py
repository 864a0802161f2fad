"""The blob layer's ledger over metadata: V, L, G, R, D and N keys (meta/schema.py).

Volume records change rarely (sealed, retired, a fragment file moved), so they are cached: a cached
record may be old but never wrong, because ids are never reused and bytes never change. Lengths and
live bytes are counters of their own: a delete in another process does not disturb the writer's
expectation that the record is unchanged.

Accounting of live bytes (G): the commit that publishes an extent adds its length; the commit in which
its home drops it subtracts it. Garbage is length minus live, so what no commit ever claimed is garbage
from the start.

Concurrency: one instance a process, on its event loop. The cache is only a hint; every change is a
conditional commit on the record as it was read.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import msgspec

from objstore.blobs.topology import Layout
from objstore.blobs.volumes import NOBODY, Intent, Lane, Stored, VolumeRecord, VolumeState
from objstore.clock import Clock, SystemClock
from objstore.errors import Conflict, Corrupt, MetaUnavailable
from objstore.extents import Extent
from objstore.meta.kv import Add, Kv, Transaction, counter, counter_value, pages, prefix_end
from objstore.meta.schema import (
    DiskRecord,
    MemberRecord,
    decode,
    disk_key,
    encode,
    repair_key,
    serial_key,
    volume_key,
    volume_length_key,
    volume_live_key,
)
from objstore.objects.layout import Plan, layout_of, read_layout

CACHED_RECORDS_MAX: Final = 65_536  # About 300 bytes each: 20 MB at the most.
ATTEMPTS_MAX: Final = 64  # Of a conditional commit; each lost round means that another one won.
SCAN_PAGE: Final = 1_000
VOLUME_SERIAL: Final = "volumes"
DISKS_MAX: Final = 1 << 16  # A disk number has two bytes in its key.

GIVEN_UP: Final = ("failed", "retired")  # States of a disk whose fragments do not come back.
DRAINING: Final = "draining"  # To be emptied: no new volumes, and its files move elsewhere.
BEING_ADDED: Final = "it is being added"  # Why a disk is suspect that the supervisor may not have locked yet.
DOUBTS: Final = ("suspect", "read-only")  # States of a disk that a verification ends.

Decide = Callable[[VolumeRecord], VolumeRecord | None]  # None: nothing to change.

_record_encoder = msgspec.msgpack.Encoder()
_record_decoder = msgspec.msgpack.Decoder(VolumeRecord)


def encode_volume(record: VolumeRecord) -> bytes:
    return _record_encoder.encode(record)


def decode_volume(value: bytes) -> VolumeRecord:
    return _record_decoder.decode(value)


def publish(
    stored: Stored, lost: Sequence[Extent] = ()
) -> tuple[dict[bytes, bytes | None], dict[bytes, bytes], dict[bytes, Add]]:
    """What a commit that publishes `stored` must expect, put and add beside its own keys.

    Merge all three into the transaction: expectations that the volumes are still this writer's open ones,
    repair intents, and live bytes (less those of the extents that the same commit drops).
    """
    expect: dict[bytes, bytes | None] = {volume_key(volume): fence for volume, fence in stored.fences.items()}
    put = {repair_key(intent.volume, intent.index): b"" for intent in stored.intents}
    return expect, put, live_adds(stored.extents, lost)


def live_adds(gained: Sequence[Extent], lost: Sequence[Extent] = ()) -> dict[bytes, Add]:
    """Live bytes by volume: plus what a home now holds, minus what it no longer does."""
    sums: dict[int, int] = {}
    for extent in gained:
        sums[extent.volume] = sums.get(extent.volume, 0) + extent.length
    for extent in lost:
        sums[extent.volume] = sums.get(extent.volume, 0) - extent.length
    return {volume_live_key(volume): Add(delta) for volume, delta in sums.items() if delta}


class MetaLedger:
    """Implements blobs.volumes.Ledger, and what the upkeep needs beside it."""

    def __init__(self, kv: Kv, *, clock: Clock | None = None) -> None:
        self._kv = kv
        self._clock = clock if clock is not None else SystemClock()
        self._cache: dict[int, VolumeRecord] = {}

    def over(self, kv: Kv) -> "MetaLedger":
        """The same records through another `Kv`, with a cache of its own."""
        return MetaLedger(kv, clock=self._clock)

    # What the blob layer asks for.

    async def create(
        self, *, k: int, m: int, disks: list[int], lane: Lane, writer: bytes, policy: str
    ) -> tuple[VolumeRecord, bytes]:
        assert len(disks) == len(set(disks)) == k + m
        assert len(writer) == 16
        serial = serial_key(VOLUME_SERIAL)
        for _ in range(ATTEMPTS_MAX):
            newest = await self._kv.get(serial)
            volume = counter(newest) + 1
            record = VolumeRecord(
                id=volume,
                k=k,
                m=m,
                disks=list(disks),
                state=VolumeState.OPEN,
                lane=lane,
                writer=writer,
                policy=policy,
                created_us=self._clock.now_us(),
            )
            fence = encode_volume(record)
            try:
                await self._kv.commit(
                    Transaction(
                        expect={serial: newest, volume_key(volume): None},
                        put={volume_key(volume): fence},
                        add={serial: Add(1)},
                    )
                )
            except Conflict:
                continue  # Another writer took the number.
            self._remember(record)
            return record, fence
        raise MetaUnavailable(f"no volume number won in {ATTEMPTS_MAX} attempts")

    async def get(self, volume: int, *, fresh: bool = False) -> VolumeRecord:
        if not fresh:
            cached = self._cache.get(volume)
            if cached is not None:
                return cached
        value = await self._kv.get(volume_key(volume))
        if value is None:
            self._cache.pop(volume, None)
            raise Corrupt(f"metadata knows no volume {volume}")
        record = decode_volume(value)
        self._remember(record)
        return record

    async def extend(self, volume: int, fence: bytes, length: int) -> None:
        await self._kv.commit(
            Transaction(
                expect={volume_key(volume): fence},
                put={volume_length_key(volume): counter_value(length)},
            )
        )

    async def seal(self, volume: int, length: int) -> VolumeRecord:
        def sealed(record: VolumeRecord) -> VolumeRecord | None:
            if record.state != VolumeState.OPEN:
                return None
            return msgspec.structs.replace(record, state=VolumeState.SEALED, length=length)

        return await self._change(volume, sealed, put={volume_length_key(volume): counter_value(length)})

    async def suspect(self, disk: int, reason: str, *, read_only: bool = False) -> None:
        await self.set_disk_state(disk, "read-only" if read_only else "suspect", reason)

    async def usable_disks(self) -> list[int]:
        """Healthy, and on a machine that answers."""
        healthy = {
            number: record for number, record in (await self.disks()).items() if record.state == "healthy"
        }
        if not any(record.node for record in healthy.values()):
            return list(healthy)  # One machine: nobody can be away.
        there = {
            member
            for member, record in (await self.members()).items()
            if record.state == "joined" and not record.away_us
        }
        return [number for number, record in healthy.items() if not record.node or record.node in there]

    async def layout(self) -> Layout:
        """Where every disk stands, which take new files, and the placement policies, as they are in force."""
        _, record = await read_layout(self._kv)
        return await self.layout_under(record.current, record.version)

    async def layout_under(self, plan: Plan, version: int = 0) -> Layout:
        """The same as it would be under another plan."""
        disks = await self.disks()
        members = await self.members() if any(disk.node for disk in disks.values()) else {}
        return layout_of(
            plan, version, disks, members, leaving=lambda disk: disk.state in (DRAINING, *GIVEN_UP)
        )

    # Machines of the cluster, and disks.

    async def members(self) -> dict[bytes, MemberRecord]:
        """Every machine that ever joined, by its id; those that were removed among them."""
        found: dict[bytes, MemberRecord] = {}
        async for pairs in pages(self._kv, b"n", prefix_end(b"n"), SCAN_PAGE):
            found.update((key[1:], decode(value, MemberRecord)) for key, value in pairs)
        return found

    async def disks(self) -> dict[int, DiskRecord]:
        """Every disk's record, by number."""
        start = b"D"
        pairs = await self._kv.scan(start, prefix_end(start), DISKS_MAX)
        return {int.from_bytes(key[1:], "big"): decode(value, DiskRecord) for key, value in pairs}

    async def register_disk(self, disk: int, *, uuid: bytes, path: str) -> None:
        """Make a disk known (state healthy). A known one keeps its state; its path is brought up to date.

        Raises: Corrupt if the number belongs to another disk.
        """
        key = disk_key(disk)
        for _ in range(ATTEMPTS_MAX):
            old = await self._kv.get(key)
            if old is None:
                new = DiskRecord(uuid=uuid, path=path, state="healthy", since_us=self._clock.now_us())
            else:
                record = decode(old, DiskRecord)
                if record.uuid not in (b"", uuid):
                    raise Corrupt(f"disk {disk} has another uuid in metadata")
                if record.uuid == uuid and record.path == path:
                    return
                new = msgspec.structs.replace(record, uuid=uuid, path=path)
            try:
                await self._kv.commit(Transaction(expect={key: old}, put={key: encode(new)}))
            except Conflict:
                continue
            return
        raise MetaUnavailable(f"disk {disk} not registered in {ATTEMPTS_MAX} attempts")

    async def reserve_disk(
        self, *, uuid: bytes, path: str, reason: str, node: bytes = b"", size: int = 0
    ) -> int:
        """A number for a new disk, never used before; its record says suspect until the disk is made.

        Args:
            node: the member that has it (16 bytes); empty: this machine.
            size: bytes of its file system, if known.
        """
        for _ in range(ATTEMPTS_MAX):
            number = max(await self.disks(), default=0) + 1
            record = DiskRecord(
                uuid=uuid,
                path=path,
                state="suspect",
                reason=reason,
                since_us=self._clock.now_us(),
                node=node,
                size=size,
            )
            try:
                await self._kv.commit(
                    Transaction(expect={disk_key(number): None}, put={disk_key(number): encode(record)})
                )
            except Conflict:
                continue  # Another one took the number.
            return number
        raise MetaUnavailable(f"no disk number won in {ATTEMPTS_MAX} attempts")

    async def change_disk(self, disk: int, *, before: Collection[str], state: str, reason: str = "") -> bool:
        """Set the state of a disk that is in one of the states `before`; whether it was. One that has the
        state already counts."""
        return await self._mark_disk(disk, state, reason, lambda record: record.state in before)

    async def set_disk_state(self, disk: int, state: str, reason: str = "") -> None:
        """One of meta/schema.py's states. Setting the state that it has changes nothing; a doubt (suspect,
        read-only) is only ever about a healthy disk: it never undoes what an operator decided."""
        await self._mark_disk(
            disk,
            state,
            reason,
            lambda record: state not in DOUBTS or record.state == "healthy",
            absent=DiskRecord(uuid=b"", path="", state="healthy"),
        )

    async def _mark_disk(
        self,
        disk: int,
        state: str,
        reason: str,
        may: Callable[[DiskRecord], bool],
        *,
        absent: DiskRecord | None = None,
    ) -> bool:
        """Set the state where it `may` be set; whether the disk has it now.

        Args:
            absent: what to begin with where there is no record; None: such a disk is left alone.
        """
        key = disk_key(disk)
        for _ in range(ATTEMPTS_MAX):
            old = await self._kv.get(key)
            record = absent if old is None else decode(old, DiskRecord)
            if record is None:
                return False
            if record.state == state:
                return True
            if not may(record):
                return False
            new = msgspec.structs.replace(
                record, state=state, reason=reason[:400], since_us=self._clock.now_us()
            )
            try:
                await self._kv.commit(Transaction(expect={key: old}, put={key: encode(new)}))
            except Conflict:
                continue
            return True
        raise MetaUnavailable(f"disk {disk} not marked {state} in {ATTEMPTS_MAX} attempts")

    # Volumes, for the upkeep.

    async def newest_volume(self) -> int:
        """The volume counter. A fragment file beyond it proves that this metadata is older than the data."""
        return counter(await self._kv.get(serial_key(VOLUME_SERIAL)))

    async def volumes(self, after: int = 0, limit: int = SCAN_PAGE) -> list[VolumeRecord]:
        """Records with ids > after, in order; fresh."""
        pairs = await self._kv.scan(volume_key(after + 1), prefix_end(b"V"), limit)
        records = [decode_volume(value) for _, value in pairs]
        for record in records:
            self._remember(record)
        return records

    async def lengths(self, volumes: Sequence[int]) -> list[tuple[int, int]]:
        """(length, live) of each volume: bytes of each fragment file, and live bytes of payload."""
        keys = [key for volume in volumes for key in (volume_length_key(volume), volume_live_key(volume))]
        values = await self._kv.get_many(keys)
        return [(counter(values[at]), counter(values[at + 1])) for at in range(0, len(values), 2)]

    async def disown(self, volume: int) -> VolumeRecord:
        """Take an open volume from its writer: no commit publishes anything in it any more. Idempotent."""

        def disowned(record: VolumeRecord) -> VolumeRecord | None:
            if record.state != VolumeState.OPEN or record.writer == NOBODY:
                return None
            return msgspec.structs.replace(record, writer=NOBODY)

        return await self._change(volume, disowned)

    async def retire(self, volume: int) -> VolumeRecord:
        """Sealed -> retired: into the trash. Idempotent.

        Raises: Conflict if the volume is open: its writer may still publish into it.
        """

        def retired(record: VolumeRecord) -> VolumeRecord | None:
            if record.state == VolumeState.OPEN:
                raise Conflict(volume_key(volume))
            if record.state == VolumeState.RETIRED:
                return None
            return msgspec.structs.replace(record, state=VolumeState.RETIRED, retired_us=self._clock.now_us())

        return await self._change(volume, retired)

    async def forget(self, record: VolumeRecord) -> None:
        """Delete a retired volume's keys, after its last fragment file is purged.

        Raises: Conflict if the record is no longer this one.
        """
        assert record.state == VolumeState.RETIRED
        await self._kv.commit(
            Transaction(
                expect={volume_key(record.id): encode_volume(record)},
                delete=[
                    volume_key(record.id),
                    volume_length_key(record.id),
                    volume_live_key(record.id),
                    *(repair_key(record.id, index) for index in range(record.fragment_count)),
                ],
            )
        )
        self._cache.pop(record.id, None)

    async def intents(self, after: bytes = b"R", limit: int = SCAN_PAGE) -> list[Intent]:
        """Fragment files known to lack acknowledged stripes, in order of volume."""
        pairs = await self._kv.scan(after, prefix_end(b"R"), limit)
        return [Intent(int.from_bytes(key[1:9], "big"), key[9]) for key, _ in pairs]

    async def note_intent(self, intent: Intent) -> None:
        await self._kv.commit(Transaction(put={repair_key(intent.volume, intent.index): b""}))

    async def repaired(self, record: VolumeRecord, index: int, disk: int) -> VolumeRecord:
        """Fragment file `index` is whole on `disk`: move it there in the record and drop the intent.

        Raises: Conflict if the record is no longer this one (the rebuilt file may lack something), or open.
        """
        if record.state == VolumeState.OPEN:
            raise Conflict(volume_key(record.id))
        disks = list(record.disks)
        disks[index] = disk
        moved = msgspec.structs.replace(record, disks=disks)
        key = volume_key(record.id)
        await self._kv.commit(
            Transaction(
                expect={key: encode_volume(record)},
                put={key: encode_volume(moved)},
                delete=[repair_key(record.id, index)],
            )
        )
        self._remember(moved)
        return moved

    async def _change(
        self, volume: int, decide: Decide, put: Mapping[bytes, bytes] | None = None
    ) -> VolumeRecord:
        key = volume_key(volume)
        for _ in range(ATTEMPTS_MAX):
            old = await self._kv.get(key)
            if old is None:
                raise Corrupt(f"metadata knows no volume {volume}")
            record = decode_volume(old)
            new = decide(record)
            if new is None:
                self._remember(record)
                return record
            try:
                await self._kv.commit(
                    Transaction(expect={key: old}, put={key: encode_volume(new), **(put or {})})
                )
            except Conflict:
                continue
            self._remember(new)
            return new
        raise MetaUnavailable(f"volume {volume} not changed in {ATTEMPTS_MAX} attempts")

    def _remember(self, record: VolumeRecord) -> None:
        cache = self._cache
        if len(cache) >= CACHED_RECORDS_MAX and record.id not in cache:
            for volume in list(cache)[: CACHED_RECORDS_MAX // 8]:  # The longest known go first.
                del cache[volume]
        cache[record.id] = record
