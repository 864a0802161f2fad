"""Equal shares: connections are opened until every local server process holds as many.

With SO_REUSEPORT the kernel deals connections to workers by a hash: four connections to two workers all land
on one of them once in eight times, and the row then measures luck. The owner is read from /proc (the accepted
socket's inode is one of the worker's descriptors), so that this works for any server on this machine, without
its help.
"""

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence

_ROUNDS_MAX = 64
_ACCEPT_S = 5.0


def listening_inodes(port: int) -> set[str]:
    """Inodes of the sockets that listen on this port, on any address."""
    return {fields[9] for fields in _tcp_table() if fields[3] == "0A" and _port(fields[1]) == port}


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found, queue = [], [pid]
    while queue:
        one = queue.pop()
        found.append(one)
        queue.extend(children.get(one, ()))
    return found


def holders(inodes: set[str], pids: Sequence[int]) -> dict[str, int]:
    """Socket inode -> process among `pids` that has it open. Only what can be read is answered."""
    owner: dict[str, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if target.startswith("socket:[") and target[8:-1] in inodes:
                        owner[target[8:-1]] = pid
    return owner


def listeners(port: int) -> list[int]:
    """Local processes that listen on this port (those we may look into)."""
    inodes = listening_inodes(port)
    if not inodes:
        return []
    every = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return sorted(set(holders(inodes, every).values()))


def workers_of(port: int, tree: Sequence[int]) -> list[int]:
    """The processes of `tree` that accept connections on this port.

    A supervisor often holds its workers' listening sockets too, so that none is lost with a worker, and
    accepts nothing itself: whoever has another holder below it is left out.
    """
    inodes = listening_inodes(port)
    per_pid: dict[int, set[str]] = {}
    for pid in tree:
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if target[8:-1] in inodes:
                        per_pid.setdefault(pid, set()).add(target[8:-1])
    return sorted(pid for pid in per_pid if not per_pid.keys() & set(descendants(pid)[1:]))


def open_in_equal_shares(
    address: tuple[str, int], count: int, pids: Sequence[int], connect: Callable[[], socket.socket]
) -> tuple[list[socket.socket], dict[int, int]]:
    """Open connections until every process of `pids` holds an equal share of `count`, and close the others.

    Returns: the connections, and how many each process holds. With `count` not divisible, shares differ by
    one. Raises: TimeoutError when a share stays short (a worker that accepts nothing is not a fair opponent).
    """
    share, extra = divmod(count, len(pids))
    kept: dict[int, list[socket.socket]] = {pid: [] for pid in pids}
    for _ in range(_ROUNDS_MAX):
        missing = count - sum(map(len, kept.values()))
        if missing == 0:
            break
        fresh = [connect() for _ in range(missing + 1)]
        owners = _owners(fresh, address[1], pids)
        for sock in fresh:
            pid = owners.get(sock.fileno())
            room = sum(map(len, kept.values())) < count
            larger = sum(len(held) > share for held in kept.values())
            if pid is not None and room and (
                len(kept[pid]) < share or (len(kept[pid]) == share and larger < extra)
            ):  # fmt: skip
                kept[pid].append(sock)
            else:
                sock.close()
    socks = [sock for held in kept.values() for sock in held]
    if len(socks) != count:
        for sock in socks:
            sock.close()
        raise TimeoutError(
            f"after {_ROUNDS_MAX} rounds the workers hold "
            + ", ".join(f"{pid}: {len(held)}" for pid, held in kept.items())
            + f" of {count} connections"
        )
    return socks, {pid: len(held) for pid, held in kept.items()}


def _owners(socks: Sequence[socket.socket], port: int, pids: Sequence[int]) -> dict[int, int]:
    """Our descriptor -> the process at the other end; waits until the server has accepted them."""
    ours = {sock.getsockname()[1]: sock.fileno() for sock in socks}
    deadline = time.monotonic() + _ACCEPT_S
    owners: dict[int, int] = {}
    while len(owners) < len(ours) and time.monotonic() < deadline:
        inodes = {
            fields[9]: ours[remote]
            for fields in _tcp_table()
            if _port(fields[1]) == port and (remote := _port(fields[2])) in ours and fields[9] != "0"
        }
        owners = {inodes[inode]: pid for inode, pid in holders(set(inodes), pids).items()}
        if len(owners) < len(ours):
            time.sleep(0.01)
    return owners


def _tcp_table() -> list[list[str]]:
    table = []
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(name) as file:
            table += [line.split() for line in file.readlines()[1:]]
    return table


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def counted(owners: Sequence[int]) -> str:
    """For people: `2 workers, 32 + 32`."""
    shares = Counter(owners)
    return f"{len(shares)} workers, " + " + ".join(str(count) for count in shares.values())
