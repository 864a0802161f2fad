"""First starts, later starts, and what a start says when the disks are not as they should be."""

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from objstore.config import Config, load
from objstore.node.disk import DiskState
from objstore.node.identity import Identity
from objstore.node.local import format_disk, lock_disk
from objstore.processes import cluster
from tests.server import (
    ACCESS_KEY,
    Server,
    environment_for,
    run_command,
    running_server,
    start_server,
)
from tests.waiting import LIMIT_S, wait_until


def refused(directory: Path, *arguments: str, **environment: str) -> str:
    """What `objstore serve` says when it does not start."""
    done = run_command(
        "serve",
        f"--data={directory / 'data'}",
        "--listen=127.0.0.1:0",
        "--admin-listen=127.0.0.1:0",
        *arguments,
        environment=environment_for(**environment),
        check=False,
    )
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def kill_and_await_another(server: Server, child: str) -> None:
    pid = server.children()[child]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.children()[child] not in (0, pid), server.text)
    server.wait_ready()


def test_the_first_start_makes_a_store_and_prints_a_root_key_once_and_a_later_one_finds_it(
    tmp_path: Path,
) -> None:
    with running_server(tmp_path, root=None) as server:
        first = server.text()
        access, secret = (re.search(rf"{name} key +(\S+)", first)[1] for name in ("access", "secret"))  # type: ignore[index]
        for tool in ("boto3:", "aws:", "rclone:"):
            assert tool in first
        assert f'endpoint_url="{server.endpoint}"' in first
        assert "directories on one device: a convenience that survives no disk" in first
        s3 = server.boto3(access, secret)
        s3.create_bucket(Bucket="kept")
        s3.put_object(Bucket="kept", Key="small", Body=b"small")
        big = os.urandom(5 << 20)
        s3.put_object(Bucket="kept", Key="big", Body=big)
        pids = list(server.children().values())
        assert server.stop(signal.SIGINT) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert sorted(path.name for path in (tmp_path / "data").glob("disk*")) == [
        f"disk{n}" for n in range(1, 7)
    ]
    assert (tmp_path / "data" / "admin.token").stat().st_mode & 0o777 == 0o600

    with running_server(tmp_path, root=None) as server:
        later = server.text()[len(first) :]
        assert secret not in later
        assert "First start" not in later
        s3 = server.boto3(access, secret)
        assert s3.get_object(Bucket="kept", Key="small")["Body"].read() == b"small"
        assert s3.get_object(Bucket="kept", Key="big")["Body"].read() == big

        assert server.admin("POST", "/api/v1/users", {"name": "eve", "tenant": "default"})[0] == 201
        key = server.admin("POST", "/api/v1/keys", {"user": "eve"})[1]["access_key"]
        # Its key is disabled: no start of the upkeep process makes another.
        assert server.admin("POST", f"/api/v1/keys/{access}/disable")[0] == 200
        kill_and_await_another(server, "upkeep")
        assert server.text().count("shown this once") == 1

    server = start_server(tmp_path, root=(key, "a-secret-of-roots"), wait=False)
    try:
        assert server.process.wait(LIMIT_S) == 1
    finally:
        server.process.kill()
    refusal = server.text()[len(first) + len(later) :]
    assert f"root.access_key: access key '{key}' is another user's." in refusal
    assert "does not start" not in refusal


