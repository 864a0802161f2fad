"""The S3 face over a store in memory: in the tests' own event loop, or as a process of its own.

    python -m tests.s3.handlers.server PORT KEYS_FILE

KEYS_FILE is JSON: {"main": {"tenant": ..., "access_key": ..., "secret_key": ...}, ...}.
"""

import asyncio
import json
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from objstore.objects.store import Store
from objstore.objects.values import Principal
from objstore.s3.app import App
from objstore.s3.routes import ROUTES, choose
from objstore.s3.server import Runner, serve_s3
from tests.objects.fakes import memory_store


@dataclass(frozen=True)
class Known:
    """A key as iam/directory.py would know it."""

    secret: str
    principal: Principal
    disabled: bool = False


class Keys:
    def __init__(self, known: dict[str, Known]) -> None:
        self.known = known

    async def credential(self, access_key_id: str) -> Known | None:
        return self.known.get(access_key_id)


def keys_of(*roles: str) -> dict[str, dict[str, str]]:
    """Keys for tenants of these names."""
    return {
        role: {"tenant": role, "access_key": f"AK{role.upper():0<18}", "secret_key": f"secret of {role} " * 3}
        for role in roles
    }


async def start(store: Store, keys: dict[str, dict[str, str]], port: int = 0) -> Runner:
    """Listen on loopback. `Runner.stop` ends it."""
    known = {
        key["access_key"]: Known(
            key["secret_key"],
            Principal(tenant=key["tenant"], user=f"{role}-user", access_key_id=key["access_key"]),
        )
        for role, key in keys.items()
    }
    app = App(store=store, directory=Keys(known), routes=ROUTES, choose=choose, region=store.region)
    return await serve_s3(app, [socket.create_server(("127.0.0.1", port))])


async def run(port: int, keys: dict[str, dict[str, str]]) -> None:
    runner = await start(memory_store(), keys, port)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await runner.stop(1.0)


if __name__ == "__main__":
    import uvloop

    uvloop.run(run(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
