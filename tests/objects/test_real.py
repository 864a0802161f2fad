"""The model once more, over LMDB, journal, blobs and directories, with restarts and compaction between."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import rule

from objstore.objects import multipart
from objstore.objects.buckets import create_bucket
from objstore.objects.doomed import sweep
from objstore.objects.multipart import Claimed
from objstore.objects.reads import find_object
from objstore.objects.store import Store
from objstore.objects.values import About, ByteRange, Conditions
from objstore.objects.writes import delete_object, put_object
from tests.objects.audit import audit
from tests.objects.fakes import MemoryBody, principal, read_all
from tests.objects.real import RealStore
from tests.objects.test_model import LONG, Model

WHO = principal()


class RealModel(Model):
    """Another engine and other blobs under the same rules."""

    def make_store(self) -> Store:
        self.root = Path(tempfile.mkdtemp(prefix="objects-"))
        self.real = RealStore(self.root, clock=self.clock, small_size_max=100, carried_size_max=40)
        store: Store = self.run(self.real.start())
        return store

    def teardown(self) -> None:
        loop = self.loop
        close = loop.close
        loop.close = lambda: None  # type: ignore[method-assign]
        try:
            super().teardown()
        finally:
            try:
                loop.run_until_complete(self.real.stop())
            finally:
                close()
                shutil.rmtree(self.root)

    async def reseal(self) -> None:
        """The fakes' way of sealing a volume under a commit; the real writer has tests of its own."""

    @rule()
    def restart(self) -> None:
        self.store = self.run(self.real.restart())

    @rule()
    def another_process_takes_over(self) -> None:
        self.store = self.run(self.real.replace_writer())

    @rule()
    def compact_all(self) -> None:
        self.store = self.run(self.real.compact_all())
        self.run(audit(self.store))


RealModel.TestCase.settings = settings(
    max_examples=60 if LONG else 4,
    stateful_step_count=40 if LONG else 20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "PART_SIZE_MIN", 0)
    monkeypatch.setattr(multipart, "PAGE_PARTS_MAX", 2)
    monkeypatch.setattr("objstore.objects.reads.PAGE_PARTS_MAX", 2)


@pytest.mark.usefixtures("_small_limits")
class TestRealModel(RealModel.TestCase):  # type: ignore[name-defined,misc]
    pass


async def test_large_objects_with_pages_and_many_parts_survive_compaction_and_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objstore.objects.bodies.INLINE_EXTENTS_MAX", 2)
    monkeypatch.setattr("objstore.objects.bodies.PAGE_EXTENTS_MAX", 3)
    real = RealStore(tmp_path)
    store = await real.start()
    try:
        await create_bucket(store, WHO, "bucket", region="")
        paged = hashlib.shake_128(b"paged").digest(26_000_000)
        await put_object(store, WHO, "bucket", "paged", About(), MemoryBody(paged))
        found = await find_object(store, WHO, "bucket", "paged")
        assert found.record.extra is not None
        assert found.record.extra.pages >= 2
        upload, _ = await multipart.create_upload(
            store, WHO, "bucket", "parts", About(), checksum_algorithm="", checksum_type=""
        )
        bodies = [hashlib.shake_128(b"%d" % n).digest(900 + n) for n in range(90)]
        claims = []
        for number, body in enumerate(bodies, 1):
            written = await multipart.put_part(
                store, WHO, "bucket", "parts", upload, number, MemoryBody(body)
            )
            claims.append(Claimed(number=number, etag=written.etag))
        await multipart.complete_upload(store, WHO, "bucket", "parts", upload, claims)
        whole = b"".join(bodies)
        for step in ("as it is", "compact", "restart", "compact"):
            if step == "compact":
                store = await real.compact_all()
            elif step == "restart":
                store = await real.restart()
            for key, data in (("paged", paged), ("parts", whole)):
                found = await find_object(store, WHO, "bucket", key)
                assert await read_all(store, found) == data, step
                first, last = len(data) // 3, len(data) // 3 * 2
                found = await find_object(
                    store, WHO, "bucket", key, byte_range=ByteRange(first=first, last=last, text="")
                )
                assert await read_all(store, found) == data[first : last + 1], step
            await audit(store)
        for key in ("paged", "parts"):
            await delete_object(store, WHO, "bucket", key)
        await audit(store)
        assert await sweep(store, grace_us=0) == 2
        counts = await audit(store)
        assert not set(counts) & {b"o", b"p", b"q", b"x", b"d"}
    finally:
        await real.stop()


async def test_compaction_between_the_steps_of_an_upload_changes_none_of_its_answers(tmp_path: Path) -> None:
    real = RealStore(tmp_path)
    try:
        store = await real.start()
        await create_bucket(store, WHO, "bucket", region="")
        present = await put_object(store, WHO, "bucket", "key", About(), MemoryBody(b"present" * 900))
        upload, _ = await multipart.create_upload(
            store, WHO, "bucket", "key", About(), checksum_algorithm="", checksum_type=""
        )
        written = await multipart.put_part(store, WHO, "bucket", "key", upload, 1, MemoryBody(b"part" * 900))
        claims = [Claimed(number=1, etag=written.etag)]
        before = (await find_object(store, WHO, "bucket", "key")).record.extents
        store = await real.compact_all()
        assert (await find_object(store, WHO, "bucket", "key")).record.extents != before, "it was moved"
        # The object is the one that the upload's start saw, wherever its bytes are.
        conditions = Conditions(if_match=present.etag)
        first = await multipart.complete_upload(
            store, WHO, "bucket", "key", upload, claims, conditions=conditions
        )
        for step in ("at once", "compact", "restart"):
            if step == "compact":
                store = await real.compact_all()
            elif step == "restart":
                store = await real.restart()
            again = await multipart.complete_upload(
                store, WHO, "bucket", "key", upload, claims, conditions=conditions
            )
            assert again == first, step
            found = await find_object(store, WHO, "bucket", "key")
            assert await read_all(store, found) == b"part" * 900, step
    finally:
        await real.stop()
