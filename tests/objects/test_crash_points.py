"""A crash at every point that the object layer names, and another one in the life after it.

One story does everything once: bodies carried, packed, streamed and written again, a copy, uploads completed
and aborted, keys deleted one by one and together, a sweep of what was dropped. It is cut at its first point,
at its second, and so on; disks lose what was not synced; another process takes the story up at the step
that was cut, is cut at one of its own points (each of them with OBJSTORE_LONG=1, else one by a printed seed),
and a third one ends it. After every crash each key holds what was promised, and every counter is right.
"""

import asyncio
import contextlib
import hashlib
import os
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from objstore.blobs.volumes import VolumeState
from objstore.clock import SECOND_US
from objstore.errors import NoSuchKey, NoSuchUpload
from objstore.meta.kv import DictKv, Transaction
from objstore.objects import carrying, multipart
from objstore.objects.buckets import create_bucket
from objstore.objects.carrying import LEFT_BEHIND_US, SIZE_MAX, pack_left_behind
from objstore.objects.copies import Source, copy_object
from objstore.objects.doomed import GRACE_US, sweep
from objstore.objects.ledger import MetaLedger
from objstore.objects.listing import list_objects
from objstore.objects.multipart import (
    Claimed,
    abort_upload,
    complete_upload,
    create_upload,
    list_uploads,
    put_part,
)
from objstore.objects.reads import find_object
from objstore.objects.store import Store
from objstore.objects.values import About
from objstore.objects.writes import Doomed, delete_object, delete_objects, put_object
from objstore.upkeep.seal import seal_volume
from tests.objects.audit import audit
from tests.objects.fakes import MemoryBody, principal, read_all
from tests.seed import SEED
from tests.upkeep.rig import Yard

WHO = principal()
BUCKET = "bucket"
LONG = bool(os.environ.get("OBJSTORE_LONG"))
CODE = Path(carrying.__file__).parent
CARRIED, PACKED, STREAMED = 100, SIZE_MAX + 100, 40_000  # Bytes of a body of each kind.
SMALL_MAX = 20_000
PART_SIZE = 1_000


class Crash(BaseException):
    """The process is gone: nothing catches it."""


class MortalKv(DictKv):
    """One process's way to the metadata that outlives it: a process that is gone commits nothing more."""

    def __init__(self, engine: DictKv) -> None:
        self._values, self._keys = engine._values, engine._keys
        self.gone = False
        self.before_object: Callable[[], Awaitable[None]] | None = None  # Done once, before its commit.

    async def commit(self, transaction: Transaction) -> None:
        if self.before_object is not None and any(key[:1] == b"o" for key in transaction.put):
            act, self.before_object = self.before_object, None
            await act()
        if self.gone:
            raise Crash
        await super().commit(transaction)


