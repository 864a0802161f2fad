"""`objstore gateway`: `serve` with disks on storage nodes, and a machine that takes over from another.

A gateway begins with one disk of its own, in its data directory: metadata needs a place before the first node
has joined. That disk takes no objects, and leaves when nodes hold the journal (processes/founder.py).

Taking over: the machine before this one is lost, or is to be. What its data directory held is on the nodes
(journal, objects) but for two files, of which an operator keeps copies: `authority.json` and the master key.
With them in a new data directory, and the address of any node, this machine makes itself a certificate, asks
that node for the others and all of them for their disks, writes `cluster.json` with a later term than any of
them names, and starts. The committer does the rest (meta/recovery.py): it fences, finds the newest epoch,
rebuilds. Cut short, it may be done again. The machine before is shut out once the fences stand.

May not know: metadata. There is none yet.
"""

import asyncio
import http.client
import secrets
import time
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from objstore.config import Config, ConfigError, Loaded, host_and_port
from objstore.errors import BadArgument, Corrupt, StoreError
from objstore.ids import random_id
from objstore.meta.journal import term_of
from objstore.meta.schema import AuthorityRecord, decode, setting_key
from objstore.node import wire
from objstore.node.authority import (
    GATEWAY,
    NODE,
    Authority,
    Name,
    decode_authority,
    key_to_pem,
    make_key,
    to_pem,
)
from objstore.node.membership import TRUST_PATH
from objstore.node.pool import Address, Lost, Overdue, Pool, PoolLimits, Unreachable
from objstore.node.tls import IDENTITY, Credentials, Member, Trust, save_identity, save_trust
from objstore.processes import joining
from objstore.processes.cluster import (
    CannotStart,
    ClusterRecord,
    KnownDisk,
    given_master_keys,
    read_record,
    with_kept_master_key,
    write_record,
)
from objstore.processes.founding import (
    AUTHORITY_NAME,
    TLS_NAME,
    first_trust,
    read_authority,
    renew_ended,
    save_authority,
)
from objstore.processes.machine import announce
from objstore.processes.serve import serve

LIMIT_S: Final = 5.0  # For one answer of a node.
TERMS_MAX: Final = 64  # Two machines that take over in the same moment choose different terms, most likely.
GIVE_UP: Final = "give up what is in PostgreSQL"  # The words to type.
ANSWER_MAX: Final = 8 * wire.MIB  # Bytes: a trust of 10,000 members.


def gateway(loaded: Loaded, *, recover: str = "", join: str = "", confirm: str = "") -> int:
    """Run until a signal. Returns the exit code.

    Args:
        recover: host:port of any storage node: take over from the gateway machine before this one.
        join: a join token: be one more gateway of a cluster whose metadata is in PostgreSQL. Not looked at
            by a machine that has joined.
        confirm: GIVE_UP, to take over from a cluster whose metadata has moved into PostgreSQL.

    Raises: CannotStart.
    """

    def prepare(data: Path) -> None:
        if recover and loaded.config.meta.url:
            raise CannotStart(
                "--recover is for metadata in a journal: with meta.url another gateway just joins"
            )
        if recover:
            take_over(loaded.config, data, recover, confirm)
        if join and not (data / AUTHORITY_NAME).exists():
            join_cluster(loaded.config, data, join)
        if not (data / AUTHORITY_NAME).exists():
            raise CannotStart(
                f"{data} is no gateway of a cluster: begin one with objstore cluster init --data {data}, or"
                f" take over from another machine with its {AUTHORITY_NAME} there and --recover NODE"
            )
        if renew_ended(loaded.config, data):
            announce("This gateway's certificate had ended: it has made itself another one.")

    return serve(loaded, gateway=True, prepare=prepare)


