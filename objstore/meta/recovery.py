"""What the committer does before it serves: find the truth, and a state that shows it.

The truth is the highest epoch that any disk's identity names: the snapshot its header names, the
segments, and its own batches, each from any member that has it whole. It refuses to start when none
of that epoch's members is here, and says which disks it needs.

LMDB is trusted only if all of this holds, and otherwise built again from snapshot and journal:

1. it is the state that the epoch's header names (a state that returns with its disk is not);
2. its fdatasync succeeds;
3. it ends where the journal ends, but for one batch that was never acknowledged;
4. either the note beside it names this boot, device, inode and mount (then the page cache is all
   there), or the journal's last record is a clean mark that follows its end.

Either way a new epoch is opened, which cuts off what lies beyond the end, and brings everything to
m+1 disks, before anything is served. On disk, in a directory of one disk:

    state-<id>/data.mdb, lock.mdb     the LMDB environment, `id` in hexadecimal
    state-<id>/note                   JSON: boot, device, inode, mount

Crashes: nothing here changes an old file before the new epoch is in force; a half-built state is
named by no header, and the next start removes it.
"""

import asyncio
import gc
import json
import logging
import os
import shutil
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from objstore.clock import Clock
from objstore.errors import Corrupt, MetaUnavailable, StaleEpoch, StoreError
from objstore.ids import Randomness, random_id
from objstore.meta.journal import (
    FORMAT,
    KIND_CLEAN,
    Batch,
    Copy,
    CrashPoint,
    EpochHeader,
    Journal,
    Position,
    alone,
    anywhere,
    batch_checksum,
    first_epoch,
    heeding,
    last_epoch,
    majority,
    no_crash,
    numbers,
    read_batches,
    read_header,
    readable,
    term_of,
    together,
    too_few,
    writable,
)
from objstore.meta.kv_lmdb import LOAD_CHUNK, ClientRecord, End, LmdbState, data_inode, mount_id
from objstore.meta.log_names import journal_name
from objstore.meta.snapshot import Changes, Pairs, collect, merged
from objstore.node.disk import Disk

log = logging.getLogger(__name__)

NOTE_NAME = "note"
STATE_PREFIX = "state-"
SYNC_TIMEOUT_S = 60.0  # For the fdatasync of a whole state; a disk that takes longer has lost it.
SYNC_FAILED = "its fdatasync failed"
STEP_TIMEOUT_S = 5.0
FENCE_TIMEOUT_S = 30.0  # A fence waits for writes under way, and they end within a disk's own limits.
ROOM_MIN = 16 << 20  # Bytes: what a few batches can add to LMDB. Disks are full for objects long before.
FORGET_STEP = 1 << 32  # Epochs: more than any store ever opens.
BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")

Progress = Callable[[int, int], None]
"""(keys loaded, keys expected): called about once in LOAD_CHUNK keys while a state is built."""


class Recovered(NamedTuple):
    journal: Journal  # Its new epoch is in force.
    state: LmdbState
    rebuilt: bool
    reason: str  # Why the state was not trusted; "" if it was.


def boot_id() -> str:
    """Of the running kernel; "" where there is none, and then no note is ever trusted."""
    try:
        return BOOT_ID_PATH.read_text().strip()
    except OSError:
        return ""


