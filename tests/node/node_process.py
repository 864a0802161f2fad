"""A storage node in a process of its own, for tests that kill it: `node_process.py PORT PATH...`.

Serves the disk directories on loopback until it is killed; says `ready` when it does.
"""

import asyncio
import socket
import sys

from objstore.node.local import DiskOptions, open_disk
from objstore.node.server import NodeServer


async def main(port: int, paths: list[str]) -> None:
    disks = [open_disk(path, options=DiskOptions(low_water=0)) for path in paths]
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(128)
    server = NodeServer({disk.number: disk for disk in disks}, cluster=disks[0].expected.cluster)
    await server.serve([sock], None)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
