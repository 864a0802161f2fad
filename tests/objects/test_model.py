"""The whole objects layer against a dict, by hypothesis: any order of any verbs, no difference.

Runs over DictKv and fake blobs; every step is followed by reads through the public verbs, and every history
ends with an audit of all counters and records. Seeds: hypothesis prints how to reproduce a failure.
"""

import asyncio
import hashlib
import os
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from objstore.errors import BucketNotEmpty, NoSuchKey, NoSuchUpload
from objstore.meta import schema
from objstore.objects import bodies, multipart
from objstore.objects.buckets import create_bucket, delete_bucket
from objstore.objects.carrying import LEFT_BEHIND_US, pack_left_behind
from objstore.objects.copies import Source, copy_object, copy_part
from objstore.objects.doomed import sweep
from objstore.objects.listing import list_objects
from objstore.objects.multipart import Claimed
from objstore.objects.reads import find_object
from objstore.objects.store import Store
from objstore.objects.values import About, ByteRange
from objstore.objects.writes import Doomed, delete_object, delete_objects, put_object
from objstore.rental.meters import HOUR_S
from objstore.rental.usage import verify_usage
from objstore.upkeep.metering import Metering
from tests.objects.audit import audit
from tests.objects.fakes import FakeClock, MemoryBody, blobs_of, memory_store, principal, read_all

LONG = os.environ.get("OBJSTORE_LONG") == "1"
WHO = principal()
BUCKET = "model"

KEYS = ["a", "a/b", "a/b/c", "a/c", "a\0", "a\0/b", "b", "b/", "b//", "ä", "ä/z", "\U0001f600", "\uffff", "z"]
keys = st.sampled_from(KEYS)
prefixes = st.sampled_from(["", "a", "a/", "a/b", "b/", "ä", "\0", "x"])
delimiters = st.sampled_from(["", "/", "b", "//", "/b", "\0", "ä"])
bytes_of_any_kind = st.one_of(
    st.binary(max_size=60), st.integers(0, 2_000).map(lambda n: bytes(i * 7 % 251 for i in range(n)))
)


def naive_list(
    names: list[str], prefix: str, delimiter: str, after: str, limit: int
) -> tuple[list[str], list[str], bool]:
    """ListObjects as S3 describes it, over all keys, one after another."""
    entries: list[tuple[bytes, str, bool]] = []
    for name in sorted(names, key=str.encode):
        if not name.startswith(prefix):
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        entry = name if cut < 0 else name[: cut + len(delimiter)]
        if entry.encode() <= after.encode() or (entries and entries[-1][1] == entry and cut >= 0):
            continue
        entries.append((entry.encode(), entry, cut >= 0))
    page = entries[:limit]
    return (
        [name for _, name, folded in page if not folded],
        [name for _, name, folded in page if folded],
        len(entries) > limit > 0,
    )