async def recover(
    disks: Sequence[Disk],
    *,
    copies: int,
    cluster: bytes,
    state_directories: Sequence[Path],
    clock: Clock,
    randomness: Randomness = os.urandom,
    trust_state: bool = True,
    boot: str | None = None,
    progress: Progress | None = None,
    crash: CrashPoint = no_crash,
    append_timeout_s: float | None = None,
    forget: bool = False,
    served: Path | None = None,
    term: int = 0,
    allowed: Callable[[int], bool] = anywhere,
    machine: Callable[[int], Hashable] = alone,
) -> Recovered:
    """Find or rebuild the state and open a new epoch.

    Args:
        disks: every disk of the cluster, those that are missing too.
        copies: m+1.
        state_directories: where LMDB may live, the preferred first; normally `meta` on each disk.
        trust_state: False if the last committer died in a way that casts doubt on LMDB (SIGBUS).
        boot: the boot id, for tests.
        forget: begin empty, as in a new store, whatever epochs the disks name: for a rebuild from
            fragments after the loss of the journal. No state and no journal file may be left.
        served: a file that lies on none of the disks and remembers the newest epoch that was in force: with
            more than m disks away, those that are here may all know only the past. None: no such file.
        term: this machine's, where others could reach the disks too (journal.py); all earlier ones are
            shut out before anything is read. 0: nobody else can.
        allowed: by a disk's number, whether metadata may be written to it. It is read from any.
        machine: by a disk's number, where it stands: copies go to different machines.

    Raises: MetaUnavailable (the newest epoch is on none of the disks that are here), Corrupt,
        TooFewDisks; StaleEpoch if a later term has begun.
    """
    boot = boot_id() if boot is None else boot
    here = await _shut_out(disks, term) if term else disks
    found = None if forget else await _newest_epoch(here, disks, cluster, served)
    journal = Journal(
        disks=disks,
        copies=copies,
        cluster=cluster,
        clock=clock,
        position=Position(0, 0, 0, 0, 0),
        header=EpochHeader(FORMAT, cluster, 0, [], 0, 0, b"", None, [], 0),
        crash=crash,
        term=term,
        allowed=allowed,
        machine=machine,
    )
    if served is not None:
        journal.opened = partial(_remember, served)
    if append_timeout_s is not None:
        journal.append_timeout_s = append_timeout_s
    if forget:
        # Above any number that a disk which is away may know: its old journal must not win one day.
        journal.highest = max(FORGET_STEP + max(await _noted(disks)), first_epoch(term))
        assert not term or term_of(journal.highest) == term, "a rebuild begins a term of its own"
    if found is None:
        _refuse_forgotten_state(state_directories)
        state = _new_state(_by_fitness(state_directories, disks, b"", suspicious=False), randomness)
        reason = "a new store"
    else:
        header, header_size, members = found
        journal.header = header
        trusted, reason = None, "the last committer's death casts doubt on it"
        if trust_state:
            trusted, reason = await _trusted(
                header, header_size, members, state_directories, boot, journal.bad
            )
        else:
            for path in [path for directory in state_directories for path in _states(directory)]:
                distrust(path)  # Should this start end before it is recorded, the next is not told.
        roomy = [
            place
            for place in _by_fitness(state_directories, disks, b"", suspicious=False)
            if _has_room(place)
        ]
        if trusted is not None and roomy and not _has_room(trusted.path):
            # On a disk that is full it would end with its first commits, at every start again.
            trusted.close()
            trusted, reason = None, "its disk is full"
        if trusted is not None:
            state, journal.position, reason = trusted, _position(trusted.end(), header, header_size), ""
        else:
            log.warning("the metadata state is built again from the journal", extra={"reason": reason})
            crash("recovery.rebuild")
            # After a power cut the disk is as good as before; after a lost state it is the last choice.
            suspicious = not header.state or not trust_state or reason.startswith(SYNC_FAILED)
            fit = _by_fitness(state_directories, disks, header.state, suspicious=suspicious)
            state = await _rebuild(journal, header_size, members, fit, randomness, progress, crash)
        # As the members of the epoch that is about to be closed: `roll` makes a segment of it.
        journal.members = members
    try:
        crash("recovery.state")
        await journal.roll(state=state.state_id())
        crash("recovery.opened")
        state.commit({}, (), journal.end(), {})
        crash("recovery.recorded")
        try:
            _write_note(state.path, boot)
        except OSError as failure:  # Without a true one the next start builds the state again.
            log.warning("no note beside the state", extra={"failure": repr(failure)})
        crash("recovery.noted")
        _remove_other_states(state_directories, state.path)
        await journal.clean_up()
    except BaseException:
        state.close()
        raise
    return Recovered(journal, state, bool(reason) and found is not None, reason if found else "")


