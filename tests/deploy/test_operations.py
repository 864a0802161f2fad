"""docs/operations.md does what it says: its blocks are run as they stand, and no object is lost by them."""

import contextlib
import json
import random
import re
import shutil
import signal
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from objstore import __version__
from tests.certificates import issue
from tests.deploy.files import ROOT
from tests.deploy.manual import PAGE, Block, Machine, blocks, environment_of, machine, ports
from tests.postgres import PostgresServer
from tests.waiting import wait_until

KEYS = ("AKOPERATIONS", "a-secret-of-the-operations-page")
# Upkeep's rounds are minutes apart: here they come soon after each other.
SETTINGS = {
    "OBJSTORE_ROOT_ACCESS_KEY": KEYS[0],
    "OBJSTORE_ROOT_SECRET_KEY": KEYS[1],
    "OBJSTORE_UPKEEP__PERIOD_FACTOR": "0.01",
    "OBJSTORE_SERVER__WORKERS": "1",
}


Json = dict[str, Any]


class Tenant:
    """Somebody who stores objects while operators work, and wants every one of them back."""

    def __init__(
        self, address: str, seed: int, keys: tuple[str, str] = KEYS, authority: Path | None = None
    ) -> None:
        import boto3
        from botocore.config import Config

        self._random = random.Random(seed)
        self._objects: dict[str, bytes] = {}
        self._s3: Any = boto3.client(
            "s3",
            endpoint_url=f"http://{address}" if authority is None else f"https://{address}",
            verify=None if authority is None else str(authority),
            region_name="us-east-1",
            aws_access_key_id=keys[0],
            aws_secret_access_key=keys[1],
            # As patient as a tenant's program: while a part is replaced, a slow machine refuses for long.
            config=Config(retries={"mode": "standard", "max_attempts": 10}, s3={"addressing_style": "path"}),
        )

    def begin(self) -> None:
        self._s3.create_bucket(Bucket="shop")

    def store(self) -> None:
        for size in (10, 5_000, 300_000, 2_000_000):
            key = f"{len(self._objects)}/{size}"
            body = self._random.randbytes(size)
            self._s3.put_object(Bucket="shop", Key=key, Body=body)
            self._objects[key] = body

    def take_over(self, other: "Tenant") -> None:
        """What the other stored is this one's to check from now on."""
        self._objects = dict(other._objects)

    def check(self) -> None:
        """Everything is there, byte for byte, and writes go on."""
        for key, body in self._objects.items():
            assert self._s3.get_object(Bucket="shop", Key=key)["Body"].read() == body, key
        self.store()


ASKED: set[Block] = set()  # Blocks that a procedure took from the page, to run them.
ELSEWHERE = {"certificates have ended"}  # tests/processes/test_ended_certificates.py


def of(heading: str, run: str) -> list[Block]:
    found = [block for block in blocks() if block.heading == heading and block.run == run]
    assert found, f"{PAGE.name} has no block to run under {heading}"
    ASKED.update(found)
    return found


def toml(heading: str, number: int = 0) -> str:
    found = [block.text for block in blocks() if block.heading == heading and block.language == "toml"]
    return found[number]


def wait_for_state(store: Machine, disk: int, state: str) -> None:
    look = Block("", "", "sh", f"objstore disk list | grep -P '^{disk}\\t[^\\t]*\\t{state}\\t' || true\n")
    wait_until(lambda: store.run(look), lambda: f"disk {disk} {state}", limit_s=120)


def wait_for_members(store: Machine, seen: Callable[[dict[str, Json]], bool]) -> None:
    """Until that is so of the cluster's machines, by name. Asks the admin port: commands cost more."""
    data = store.root / "var/objstore-gateway"
    address = json.loads((data / "run/state.json").read_text())["admin_listen"]
    headers = {"Authorization": f"Bearer {(data / 'admin.token').read_text().strip()}"}
    request = urllib.request.Request(f"http://{address}/api/v1/cluster/members", headers=headers)
    rows: list[Json] = []

    def so() -> bool:
        nonlocal rows
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
            rows = json.load(answer)["members"]
        return bool(rows) and seen({row["name"]: row for row in rows if row["state"] != "removed"})

    wait_until(so, lambda: rows, limit_s=240)


def lose(place: Path) -> None:
    place.rename(place.with_name(place.name + ".lost"))


@pytest.mark.timeout(1_200)
def test_the_procedures_for_one_machine_and_for_a_cluster_do_what_they_say(tmp_path: Path) -> None:
    """Side by side: all wait more than they work."""
    procedures = {
        "one": on_one_machine,
        "many": in_a_cluster,
        "two": in_two_stores,
        "gateways": with_two_gateways,
    }
    with ThreadPoolExecutor(len(procedures)) as pool:
        found = [
            pool.submit(procedure, _directory(tmp_path / name)) for name, procedure in procedures.items()
        ]
    for one in found:
        one.result()
    left = [block for block in blocks() if block.run and block.run not in ELSEWHERE and block not in ASKED]
    assert not left, "marked as run, and run by nobody"