def test_a_root_key_from_the_environment_or_a_file_is_taken_and_not_printed(tmp_path: Path) -> None:
    place = tmp_path / "secret"
    place.write_text("a-secret-from-a-file\n")
    environment = {"OBJSTORE_ROOT_ACCESS_KEY": "AKFROMFILE", "OBJSTORE_ROOT_SECRET_KEY_FILE": str(place)}
    with running_server(tmp_path, root=None, environment=environment) as server:
        assert "a-secret-from-a-file" not in server.text()
        assert "shown this once" not in server.text()
        assert server.boto3("AKFROMFILE", "a-secret-from-a-file").list_buckets()["Buckets"] == []
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            server.boto3("AKFROMFILE", "another-secret").list_buckets()


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven paths; the store of `formed` lies on the first six, with 2+1 over them."""
    root = tmp_path_factory.mktemp("disks")
    return [root / f"d{number}" for number in range(1, 8)]


@pytest.fixture(scope="module")
def formed(tmp_path_factory: pytest.TempPathFactory, disks: list[Path]) -> Path:
    """The directory of a stopped store with one object, on --disk paths."""
    directory = tmp_path_factory.mktemp("formed")
    with running_server(directory, disks=disks[:6], codec="4+2") as server:
        s3 = server.boto3()
        s3.create_bucket(Bucket="kept")
        s3.put_object(Bucket="kept", Key="k", Body=b"v" * 100_000)
    return directory


def whole(server: Server) -> bool:
    body: bytes = server.boto3().get_object(Bucket="kept", Key="k")["Body"].read()
    return body == b"v" * 100_000


def test_a_disk_that_is_not_there_is_named_worked_around_and_never_made_anew(
    formed: Path, disks: list[Path]
) -> None:
    away = disks[1].rename(disks[1].with_name("away"))
    disks[1].mkdir()  # An unmounted path.
    try:
        with running_server(formed) as server:  # It remembers where its disks are.
            assert f"Disk 2 ({disks[1]}) is missing" in server.text()
            assert whole(server)
            server.boto3().put_object(Bucket="kept", Key="new", Body=b"n" * 100_000)
            status, found = server.admin("GET", "/api/v1/status")
            assert status == 200
            assert found["degraded"]
            assert {disk["disk"]: disk["state"] for disk in found["disks"]}[2] == "missing"
            assert os.listdir(disks[1]) == []
            assert server.command("status", check=False).returncode == 3
            assert server.admin("GET", "/health/cluster", token=None)[0] == 200
    finally:
        disks[1].rmdir()
        away.rename(disks[1])


def test_swapped_disks_are_found_where_they_are(formed: Path, disks: list[Path]) -> None:
    spare = disks[0].with_name("spare")
    disks[2].rename(spare)
    disks[3].rename(disks[2])
    spare.rename(disks[3])
    with running_server(formed) as server:
        assert whole(server)
        paths = {disk["disk"]: disk["path"] for disk in server.admin("GET", "/api/v1/disks")[1]["disks"]}
        assert paths[3] == str(disks[3])
        assert paths[4] == str(disks[2])


def test_a_store_moved_to_other_paths_starts_from_its_disks_alone(
    formed: Path, disks: list[Path], tmp_path: Path
) -> None:
    moved = [tmp_path / f"m{number}" for number in range(6)]
    for old, new in zip(disks, moved, strict=False):
        shutil.copytree(old, new)
    with running_server(tmp_path / "elsewhere", disks=moved) as server:
        assert "First start" not in server.text()
        assert whole(server)


def test_a_path_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"meow")
    arguments = [f"--disk={tmp_path / f'd{n}'}" for n in range(5)]
    said = refused(tmp_path, *arguments, f"--disk={other}")
    assert f"--disk {other} holds something else (cat.jpg) and is left alone" in said
    assert os.listdir(other) == ["cat.jpg"]
    assert not (tmp_path / "d0").exists()  # Checked before anything was made.


def opened(data: Path, paths: list[str], announce: Callable[[str], None]) -> cluster.Cluster:
    """What a start finds, or makes; without its locks."""
    data.mkdir(exist_ok=True)
    found = cluster.open_cluster(load(None, {}, {"disks.paths": ("--disk", paths)}).config, data, announce)
    for lock in found.locks:
        os.close(lock)
    return found


def test_a_directory_that_is_no_mount_point_is_refused_at_a_first_start_where_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(tmp_path / f"disk{number}") for number in range(6)]
    for path in paths:
        os.mkdir(path)
    mounted = set(paths) - {paths[3]}
    monkeypatch.setattr(os.path, "ismount", mounted.__contains__)
    with pytest.raises(cluster.CannotStart, match=f"{paths[3]} is no mount point, while {paths[0]} is"):
        opened(tmp_path / "data", paths, print)
    assert not any(os.listdir(path) for path in (*paths, str(tmp_path / "data")))

    os.rmdir(paths[3])  # As it says, for a plain directory.
    assert [disk.path for disk in opened(tmp_path / "data", paths, print).disks] == paths


def test_who_begins_again_because_a_device_was_not_mounted_has_all_disks_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(tmp_path / f"disk{number}") for number in range(6)]
    mounted = set(paths) - {paths[3]}
    monkeypatch.setattr(os.path, "ismount", mounted.__contains__)
    lines: list[str] = []
    data = tmp_path / "data"
    opened(data, paths, lines.append)
    (line,) = (line for line in lines if "no mount point" in line)
    assert line.startswith(f"--disk {paths[3]} is no mount point, while {paths[0]} is.")

    # As the line says.
    emptied = re.search("remove --data, empty (.+), mount it, and begin again", line)
    assert emptied is not None
    shutil.rmtree(data)
    for path in emptied[1].split(", "):
        shutil.rmtree(path)
        os.mkdir(path)
    mounted.add(paths[3])
    lines.clear()
    found = opened(data, paths, lines.append)
    assert found.first_start
    assert [disk.state for disk in found.disks] == [DiskState.HEALTHY] * 6
    assert lines == ["First start: making a store of 6 disks (codec 4+2)."]


def test_a_disk_that_is_mounted_read_only_is_named_at_the_start(
    formed: Path, disks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cluster.open_cluster(Config(), formed / "data", lambda line: None, codec_given=False)
    asked = os.statvfs

    def statvfs(path: str) -> os.statvfs_result:
        real = asked(path)
        flags = real.f_flag | (os.ST_RDONLY if path == str(disks[1]) else 0)
        return os.statvfs_result((*real[:8], flags, real[9], real.f_fsid))

    monkeypatch.setattr(os, "statvfs", statvfs)
    try:
        lines = [line for line in cluster.warnings_of(found) if "read-only" in line]
    finally:
        for lock in found.locks:
            os.close(lock)
    assert len(lines) == 1
    assert lines[0].startswith(f"Disk 2 ({disks[1]}) is read-only: its file system is mounted so.")


def test_too_few_disks_are_refused_with_the_number_that_is_needed(tmp_path: Path) -> None:
    assert "2 disks are too few for codec 4+2" in refused(
        tmp_path, f"--disk={tmp_path / 'a'}", f"--disk={tmp_path / 'b'}"
    )


def test_a_disk_of_another_store_and_an_unknown_one_are_refused(
    formed: Path, disks: list[Path], tmp_path: Path
) -> None:
    said = refused(formed, f"--disk={disks[6]}")
    assert "is not a disk of this store" in said
    assert not disks[6].exists()


def test_a_refused_start_with_a_disk_of_another_store_leaves_the_new_store_to_be_made(
    formed: Path, disks: list[Path], tmp_path: Path
) -> None:
    empty = [tmp_path / f"e{number}" for number in range(6)]
    said = refused(tmp_path, f"--disk={empty[0]}", f"--disk={disks[0]}", f"--disk={empty[1]}")
    assert f"--disk {empty[0]} is not a disk of this store" in said
    assert f"But {disks[0]} is a disk of a store" in said
    assert "or only empty directories to make another. Nothing was changed." in said
    assert not (tmp_path / "data" / "cluster.json").exists()
    found = opened(tmp_path / "data", [str(path) for path in empty], print)
    assert found.first_start
    assert [disk.path for disk in found.disks] == [str(path) for path in empty]


def test_a_refused_start_on_the_disks_of_a_store_that_runs_does_not_make_them_its_own(
    formed: Path, disks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LOCK_WAIT_S", 0.0)
    lock = lock_disk(str(disks[5]))
    try:
        with pytest.raises(cluster.CannotStart, match="disk 6"):
            opened(tmp_path, [str(path) for path in disks[:6]], print)
    finally:
        os.close(lock)
    assert not (tmp_path / "cluster.json").exists()


def test_a_store_none_of_whose_disks_is_there_does_not_begin_anew(formed: Path, disks: list[Path]) -> None:
    hidden = disks[0].parent.with_name("hidden")
    disks[0].parent.rename(hidden)
    try:
        said = refused(formed)
        assert "none of the store's 6 disks is there" in said
        assert "never formatted anew" in said
    finally:
        hidden.rename(disks[0].parent)


def test_a_first_start_that_was_cut_short_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    formatted: list[str] = []

    def until_the_fourth(path: str, identity: Identity) -> None:
        if len(formatted) == 3:
            raise OSError("power cut")
        formatted.append(path)
        format_disk(path, identity)

    monkeypatch.setattr(cluster, "format_disk", until_the_fourth)
    with pytest.raises(cluster.CannotStart, match="power cut"):
        cluster.open_cluster(Config(), data, lambda line: None)
    assert not (data / "disk4").exists()
    identity = (data / "disk3" / "objstore.id").read_bytes()
    with running_server(tmp_path) as server:
        server.boto3().create_bucket(Bucket="works")
        assert len(server.admin("GET", "/api/v1/disks")[1]["disks"]) == 6
    secrets = {json.loads(path.read_text())["checksum_secret"] for path in data.glob("disk*/objstore.id")}
    assert len(secrets) == 1
    assert json.loads(identity)["uuid"] == json.loads((data / "disk3" / "objstore.id").read_text())["uuid"]


def test_a_second_store_on_the_same_data_or_port_is_refused_in_words(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = refused(tmp_path, f"--listen=127.0.0.1:{taken.getsockname()[1]}")
        assert "the port is taken by another program" in said


def test_a_mistake_in_a_setting_ends_the_start_with_its_remedy(tmp_path: Path) -> None:
    assert "did you mean OBJSTORE_SERVER__WORKERS?" in refused(tmp_path, OBJSTORE_SERVER__WORKRS="1")
    assert "blobs.codec must be numbers of data and parity fragments, as 4+2, not '4-2'" in refused(
        tmp_path, "--codec=4-2"
    )
    assert not (tmp_path / "data").exists()


def test_a_code_wider_than_the_disks_is_told_and_its_usable_space_is_that_of_the_code_used(
    tmp_path: Path,
) -> None:
    with running_server(tmp_path, codec="8+4") as server:
        facts = server.admin("GET", "/api/v1/status")[1]["facts"]
        assert "2+4 instead of 8+4" in facts["placement"]
        assert facts["usable_free_bytes"] == pytest.approx(facts["free_bytes"] / 3, abs=1)
        page = server.admin("GET", "/metrics")[1]
    usable, raw = (
        float(re.search(rf"^objstore_capacity_{which}_bytes (\S+)$", page, re.MULTILINE)[1])  # type: ignore[index]
        for which in ("usable", "raw")
    )
    assert usable == pytest.approx(raw / 3)
    assert "(1 worker, 2+4 instead of 8+4, for want of disks, on 6 disks)" in server.text()


def test_python_without_assertions_is_refused(tmp_path: Path) -> None:
    assert "refuses to run under python -O" in refused(tmp_path, PYTHONOPTIMIZE="1")


def test_the_codec_of_the_last_start_holds_until_another_is_asked_for(tmp_path: Path) -> None:
    with running_server(tmp_path, codec="2+1"):
        pass
    loaded = load(None, {}, {"server.data": ("--data", str(tmp_path / "data"))})
    record = json.loads((tmp_path / "data" / "cluster.json").read_text())
    assert record["codec"] == "2+1"
    found = cluster.open_cluster(loaded.config, tmp_path / "data", lambda line: None, codec_given=False)
    assert found.codec == (2, 1)
    for lock in found.locks:
        os.close(lock)


def test_a_master_key_given_from_outside_is_on_no_disk_and_every_start_needs_it(tmp_path: Path) -> None:
    key = "7f" * 32
    place = tmp_path / "master"
    place.write_text(key + "\n")
    given = {"OBJSTORE_SECURITY__MASTER_KEY_FILE": str(place)}
    with running_server(tmp_path, environment=given) as server:
        server.boto3().list_buckets()
        assert server.admin("POST", f"/api/v1/keys/{ACCESS_KEY}/disable")[0] == 200
    for file in (tmp_path / "data").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert key.encode() not in content, file
            assert bytes.fromhex(key) not in content, file
    assert "master key was given from outside" in refused(tmp_path)
    assert "not the key that this store was made with" in refused(
        tmp_path, OBJSTORE_SECURITY__MASTER_KEY="00" * 32
    )
    with running_server(tmp_path, environment=given) as server:
        assert f"The root key {ACCESS_KEY} that is given (root.access_key) was disabled" in server.text()
        with pytest.raises(ClientError, match="InvalidAccessKeyId"):
            server.boto3().list_buckets()


def test_metrics_are_shown_without_the_token_where_the_operator_wants_it_so(tmp_path: Path) -> None:
    with running_server(tmp_path, environment={"OBJSTORE_METRICS__PUBLIC": "true"}) as server:
        status, page = server.admin("GET", "/metrics", token=None)
        assert status == 200
        assert "objstore_build_info" in page
        assert server.admin("GET", "/api/v1/status", token=None)[0] == 401