def body(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


Step = Callable[[Store], Awaitable[object]]


class Story:
    """What the clients of one bucket do, as steps that may be done again, and what they were promised."""

    def __init__(self) -> None:
        self.yard: Yard
        self.engine: DictKv
        self.begun = False
        self.done = 0  # Steps.
        self.passed: list[str] = []  # The points of the last life.
        self.may_be: dict[str, set[bytes | None]] = {}
        self.uploads: dict[str, str] = {}
        self.kv: MortalKv
        self.rng = random.Random(SEED)

    # One life after another.

    def live(self, crash_at: int = -1) -> bool:
        """Go on with the story in a process of its own; it is gone at its crash_at-th point (from 0).

        Returns: whether the story has come to its end.
        """
        with asyncio.Runner() as runner:  # Its tasks end with it.
            # Whoever of a process that is gone would like to say something: nobody hears it.
            runner.get_loop().set_exception_handler(lambda loop, context: None)
            ended = runner.run(self._live(crash_at))
        for disk in self.yard.disks.values():
            disk.lose_power(self.rng)
        asyncio.run(self._check(ended))
        return ended

    async def _live(self, crash_at: int) -> bool:
        if not self.begun:
            self.yard = await Yard().start()
            self.engine, self.begun = self.yard.kv, True
        kv = self.kv = MortalKv(self.engine)
        passed: list[str] = []

        def point(name: str) -> None:
            if kv.gone:
                raise Crash
            passed.append(name)
            if len(passed) == crash_at + 1:
                kv.gone = True
                raise Crash

        store, steps, self.passed = self._store(kv, point), self._steps(), passed
        with contextlib.suppress(Crash):
            while self.done < len(steps):
                await steps[self.done](store)
                self.done += 1
        assert kv.gone == (crash_at >= 0), f"no point {crash_at}: {passed}"
        return not kv.gone

    def _store(self, kv: DictKv, point: Callable[[str], None] = lambda name: None) -> Store:
        yard = self.yard
        yard.kv, yard.ledger = kv, MetaLedger(kv, clock=yard.clock)
        yard.writer, yard.reader = yard.new_writer(), yard.new_reader()
        return Store(
            kv=kv,
            writer=yard.writer,
            reader=yard.reader,
            ledger=yard.ledger,
            clock=yard.clock,
            small_size_max=SMALL_MAX,
            carried_size_max=SIZE_MAX,
            crash_point=point,
        )

    async def _check(self, ended: bool) -> None:
        """What is there is what was promised, and what was read once stays."""
        store = self._store(self.engine)
        page = await list_objects(store, WHO, BUCKET, prefix="", delimiter="", after="", limit=1_000)
        for key, states in self.may_be.items():
            try:
                found = await find_object(store, WHO, BUCKET, key)
            except NoSuchKey:
                content = None
            else:
                content = await read_all(store, found)
            assert content in states, f"{key} after {self.passed[-1:]}"
            assert (key in page.names) == (content is not None)
            self.may_be[key] = {content}
        assert set(page.names) <= set(self.may_be)
        letters = await audit(store)
        if ended:
            left = {letter: letters[letter] for letter in (b"B", b"d", b"m", b"p", b"q", b"x")}
            assert not any(left.values()), left

    # The story.

    def _steps(self) -> list[Step]:
        return [
            self._make_bucket,
            self._put("carried", 1, CARRIED),
            self._put("packed", 2, PACKED),
            self._put("streamed", 3, STREAMED),
            self._pack,
            self._put("carried", 4, CARRIED),
            self._put("carried", 5, CARRIED),
            self._put("carried", 6, STREAMED),
            self._put("packed", 7, CARRIED),
            self._put("sealed", 8, PACKED, sealed=True),
            self._put("sealed", 9, STREAMED, sealed=True),
            self._copy("sealed", "copy"),
            self._copy("copy", "copy"),
            self._begin("whole"),
            self._part("whole", 1, 10, CARRIED),
            self._part("whole", 1, 11, PACKED),
            self._part("whole", 2, 12, STREAMED),
            self._part("whole", 3, 13, CARRIED),
            self._complete("whole", [(11, PACKED), (12, STREAMED)]),
            self._begin("never"),
            self._part("never", 1, 14, STREAMED),
            self._abort("never"),
            self._delete("streamed"),
            self._delete_all(["packed", "whole", "copy", "absent"]),
            self._pack,
            self._abort_left_behind,
            self._sweep,
        ]

    async def _make_bucket(self, store: Store) -> None:
        await create_bucket(store, WHO, BUCKET, region="")

    async def _change(self, keys: Sequence[str], content: bytes | None, act: Awaitable[object]) -> None:
        for key in keys:
            self.may_be.setdefault(key, {None}).add(content)
        await act
        for key in keys:
            self.may_be[key] = {content}

    def _put(self, key: str, number: int, size: int, *, sealed: bool = False) -> Step:
        content = body(number, size)

        async def step(store: Store) -> None:
            if sealed:
                self.kv.before_object = self._seal_all
            put = put_object(store, WHO, BUCKET, key, About(), MemoryBody(content))
            await self._change([key], content, put)

        return step

    async def _seal_all(self) -> None:
        context = self.yard.context()
        for record in await self.yard.ledger.volumes():
            if record.state == VolumeState.OPEN:
                await seal_volume(context, record)

    async def _pack(self, store: Store) -> None:
        await store.carrier.flush(store)
        self.yard.clock.advance(1 + LEFT_BEHIND_US / SECOND_US)
        await pack_left_behind(store)

    def _copy(self, source: str, key: str) -> Step:
        async def step(store: Store) -> None:
            (content,) = self.may_be[source]
            about = About(content_type="text/plain") if source == key else None
            copy = copy_object(store, WHO, Source(bucket=BUCKET, key=source), BUCKET, key, about=about)
            await self._change([key], content, copy)

        return step

    def _begin(self, key: str) -> Step:
        async def step(store: Store) -> None:
            begun = await create_upload(
                store, WHO, BUCKET, key, About(), checksum_algorithm="", checksum_type=""
            )
            self.uploads[key] = begun[0]

        return step

    def _part(self, key: str, number: int, seed: int, size: int) -> Step:
        async def step(store: Store) -> None:
            part = MemoryBody(body(seed, size))
            await put_part(store, WHO, BUCKET, key, self.uploads[key], number, part)

        return step

    def _complete(self, key: str, parts: list[tuple[int, int]]) -> Step:
        bodies = [body(*part) for part in parts]
        claims = [Claimed(number=n, etag=hashlib.md5(part).hexdigest()) for n, part in enumerate(bodies, 1)]

        async def step(store: Store) -> None:
            complete = complete_upload(store, WHO, BUCKET, key, self.uploads[key], claims)
            await self._change([key], b"".join(bodies), complete)

        return step

    def _abort(self, key: str) -> Step:
        async def step(store: Store) -> None:
            with contextlib.suppress(NoSuchUpload):  # Done by a process that could not say so.
                await abort_upload(store, WHO, BUCKET, key, self.uploads[key])

        return step

    def _delete(self, key: str) -> Step:
        return lambda store: self._change([key], None, delete_object(store, WHO, BUCKET, key))

    def _delete_all(self, keys: list[str]) -> Step:
        async def step(store: Store) -> None:
            async def delete() -> None:
                doomed = [Doomed(key=key) for key in keys]
                assert await delete_objects(store, WHO, BUCKET, doomed) == [None] * len(keys)

            await self._change(keys, None, delete())

        return step

    async def _abort_left_behind(self, store: Store) -> None:
        """Those of which a crash has kept the client from learning the id."""
        page = await list_uploads(
            store, WHO, BUCKET, prefix="", delimiter="", after_key="", after_upload="", limit=1_000
        )
        for key, upload, _ in page.uploads:
            await abort_upload(store, WHO, BUCKET, key, upload)

    async def _sweep(self, store: Store) -> None:
        self.yard.clock.advance(1 + GRACE_US / SECOND_US)
        await sweep(store)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "ALONE_BEFORE", 0)
    monkeypatch.setattr(carrying, "PACK_AFTER_S", 3_600)  # Only when the story says so.
    monkeypatch.setattr(multipart, "PART_SIZE_MIN", PART_SIZE)


def cut(*crashes: int) -> list[str]:
    """The story with these crashes, one in each life, to its end; the points that its last life passed."""
    story = Story()
    for crash_at in crashes:
        assert not story.live(crash_at)
    assert story.live()
    return story.passed


def test_the_story_passes_every_point_that_the_code_names() -> None:
    named = {
        name
        for path in CODE.glob("*.py")
        for name in re.findall(r'crash_point\("([a-z-]+)"\)', path.read_text())
    }
    assert len(named) > 10
    assert set(cut()) == named


@pytest.mark.timeout(6 * 3_600 if LONG else 600)
def test_every_named_point_may_be_the_last_one_twice_in_a_row() -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    names = cut()
    runs = 1
    for first, name in enumerate(names):
        at = f"crash at point {first}, {name}"
        print(at)
        passed = cut(first)
        runs += 1
        nested = range(len(passed)) if LONG else [rng.randrange(len(passed))] if passed else []
        for second in nested:
            print(f"{at}, and then at point {second}, {passed[second]}")
            cut(first, second)
            runs += 1
    print(f"{runs} runs over {len(names)} points")