def _directory(place: Path) -> Path:
    place.mkdir()
    return place


def on_one_machine(tmp_path: Path) -> None:
    with machine(tmp_path, SETTINGS) as store:
        store.places |= ports("0.0.0.0:9000")
        config = tmp_path / "etc/objstore.toml"
        admin = 'admin_listen = "127.0.0.1:0"\n\n[disks]'
        config.write_text(store.moved(toml("Day one: one machine")).replace("\n[disks]", admin))
        store.environment |= environment_of(config)
        tenant = Tenant(store.places["0.0.0.0:9000"], seed=1)

        def run(heading: str) -> str:
            return "".join(store.run(block) for block in of(heading, "one machine"))

        def settle() -> None:
            """Files of volumes that are written to move half a minute later than others."""
            store.run(Block("", "", "sh", "systemctl restart objstore\n"))

        said = run("Day one: one machine")
        assert "secret_key" in said
        assert "[default]" in said or "aws" in said
        tenant.begin()
        tenant.store()

        run("Adding a disk")
        tenant.check()
        settle()
        run("Replacing a disk that ails")
        shutil.rmtree(tmp_path / "srv/d3")
        tenant.check()

        settle()
        lose(tmp_path / "srv/d4")
        wait_for_state(store, 4, "missing")
        tenant.check()
        run("Losing a disk")
        tenant.check()

        lose(tmp_path / "srv/d5")
        wait_for_state(store, 5, "missing")
        assert "disk 5 is given up" in run("Giving a disk up")
        tenant.check()

        shutil.rmtree(tmp_path / "var/objstore/run")
        said = run("Losing the machine")
        tenant.check()
        store.stop("foreground")
        config.write_text(config.read_text().replace('/var/objstore"', '/var/objstore-new"'))
        store.start("objstore", *store.unit("objstore"))
        tenant.check()

        for block in of("Restoring metadata", "one machine"):
            said = store.run(block)
            tenant.check()
        assert "salvaged" not in said  # The copy was taken when every bucket was there.
        assert list(tmp_path.glob("srv/*/lost-*")) or list(tmp_path.glob("srv/*/*/lost-*"))

        run("Upgrading")
        tenant.check()


SITES = {
    "north": ("m1", "m2"),
    "south": ("m3", "m4"),
    "east": ("m5", "m6"),
    "west": ("m7", "m8"),
}


def in_a_cluster(tmp_path: Path) -> None:
    with machine(tmp_path, SETTINGS) as store:
        names = [name for site in SITES.values() for name in site]
        places = ports("0.0.0.0:9000", "m1:9002", *(f"{name}:9003" for name in names))
        store.places |= places | {"0.0.0.0:9002": places["m1:9002"]}
        config = tmp_path / "etc/gateway.toml"
        admin = 'admin_listen = "127.0.0.1:0"\n\n[cluster]'
        heading = "Day one: three machines"
        config.write_text(store.moved(toml(heading)).replace("\n[cluster]", admin))
        for site, machines in SITES.items():
            for name in machines:
                # A machine has paths and a port of its own: here they share one, so each is told apart.
                text = toml(heading, 1).replace("m1", name)
                text = text.replace("/srv/objstore/d", f"/srv/objstore/{name}-d")
                text = text.replace("0.0.0.0:9003", f"{name}:9003")
                text = text.replace("[node]\n", toml("Losing a site").replace("east", site))
                (tmp_path / f"etc/node-{name}.toml").write_text(store.moved(text))
        store.environment |= environment_of(config)
        first, second = of(heading, "cluster")
        store.run(first)
        said = store.run(second)
        assert len(re.findall(r"\bnode\b.*\bjoined\b|\bjoined\b.*\bnode\b", said)) >= 3, said
        tenant = Tenant(places["0.0.0.0:9000"], seed=2)
        tenant.begin()
        tenant.check()

        def run(heading: str) -> str:
            return "".join(store.run(block) for block in of(heading, "cluster"))

        [adding] = of("Adding a node", "cluster")
        for name in ("m4", *SITES["east"]):
            assert name in store.run(adding._replace(text=adding.text.replace("m4", name)))
        tenant.check()

        [upgrade] = of("Upgrading", "cluster")
        store.run(upgrade)
        wait_for_members(
            store, lambda machines: {one["version"] for one in machines.values()} == {__version__}
        )
        tenant.check()

        store.stop("objstore-node@m4", signal.SIGKILL)
        shutil.rmtree(tmp_path / "var/objstore-node-m4")
        tenant.check()
        assert re.search(r"\bm4\b.*\bjoined\b", run("A node whose system disk is gone"))
        tenant.check()
        run("Stopping a machine for a while")
        tenant.check()
        assert "proven" in run("Proving where bytes lie")

        lose_a_site(store, tenant)

        lose_machines(store, "m3", "m4")  # The site south, while west has taken the place of east.
        tenant.check()
        store.start("objstore-node@m4", *store.unit("objstore-node@m4"))
        away, *lost = of("Losing a node", "cluster")
        wait_for_members(store, lambda machines: machines["m3"]["state"] == "away")
        assert re.search(r"\bm3\b.*\baway\b", store.run(away))
        for block in lost:
            store.run(block)
        tenant.check()
        assert re.search(r"\bm4\b.*\bempty\b", run("Emptying and removing a node"))
        tenant.check()

        kept = tmp_path / "var/objstore-gateway-new"
        kept.mkdir(mode=0o700)
        for name in ("authority.json", "master.key"):
            shutil.copy(tmp_path / "var/objstore-gateway" / name, kept)
        store.stop("objstore-gateway", signal.SIGKILL)
        shutil.rmtree(tmp_path / "var/objstore-gateway")
        for block in of("Losing the gateway", "cluster"):
            store.run(block)
        tenant.check()