async def _shut_out(disks: Sequence[Disk], term: int) -> list[Disk]:
    """Fence every disk that can be reached, and return those: only what they hold is final.

    Raises: StaleEpoch; MetaUnavailable if they are too few to exclude a machine of another term.
    """

    async def fence(disk: Disk) -> None:
        noted = await disk.noted_epoch()
        if term_of(noted) > term:
            raise StaleEpoch(named=last_epoch(term), noted=noted)
        await disk.fence(first_epoch(term))

    asked = [disk for disk in disks if readable(disk)]
    failures = await heeding(asked, fence, FENCE_TIMEOUT_S)
    fenced = [disk for disk in asked if disk.number not in failures]
    if len(fenced) < majority(disks):
        words = "; ".join(f"disk {number}: {why}" for number, why in failures.items())
        raise MetaUnavailable(too_few(len(fenced), disks) + (f" ({words})" if words else ""))
    return fenced


async def _noted(disks: Sequence[Disk]) -> list[int]:
    """The epochs that the disks name. Raises: MetaUnavailable."""
    noted: list[int] = []

    async def look(disk: Disk) -> None:
        noted.append(await disk.noted_epoch())

    await together([disk for disk in disks if readable(disk)], look, STEP_TIMEOUT_S)
    if not noted:
        raise MetaUnavailable(f"none of the disks can be read ({numbers(disks)})")
    return noted


def _remember(served: Path, epoch: int) -> None:
    """A hint, not synced: an older one, or none, refuses less."""
    temporary = served.with_name(served.name + ".new")
    try:
        temporary.write_text(f"{epoch}\n")
        os.replace(temporary, served)
    except OSError as failure:
        log.warning(
            "the newest epoch was not remembered", extra={"file": str(served), "failure": repr(failure)}
        )


def _remembered(served: Path) -> int:
    try:
        return int(served.read_text())
    except (OSError, ValueError):
        return 0


async def _newest_epoch(
    asked: Sequence[Disk], disks: Sequence[Disk], cluster: bytes, served: Path | None
) -> tuple[EpochHeader, int, list[Disk]] | None:
    """The header of the highest epoch that any identity among those of `asked` names, and its holders.

    None for a store that never had one. Raises: MetaUnavailable.
    """
    noted: dict[int, int] = {}
    named: dict[int, list[str]] = {}

    async def look(disk: Disk) -> None:
        noted[disk.number] = await disk.noted_epoch()
        named[disk.number] = [entry.name for entry in await disk.logs()]

    failures = await together([disk for disk in asked if readable(disk)], look, STEP_TIMEOUT_S)
    for number in failures:
        noted.pop(number, None)
        named.pop(number, None)
    here = [disk for disk in disks if disk.number in noted]
    away = [disk for disk in disks if disk.number not in noted]
    if not here:
        raise MetaUnavailable(f"none of the disks can be read ({numbers(disks)})")
    epoch = max(noted.values())
    if served is not None and epoch < (newest := _remembered(served)):
        raise MetaUnavailable(
            f"this store has served journal epoch {newest}, but the disks that are here ({numbers(here)})"
            f" know only {epoch}: they would bring back the past. Bring back one of {numbers(away)}; if those"
            f" are lost for ever, and what was written since with them, remove {served}"
        )
    if epoch == 0:
        if away:
            raise MetaUnavailable(
                "no disk that is here names a journal epoch: is this store new? A first start needs"
                f" every disk; missing: {numbers(away)}"
            )
        return None
    name = journal_name(epoch)
    found: list[tuple[Disk, EpochHeader, int]] = []
    for disk in here:
        if name not in named[disk.number]:
            continue
        read = await read_header(disk, name)
        if read is None or read[0].epoch != epoch or read[0].cluster != cluster:
            continue
        if disk.number in read[0].members:
            found.append((disk, *read))
    # A power cut may leave a header on one disk alone, and if that disk is then away, the next start takes
    # the number again. An epoch that served a batch is named by all its members: so what they hold decides.
    # If none of them names it, it never served.
    found = [one for one in found if noted[one[0].number] == epoch] or found
    if not found:
        remedy = f"bring back one of {numbers(away)}"
        if not away:
            remedy = "if no backup of them has it, objstore meta rebuild makes metadata anew from the volumes"
        raise MetaUnavailable(
            f"the newest journal epoch is {epoch}, and none of the disks that are here"
            f" ({numbers(here)}) holds it: {remedy}"
        )
    _, header, size = found[0]
    holders = [disk for disk, its_header, _ in found if its_header == header]
    if header.format != FORMAT:
        raise Corrupt(f"{name} has format {header.format}, this release reads {FORMAT}")
    return header, size, holders


