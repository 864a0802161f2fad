"""A store that a later release has written on is refused by name, and not one of its bytes changes.

By today's release; in the long form also by the one before, which is what a downgrade is.

There is no later release yet: a sample of today is given the format number that comes next, in the one place
where a start looks first (docs/formats.md, "Upgrade rule").
"""

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from xxhash import xxh3_64_intdigest

from objstore.processes.dev import free_ports
from tests import postgres
from tests.server import ROOT, environment_for
from tests.upgrades.samples import QUIET, newest, previous_release, restore_database

LONG = bool(os.environ.get("OBJSTORE_LONG"))
NEXT = 2  # The format number that no release knows yet.
START_SECONDS = 120.0
OWN = {"run", "log", "admin.token"}


def next_identity(data: Path) -> str:
    for place in data.glob("disk*/objstore.id"):
        text = place.read_text()
        assert '"format": 1,' in text
        place.write_text(text.replace('"format": 1,', f'"format": {NEXT},'))
    return r"objstore\.id has format 2; this release reads 1"


def next_journal(data: Path) -> str:
    """The newest epoch's header, in each copy. Its layout: docs/formats.md, "Journal epoch"."""
    newest_epoch = max(int(place.name[8:]) for place in data.glob("disk*/logs/journal.*"))
    for place in data.glob(f"disk*/logs/journal.{newest_epoch:016}"):
        content = bytearray(place.read_bytes())
        [size] = struct.unpack_from("<I", content, 12)
        fields = msgspec.msgpack.decode(content[24 : 24 + size])
        assert fields[0] == 1
        fields[0] = NEXT
        packed = msgspec.msgpack.encode(fields)
        assert len(packed) == size
        content[24 : 24 + size] = packed
        struct.pack_into("<Q", content, 16, xxh3_64_intdigest(bytes(content[:16]) + packed))
        place.write_bytes(content)
    return r"journal\.\d+ has format 2, this release reads 1"


def contents(directory: Path) -> dict[str, str]:
    """Hash of every file, but of those that a process makes for itself: run/, log/, admin.token."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not OWN & set(path.relative_to(directory).parts[:2])
    }


@pytest.fixture(scope="module")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of today's release; in the long form also of the one before, as after a downgrade."""
    today = ROOT / "cmd" / "objstore"
    if not LONG:
        return [today]
    return [today, previous_release(tmp_path_factory.mktemp("release") / "code").launcher]


def refusal(launcher: Path, *arguments: str, **environment: str) -> str:
    """What a start says that does not come about."""
    done = subprocess.run(
        [sys.executable, str(launcher), *arguments],
        env=environment_for(**QUIET, **environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_SECONDS,
    )
    assert done.returncode not in (0, 3), done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its data directory. Whoever changes a file puts it back."""
    return newest().unpack("machine", tmp_path_factory.mktemp("store") / "it") / "data"


@pytest.mark.parametrize("change", [next_identity, next_journal])
def test_a_store_of_a_later_format_is_refused_by_name_and_left_as_it_is(
    change: Callable[[Path], str], store: Path, launchers: list[Path]
) -> None:
    files = [*store.glob("disk*/objstore.id"), *store.glob("disk*/logs/*")]
    was = {place: place.read_bytes() for place in files}
    try:
        words = change(store)
        kept = contents(store)
        for launcher in launchers:
            listen = ("--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0")
            said = refusal(launcher, "serve", f"--data={store}", *listen)
            assert re.search(words, said), said
            assert contents(store) == kept
    finally:
        for place, content in was.items():
            place.write_bytes(content)


def test_an_export_of_a_later_format_is_refused_and_the_store_stays_as_it_is(
    store: Path, launchers: list[Path], tmp_path: Path
) -> None:
    kept = contents(store)
    later = tmp_path / "later"
    later.write_bytes(b"objstore metadata 2\n" + bytes(64))
    for launcher in launchers:
        said = refusal(launcher, "meta", "import", "--replace", str(later), f"--data={store}")
        # The second is what 0.1.0a1 says.
        assert re.search("has format 2; this release reads 1|is not an export of metadata", said), said
        assert contents(store) == kept


if LONG:  # tests/meta/test_postgres.py has the short one, of the engine alone.

    def test_a_cluster_of_a_later_format_is_refused_by_name_and_left_as_it_is(
        launchers: list[Path], tmp_path: Path
    ) -> None:
        gateway = newest().unpack("cluster", tmp_path / "cluster") / "gateway"
        authority = gateway / "authority.json"
        kept = authority.read_text()
        authority.write_text(json.dumps(json.loads(kept) | {"format": NEXT}))
        ports = free_ports(3)
        words = ["gateway", f"--data={gateway}", *(
            f"--{name}=127.0.0.1:{port}"
            for name, port in zip(("listen", "admin-listen", "cluster-listen"), ports, strict=True)
        )]  # fmt: skip
        with postgres.database() as url:
            restore_database(tmp_path / "cluster" / "metadata.sql", url)
            for launcher in launchers:
                was = contents(gateway)
                said = refusal(launcher, *words, OBJSTORE_META__URL=url)
                assert re.search("authority.json.*format 2", said), said
                assert contents(gateway) == was
            authority.write_text(kept)
            server = postgres.shared_server()
            name = url.rpartition("/")[2]
            server.sql("UPDATE objstore.engine SET value = '9' WHERE name IN ('format', 'least')", name)
            rows = server.sql("SELECT md5(string_agg(kv::text, '' ORDER BY key)) FROM objstore.kv", name)
            for launcher in launchers:
                said = refusal(launcher, *words, OBJSTORE_META__URL=url)
                assert re.search("format 9, which needs a release that knows 9", said), said
                again = server.sql("SELECT md5(string_agg(kv::text, '' ORDER BY key)) FROM objstore.kv", name)
                assert again == rows
