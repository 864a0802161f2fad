"""The supervisor: locks the disks, starts the children, replaces what dies, ends in order.

It never maps LMDB, runs no event loop and no thread: so it may fork, and a child begins in
milliseconds with every module already loaded. What a child does is its module's (`committer.py`, `upkeep.py`,
`worker.py`); a storage node has one child, its server.

    committer      first; it recovers before it says that it is ready
    upkeep         admin port, metrics, background services
    worker-1..N    the S3 port

Concurrency: one thread. Signals, deaths and messages arrive through one selector. A child that
dies is started again, at once the first time and then with growing pauses while it keeps dying.
Every child has PR_SET_PDEATHSIG: after kill -9 of the supervisor nothing is left behind but what the
disks hold. The locks are file descriptors inherited by the children, so no second store can open
the disks while any process of this one lives.
"""

import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from objstore.errors import StoreError
from objstore.processes import link
from objstore.processes.link import Message

PROBE_SECONDS = 1.0
SILENT_SECONDS = 5.0  # A worker that leaves this many seconds of probes unanswered is killed.
PATIENCE = 3  # So many times longer for the others: their loops wait for disks now and then.
WORDS_MAX = 1_000  # Characters of why a child ended: what it says must fit into a message.
START_SECONDS = 60.0  # A worker that is not ready by then is killed. The committer may recover for longer.
STEADY_SECONDS = 10.0  # A child that lived this long starts again at once when it dies.
PAUSES = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)  # Seconds before the n-th start in a row.
COMMITTER_STOP_SECONDS = 20.0

ChildMain = Callable[[link.Link, str], None]
"""Lives until SIGTERM. The text says how its predecessor died; empty for the first."""


@dataclass(slots=True)
class Child:
    """One place for a process, and the process that fills it now."""

    name: str
    main: ChildMain
    patience: int  # Silence for so many times SILENT_SECONDS is death.
    pid: int = 0  # 0: none runs.
    end: socket.socket | None = None
    started: float = 0.0
    ready: bool = False
    restarts: int = 0  # Since the supervisor's start.
    in_a_row: int = 0  # Deaths without a steady life between them.
    start_at: float | None = None  # When to start it (again); None: runs, or not wanted.
    probe: int = 0
    answered: int = 0
    died: str = ""  # How it is being killed, while that is under way.
    last_death: str = ""  # How its predecessor died.
    note: str = ""  # What it said of itself.
    words: str = ""  # Why its predecessor ended, or how far it is with its start; empty once it is ready.
    crashed: bool = False  # These are of an error that nobody foresaw: for operators only.
    renewed: bool = False  # It was asked to end, to be started anew,
    renew_by: float = 0.0  # by then.
    outdated: bool = False  # To be started anew as soon as it is ready: what it was told has changed since.