def _position(end: End, header: EpochHeader, header_size: int) -> Position:
    if end.epoch == header.epoch:
        return Position(end.epoch, end.sequence, end.checksum, end.start, end.offset)
    return Position(header.epoch, end.sequence, end.checksum, header_size, header_size)


# Is it to be trusted?


async def _trusted(
    header: EpochHeader,
    header_size: int,
    members: Sequence[Disk],
    directories: Sequence[Path],
    boot: str,
    bad: set[tuple[int, str]],
) -> tuple[LmdbState | None, str]:
    """The open state, or None and why not. Adds members whose file lacks its last batch to `bad`."""
    if not header.state:
        return None, "the journal says that the last state was lost"
    name = STATE_PREFIX + header.state.hex()
    path = next((directory / name for directory in directories if _exists(directory / name)), None)
    if path is None:
        return None, f"no {name} on any disk that is here"
    # Before it is mapped: pages that a power cut tore could end this process, not only a read.
    differs = _note_differs(path, boot)
    if differs and not await _ends_with_mark(header, header_size, members):
        return None, f"{differs}, and the journal has no clean mark"
    try:
        state = LmdbState.open(path)
    except (StoreError, OSError) as failure:
        return None, f"it cannot be opened: {failure}"
    try:
        why_not = await _why_not(state, header, header_size, members, bad, marked=bool(differs))
    except (StoreError, OSError, TimeoutError) as failure:
        why_not = repr(failure)
    if why_not:
        state.close()
        return None, why_not
    return state, ""


async def _why_not(
    state: LmdbState,
    header: EpochHeader,
    header_size: int,
    members: Sequence[Disk],
    bad: set[tuple[int, str]],
    *,
    marked: bool,
) -> str:
    if state.state_id() != header.state:
        return "it is another state than the journal names"
    try:
        async with asyncio.timeout(SYNC_TIMEOUT_S):
            await asyncio.to_thread(state.sync)
    except (OSError, TimeoutError) as failure:
        distrust(state.path)
        return f"{SYNC_FAILED}: {failure!r}"
    state.clients()  # Raises if one is damaged: read once, at a start.
    end = state.end()
    if end.epoch != header.epoch and (
        end.epoch > header.epoch
        or (end.sequence, end.checksum) != (header.after_sequence, header.after_checksum)
    ):
        return "it does not end where the journal ends"
    position = _position(end, header, header_size)
    name = journal_name(header.epoch)

    # Its last batch must be on at least one member, and shows that the two belong together.
    holders: list[Disk] = []
    for disk in members:
        if position.start == position.offset:
            holders.append(disk)  # No batch yet in this epoch; the header was read.
            continue
        record = await _batch_ending_at(disk, name, position)
        if record:
            holders.append(disk)
        else:
            bad.add((disk.number, name))
    if not holders:
        return "its last batch is on none of the journal's disks"

    beyond: list[Batch] = []
    async for _, batch in read_batches(
        [Copy(disk, name) for disk in holders],
        epoch=header.epoch,
        offset=position.offset,
        sequence=position.sequence,
        checksum=position.checksum,
        thorough=True,
    ):
        beyond.append(batch)
        if len(beyond) > 1:
            return "the journal goes on beyond it"
    if marked and [batch.kind for batch in beyond] != [KIND_CLEAN]:
        return "the journal's clean mark does not follow it"
    return ""


