"""What every verb needs, in one value: the parts meet in `processes`, nowhere else."""

import os
from dataclasses import dataclass, field
from typing import NamedTuple

from objstore.blobs.reader import BlobReader
from objstore.blobs.writer import BlobWriter, CrashPoint
from objstore.clock import Clock, SystemClock
from objstore.ids import Randomness
from objstore.meta.kv import Kv, Versioned
from objstore.meta.schema import BucketRecord
from objstore.objects.carrying import Carrier
from objstore.objects.chains import Chains
from objstore.objects.ledger import MetaLedger
from objstore.objects.placing import Placing
from objstore.rental.terms import Account


class KnownBucket(NamedTuple):
    """A bucket's record as last read: a guess that every use verifies."""

    value: bytes  # The record, encoded.
    record: BucketRecord
    version: tuple[int, int] | None = None  # The engine's at which it was seen to be this one.


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    kv: Kv
    writer: BlobWriter
    reader: BlobReader
    ledger: MetaLedger
    clock: Clock = field(default_factory=SystemClock)
    randomness: Randomness = os.urandom
    region: str = "us-east-1"
    small_size_max: int = 128 * 1024  # Bytes: up to this a body is packed with others into one stripe.
    placing: Placing = field(default_factory=Placing)
    carried_size_max: int = 0  # Bytes: up to this a body that comes alone is carried by metadata for a while.
    crash_point: CrashPoint = lambda name: None
    """Called with a name before and after every step that lasts; a test ends the process there."""
    carrier: Carrier = field(init=False)
    chains: Chains = field(init=False)  # This process's own commits under way, by object key.
    buckets: dict[str, KnownBucket] = field(init=False, repr=False, default_factory=dict)
    versioned: Versioned | None = field(init=False, repr=False)  # `kv`, if it is one.
    accounts: dict[str, Account] = field(init=False, repr=False, default_factory=dict)
    """Accounts of tenants as last read: a guess that every use verifies (accounting.py)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "versioned", self.kv if isinstance(self.kv, Versioned) else None)
        object.__setattr__(self, "chains", Chains(self.kv))
        object.__setattr__(self, "carrier", Carrier(self.carried_size_max))
