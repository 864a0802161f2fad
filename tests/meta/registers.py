"""Processes that work on shared registers, and the history of what they saw.

`python -m tests.meta.registers ENGINE NAME SEED COUNT KEYS` is one of them (ENGINE: postgresql://..., or
lmdb:DIR for a CommitterProcess over DIR): six callers, reads, writes and compare-and-sets on KEYS registers,
a line when each is invoked and a line when it returns, so that a process may be killed at any instant.
`histories` makes one history of all their lines, for tests/linearizability.py.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import uvloop

from objstore.errors import Conflict, Unavailable
from objstore.meta.client import MetaClient
from objstore.meta.kv import Kv, Transaction
from objstore.meta.kv_postgres import PostgresKv
from tests.linearizability import CAS, DONE, FOREVER, READ, REFUSED, UNKNOWN, WRITE, Operation
from tests.meta.process import open_beacon

CALLERS = 6
ENDLESS = 1 << 40  # The count of one that is to be killed, whatever the machine.


class Line(msgspec.Struct, array_like=True):
    operation: str  # Which: unique among all processes.
    key: str
    kind: str
    expected: str | None
    wrote: str | None
    outcome: str  # "" when it is invoked.
    when: int


def histories(outputs: Iterable[bytes]) -> list[Operation]:
    """All operations; one that never returned is of unknown outcome."""
    invoked: dict[str, Line] = {}
    operations: list[Operation] = []
    decode = msgspec.json.Decoder(Line).decode
    for output in outputs:
        for text in output.split(b"\n")[:-1]:  # The last may be cut off by a kill.
            line = decode(text)
            if not line.outcome:
                invoked[line.operation] = line
                continue
            begun = invoked.pop(line.operation)
            returned = FOREVER if line.outcome == UNKNOWN else line.when
            operations.append(
                Operation(line.key, line.kind, line.expected, line.wrote, line.outcome, begun.when, returned)
            )
    operations += [
        Operation(one.key, one.kind, one.expected, one.wrote, UNKNOWN, one.when, FOREVER)
        for one in invoked.values()
    ]
    return operations


async def work(kv: Kv, name: str, seed: int, count: int, keys: int) -> None:
    rng = random.Random(seed)
    encode = msgspec.json.encode
    seen: dict[str, str | None] = {}

    def tell(*words: str | None) -> None:
        os.write(1, encode([*words, time.monotonic_ns()]) + b"\n")

    def text(value: bytes | None) -> str | None:
        return None if value is None else value.decode()

    async def caller(number: int) -> None:
        for at in range(count // CALLERS):
            operation = f"{name}-{number}-{at}"
            key = f"r{rng.randrange(keys)}"
            raw = key.encode()
            kind = rng.choice([READ, READ, WRITE, CAS, CAS])
            expected = seen.get(key) if kind == CAS else None
            wrote: str | None = None if kind == READ else operation
            outcome = DONE
            tell(operation, key, kind, expected, wrote, "")
            try:
                if kind == READ:
                    wrote = text(await kv.get(raw))
                    seen[key] = wrote
                else:
                    expect: dict[bytes, bytes | None] = {}
                    if kind == CAS:
                        expect[raw] = None if expected is None else expected.encode()
                    await kv.commit(Transaction(expect=expect, put={raw: operation.encode()}))
                    seen[key] = operation
            except Conflict:
                outcome = REFUSED
                seen[key] = text(await read_on(kv, raw))
            except Unavailable:
                outcome = UNKNOWN
                await asyncio.sleep(0.05)
            tell(operation, key, kind, expected, wrote, outcome)

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))


async def read_on(kv: Kv, key: bytes) -> bytes | None:
    while True:
        try:
            return await kv.get(key)
        except Unavailable:
            await asyncio.sleep(0.05)


async def spawn(
    output: Path, engine: str, name: str, seed: int, count: int, keys: int
) -> asyncio.subprocess.Process:
    with output.open("wb") as file:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.meta.registers", engine, name, str(seed), str(count), str(keys),
            stdout=file, cwd=Path(__file__).parents[2],
        )  # fmt: skip


async def main(engine: str, name: str, seed: str, count: str, keys: str) -> None:
    kv: PostgresKv | MetaClient
    if engine.startswith("lmdb:"):
        root = Path(engine.removeprefix("lmdb:"))
        kv = MetaClient(root / "committer.sock", beacon=open_beacon(root))
    else:
        kv = PostgresKv(engine)
    await kv.start()
    await work(kv, name, int(seed), int(count), int(keys))
    await kv.close()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:6]))
