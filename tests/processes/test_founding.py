"""What `objstore cluster init` makes, beside a store or before it; what it never touches."""

import os
from pathlib import Path

import pytest

from objstore.config import Blobs, Config, Disks, Security, Server
from objstore.node.authority import GATEWAY, decode_authority
from objstore.node.identity import read_identity
from objstore.node.syscalls import RealSyscalls
from objstore.node.tls import Credentials
from objstore.processes.cluster import CannotStart, Cluster, open_cluster, save, with_kept_master_key
from objstore.processes.founding import (
    AUTHORITY_NAME,
    founded_secrets,
    init,
    own_credentials,
    read_authority,
)

GIVEN = "ab" * 32


def config(data: Path, *, master_key: str = "") -> Config:
    return Config(
        server=Server(data=str(data)),
        disks=Disks(paths=[str(data / "d1"), str(data / "d2")]),
        blobs=Blobs(codec="1+1"),
        security=Security(master_key=master_key),
    )


def start(data: Path, settings: Config) -> Cluster:
    """As a start of the store does it; the locks are let go."""
    settings = with_kept_master_key(settings, data)
    made = open_cluster(settings, data, lambda line: None, founded=founded_secrets(settings, data))
    for lock in made.locks:
        os.close(lock)
    return made


def test_a_store_that_is_made_where_a_cluster_was_founded_takes_its_id_and_secrets(tmp_path: Path) -> None:
    made = init(config(tmp_path), tmp_path)
    assert (made.made_master_key, made.existing_store) == (True, False)
    store = start(tmp_path, config(tmp_path))
    assert store.cluster_id == made.cluster
    assert store.master_key.hex() == (tmp_path / "master.key").read_text().strip()
    authority = read_authority(tmp_path, store.master_key)
    assert authority is not None
    assert authority.checksum_secret == store.checksum_secret
    for number in (1, 2):
        identity = read_identity(str(tmp_path / f"d{number}"), RealSyscalls())
        assert (identity.cluster_id, identity.master_key) == (made.cluster, ""), "the key stays off the disks"
        assert identity.secret == authority.checksum_secret
    assert start(tmp_path, config(tmp_path)).master_key == store.master_key


def test_a_store_that_was_there_before_keeps_its_id_and_its_secrets(tmp_path: Path) -> None:
    store = start(tmp_path, config(tmp_path))
    made = init(config(tmp_path), tmp_path)
    assert (made.cluster, made.made_master_key, made.existing_store) == (store.cluster_id, False, True)
    assert not (tmp_path / "master.key").exists()
    authority = read_authority(tmp_path, store.master_key)
    assert authority is not None
    assert authority.checksum_secret == store.checksum_secret
    after = start(tmp_path, config(tmp_path))
    assert (after.cluster_id, after.master_key) == (store.cluster_id, store.master_key)


def test_a_store_whose_disks_are_away_is_not_founded_anew(tmp_path: Path) -> None:
    start(tmp_path, config(tmp_path))
    for number in (1, 2):
        (tmp_path / f"d{number}").rename(tmp_path / f"away{number}")
    with pytest.raises(CannotStart, match="are they mounted"):
        init(config(tmp_path), tmp_path)
    assert not (tmp_path / AUTHORITY_NAME).exists()


def test_a_master_key_that_was_given_is_written_nowhere(tmp_path: Path) -> None:
    made = init(config(tmp_path, master_key=GIVEN), tmp_path)
    assert not made.made_master_key
    start(tmp_path, config(tmp_path, master_key=GIVEN))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert GIVEN.encode() not in content, path
            assert bytes.fromhex(GIVEN) not in content, path
    with pytest.raises(CannotStart, match="another master key"):
        read_authority(tmp_path, b"x" * 32)


def test_an_init_that_was_cut_short_is_done_again_with_the_same_master_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(Exception):
        pass

    def cut(*_: object) -> None:
        raise Cut

    for step in ("make_authority", "save_trust", "save_identity", "save_authority"):
        with monkeypatch.context() as patch:
            patch.setattr(f"objstore.processes.founding.{step}", cut)
            with pytest.raises(Cut):
                init(config(tmp_path), tmp_path)
        assert not (tmp_path / AUTHORITY_NAME).exists(), "what is there without it is made again"
    key = (tmp_path / "master.key").read_text()
    made = init(config(tmp_path), tmp_path)
    assert (tmp_path / "master.key").read_text() == key
    assert own_credentials(tmp_path).name == made.gateway
    assert made.gateway.role == GATEWAY
    content = (tmp_path / AUTHORITY_NAME).read_bytes()
    assert decode_authority(content, bytes.fromhex(key)).signing.fingerprint.hex() == made.root
    with pytest.raises(CannotStart, match="already"):
        init(config(tmp_path), tmp_path)
    assert (tmp_path / AUTHORITY_NAME).read_bytes() == content
    assert Credentials(tmp_path / "tls").name == made.gateway


def test_a_master_key_file_that_is_wrong_or_damaged_is_named(tmp_path: Path) -> None:
    init(config(tmp_path), tmp_path)
    with pytest.raises(CannotStart, match="is not the key in"):
        with_kept_master_key(config(tmp_path, master_key=GIVEN), tmp_path)
    for bad in (b"", b"ab\n", b"\xff\xfe", b"g" * 64):
        save(tmp_path, "master.key", bad)
        with pytest.raises(CannotStart, match=r"master\.key"):
            with_kept_master_key(config(tmp_path), tmp_path)


def test_a_machine_that_is_no_member_hears_how_to_become_one(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="objstore cluster init"):
        own_credentials(tmp_path)
    assert read_authority(tmp_path, b"m" * 32) is None
    (tmp_path / AUTHORITY_NAME).write_bytes(b"{}")
    with pytest.raises(CannotStart, match="damaged"):
        read_authority(tmp_path, b"m" * 32)
