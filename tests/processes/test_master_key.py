"""A running store: keys on terms of their own, and another master key under them."""

from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from objstore.ids import master_key_id
from tests.server import Server, running_server
from tests.waiting import until

A, B = "a1" * 32, "b2" * 32
READ_ONLY = (
    '{"Version": "2012-10-17", "Statement": ['
    '{"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"},'
    '{"Effect": "Deny", "Action": "*", "Resource": "arn:aws:s3:::photos/secret/*"}]}'
)


def code_of(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def made(server: Server, path: str, content: dict[str, Any]) -> Any:
    status, answer = server.admin("POST", f"/api/v1/{path}", content)
    assert status == 201, answer
    return answer


def serves(server: Server, reader: dict[str, Any], films: dict[str, Any]) -> None:
    """Both keys may do what they may, and nothing else."""
    limited = server.boto3(reader["access_key"], reader["secret_key"])
    assert limited.get_object(Bucket="photos", Key="open/1")["Body"].read() == b"open"
    assert code_of(limited.get_object, Bucket="photos", Key="secret/1") == "AccessDenied"
    assert code_of(limited.put_object, Bucket="photos", Key="open/2", Body=b"") == "AccessDenied"
    assert code_of(limited.list_buckets) == "AccessDenied"
    deletion = {"Objects": [{"Key": "open/1"}, {"Key": "secret/1"}]}
    answer = limited.delete_objects(Bucket="photos", Delete=deletion)
    assert [error["Code"] for error in answer["Errors"]] == ["AccessDenied"] * 2
    assert "Deleted" not in answer

    theirs = server.boto3(films["access_key"], films["secret_key"])
    assert [bucket["Name"] for bucket in theirs.list_buckets()["Buckets"]] == ["of-films"]
    assert code_of(theirs.get_object, Bucket="photos", Key="open/1") == "AccessDenied"
    source = {"Bucket": "photos", "Key": "open/1"}
    assert code_of(theirs.copy_object, Bucket="of-films", Key="k", CopySource=source) == "AccessDenied"


async def test_keys_on_terms_of_their_own_are_served_under_one_master_key_and_then_under_another(
    tmp_path: Path,
) -> None:
    first = {"OBJSTORE_SECURITY__MASTER_KEY": A}
    with running_server(tmp_path, environment=first) as server:
        made(server, "sellers", {"id": "us", "name": "We", "address": ["Here"], "country": "DZ"})
        made(server, "tenants", {"name": "acme", "kind": "internal", "seller": "us", "trial_days": 0})
        made(server, "users", {"name": "ann", "tenant": "acme"})
        made(server, "tenants/acme/projects", {"name": "films"})
        owner = made(server, "keys", {"user": "ann"})
        reader = made(server, "keys", {"user": "ann", "policy": READ_ONLY})
        films = made(server, "keys", {"user": "ann", "project": "films"})
        s3 = server.boto3(owner["access_key"], owner["secret_key"])
        s3.create_bucket(Bucket="photos")
        for name in ("open", "secret"):
            s3.put_object(Bucket="photos", Key=f"{name}/1", Body=name.encode())
        server.boto3(films["access_key"], films["secret_key"]).create_bucket(Bucket="of-films")
        serves(server, reader, films)
        refused = server.command("key", "rotate-master", check=False)
        assert refused.returncode != 0
        assert "one master key only" in refused.stderr

    both = {"OBJSTORE_SECURITY__MASTER_KEY": B, "OBJSTORE_SECURITY__OTHER_MASTER_KEYS": A}
    with running_server(tmp_path, environment=both) as server:
        serves(server, reader, films)
        status, needs = server.admin("GET", "/api/v1/master-key")
        assert (status, needs["master_key"], needs["state"]) == (200, master_key_id(bytes.fromhex(B)), "none")
        assert needs["needed"] == [
            {"master_key": master_key_id(bytes.fromhex(A)), "keys": 4, "targets": 0, "authorities": 0}
        ]
        assert "objstore key rotate-master" in server.command("doctor", check=False).stdout
        server.command("key", "rotate-master")
        await until(lambda: server.admin("GET", "/api/v1/master-key")[1]["state"] == "done")
        serves(server, reader, films)
        assert "nothing needs master key" in server.command("doctor", check=False).stdout

    with running_server(tmp_path, environment={"OBJSTORE_SECURITY__MASTER_KEY": B}) as server:
        serves(server, reader, films)
