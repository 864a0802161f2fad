"""Machines on a network of their own: each in a network namespace of Linux, all of them on one bridge.

The bridge, its addresses and every link lie within these namespaces, which have no way out: nothing of the
machine's own network is touched, and nothing can leave. A namespace lives as long as somebody has it open, or
runs in it: whatever becomes of the tests, the kernel takes all of it away when they and their processes end.

Partitions: a link that is down cuts a machine off from all others; `lose` has one machine send what is for
another to an Ethernet address that nobody has, so that it is lost without a word, in that one direction only.

It takes root, or who may do as much; `refused` says why it cannot be had. A thread is within a machine while
it is in `within`, with the sockets that it makes and the processes that it starts.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence

CLONE_NEWNET = 0x40000000
SUBNET = "10.99.0"  # Of the bridge; nobody outside ever sees it.
BRIDGE = f"{SUBNET}.1"
NOBODY = "02:00:00:00:00:01"  # An Ethernet address.
COMMAND_S = 30.0
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace, held open by a descriptor."""

    def __init__(self) -> None:
        """Raises: OSError if that is not allowed."""
        found: list[int | OSError] = []

        def make() -> None:
            try:
                _checked(_libc.unshare(CLONE_NEWNET))
                found.append(_own())
            except OSError as failure:
                found.append(failure)

        thread = threading.Thread(target=make)  # It ends, and with it the only one that was moved.
        thread.start()
        thread.join()
        [made] = found
        if isinstance(made, OSError):
            raise made
        self._descriptor = made

    @property
    def path(self) -> str:
        """As other programs open it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in it. Raises: OSError."""
        before = _own()
        try:
            _checked(_libc.setns(self._descriptor, CLONE_NEWNET))
            try:
                yield
            finally:
                _checked(_libc.setns(before, CLONE_NEWNET))
        finally:
            os.close(before)

    def configure(self, lines: Sequence[str]) -> None:
        """Commands of `ip`, within it."""
        with self.entered():
            done = subprocess.run(
                ["ip", "-batch", "-"],
                input="\n".join(lines) + "\n",
                capture_output=True,
                text=True,
                timeout=COMMAND_S,
                check=False,
            )
        if done.returncode:
            raise OSError(f"ip: {done.stderr.strip()}: {lines}")

    def close(self) -> None:
        os.close(self._descriptor)


def _own() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _checked(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def refused() -> str:
    """Why such a network cannot be had here; empty if it can."""
    if shutil.which("ip") is None:
        return "there is no program `ip`: apt-get install iproute2"
    try:
        Switch(["one"]).close()
    except (OSError, subprocess.SubprocessError) as failure:
        return str(failure)
    return ""


class Switch:
    """Machines by name, on one bridge. `home` is where the bridge is: it reaches all of them."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raises: OSError, subprocess.SubprocessError."""
        assert len(names) < 250
        self.addresses = {name: f"{SUBNET}.{number}" for number, name in enumerate(names, 2)}
        self._ports = {name: f"port{number}" for number, name in enumerate(names, 2)}
        self._lost: set[tuple[str, str]] = set()
        self._down: set[str] = set()
        self._machines: dict[str, Namespace] = {}
        self.home = Namespace()
        try:
            for name in names:
                self._machines[name] = Namespace()
            self._wire()
        except BaseException:
            self.close()
            raise

    def _wire(self) -> None:
        lines = ["link set lo up", "link add bridge type bridge", f"address add {BRIDGE}/24 dev bridge"]
        for name, machine in self._machines.items():
            port = self._ports[name]
            lines.append(f"link add {port} type veth peer name eth0 netns {machine.path}")
            lines.append(f"link set {port} master bridge up")
        self.home.configure([*lines, "link set bridge up"])
        for name, machine in self._machines.items():
            own = f"address add {self.addresses[name]}/24 dev eth0"
            machine.configure(["link set lo up", own, "link set eth0 up"])

    def within(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self._machines[name].entered()

    def take_down(self, name: str) -> None:
        """Cut it off from everybody, in both directions."""
        self.home.configure([f"link set {self._ports[name]} down"])
        self._down.add(name)

    def lose(self, sender: str, receiver: str) -> None:
        """From now on nothing that one sends arrives at the other. What that one sends does."""
        address = self.addresses[receiver]
        self._machines[sender].configure(
            [f"neighbour replace {address} lladdr {NOBODY} dev eth0 nud permanent"]
        )
        self._lost.add((sender, receiver))

    def heal(self) -> None:
        """All of it is as it was."""
        for name in sorted(self._down):
            self.home.configure([f"link set {self._ports[name]} up"])
            self._down.discard(name)
        for sender, receiver in sorted(self._lost):
            self._machines[sender].configure([f"neighbour del {self.addresses[receiver]} dev eth0"])
            self._lost.discard((sender, receiver))

    def close(self) -> None:
        """Without it what still runs in a machine is cut off from the tests, and the rest is gone."""
        for machine in [self.home, *self._machines.values()]:
            machine.close()
        self._machines.clear()