def join_cluster(config: Config, data: Path, token: str) -> None:
    """Make this data directory one of a further gateway's. Cut short, it may be done again.

    Raises: CannotStart.
    """
    if not config.meta.url:
        raise CannotStart("a further gateway needs the cluster's metadata where it can reach them: meta.url")
    if not config.security.master_key:
        raise CannotStart("a further gateway needs the master key: OBJSTORE_SECURITY__MASTER_KEY_FILE")
    directory = data / TLS_NAME
    if not (directory / IDENTITY).exists():
        cluster = config.cluster
        address = cluster.address or cluster.listen
        about = joining.machine(cluster.name, address, cluster.site, cluster.rack)
        joining.join(token, directory, about, GATEWAY)
    try:
        bundle = asyncio.run(_bundle(config.meta.url))
        master, *others = given_master_keys(config)
        decode_authority(bundle, master, others)
    except StoreError as failure:
        raise CannotStart(f"the cluster's authority cannot be read: {failure}") from None
    save_authority(data, bundle)


async def _bundle(url: str) -> bytes:
    from objstore.meta.kv_postgres import PostgresKv

    kv = PostgresKv(url, readers=1)
    await kv.start()
    try:
        value = await kv.get(setting_key("authority"))
    finally:
        await kv.close()
    if value is None:
        raise Corrupt("this database holds no cluster's metadata")
    return decode(value, AuthorityRecord).bundle


def take_over(config: Config, data: Path, address: str, confirm: str = "") -> None:
    """Make this data directory the gateway's of a cluster whose gateway machine is lost.

    Raises: CannotStart, with what is missing; nothing at the nodes has changed then.
    """
    authority = _authority(config, data)
    directory = data / TLS_NAME
    # Until here nobody is asked anything: a first node is told who we are by what we sign ourselves.
    credentials = _own_certificate(directory, authority)
    try:
        where = Address(*host_and_port(address, "--recover"))
    except ConfigError as failure:
        raise CannotStart(str(failure)) from None
    trust = _newest_trust(_ask_trust(credentials, where), credentials)
    if trust.metadata and confirm != GIVE_UP:
        raise CannotStart(
            "this cluster's metadata is in PostgreSQL: another gateway joins it, with meta.url and a token"
            " (objstore cluster token --gateway). To go back to what a journal had before it moved there, and"
            f' lose all that was written since: --confirm "{GIVE_UP}"'
        )
    save_trust(directory, trust)
    credentials.reload()
    nodes = [member for member in trust.members if member.role == NODE]
    found = asyncio.run(_survey(credentials, nodes))
    _remember(data, config, authority.cluster, found)


def _authority(config: Config, data: Path) -> Authority:
    with_key = with_kept_master_key(config, data)
    if not with_key.security.master_key:
        raise CannotStart(
            "the master key is needed: put the lost machine's master.key into the data directory, or set"
            " OBJSTORE_SECURITY__MASTER_KEY_FILE"
        )
    master, *others = given_master_keys(with_key)
    authority = read_authority(data, master, others)
    if authority is None:
        raise CannotStart(f"put a copy of the lost machine's {AUTHORITY_NAME} into {data}")
    return authority


