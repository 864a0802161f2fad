"""At its start the upkeep process takes root's key as it is given, or says why not."""

from types import SimpleNamespace
from typing import Any

import pytest

from objstore.errors import BadArgument
from objstore.iam.directory import Directory
from objstore.iam.users import create_user
from objstore.meta.kv import DictKv
from objstore.processes import link
from objstore.processes.upkeep import bootstrap

MASTER = b"m" * 32
SECRET = "a-secret-of-forty-characters-0123456789"


def parts_with(access_key: str, disks: tuple[Any, ...] = (), ledger: Any = None) -> Any:
    """As far as it is looked at."""
    root = SimpleNamespace(access_key=access_key, secret_key=SECRET)
    spec = SimpleNamespace(cluster=SimpleNamespace(disks=disks), config=SimpleNamespace(root=root))
    return SimpleNamespace(spec=spec, store=SimpleNamespace(ledger=ledger))


async def bootstrapped(directory: Directory, parts: Any) -> str:
    supervisor, child = link.pair()
    with supervisor, child:
        return await bootstrap(link.Link(child), parts, directory)


async def test_a_key_of_another_user_is_refused_in_words() -> None:
    kv = DictKv()
    directory = Directory(kv, MASTER)
    assert await bootstrapped(directory, parts_with("ROOTKEY")) == ""
    await create_user(kv, "eve", tenant="default", now_us=1)
    key, _ = await directory.create_key("eve")
    assert "is another user's" in await bootstrapped(directory, parts_with(key))


async def test_what_is_wrong_elsewhere_is_not_called_a_wrong_root_key() -> None:
    class Ledger:
        async def register_disk(self, number: int, **about: object) -> None:
            raise BadArgument("the disk is wrong")

    disk = SimpleNamespace(number=1, node=0, uuid=b"u" * 16, path="/disk")
    with pytest.raises(BadArgument, match="the disk is wrong"):
        await bootstrapped(Directory(DictKv(), MASTER), parts_with("ROOTKEY", (disk,), Ledger()))
    # Between two reads somebody deletes the key.
    directory = Directory(DictKv(), MASTER)

    async def gone(access_key: str) -> None:
        raise BadArgument(f"there is no access key {access_key!r}")

    directory.find_key = gone  # type: ignore[method-assign, assignment]
    with pytest.raises(BadArgument, match="no access key"):
        await bootstrapped(directory, parts_with("ROOTKEY"))
