"""Another master key takes over: everything that older ones sealed is sealed anew, in the background.

    access keys (k), targets of replication (in b), the cluster's authority (S authority)

An operator begins it, once the store knows the new key and the old one; the upkeep's leader does it, page by
page. `S master-key` says how far it is: whoever leads next goes on there.

Concurrency: the upkeep process's event loop. Every step is a commit that expects what it read, so that two
leaders at once, or an operator's change, do no harm.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import msgspec

from objstore.admin.app import RotationAdmin
from objstore.clock import Clock, utc_text
from objstore.errors import BadArgument, Conflict, Corrupt, StoreError
from objstore.iam.rotation import reseal_keys
from objstore.iam.secrets import SecretBox
from objstore.meta.kv import Kv, Transaction, pages, prefix_end
from objstore.meta.schema import (
    AccessKeyRecord,
    AuthorityRecord,
    BucketRecord,
    ReplicationRecord,
    RotationRecord,
    decode,
    encode,
    setting_key,
)
from objstore.objects.changes import REPLICATION, replication_of
from objstore.processes.parts import Parts

log = logging.getLogger(__name__)

LOOK_S: Final = 2.0  # Between two looks whether there is something to do.
PAGE: Final = 200
_STATE: Final = setting_key("master-key")
_AUTHORITY: Final = setting_key("authority")
_KEYS, _TARGETS, _CLUSTER, _DONE = range(4)

Json = dict[str, Any]


def box_of(parts: Parts) -> SecretBox:
    """Seals under the newest master key, opens what any of them sealed."""
    cluster = parts.spec.cluster
    return SecretBox(cluster.master_key, parts.store.randomness, cluster.other_master_keys)


def secret_context(bucket: int) -> str:
    """What binds a target's secret to its bucket's record (iam/secrets.py)."""
    return f"replication {bucket}"


class Rotation:
    """Args: master_key, others: as in iam/secrets.py."""

    def __init__(
        self, kv: Kv, box: SecretBox, clock: Clock, master_key: bytes, others: tuple[bytes, ...]
    ) -> None:
        self._kv = kv
        self._box = box
        self._clock = clock
        self._master_key = master_key
        self._others = others

    @classmethod
    def of(cls, parts: Parts, kv: Kv) -> "Rotation":
        cluster = parts.spec.cluster
        return cls(kv, box_of(parts), parts.store.clock, cluster.master_key, cluster.other_master_keys)

    # What operators ask.

    def admin(self) -> RotationAdmin:
        return RotationAdmin(begin=self.begin, status=self.status)

    async def begin(self) -> Json:
        """Begin it, or show the one under way. Raises: BadArgument if only one master key is known."""
        if not self._others:
            raise BadArgument(
                "this store knows one master key only: give it the new one as security.master_key, the one of"
                " now in security.other_master_keys, and start it again",
                name="security.other_master_keys",
            )
        value, record = await self._state()
        if record is None or record.under != self._box.newest or record.part == _DONE:
            record = RotationRecord(under=self._box.newest, began_us=self._clock.now_us())
            with contextlib.suppress(Conflict):  # Somebody else began it just now.
                await self._kv.commit(Transaction(expect={_STATE: value}, put={_STATE: encode(record)}))
        return await self.status()

    async def status(self) -> Json:
        """How far it is, and what still needs a key that is not the newest."""
        _, record = await self._state()
        if record is not None and record.under != self._box.newest:
            record = None  # Of a key before: nothing was begun for this one.
        state = "none" if record is None else "done" if record.part == _DONE else "under way"
        return {
            "master_key": self._box.newest,
            "state": state,
            "done": 0 if record is None else record.done,
            "began": "" if record is None else utc_text(record.began_us / 1e6),
            "needed": [{"master_key": name, **counts} for name, counts in (await self.needs()).items()],
        }

    async def needs(self) -> dict[str, dict[str, int]]:
        """How many access keys, targets of replication and authorities still need each other master key.

        An id that is none of theirs: sealed under a key that is not given.
        """
        others = [name for name in self._box.known if name != self._box.newest]
        found: Counter[tuple[str, str]] = Counter()
        if not others:
            return {}
        async for pairs in pages(self._kv, b"k", prefix_end(b"k"), PAGE):
            for key, value in pairs:
                record = decode(value, AccessKeyRecord)
                found[self._under(key[1:].decode(), record.secret, record.sealed_under), "keys"] += 1
        async for pairs in pages(self._kv, b"b", prefix_end(b"b"), PAGE):
            for _, value in pairs:
                bucket = decode(value, BucketRecord)
                target = replication_of(bucket)
                if target is not None:
                    under = self._under(secret_context(bucket.id), target.secret, target.sealed_under)
                    found[under, "targets"] += 1
        if (authority := await self._kv.get(_AUTHORITY)) is not None:
            found[self._authority_under(decode(authority, AuthorityRecord).bundle), "authorities"] += 1
        strange = sorted({name for name, _ in found} - set(self._box.known))
        return {
            name: {what: found[name, what] for what in ("keys", "targets", "authorities")}
            for name in (*others, *strange)
        }

    def _under(self, context: str, sealed: bytes, under: str) -> str:
        try:
            return self._box.sealed_under(context, sealed, under)
        except Corrupt:
            return under or "unknown"

    # What the upkeep does.

    async def keep(self, leads: Callable[[], bool]) -> None:
        """Do what was begun whenever this process leads. Never returns."""
        while True:
            try:
                while leads() and await self.step():
                    pass
            except Conflict:
                pass  # The page is done again.
            except StoreError as failure:
                log.warning("master key: %s", failure)
            except Exception:
                log.exception("master key: a bug")
            await asyncio.sleep(LOOK_S)

    async def step(self) -> bool:
        """One page; whether there may be more to do. Raises: Corrupt, Conflict, MetaUnavailable."""
        value, record = await self._state()
        if record is None or record.part == _DONE or record.under != self._box.newest:
            return False
        if record.part == _KEYS:
            done, after = await reseal_keys(self._kv, self._box, record.after)
        elif record.part == _TARGETS:
            done, after = await self._reseal_targets(record.after)
        else:
            done, after = int(await self._reseal_authority()), ""
        part = record.part if after else record.part + 1
        fresh = msgspec.structs.replace(
            record,
            part=part,
            after=after,
            done=record.done + done,
            finished_us=self._clock.now_us() if part == _DONE else 0,
        )
        await self._kv.commit(Transaction(expect={_STATE: value}, put={_STATE: encode(fresh)}))
        if part == _DONE:
            log.info("all secrets are sealed under the newest master key", extra={"secrets": fresh.done})
        return part != _DONE

    async def _state(self) -> tuple[bytes | None, RotationRecord | None]:
        value = await self._kv.get(_STATE)
        return value, None if value is None else decode(value, RotationRecord)

    async def _reseal_targets(self, after: str) -> tuple[int, str]:
        start = b"b" + after.encode() + b"\0" if after else b"b"
        pairs = await self._kv.scan(start, prefix_end(b"b"), PAGE)
        done = 0
        for key, value in pairs:
            done += await self._reseal_target(key, value)
        return done, pairs[-1][0][1:].decode() if len(pairs) == PAGE else ""

    async def _reseal_target(self, key: bytes, value: bytes) -> bool:
        """Raises: Conflict if the bucket changed meanwhile: the page is done again."""
        bucket = decode(value, BucketRecord)
        target = replication_of(bucket)
        if target is None or target.sealed_under == self._box.newest:
            return False
        fresh = self._resealed(bucket, target)
        settings = {**(bucket.settings or {}), REPLICATION: encode(fresh)}
        changed = msgspec.structs.replace(bucket, settings=settings)
        await self._kv.commit(Transaction(expect={key: value}, put={key: encode(changed)}))
        return True

    def _resealed(self, bucket: BucketRecord, target: ReplicationRecord) -> ReplicationRecord:
        context = secret_context(bucket.id)
        secret = self._box.seal(context, self._box.open(context, target.secret, target.sealed_under))
        return msgspec.structs.replace(target, secret=secret, sealed_under=self._box.newest)

    async def _reseal_authority(self) -> bool:
        """Raises: Conflict if the roots changed meanwhile: then it is done again."""
        value = await self._kv.get(_AUTHORITY)
        if value is None:
            return False
        from objstore.node.authority import decode_authority, encode_authority  # Loads x509.

        bundle = decode(value, AuthorityRecord).bundle
        if self._authority_under(bundle) == self._box.newest:
            return False
        authority = decode_authority(bundle, self._master_key, self._others)
        fresh = AuthorityRecord(bundle=encode_authority(authority, self._master_key))
        await self._kv.commit(Transaction(expect={_AUTHORITY: value}, put={_AUTHORITY: encode(fresh)}))
        return True

    def _authority_under(self, bundle: bytes) -> str:
        from objstore.node.authority import decode_authority

        for key, name in zip((self._master_key, *self._others), self._box.known, strict=True):
            try:
                decode_authority(bundle, key)
            except Corrupt:
                continue
            return name
        return "unknown"