def _own_certificate(directory: Path, authority: Authority) -> Credentials:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        credentials = Credentials(directory)
        if credentials.name.cluster == authority.cluster:
            return credentials  # Of an attempt that was cut short, or of a machine that takes its place back.
        raise CannotStart(f"{directory} holds the credentials of another cluster")
    except Corrupt:
        pass  # None yet, or half of them.
    key = make_key()
    name = Name(authority.cluster, GATEWAY, random_id())
    certificate = authority.issue(key.public_key(), name, time.time_ns() // 1000)
    save_trust(directory, first_trust(authority))
    save_identity(directory, key_to_pem(key), to_pem(certificate))
    return Credentials(directory)


async def _get(credentials: Credentials, address: Address, id_: bytes, path: str) -> bytes:
    """What a node's server answers. Raises: CannotStart."""
    pool = Pool(
        address,
        context=credentials.client_context(NODE, id_),
        limits=PoolLimits(connections=1, queue=1),
    )
    head = f"GET {path} HTTP/1.1\r\nHost: {address}\r\n{wire.CLUSTER}: {credentials.name.cluster.hex()}\r\n"
    head += f"{wire.EPOCH}: 0\r\n\r\n"  # What it is asked for does not depend on any.
    try:
        async with asyncio.timeout(2 * LIMIT_S):
            answer = await pool.exchange([head.encode()], limit_s=LIMIT_S, answer_max=ANSWER_MAX)
    except (Unreachable, Lost, Overdue, TimeoutError) as failure:
        raise CannotStart(f"the node at {address} does not answer: {failure}") from None
    finally:
        pool.close()
    if answer.status != 200:
        words = bytes(answer.body or b"")[:300].decode(errors="replace")
        raise CannotStart(f"the node at {address} answers {answer.status}: {words}")
    return bytes(answer.body or b"")


def _ask_trust(credentials: Credentials, address: Address) -> Trust:
    """Raises: CannotStart."""
    try:
        return joining.ask(str(address), credentials.client_context(NODE), "GET", TRUST_PATH, None, Trust)
    except (joining.Refused, OSError, http.client.HTTPException, BadArgument) as failure:
        raise CannotStart(f"the node at {address} does not say who else there is: {failure}") from None


def _newest_trust(found: Trust, credentials: Credentials) -> Trust:
    if found.cluster != credentials.trust.cluster:
        raise CannotStart("that node belongs to another cluster")
    if credentials.name.id.hex() in found.denied:
        raise CannotStart("this gateway was removed from the cluster: remove its tls directory to join anew")
    return found if found.number >= credentials.trust.number else credentials.trust


class Found(NamedTuple):
    """A disk of a storage node."""

    node: str  # 32 hex digits.
    uuid: str  # 32 hex digits.
    path: str  # There; empty if its node does not answer.
    epoch: int  # The newest that it knows; 0 if its node does not answer.


async def _survey(credentials: Credentials, nodes: list[Member]) -> dict[int, Found]:
    """Every disk of every node, by number. Of a node that does not answer, as all others know it: the
    committer needs more than half of all disks, so that it must know of all.
    """
    found: dict[int, Found] = {}

    async def ask(node: Member) -> None:
        found.update({int(number): Found(node.id, uuid, "", 0) for number, uuid in node.disks.items()})
        words = "it has no address"
        for text in node.addresses:
            try:
                address = Address(*host_and_port(text))
                content = await _get(credentials, address, bytes.fromhex(node.id), wire.STATE_PATH)
                report = msgspec.json.decode(content, type=wire.NodeReport)
            except (CannotStart, ConfigError, msgspec.MsgspecError) as failure:
                words = str(failure)
                continue
            for disk in report.disks:
                found[disk.number] = Found(node.id, disk.uuid, disk.path, disk.epoch)
            return
        announce(f"Going on without the node {node.name}: {words}")

    await asyncio.gather(*map(ask, nodes))
    return found


def _remember(data: Path, config: Config, cluster: bytes, found: dict[int, Found]) -> None:
    record = read_record(data)
    if record is not None and record.cluster != cluster.hex():
        raise CannotStart(f"the store at {data} is another one: use an empty data directory")
    own = [disk for disk in record.disks if not disk.node and disk.number not in found] if record else []
    newest = max([term_of(disk.epoch) for disk in found.values()] + [record.term if record else 0])
    term = newest + 1 + secrets.randbelow(TERMS_MAX)
    disks = [
        KnownDisk(number=number, uuid=disk.uuid, path=disk.path, node=disk.node)
        for number, disk in found.items()
    ]
    write_record(
        data,
        ClusterRecord(
            cluster=cluster.hex(),
            formed=True,
            disks=sorted([*own, *disks], key=lambda disk: disk.number),
            codec=record.codec if record and record.codec else config.blobs.codec,
            master_key=record.master_key if record else "",
            term=term,
        ),
    )
    announce(f"Taking over with {len(found)} disks of nodes, in term {term}.")
