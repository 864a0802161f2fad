"""What replication asks of a commit: a bucket's changes are noted, a replica takes its source's only.

Both stand in the bucket's record, which every commit inside the bucket expects: from the commit on that sets
one of them, no change goes unnoted and no foreign one gets in. Pure; without settings nobody comes here.
"""

from typing import Final

from objstore.errors import BucketIsReplica, BucketReplicates, ReplicaSessionOver, ReplicaTakenOver
from objstore.iam.principal import Principal
from objstore.meta.kv import Add
from objstore.meta.schema import (
    BucketRecord,
    ChangeRecord,
    ReplicaRecord,
    ReplicationRecord,
    bucket_change_bytes_key,
    bucket_changes_key,
    change_key,
    decode,
    encode,
)

REPLICATION: Final = "replication"  # The names in a bucket's settings.
REPLICA: Final = "replica"


def replication_of(record: BucketRecord) -> ReplicationRecord | None:
    """Where the bucket's changes go, if anywhere."""
    value = (record.settings or {}).get(REPLICATION)
    return None if value is None else decode(value, ReplicationRecord)


def replica_of(record: BucketRecord) -> ReplicaRecord | None:
    """Whose replica the bucket is, or was before it was promoted."""
    value = (record.settings or {}).get(REPLICA)
    return None if value is None else decode(value, ReplicaRecord)


def check_writable(name: str, record: BucketRecord, who: Principal) -> None:
    """Raises: BucketIsReplica; of a source's request ReplicaTakenOver, ReplicaSessionOver."""
    replica = replica_of(record)
    if who.mirror is not None:
        check_source(name, replica, who, who.mirror.generation)
        assert replica is not None
        if who.mirror.session != replica.session:
            raise ReplicaSessionOver(f"session {replica.session} is open, {who.mirror.session} is over")
    elif replica is not None and not replica.promoted_us:
        raise BucketIsReplica(name, replica.bucket)


def check_source(name: str, replica: ReplicaRecord | None, who: Principal, generation: int) -> None:
    """Whether this is still the replica of who sends. Raises: ReplicaTakenOver."""
    if replica is None:
        raise ReplicaTakenOver(f"bucket {name!r} is no replica")
    if replica.promoted_us:
        raise ReplicaTakenOver(f"bucket {name!r} was promoted: it takes no more from its source")
    if replica.generation != generation or replica.access_key != who.access_key_id:
        raise ReplicaTakenOver(f"bucket {name!r} has another source")


def check_removable(name: str, record: BucketRecord, who: Principal) -> None:
    """Raises: BucketReplicates, BucketIsReplica."""
    check_writable(name, record, who)
    if replication_of(record) is not None:
        raise BucketReplicates(f"bucket {name!r} is replicated: objstore replication remove {name}")


def note_change(
    bucket: int, key: bytes, now_us: int, size: int, put: dict[bytes, bytes], add: dict[bytes, Add]
) -> None:
    """Add to a commit that changes the key: the bucket's target lacks this change.

    Args:
        size: bytes of the new version; 0 for a delete.
    """
    put[change_key(bucket, now_us, key)] = encode(ChangeRecord(size=size))
    add[bucket_changes_key(bucket)] = Add(1)
    if size:
        add[bucket_change_bytes_key(bucket)] = Add(size)
