"""A supervisor with children that do nothing but live: run as a program by test_supervisor.py.

    python -m tests.processes.little_store DIRECTORY MOOD

MOOD: well | deaf (worker-1 stops answering once ready) | broken (worker-1 never starts) | shut-out (the
committer hears of another machine when all have started) | changes (upkeep adds a disk, and another while the
committer, which is slow, is being started anew) | clings (upkeep adds a disk, and the first committer does
not end when it is to be started anew) | waits (the committer ends by a bug when DIRECTORY/bug is there, its
successor with an error of the store when DIRECTORY/fail is, and the next one says that it waits from
DIRECTORY/tell to DIRECTORY/go) | drains (worker-1 has a request
under way when it is to stop).
Each child notes what happens to it in DIRECTORY/events, one word a line.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from objstore.errors import MetaUnavailable
from objstore.processes import supervisor
from objstore.processes.link import Link


def note(directory: Path, event: str) -> None:
    with (directory / "events").open("a") as file:
        file.write(event + "\n")


DISKS: list[str] = []  # What the supervisor knows, and a child as it is forked.


def change_disks(text: str) -> tuple[str, bool]:
    DISKS.append(text)
    return "", True


async def add_disks(directory: Path, link: Link) -> None:
    await link.change_disks("first")
    while (directory / "events").read_text().count("start-committer") < 2:
        await asyncio.sleep(0.005)
    await link.change_disks("second")


async def there(path: Path) -> None:
    while not path.exists():
        await asyncio.sleep(0.005)


def child(directory: Path, name: str, mood: str) -> supervisor.ChildMain:
    async def live(link: Link) -> None:
        loop = asyncio.get_running_loop()
        link.attach(loop)
        stopped = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stopped.set)
        note(directory, f"start-{name}")
        if name == "committer":
            note(directory, f"knows-{len(DISKS)}")
            if mood == "changes":
                await asyncio.sleep(0.3)
        life = (directory / "events").read_text().split().count(f"start-{name}")
        waits = mood == "waits" and name == "committer"
        if waits and life == 2:
            await there(directory / "fail")
            raise MetaUnavailable("too few disks")
        if waits and life == 3:
            await there(directory / "tell")
            link.progress("waiting for disks")
            await there(directory / "go")
        link.ready()
        if waits and life == 1:
            await there(directory / "bug")
            raise RuntimeError("at /a/path")
        if mood == "changes" and name == "upkeep":
            await add_disks(directory, link)
        if mood == "clings" and name == "upkeep":
            await link.change_disks("first")
        if mood == "shut-out" and name == "committer":
            while (directory / "events").read_text().count("start-") < 4:
                await asyncio.sleep(0.005)
            link.shut_out("another machine is here")
            raise RuntimeError("shut out")
        if mood == "deaf" and name == "worker-1" and not (directory / "was-deaf").exists():
            (directory / "was-deaf").touch()
            time.sleep(600)
        await stopped.wait()
        if mood == "clings" and name == "committer" and not DISKS:
            await asyncio.sleep(600)  # It answers probes: a disk hangs, say.
        if mood == "drains" and name == "worker-1":
            await asyncio.sleep(0.5)
        note(directory, f"stop-{name}")

    def main(link: Link, died: str) -> None:
        if mood == "broken" and name == "worker-1":
            raise RuntimeError("does not start")
        asyncio.run(live(link))

    return main


def run(directory: Path, mood: str) -> int:
    supervisor.PROBE_SECONDS = 0.05
    # Only where a child is to be found silent: on a busy machine all are, for a while.
    supervisor.SILENT_SECONDS = 0.5 if mood == "deaf" else 300.0
    names = ["upkeep", "worker-1", "worker-2"]
    return supervisor.Supervisor(
        run_directory=directory,
        first_main=child(directory, "committer", mood),
        others={name: child(directory, name, mood) for name in names},
        drain_seconds=5,
        announce=lambda line: print(line, flush=True),
        log=lambda event, **fields: print(
            event, {k: v for k, v in fields.items() if k != "trace"}, flush=True
        ),
        on_ready=lambda: print("READY", flush=True),
        on_stop=lambda: None,
        close_in_child=lambda name: None,
        change_disks=change_disks,
        first_stop_seconds=0.5 if mood == "clings" else supervisor.COMMITTER_STOP_SECONDS,
        facts={"ours": os.getpid()},
    ).run()


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2]))
