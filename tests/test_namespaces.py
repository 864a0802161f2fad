"""The networks that the chaos tests partition: what is cut does not pass, what is not does, and it heals."""

import asyncio
import errno
import os
import select
import socket
import time
from collections.abc import Iterator

import pytest

from tests.namespaces import BRIDGE, Switch, refused
from tests.proxy import Proxy
from tests.waiting import LIMIT_S

NAMES = ["left", "right", "other"]


class Letters:
    """A datagram socket in each machine. What one sends to another arrives in order, or not at all."""

    def __init__(self, switch: Switch) -> None:
        self.addresses = switch.addresses
        self.sockets: dict[str, socket.socket] = {}
        for name, address in switch.addresses.items():
            with switch.within(name):
                made = self.sockets[name] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.settimeout(LIMIT_S)
            made.bind((address, 7))

    def send(self, sender: str, receiver: str, text: bytes) -> None:
        self.sockets[sender].sendto(text, (self.addresses[receiver], 7))

    def next(self, receiver: str) -> bytes:
        return self.sockets[receiver].recv(100)

    def get_through(self, sender: str, receiver: str, text: bytes) -> set[bytes]:
        """Send it until it has arrived: a link that is up carries a moment later. Returns what came."""
        came: set[bytes] = set()
        limit = time.monotonic() + LIMIT_S
        while text not in came:
            assert time.monotonic() < limit, f"nothing gets from {sender} to {receiver}"
            self.send(sender, receiver, text)
            if select.select([self.sockets[receiver]], [], [], 0.1)[0]:
                came.add(self.next(receiver))
        return came

    def close(self) -> None:
        for made in self.sockets.values():
            made.close()


@pytest.fixture
def switch() -> Iterator[Switch]:
    made = Switch(NAMES)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def letters(switch: Switch) -> Iterator[Letters]:
    made = Letters(switch)
    try:
        yield made
    finally:
        made.close()


WHY_NOT = refused()

if not WHY_NOT:

    def test_what_one_sends_is_lost_on_the_way_to_another_and_on_no_other_way(
        switch: Switch, letters: Letters
    ) -> None:
        letters.send("left", "right", b"before")
        assert letters.next("right") == b"before"
        switch.lose("left", "right")
        letters.send("left", "right", b"lost")
        letters.send("right", "left", b"back")
        assert letters.next("left") == b"back"
        letters.send("left", "other", b"aside")
        assert letters.next("other") == b"aside"
        switch.heal()
        letters.send("left", "right", b"after")
        assert letters.next("right") == b"after"

    def test_a_machine_whose_link_is_down_neither_sends_nor_receives_until_it_is_up(
        switch: Switch, letters: Letters
    ) -> None:
        letters.send("left", "right", b"before")
        letters.send("right", "left", b"before")
        assert (letters.next("right"), letters.next("left")) == (b"before", b"before")
        switch.take_down("left")
        letters.send("left", "right", b"late")
        letters.send("other", "right", b"aside")
        assert letters.next("right") == b"aside"
        assert not select.select([letters.sockets["right"]], [], [], 0)[0]
        switch.heal()
        for sender, receiver in (("left", "right"), ("right", "left")):
            assert letters.get_through(sender, receiver, b"after") <= {b"late", b"after"}

    def test_such_a_network_has_no_way_out_and_leaves_nothing_behind() -> None:
        before = set(os.listdir("/sys/class/net")), os.readlink("/proc/thread-self/ns/net")
        switch = Switch(NAMES)
        for name in NAMES:
            with switch.within(name), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                assert os.readlink("/proc/thread-self/ns/net") != before[1]
                made.connect((BRIDGE, 9))
                with pytest.raises(OSError) as failed:
                    made.connect(("192.0.2.1", 9))
                assert failed.value.errno == errno.ENETUNREACH
        switch.close()
        assert (set(os.listdir("/sys/class/net")), os.readlink("/proc/thread-self/ns/net")) == before

    def test_a_thread_that_fails_within_a_machine_is_outside_again(switch: Switch) -> None:
        before = os.readlink("/proc/thread-self/ns/net")
        with pytest.raises(KeyError), switch.within("left"):
            raise KeyError
        assert os.readlink("/proc/thread-self/ns/net") == before


async def test_a_proxy_that_swallows_lets_nothing_pass_until_it_is_open() -> None:
    """What cuts where namespaces are not allowed."""
    print(f"partitions here: {f'by a proxy, since {WHY_NOT}' if WHY_NOT else 'by network namespaces'}")

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    target = server.sockets[0].getsockname()[1]
    proxy = await Proxy(target).start()
    through, sender = await asyncio.open_connection("127.0.0.1", proxy.port)
    beside, other = await asyncio.open_connection("127.0.0.1", target)
    sender.write(b"before")
    assert await through.readexactly(6) == b"before"
    proxy.swallow()
    sender.write(b"late")
    other.write(b"aside")
    assert await beside.readexactly(5) == b"aside"
    assert proxy.passed == [6, 6]
    proxy.open()
    assert await through.readexactly(4) == b"late"
    for writer in (sender, other):
        writer.close()
    await proxy.stop()
    server.close()