@dataclass(slots=True)
class Supervisor:
    """`run` returns the exit code. `announce` gets lines for the operator, `log` fields for the log.

    The first child starts alone, ends last, and may take its time: the committer, the upkeep where no
    committer is needed, or a storage node's server.
    """

    run_directory: Path
    first_main: ChildMain
    others: Mapping[str, ChildMain]
    drain_seconds: float
    announce: Callable[[str], None]
    log: Callable[..., None]
    on_ready: Callable[[], None]  # Once, when every child is ready for the first time.
    on_stop: Callable[[], None]  # Before the children are asked to stop: closes the listening sockets.
    close_in_child: Callable[[str], None]  # Closes what a child must not hold, given its name.
    prepare: Callable[[], None] = lambda: None  # Work to do while the first child recovers: imports.
    change_disks: Callable[[str], tuple[str, bool]] = lambda text: ("this store's disks do not change", False)
    facts: dict[str, object] = field(default_factory=dict)  # Goes into state.json as it is.
    first: str = "committer"  # Its name.
    first_stop_seconds: float = COMMITTER_STOP_SECONDS
    _children: dict[str, Child] = field(default_factory=dict)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _stopping: int = 0  # Signals to stop received.
    _was_ready: bool = False
    _failed: bool = False
    _wakeup: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)

    def run(self) -> int:
        for end in self._wakeup:
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_stop)
        for number in (signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # Only wakes the selector.
        self._selector.register(self._wakeup[0], selectors.EVENT_READ)
        self._children[self.first] = Child(self.first, self.first_main, PATIENCE)
        for name, main in self.others.items():
            self._children[name] = Child(name, main, 1 if name.startswith("worker") else PATIENCE)
        self._start(self._children[self.first], time.monotonic())
        self.prepare()
        gc.collect()
        gc.freeze()  # The children share these pages; a collection there would copy them all.
        last_probe = 0.0
        while not self._stopping:
            now = time.monotonic()
            self._start_due(now)
            if now - last_probe >= PROBE_SECONDS:
                last_probe = now
                self._probe(now)
            self._wait(min(PROBE_SECONDS, *(max(0.0, at - now) for at in self._due())))
            self._reap()
        return self._stop()

    def _due(self) -> list[float]:
        due = [child.start_at for child in self._children.values() if child.start_at is not None]
        return due or [time.monotonic() + PROBE_SECONDS]

    def _start_due(self, now: float) -> None:
        recovered = self._children[self.first].ready
        for child in self._children.values():
            if (
                not self._was_ready
                and recovered
                and child.start_at is None
                and child.restarts == 0
                and not child.pid
            ):
                child.start_at = now  # Everyone else for the first time.
            if child.start_at is not None and child.start_at <= now:
                self._start(child, now)

    def _start(self, child: Child, now: float) -> None:
        ours, theirs = link.pair()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        # Held back until the child has its own handlers: else it would note a stop as if it were us.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        pid = os.fork()
        if pid == 0:
            self._become(child, theirs, parent)  # Never returns.
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        theirs.close()
        child.pid, child.end, child.started, child.ready, child.start_at = pid, ours, now, False, None
        child.outdated = False
        child.probe = child.answered = 0
        self._selector.register(ours, selectors.EVENT_READ, child)
        self._write_state()

    def _become(self, child: Child, end: socket.socket, parent: int) -> None:
        """In the child: drop what is the supervisor's, then live as `child.main`. Never returns."""
        code = 70  # EX_SOFTWARE
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            # Who signals our whole group (a terminal, timeout) means the supervisor, which decides the order:
            # a committer that ended with the others would refuse what they still have to commit.
            os.setpgid(0, 0)
            for number in (signal.SIGINT, signal.SIGTTOU):  # Not stopped for writing to the terminal.
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            die_with_parent(parent)
            set_process_name(f"objstore-{child.name}")
            self._selector.close()
            for socket_ in self._wakeup:
                socket_.close()
            for other in self._children.values():
                if other.end is not None:
                    other.end.close()
            self.close_in_child(child.name)
            child.main(link.Link(end), child.last_death)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException as failure:
            # What can happen to a store is told in one line; a bug comes with its trace.
            expected = isinstance(failure, StoreError)
            words = f"{type(failure).__name__}: {failure}"
            self.log("a process ended with an error", child=child.name, failure=words, trace=not expected)
            kind, text = ("ended", str(failure)) if expected else ("crashed", words)
            link.send(end, Message(kind, text[:WORDS_MAX]))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # No clean-up of the supervisor's objects in the child.

    def _wait(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                try:
                    self._wakeup[0].recv(4096)
                except BlockingIOError:
                    pass
                continue
            child: Child = key.data
            messages = link.receive(key.fileobj)  # type: ignore[arg-type]
            if not messages:
                self._hang_up(child)
            for message in messages:
                self._arrived(child, message)

    def _arrived(self, child: Child, message: Message) -> None:
        if message.kind == "alive":
            child.answered = max(child.answered, message.number)
        elif message.kind == "progress":
            self.announce(f"{child.name}: {message.text}")
            child.words, child.crashed = message.text, False
            self._write_state()
        elif message.kind in ("ended", "crashed"):
            child.words, child.crashed = message.text, message.kind == "crashed"
            self._write_state()
        elif message.kind == "notice":
            self.announce(message.text)
        elif message.kind == "note":
            child.note = message.text
            self._write_state()
            if child.end is not None:
                link.send(child.end, Message("noted"))
        elif message.kind == "shut-out":
            self.announce(message.text)
            self._stopping = self._stopping or 1
            self._failed = True
        elif message.kind == "disk":
            words, changed = self.change_disks(message.text)
            if child.end is not None:
                link.send(child.end, Message("disk", words))
            if changed:
                self._renew(self._children[self.first])
        elif message.kind == "ready":
            child.ready, child.words, child.crashed = True, "", False
            child.probe = child.answered = 0
            if child.outdated:
                self._renew(child)
            if self._was_ready:
                self.log("a process is back", child=child.name, pid=child.pid)
            elif all(other.ready for other in self._children.values()):
                self._was_ready = True
                self._write_state()
                self.on_ready()
                return
            self._write_state()

    def _hang_up(self, child: Child) -> None:
        if child.end is not None:
            self._selector.unregister(child.end)
            child.end.close()
            child.end = None

    def _probe(self, now: float) -> None:
        for child in self._children.values():
            if not child.pid:
                continue
            if not child.ready:
                if child.name != self.first and now - child.started > START_SECONDS:
                    self._kill(child, f"not ready after {START_SECONDS:.0f} s")
            elif child.renewed and now > child.renew_by:
                # Its loop may well answer while a sync hangs; nobody can commit until another has begun.
                self._kill(child, f"not ended {self.first_stop_seconds:g} s after it was asked to")
            # Counted in probes that we really sent, so that a supervisor that was itself starved or
            # stopped does not blame its children.
            elif child.probe - child.answered > child.patience * SILENT_SECONDS / PROBE_SECONDS:
                self._kill(child, f"silent for {child.patience * SILENT_SECONDS:.0f} s")
            elif child.end is not None:
                child.probe += 1
                link.send(child.end, Message("probe", number=child.probe))

    def _renew(self, child: Child) -> None:
        """End a child that is well, to start it with what has changed. Its clients ride over it."""
        if child.pid and not child.ready:
            child.outdated = True
        elif child.pid and not child.renewed and not self._stopping:
            child.renewed = True
            child.renew_by = time.monotonic() + self.first_stop_seconds
            os.kill(child.pid, signal.SIGTERM)

    def _kill(self, child: Child, why: str) -> None:
        self.log("killing a process", child=child.name, pid=child.pid, why=why)
        child.died = why
        os.kill(child.pid, signal.SIGKILL)

    def _reap(self) -> None:
        for child in self._children.values():
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid == 0:
                continue
            if child.end is not None:
                for message in link.receive(child.end):  # Its last words.
                    self._arrived(child, message)
            self._hang_up(child)
            how = ended(status)
            now = time.monotonic()
            lived = now - child.started
            renewed, child.renewed = child.renewed, False
            child.in_a_row = 0 if lived >= STEADY_SECONDS or renewed else child.in_a_row + 1
            child.pid, child.ready, child.note = 0, False, ""
            child.last_death, child.died = f"{child.died}, {how}" if child.died else how, ""
            if self._stopping:
                continue
            first = self._children[self.first]
            if "SIGBUS" in how and child is not first and first.pid:
                # Only LMDB's file is mapped: its pages cannot be read. The committer that takes over
                # does not trust it and builds it again, on another disk.
                self._kill(first, f"SIGBUS in {child.name}: the metadata state cannot be read")
            child.restarts += not renewed
            pause = PAUSES[min(child.in_a_row, len(PAUSES) - 1)] if child.in_a_row > 1 else 0.0
            child.start_at = now + pause
            self.log(
                "a process is started anew" if renewed else "a process died, starting another",
                child=child.name,
                pid=pid,
                how=child.last_death,
                lived_seconds=round(lived, 3),
                pause_seconds=pause,
            )
            if not self._was_ready and child.in_a_row >= 3:
                self.announce(
                    f"{child.name} does not start ({child.last_death}); see the log above. Giving up."
                )
                self._stopping = 1
                self._failed = True
            self._write_state()

    def _asked_to_stop(self, number: int, _frame: object) -> None:
        if not self._stopping or number == signal.SIGINT:  # A second SIGTERM is no impatience.
            self._stopping += 1

    def _stop(self) -> int:
        """The first child ends last: what the others drain can still commit."""
        self.on_stop()
        if self._was_ready:
            self.announce(
                "Stopping: no new connections, waiting for requests under way (Ctrl-C to stop at once)."
            )
        others = [child for child in self._children.values() if child.name != self.first]
        clean = self._end(others, self.drain_seconds + 5.0)
        clean &= self._end([self._children[self.first]], self.first_stop_seconds)
        (self.run_directory / "state.json").unlink(missing_ok=True)
        if self._failed:
            return 1
        self.announce("Stopped." if clean else "Stopped, not cleanly: the next start recovers.")
        return 0

    def _end(self, children: list[Child], seconds: float) -> bool:
        """SIGTERM, then SIGKILL for those that take longer than `seconds`. Whether all went by themselves."""
        for child in children:
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)
        limit = time.monotonic() + seconds
        clean = True
        while any(child.pid for child in children):
            now = time.monotonic()
            if (now > limit or self._stopping > 1) and clean:
                clean = False
                for child in children:
                    if child.pid:
                        self._kill(child, "it did not stop in time")
            self._wait(0.2 if now > limit else min(0.2, limit - now + 0.001))
            self._reap()
        return clean

    def _write_state(self) -> None:
        """For the upkeep process and the command line; a hint, never the truth."""
        state = {
            **self.facts,
            "pid": os.getpid(),
            "ready": self._was_ready,
            "children": {
                child.name: {
                    "pid": child.pid,
                    "ready": child.ready,
                    "restarts": child.restarts,
                    "note": child.note,
                    "words": child.words,
                    "crashed": child.crashed,
                }
                for child in self._children.values()
            },
        }
        temporary = self.run_directory / "state.json.tmp"
        try:
            temporary.write_text(json.dumps(state))
            os.replace(temporary, self.run_directory / "state.json")
        except OSError as failure:
            # A full disk must not end the store: the old hint stays until the next change.
            self.log("state.json was not written", failure=str(failure))


def ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with code {os.WEXITSTATUS(status)}"


def die_with_parent(parent: int) -> None:
    """PR_SET_PDEATHSIG: SIGKILL when the parent is gone. Bound to the parent's thread: it has only one."""
    _prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # It died before the call.
        os._exit(71)


def set_process_name(name: str) -> None:
    """PR_SET_NAME: what `ps -o comm` shows, cut at 15 bytes."""
    _prctl(15, name.encode()[:15])


def _prctl(option: int, argument: int | bytes) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
