"""A tenant's end in a real store: what was in its files is in none of them any more.

Short form: what is refused. Long form (OBJSTORE_LONG=1): until it is proven, which takes some rounds of every
service.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner, Result

from objstore.cli.main import app
from tests.chaos.workload import RESTLESS
from tests.server import Server, running_server

MARK: Final = b"what the leaving tenant has stored, again and again. " * 400
OURS: Final = os.urandom(30_000)


def run(server: Server, *words: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, [*words, "--data", str(server.data)], input=typed)


def say(server: Server, *words: str) -> Any:
    done = run(server, *words, "-o", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)[0]


def leave(server: Server, tenant: str) -> Any:
    """A customer with an object, whose time to take it along is over; a client of its own."""
    say(server, "seller", "create", f"seller-of-{tenant}", "--set", "name=S", "--set", "address=1",
        "--set", "country=DZ", "--set", "reversibility_days=0")  # fmt: skip
    say(server, "tenant", "create", tenant, "--kind", "tpe_pme", "--set", f"seller=seller-of-{tenant}")
    say(server, "user", "create", f"user-of-{tenant}", "--tenant", tenant)
    key = say(server, "key", "create", f"user-of-{tenant}")
    s3 = server.boto3(key["access_key"], key["secret_key"])
    s3.create_bucket(Bucket=f"bucket-of-{tenant}")
    for number in range(20):
        s3.put_object(Bucket=f"bucket-of-{tenant}", Key=f"secret-name/{number}", Body=MARK)
    return s3


def test_only_who_is_terminating_is_purged_and_only_once_its_name_was_typed(store_server: Server) -> None:
    leave(store_server, "hasty")
    refused = run(store_server, "tenant", "purge", "hasty", "--yes")
    assert (refused.exit_code, "only who is terminating" in str(refused.exception)) == (1, True)
    say(store_server, "tenant", "state", "hasty", "terminating", "--yes")
    unasked = run(store_server, "tenant", "purge", "hasty")
    assert (unasked.exit_code, "20 objects in 1 buckets" in unasked.output) == (4, True)
    shown = store_server.admin("GET", "/api/v1/tenants/hasty/purge")[1]
    assert (shown["state"], shown["proof"]) == ("none", None)
    assert run(store_server, "tenant", "state", "hasty", "purged", "--yes").exit_code != 0
    assert store_server.admin("GET", "/api/v1/tenants/hasty")[1]["use"]["objects"] == 20


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_it_had_stored_is_in_no_fragment_file_any_more(tmp_path: Path) -> None:
    with running_server(tmp_path, environment=RESTLESS) as server:
        ours = server.boto3()
        ours.create_bucket(Bucket="ours")
        leave(server, "leaving")
        for number in range(20):
            ours.put_object(Bucket="ours", Key=str(number), Body=OURS)
        assert holding(tmp_path) > 0
        say(server, "tenant", "state", "leaving", "terminating", "--yes")
        place = tmp_path / "proof.json"
        done = run(server, "tenant", "purge", "leaving", "--yes", "--wait", "600", "--proof", str(place))
        assert done.exit_code == 0, done.output
        proof = json.loads(place.read_text())
        assert (proof["verdict"], proof["held"]["objects"]) == ("proven", 20)
        assert holding(tmp_path) == 0
        for number in range(20):
            assert ours.get_object(Bucket="ours", Key=str(number))["Body"].read() == OURS
        assert say(server, "tenant", "show", "leaving")["state"] == "purged"


def holding(place: Path) -> int:
    """Fragment files, trash among them, that hold bytes of the tenant's objects."""
    found = 0
    for path in place.rglob("fragments/*/*"):
        try:
            found += MARK[:53] in path.read_bytes()
        except FileNotFoundError:
            continue  # Removed meanwhile.
    return found
