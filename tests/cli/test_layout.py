"""`objstore layout` and `objstore bucket` against a running store of one machine."""

import json
import time
from typing import Any

import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from objstore.cli.client import Refused
from objstore.cli.main import app
from tests.server import Server


def told(server: Server, *arguments: str) -> str:
    """What a command says, without the start of a process: interpreters take longer than all the rest."""
    done = CliRunner().invoke(app, [*arguments, "--data", str(server.data)], env=dict(server.environment))
    if isinstance(done.exception, Refused):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def rows(server: Server, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(told(server, *arguments, "-o", "json"))
    return found


def until_known(server: Server, bucket: str) -> None:
    """Workers look at the layout every few seconds."""
    end = time.monotonic() + 60
    while True:
        try:
            server.boto3().put_object(Bucket=bucket, Key="cold", Body=b"x", StorageClass="COLD")
            return
        except ClientError as refused:
            if refused.response["Error"]["Code"] != "InvalidStorageClass" or time.monotonic() > end:
                raise
            time.sleep(0.2)


def test_a_policy_is_staged_planned_applied_used_and_not_dropped_while_it_is(store_server: Server) -> None:
    s3 = store_server.boto3()
    s3.create_bucket(Bucket="laid-out")
    with pytest.raises(ClientError, match="InvalidStorageClass"):
        s3.put_object(Bucket="laid-out", Key="cold", Body=b"x", StorageClass="COLD")
    staged = rows(store_server, "layout", "policy", "cold", "--class", "COLD", "--codec", "1+1")[0]
    version = str(staged["staged"])
    plan = store_server.command("layout", "plan")
    assert "(default)" in plan.stdout
    assert f"to apply it: objstore layout apply --version {version}" in plan.stderr
    with pytest.raises(Refused, match=f"version {version} is staged, not 999"):
        told(store_server, "layout", "apply", "--version", "999")
    told(store_server, "layout", "apply", "--version", version)
    shown = rows(store_server, "layout", "show")[0]
    assert [row["machine"] for row in shown["machines"]] == ["self"]
    policies = {row["policy"]: row for row in shown["policies"]}
    assert (policies["cold"]["codec"], policies["cold"]["class"]) == ("1+1", "COLD")

    until_known(store_server, "laid-out")
    assert s3.head_object(Bucket="laid-out", Key="cold")["StorageClass"] == "COLD"
    wanted = ["StorageClass"]
    found = s3.get_object_attributes(Bucket="laid-out", Key="cold", ObjectAttributes=wanted)
    assert found["StorageClass"] == "COLD"
    with pytest.raises(Refused, match="--new-only"):
        told(store_server, "bucket", "place", "laid-out", "--policy", "cold")
    place = ("bucket", "place", "laid-out", "--policy", "cold", "--new-only")
    assert told(store_server, *place) == "bucket laid-out: cold; 1 objects stay\n"

    dropped = rows(store_server, "layout", "policy", "cold", "--drop")[0]
    refused = store_server.command("layout", "apply", "--version", str(dropped["staged"]), check=False)
    assert refused.returncode == 4
    assert "policy cold is dropped, and 1 buckets" in refused.stderr
    assert told(store_server, "layout", "revert") == "nothing is staged\n"
    told(store_server, "bucket", "place", "laid-out", "--policy", "-", "--new-only")


def test_an_unknown_policy_or_machine_is_an_error_in_words(store_server: Server) -> None:
    with pytest.raises(Refused, match="there is no machine nobody"):
        told(store_server, "layout", "machine", "nobody", "--site", "x")
    with pytest.raises(Refused, match="a policy spreads over node, rack or site"):
        told(store_server, "layout", "policy", "odd", "--spread", "planet")