def lose_a_site(store: Machine, tenant: Tenant) -> None:
    """East is lost and comes back, then it is lost for good, and west takes its place."""
    before, gone, back, elsewhere, given_up = of("Losing a site", "cluster")
    # What was written while there were fewer sites, or one was not whole, is moved when it is sealed.
    store.run(back)
    assert "site bare" in store.run(before)
    tenant.check()

    lose_machines(store, *SITES["east"])
    tenant.check()
    wait_for_members(store, lambda machines: all(machines[one]["state"] == "away" for one in SITES["east"]))
    said = store.run(gone)
    assert re.search("site east: no node has answered .*: m5, m6", said)
    assert re.search(r"\bm5\b.*\baway\b", said)
    assert re.search(
        r"^placement\ta new volume lies on .*; there is a site whose loss loses data", said, re.M
    )
    tenant.check()
    for name in SITES["east"]:  # Their machines do that when they start.
        store.start(f"objstore-node@{name}", *store.unit(f"objstore-node@{name}"))
    store.run(back)
    tenant.check()

    lose_machines(store, *SITES["east"])
    for name in SITES["east"]:
        for place in store.root.glob(f"*/*{name}*"):
            if place.is_dir():
                shutil.rmtree(place)
    tenant.check()
    assert "site bare" in store.run(elsewhere)
    store.run(given_up)
    tenant.check()


def lose_machines(store: Machine, *names: str) -> None:
    """All of them, before anything can be done about the first."""
    for name in names:
        store.services[f"objstore-node@{name}"].kill()
    for name in names:
        store.stop(f"objstore-node@{name}")


def in_two_stores(tmp_path: Path) -> None:
    """A bucket outlives the loss of a store, and goes back to it."""
    names = ("near", "far")
    places = ports("s3.near.example:9000", "s3.far.example:9000")
    keys = {name: (f"AK{name.upper()}", f"the-secret-of-the-{name}-store") for name in names}
    with contextlib.ExitStack() as both:
        stores = {}
        for name in names:
            directory = _directory(tmp_path / name)
            issue(directory, name)
            settings = SETTINGS | {
                "OBJSTORE_ROOT_ACCESS_KEY": keys[name][0],
                "OBJSTORE_ROOT_SECRET_KEY": keys[name][1],
                "OBJSTORE_TLS__CERTIFICATE": str(directory / "cert.pem"),
                "OBJSTORE_TLS__KEY": str(directory / "key.pem"),
                "OBJSTORE_TLS__ADMIN": "false",
                "OBJSTORE_REPLICATION__CA_FILE": str(tmp_path / names[name == "near"] / "cert.pem"),
            }
            store = stores[name] = both.enter_context(machine(directory, settings))
            store.places |= places | {"0.0.0.0:9000": places[f"s3.{name}.example:9000"]}
            config = directory / "etc/objstore.toml"
            text = toml("Day one: one machine").replace(
                "\n[disks]", 'admin_listen = "127.0.0.1:0"\n\n[disks]'
            )
            config.write_text(store.moved(text))
            store.environment |= environment_of(config)
            store.start("objstore", *store.unit("objstore"))
        for name, other in (names, names[::-1]):
            secret = tmp_path / name / f"etc/{other}.secret"
            secret.touch(mode=0o600)
            secret.write_text(keys[other][1])
        tenants = {
            name: Tenant(
                places[f"s3.{name}.example:9000"], 3, keys[name], authority=tmp_path / name / "cert.pem"
            )
            for name in names
        }
        for tenant in tenants.values():
            tenant.begin()
        near, far = stores["near"], stores["far"]

        def run(store: Machine, part: str) -> str:
            return "".join(store.run(block) for block in of("With its metadata: a second store", part))

        def wait_until_in_step(store: Machine) -> None:
            look = Block("", "", "sh", "objstore replication status shop\n")
            wait_until(lambda: "in step" in store.run(look), lambda: store.run(look), limit_s=120)

        tenants["near"].store()
        run(near, "near")
        tenants["near"].store()
        wait_until_in_step(near)
        near.stop("objstore", signal.SIGKILL)

        run(far, "far")
        tenants["far"].take_over(tenants["near"])
        tenants["far"].check()

        near.start("objstore", *near.unit("objstore"))
        run(near, "near again")
        run(far, "far again")
        tenants["far"].store()
        wait_until_in_step(far)
        near.run(of("With its metadata: a second store", "far")[0])
        tenants["near"].take_over(tenants["far"])
        tenants["near"].check()