async def _ends_with_mark(header: EpochHeader, header_size: int, members: Sequence[Disk]) -> bool:
    """Whether the last record that any member has is a clean mark."""
    last: Batch | None = None
    async for _, batch in read_batches(
        [Copy(disk, journal_name(header.epoch)) for disk in members],
        epoch=header.epoch,
        offset=header_size,
        sequence=header.after_sequence,
        checksum=header.after_checksum,
        thorough=False,
    ):
        last = batch
    return last is not None and last.kind == KIND_CLEAN


async def _batch_ending_at(disk: Disk, name: str, position: Position) -> bool:
    """Whether the disk's file has the batch of `position.checksum` between start and offset."""
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            content = await disk.log_read(name, position.start, position.offset - position.start)
    except (StoreError, OSError, TimeoutError):
        return False
    return batch_checksum(content) == position.checksum


def _note(path: Path, boot: str) -> dict[str, str]:
    """What must be the same for the page cache to be the one that was written. Raises: OSError."""
    device, inode = data_inode(path)
    return {"boot": boot, "device": str(device), "inode": str(inode), "mount": mount_id(path)}


def _note_differs(path: Path, boot: str) -> str:
    try:
        note, wanted = json.loads((path / NOTE_NAME).read_text()), _note(path, boot)
    except (OSError, ValueError):
        return "it has no note"
    if not boot:
        return "this system has no boot id"
    different = [name for name in wanted if note.get(name) != wanted[name]]
    return f"it was left under another {' and '.join(different)}" if different else ""