class Model(RuleBasedStateMachine):
    uploads = Bundle("uploads")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.store: Store = self.make_store()
        self.expected: dict[str, tuple[bytes, str]] = {}  # Key -> bytes, ETag.
        self.parts: dict[str, tuple[str, dict[int, bytes]]] = {}  # Upload -> key, parts.
        self.run(create_bucket(self.store, WHO, BUCKET, region=""))

    def make_store(self) -> Store:
        # Small stripes and a small "small": pages and streams come up with a few hundred bytes.
        return memory_store(clock=self.clock, stripe_size=16, small_size_max=200, carried_size_max=40)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        try:
            self.run(audit(self.store))
            self.run(self.store.carrier.close(self.store))
            assert b"B" not in self.run(audit(self.store))
            self.run(sweep(self.store, grace_us=0))
            counts = self.run(audit(self.store))
            assert counts[b"d"] == 0
            for upload, (key, _) in list(self.parts.items()):
                self.run(multipart.abort_upload(self.store, WHO, BUCKET, key, upload))
            self.run(delete_objects(self.store, WHO, BUCKET, [Doomed(key=key) for key in self.expected]))
            self.run(delete_bucket(self.store, WHO, BUCKET))
            self.run(sweep(self.store, grace_us=0))
            counts = self.run(audit(self.store))
            assert {letter.decode() for letter in counts} <= set("NVLGDMQwSyhH"), counts
        finally:
            self.loop.close()

    @rule(key=keys, data=bytes_of_any_kind, sized=st.booleans(), chunk=st.sampled_from([1, 13, 1000]))
    def put(self, key: str, data: bytes, sized: bool, chunk: int) -> None:
        body = MemoryBody(data, sized=sized, chunk_size=max(chunk, len(data) // 50 + 1))
        written = self.run(put_object(self.store, WHO, BUCKET, key, About(metadata={"k": key}), body))
        etag = hashlib.md5(data).hexdigest()
        assert written.etag == etag
        self.expected[key] = (data, etag)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self.run(delete_object(self.store, WHO, BUCKET, key))
        self.expected.pop(key, None)

    @rule(some=st.lists(keys, max_size=5))
    def delete_several(self, some: list[str]) -> None:
        outcomes = self.run(delete_objects(self.store, WHO, BUCKET, [Doomed(key=key) for key in some]))
        assert outcomes == [None] * len(some)
        for key in some:
            self.expected.pop(key, None)

    @rule(source=keys, key=keys, replace=st.booleans())
    def copy(self, source: str, key: str, replace: bool) -> None:
        about = About(metadata={"k": "copied"}) if replace or source == key else None
        work = copy_object(self.store, WHO, Source(bucket=BUCKET, key=source), BUCKET, key, about=about)
        if source not in self.expected:
            with pytest.raises(NoSuchKey):
                self.run(work)
            return
        written = self.run(work)
        data, etag = self.expected[source]
        if source != key:
            etag = hashlib.md5(data).hexdigest()
        assert written.etag == etag
        self.expected[key] = (data, etag)

    @rule(target=uploads, key=keys)
    def create_upload(self, key: str) -> str:
        upload, _ = self.run(
            multipart.create_upload(
                self.store, WHO, BUCKET, key, About(), checksum_algorithm="", checksum_type=""
            )
        )
        self.parts[upload] = (key, {})
        return str(upload)

    @rule(upload=uploads, number=st.integers(1, 4), data=bytes_of_any_kind)
    def put_part(self, upload: str, number: int, data: bytes) -> None:
        if upload not in self.parts:
            return
        key, parts = self.parts[upload]
        self.run(multipart.put_part(self.store, WHO, BUCKET, key, upload, number, MemoryBody(data)))
        parts[number] = data

    @rule(upload=uploads, number=st.integers(1, 4), source=keys, begin=st.integers(0, 50))
    def copy_part(self, upload: str, number: int, source: str, begin: int) -> None:
        if upload not in self.parts or source not in self.expected:
            return
        data = self.expected[source][0]
        if begin >= len(data):
            return
        key, parts = self.parts[upload]
        last = min(begin + 300, len(data) - 1)
        self.run(
            copy_part(
                self.store, WHO, Source(bucket=BUCKET, key=source), (begin, last), BUCKET, key, upload, number
            )
        )
        parts[number] = data[begin : last + 1]

    @rule(upload=consumes(uploads), leave_out=st.booleans(), again=st.booleans())
    def complete(self, upload: str, leave_out: bool, again: bool) -> None:
        key, parts = self.parts.get(upload, ("", {}))
        if not parts:
            return
        chosen = sorted(parts)[1:] if leave_out and len(parts) > 1 else sorted(parts)
        claims = [Claimed(number=n, etag=hashlib.md5(parts[n]).hexdigest()) for n in chosen]
        del self.parts[upload]
        written = self.run(multipart.complete_upload(self.store, WHO, BUCKET, key, upload, claims))
        digest = hashlib.md5(b"".join(hashlib.md5(parts[n]).digest() for n in chosen)).hexdigest()
        assert written.etag == f"{digest}-{len(chosen)}"
        self.expected[key] = (b"".join(parts[n] for n in chosen), written.etag)
        if again:
            repeated = self.run(multipart.complete_upload(self.store, WHO, BUCKET, key, upload, claims))
            assert repeated == written

    @rule(target=uploads, upload=consumes(uploads))
    def abort(self, upload: str) -> Any:
        if upload not in self.parts:
            return multiple()
        key, _ = self.parts.pop(upload)
        self.run(multipart.abort_upload(self.store, WHO, BUCKET, key, upload))
        with pytest.raises(NoSuchUpload):
            self.run(multipart.find_upload(self.store, WHO, BUCKET, key, upload))
        return multiple()

    @rule(key=keys, first=st.integers(0, 2_100), length=st.integers(1, 900))
    def read_range(self, key: str, first: int, length: int) -> None:
        if key not in self.expected:
            return
        data = self.expected[key][0]
        if first >= len(data):
            return
        wanted = ByteRange(first=first, last=first + length - 1, text="")
        found = self.run(find_object(self.store, WHO, BUCKET, key, byte_range=wanted))
        assert self.run(read_all(self.store, found)) == data[first : first + length]

    @rule(
        prefix=prefixes,
        delimiter=delimiters,
        after=st.one_of(st.just(""), keys, prefixes),
        limit=st.integers(0, 6),
    )
    def list(self, prefix: str, delimiter: str, after: str, limit: int) -> None:
        page = self.run(
            list_objects(
                self.store, WHO, BUCKET, prefix=prefix, delimiter=delimiter, after=after, limit=limit
            )
        )
        names, folded, truncated = naive_list(list(self.expected), prefix, delimiter, after, limit)
        assert page.names == names
        assert page.prefixes == folded
        assert page.truncated == truncated
        if truncated:
            assert page.next == max([*names, *folded], key=str.encode)

    @rule()
    def seal_the_volume_between_write_and_commit(self) -> None:
        """As a sealing by another process: the next commit finds its volume sealed."""
        self.run(self.reseal())

    async def reseal(self) -> None:
        blobs = blobs_of(self.store)
        if not blobs.volume:
            return
        volume = blobs.volume
        blobs.gate = asyncio.Event()
        work = asyncio.ensure_future(
            put_object(self.store, WHO, BUCKET, "sealed", About(), MemoryBody(b"bytes written twice" * 9))
        )
        while not blobs.waiting:
            await asyncio.sleep(0)
        await blobs.seal()
        blobs.gate.set()
        blobs.gate, blobs.waiting = None, 0
        await work
        assert blobs.volume != volume
        self.expected["sealed"] = (b"bytes written twice" * 9, work.result().etag)

    @rule()
    def pack(self) -> None:
        self.run(self.store.carrier.flush(self.store))

    @rule()
    def pack_left_behind(self) -> None:
        self.clock.now += LEFT_BEHIND_US + 1_000  # Writes of one moment are 1 us apart.
        self.run(pack_left_behind(self.store))
        assert b"B" not in self.run(audit(self.store))

    @rule(seconds=st.integers(0, 3 * HOUR_S))
    def seal_hours(self, seconds: int) -> None:
        self.clock.now += seconds * 1_000_000
        self.run(Metering(self.store.kv, self.clock).run())
        self.run(audit(self.store))
        assert self.run(verify_usage(self.store.kv, WHO.tenant)).wrong == ()

    @rule(grace=st.sampled_from([0, 1]))
    def sweep(self, grace: int) -> None:
        self.clock.now += 1
        self.run(sweep(self.store, grace_us=grace))

    @rule()
    def a_bucket_with_objects_stays(self) -> None:
        if self.expected:
            with pytest.raises(BucketNotEmpty):
                self.run(delete_bucket(self.store, WHO, BUCKET))

    @invariant()
    def every_object_reads_back(self) -> None:
        for key, (data, etag) in self.expected.items():
            found = self.run(find_object(self.store, WHO, BUCKET, key))
            assert found.etag == etag
            assert self.run(read_all(self.store, found)) == data


Model.TestCase.settings = settings(
    max_examples=400 if LONG else 40,
    stateful_step_count=60 if LONG else 30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "PART_SIZE_MIN", 0)
    monkeypatch.setattr(multipart, "PAGE_PARTS_MAX", 2)
    monkeypatch.setattr("objstore.objects.reads.PAGE_PARTS_MAX", 2)
    monkeypatch.setattr(bodies, "INLINE_EXTENTS_MAX", 3)
    monkeypatch.setattr(bodies, "PAGE_EXTENTS_MAX", 4)
    assert schema.PAGE_PARTS_MAX == 40


@pytest.mark.usefixtures("_small_limits")
class TestModel(Model.TestCase):  # type: ignore[name-defined,misc]
    pass