def with_two_gateways(tmp_path: Path) -> None:
    """Metadata in PostgreSQL; the second gateway goes on where the first one was killed."""
    heading, names = "Many gateways", ("m1", "m2")
    server = PostgresServer()
    with contextlib.ExitStack() as both:
        both.callback(server.remove)
        server.start()
        url = re.search(r'"(postgresql://[^"]*)"', toml(heading))
        assert url is not None
        shared = ports(*(f"{name}:9002" for name in names), "m1:9003") | {url[1]: server.url()}
        gateways = {}
        for name in names:
            one = gateways[name] = both.enter_context(machine(_directory(tmp_path / name), SETTINGS))
            one.places |= ports("0.0.0.0:9000") | shared | {"0.0.0.0:9002": shared[f"{name}:9002"]}
            text = toml("Day one: three machines").replace("m1", name)
            text = text.replace("\n[cluster]", f'admin_listen = "127.0.0.1:0"\n\n{toml(heading)}\n[cluster]')
            config = tmp_path / name / "etc/gateway.toml"
            config.write_text(one.moved(text))
            one.environment |= environment_of(config)
        first, second = gateways.values()
        node = toml("Day one: three machines", 1).replace("0.0.0.0:9003", "m1:9003")
        disks = ", ".join(f'"/srv/objstore/d{number}"' for number in range(1, 7))
        node = re.sub(r"paths = .*", f"paths = [{disks}]", node)
        (tmp_path / "m1/etc/node-m1.toml").write_text(first.moved(node))
        init, join = of("Day one: three machines", "cluster")
        first.run(init)
        first.run(join._replace(text="".join(join.text.splitlines(keepends=True)[:4])))
        tenants = [Tenant(one.places["0.0.0.0:9000"], 4) for one in gateways.values()]
        tenants[0].begin()
        tenants[0].store()

        [token] = of(heading, "first gateway")
        first.run(token)
        shutil.move(tmp_path / "m1/run/objstore-join-gateway.env", tmp_path / "m2/run")
        secret = tmp_path / "m2/etc/master-key"
        secret.write_text((tmp_path / "m1/var/objstore-gateway/master.key").read_text())
        second.settings = SETTINGS | {"OBJSTORE_SECURITY__MASTER_KEY_FILE": str(secret)}
        [further] = of(heading, "further gateway")
        assert "gateway-m2" in second.run(further)
        tenants[1].take_over(tenants[0])
        tenants[1].check()

        first.stop("objstore-gateway", signal.SIGKILL)
        tenants[1].check()
        [last] = of(heading, "last gateway")
        second.run(last)
        tenants[1].check()


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_link_of_the_page_leads_somewhere() -> None:
    text = PAGE.read_text()
    anchors = {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert len(links) > 15
    for link in links:
        file, _, place = link.partition("#")
        assert (PAGE.parent / file).exists()
        assert file or place in anchors, link


def test_commands_that_nobody_runs_are_named_at_the_end_of_the_page() -> None:
    end = PAGE.read_text().partition("\n## What was run, and what was not\n")[2]
    named = set(re.findall(r"\]\(#([\w-]+)\)", end))
    not_run = {anchor(block.heading) for block in blocks() if block.language == "sh" and not block.run}
    assert not_run
    assert not_run <= named


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`(config/[\w/.-]+|tests/[\w/.-]+)`", PAGE.read_text())))
)
def test_every_file_that_the_page_names_is_there(path: str) -> None:
    assert (ROOT / path).exists()