def _write_note(path: Path, boot: str) -> None:
    temporary = path / (NOTE_NAME + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(_note(path, boot), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path / NOTE_NAME)


def distrust(path: Path) -> None:
    """Let no start of this boot trust the state: a failed write-back is reported once, and the next sync
    succeeds. For when no journal takes the word of it; another boot does not trust it anyway."""
    try:
        (path / NOTE_NAME).unlink(missing_ok=True)
    except OSError as failure:
        log.error("the note of a lost state stays", extra={"state": str(path), "failure": repr(failure)})


def _exists(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


# Building it again.


async def _rebuild(
    journal: Journal,
    header_size: int,
    members: Sequence[Disk],
    directories: Sequence[Path],
    randomness: Randomness,
    progress: Progress | None,
    crash: CrashPoint,
) -> LmdbState:
    """Load snapshot and journal, in order, into a new state; sets the journal's position.

    A thread loads while the next pairs are read: half of either is work of C without the GIL.
    """
    header = journal.header
    state = _new_state(directories, randomness)
    changes = Changes(state.path)
    loading: asyncio.Future[int] | None = None  # Owns the state until it is done.
    collects = gc.isenabled()
    gc.disable()  # Pairs by the million and no cycles: looking for some took a quarter of the CPU.
    try:
        sources = [disk for disk in journal.disks if readable(disk)]
        await collect(sources, header.segments, changes, journal.bad)
        journal.position = await _last_epoch(journal, header_size, members, changes)
        expected = header.snapshot.count if header.snapshot else 0
        loaded = 0
        chunk: Pairs = []
        async for pairs in merged(sources, header.snapshot, changes, journal.bad):
            chunk += pairs
            if len(chunk) >= LOAD_CHUNK:
                if loading is not None:
                    loaded += await loading
                    crash("recovery.load")
                    if progress is not None:
                        progress(loaded, max(expected, loaded))
                loading = asyncio.ensure_future(asyncio.to_thread(state.load, chunk))
                chunk = []
        if loading is not None:
            loaded += await loading
        loaded += state.load(chunk)
        crash("recovery.load")
        if progress is not None:
            progress(loaded, loaded)
        clients: dict[bytes, ClientRecord] = dict(changes.recent_clients())
        position = journal.position
        end = End(position.epoch, position.sequence, position.checksum, position.start, position.offset)
        state.commit({}, (), end, clients)
    except BaseException:
        if loading is not None:
            await asyncio.wait([loading])  # Closed under the thread, it would end this process.
        state.close()
        raise
    finally:
        changes.close()
        if collects:
            gc.enable()
    return state


async def _last_epoch(
    journal: Journal, header_size: int, members: Sequence[Disk], changes: Changes
) -> Position:
    """Every batch of the newest epoch that any member has whole; where it ends.

    Raises: MetaUnavailable if it may go on where no member could be read.
    """
    header = journal.header
    name = journal_name(header.epoch)
    copies = [Copy(disk, name) for disk in members]
    position = Position(header.epoch, header.after_sequence, header.after_checksum, header_size, header_size)
    async for offset, batch in read_batches(
        copies,
        epoch=header.epoch,
        offset=header_size,
        sequence=position.sequence,
        checksum=position.checksum,
        thorough=True,
    ):
        if batch.kind == KIND_CLEAN:
            break  # Nothing follows it; the next epoch cuts it off.
        changes.add(batch.resolved(), batch.time_us)
        position = Position(header.epoch, batch.sequence, batch.checksum, offset, offset + batch.size)
    else:
        _check_read(copies, f"{name} beyond byte {position.offset}")
    journal.bad.update((copy.disk.number, name) for copy in copies if not copy.whole)
    return position


def _check_read(copies: Sequence[Copy], place: str) -> None:
    """Whether the journal really ends where no copy gave another batch. What was acknowledged is on every
    member, so one that had all before it shows the end; but a read that failed or came late shows nothing,
    and what lies there must not be cut off.

    Raises: MetaUnavailable.
    """
    unread = {copy.disk.number: copy.unread for copy in copies if copy.unread}
    if unread and not any(copy.whole and not copy.unread for copy in copies):
        words = "; ".join(f"disk {number}: {why}" for number, why in unread.items())
        raise MetaUnavailable(
            f"{place} could not be read, and nobody else knows whether it ends there: {words}"
        )


def _by_fitness(
    directories: Sequence[Path], disks: Sequence[Disk], state: bytes, *, suspicious: bool
) -> list[Path]:
    """Where a new state may go: not on a disk that is away, and last where one was lost.

    A directory that lies on none of the disks (a place of its own, by configuration) is always fit.
    """
    fit = [
        directory
        for directory in directories
        if all(writable(disk) for disk in disks if directory.is_relative_to(disk.path))
    ]
    if suspicious:
        name = STATE_PREFIX + state.hex()
        fit.sort(key=lambda directory: any(path.name.startswith(name) for path in _states(directory)))
    fit.sort(key=lambda directory: not _has_room(directory))
    return fit


def _has_room(place: Path) -> bool:
    """Whether a state at `place`, or in it once it is made, could grow."""
    try:
        found = os.statvfs(place if place.exists() else place.parent)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize >= ROOM_MIN and not found.f_flag & os.ST_RDONLY


def _new_state(directories: Sequence[Path], randomness: Randomness) -> LmdbState:
    """An empty state in the first directory that takes one. Raises: MetaUnavailable."""
    failures = []
    state_id = random_id(randomness)
    for directory in directories:
        try:
            if not directory.parent.is_dir():
                raise FileNotFoundError(f"no directory {directory.parent}")  # An unmounted disk.
            directory.mkdir(mode=0o700, exist_ok=True)
            return LmdbState.create(directory / (STATE_PREFIX + state_id.hex()), state_id)
        except (OSError, StoreError) as failure:
            failures.append(str(failure))
    raise MetaUnavailable(f"no disk takes the metadata state: {'; '.join(failures)}")


def _refuse_forgotten_state(directories: Sequence[Path]) -> None:
    """A state that has served, but no disk names an epoch: the journal was taken away. Raises."""
    for directory in directories:
        for path in _states(directory):
            try:
                state = LmdbState.open(path)
            except (StoreError, OSError):
                continue
            try:
                served = state.end().epoch
            finally:
                state.close()
            if served:
                raise MetaUnavailable(
                    f"{path} has served journal epoch {served}, but no disk names any epoch: were the"
                    " disks replaced? Nothing is overwritten"
                )


def _states(directory: Path) -> list[Path]:
    try:
        return sorted(directory.glob(STATE_PREFIX + "*"))
    except OSError:
        return []


def _remove_other_states(directories: Sequence[Path], kept: Path) -> None:
    for directory in directories:
        for path in _states(directory):
            if path.name != kept.name:
                shutil.rmtree(path, ignore_errors=True)
