"""Durable appends of all disks by one thread: it writes into the page cache, the kernel does the syncs.

A thread per disk wakes k+m threads for every stripe, one after another, since each needs the interpreter's
lock before it comes to its write; on a lone request these hand-overs cost more than the disks. Here one
thread, the *scribe*, does the writes in a row (a few microseconds each), and hands their syncs to the
kernel together (aio.py); an event wakes the loop when they have ended.

A write into the page cache can hang with its disk, too. So a disk has at most one call here at a time (its
further ones go to its own threads), and when a scribe has been in one call for a tick while others wait,
another scribe goes on with those. A hung disk thus hangs one scribe, and delays others' calls once, by two
ticks at the most.

Concurrency: `start` is called on the event loop, and there `ended` and `expired` of each call are called;
`act` runs in a scribe. What a call uses must stay until `ended`, which always comes when its write and sync
have truly ended, also after `expired`.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary, ref

from objstore.node.aio import ENTRIES, Aio, Syncs, probe

log = logging.getLogger(__name__)

TICK_S = 0.01  # How often calls under way are looked at: for deadlines, and for a scribe that is stuck.


class Call:
    """A write of one disk and the sync that follows it. Its maker says what is done with the outcome."""

    __slots__ = ("act", "arguments", "deadline", "failure", "fd", "late", "number", "refused", "result")

    def __init__(self, act: Callable[..., object], arguments: tuple[Any, ...], fd: int) -> None:
        self.act = act  # Writes; blocking; in a scribe.
        self.arguments = arguments
        self.fd = fd  # What is synced then.
        self.number = 0
        self.deadline = 0.0  # By the loop's clock.
        self.late = False
        self.failure: BaseException | None = None  # What `act` raised, or that it never ran: not synced.
        self.refused = False  # Written, but the kernel did not take the sync.
        self.result = 0  # Of the sync: 0 or minus errno.

    def ended(self) -> None:
        raise NotImplementedError

    def expired(self) -> None:
        """The deadline has passed; `ended` comes later, or never."""
        raise NotImplementedError


class Scribe:
    """One event loop's. Made by `scribe_of`; ended by the last `leave`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, syncs: Syncs) -> None:
        self._loop = ref(loop)  # Weak: this is kept in a dictionary under the loop.
        self._syncs = syncs
        self._waiting: deque[Call] = deque()  # To be written.
        self._written: deque[Call] = deque()  # To be synced.
        self._over: deque[Call] = deque()  # Ended in a scribe.
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # True: there is something to do. False: end.
        self._calls: dict[int, Call] = {}  # Under way, by number.
        self._count = 0
        self._steps = 0  # Calls taken up, so far: how a stuck scribe is told from a busy one.
        self._steps_seen = 0
        self._threads = 0
        self._users = 0
        self._handing_over = False
        self._delivering = False
        self._ticking = False
        self._closed = False
        loop.add_reader(self._syncs.descriptor, self._reap)
        self._add_thread()

    # On the loop.

    @property
    def has_room(self) -> bool:
        return len(self._calls) < ENTRIES

    def join(self) -> None:
        self._users += 1

    def leave(self) -> None:
        """The last one ends the threads. What hangs keeps what it uses until the process ends."""
        self._users -= 1
        if self._users or self._closed:
            return
        self._closed = True
        loop = self._loop()
        if loop is not None and _scribes.get(loop) is self:
            del _scribes[loop]
        for _ in range(self._threads):
            self._tokens.put(False)
        if not self._calls:
            self._close_syncs()

    def start(self, call: Call, limit_s: float) -> None:
        """Begin the call; calls of one turn of the loop go to the scribe together."""
        assert not self._closed
        loop = self._loop()
        assert loop is not None
        self._count = call.number = self._count + 1
        call.deadline = loop.time() + limit_s
        self._calls[call.number] = call
        self._waiting.append(call)
        if not self._handing_over:
            self._handing_over = True
            loop.call_soon(self._hand_over)
        if not self._ticking:
            self._ticking = True
            self._steps_seen = -1
            loop.call_later(TICK_S, self._tick)

    def _hand_over(self) -> None:
        self._handing_over = False
        self._tokens.put(True)

    def _tick(self) -> None:
        loop = self._loop()
        if not self._calls or loop is None:
            self._ticking = False
            return
        loop.call_later(TICK_S, self._tick)
        if (self._waiting or self._written) and self._steps == self._steps_seen:
            # Each disk hangs one scribe at the most, so that one more than there are disks always suffices.
            if self._threads <= self._users:
                log.info("a disk holds up the writes of others", extra={"scribes": self._threads + 1})
                self._add_thread()
            self._tokens.put(True)
        self._steps_seen = self._steps
        now = loop.time()
        for call in list(self._calls.values()):
            if call.deadline <= now and not call.late:
                call.late = True
                call.expired()

    def _reap(self) -> None:
        for number, result in self._syncs.ended():
            call = self._calls[number]
            call.result = result
            self._end(call)

    def _deliver(self) -> None:
        self._delivering = False  # First: a call that ends from here on wakes the loop again.
        while self._over:
            self._end(self._over.popleft())

    def _end(self, call: Call) -> None:
        del self._calls[call.number]
        try:
            call.ended()
        except Exception:
            log.exception("a bug in what follows a write")
        if self._closed and not self._calls:
            self._close_syncs()

    def _close_syncs(self) -> None:
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._syncs.descriptor)
        self._syncs.close()

    def _add_thread(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, name=f"scribe-{self._threads}", daemon=True).start()

    # In a scribe.

    def _work(self) -> None:
        while self._tokens.get():
            self._write()
            self._sync()

    def _write(self) -> None:
        waiting = self._waiting
        while True:
            try:
                call = waiting.popleft()
            except IndexError:
                return
            self._steps += 1
            try:
                if call.late:
                    raise TimeoutError("given up before it began")
                call.act(*call.arguments)
            except BaseException as failure:
                call.failure = failure
                self._hand_back(call)
            else:
                self._written.append(call)

    def _sync(self) -> None:
        calls: list[Call] = []
        while True:
            try:
                calls.append(self._written.popleft())
            except IndexError:
                break
        if not calls:
            return  # Another scribe took them.
        self._steps += 1
        taken = self._syncs.submit([(call.number, call.fd) for call in calls])
        for call in calls[taken:]:
            call.refused = True
            self._hand_back(call)

    def _hand_back(self, call: Call) -> None:
        self._over.append(call)
        if not self._delivering:
            self._delivering = True
            loop = self._loop()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                pass  # The loop is closed: nobody waits any more.


_scribes: WeakKeyDictionary[asyncio.AbstractEventLoop, Scribe] = WeakKeyDictionary()


@cache
def why_no_scribe() -> str:
    """Why this machine's disks are synced by threads; "" if they are not. Tried once a process."""
    return probe()


def scribe_of(loop: asyncio.AbstractEventLoop) -> Scribe | None:
    """The loop's, made when there is none; None where the kernel does not do it."""
    found = _scribes.get(loop)
    if found is None and not why_no_scribe():
        try:
            found = _scribes[loop] = Scribe(loop, Aio())
        except OSError as failure:  # No room for another context.
            log.warning("disks are synced by threads", extra={"failure": repr(failure)})
    return found
