"""A rig whose disks stand at two sites, under a layout with policies."""

from objstore.blobs.topology import Policy
from objstore.meta.kv import Transaction
from objstore.meta.schema import DiskRecord, MemberRecord, decode, disk_key, encode, member_key
from objstore.objects.layout import LAYOUT_KEY, LayoutRecord, MachinePlace, Plan
from tests.blobs.rig import Rig


def node(number: int) -> bytes:
    return bytes([number]) * 16


async def two_sites(policies: list[Policy], *, pool: str = "", disks: int = 12, k: int = 4) -> Rig:
    """Every disk on a node of its own: the first half at site a, the others, which may be in a pool, at b."""
    rig = await Rig("+" * disks, k=k).start()
    put: dict[bytes, bytes] = {}
    for number in rig.disks:
        record = decode(await rig.kv.get(disk_key(number)) or b"", DiskRecord)
        site = "a" if number <= disks // 2 else "b"
        put[disk_key(number)] = encode(
            DiskRecord(uuid=record.uuid, path=record.path, state="healthy", node=node(number))
        )
        put[member_key(node(number))] = encode(
            MemberRecord(role="node", name=f"n{number}", state="joined", addresses=["h:1"], site=site)
        )
    plan = Plan(
        policies={policy.name: policy for policy in policies},
        machines={node(n).hex(): MachinePlace(pool=pool) for n in rig.disks if n > disks // 2},
    )
    put[LAYOUT_KEY] = encode(LayoutRecord(version=1, current=plan))
    await rig.kv.commit(Transaction(put=put))
    return rig
