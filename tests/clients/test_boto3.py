"""boto3: what most programs in Python use. Default checksums (CRC32), Expect: 100-continue, signed
payloads."""

import io
import urllib.request
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from tests.clients.conftest import AWKWARD_KEY, MIB, Samples, Server, Witness

pytestmark = pytest.mark.clients


@pytest.mark.parametrize("key", ["plain", AWKWARD_KEY, "a//b/./c", "k" * 1024])
def test_what_is_put_is_got_whole_and_in_ranges(
    witness: Any, bucket: str, samples: Samples, key: str
) -> None:
    small = samples.small
    put = witness.put_object(
        Bucket=bucket, Key=key, Body=small, ContentType="text/x-test", Metadata={"colour": "blue"}
    )
    got = witness.get_object(Bucket=bucket, Key=key)
    assert got["Body"].read() == small
    assert (got["ETag"], got["ContentType"], got["Metadata"]) == (
        put["ETag"],
        "text/x-test",
        {"colour": "blue"},
    )
    for text, part in (
        ("bytes=0-0", small[:1]),
        ("bytes=100-65999", small[100:66_000]),
        ("bytes=-7", small[-7:]),
        ("bytes=70000-", small[70_000:]),
    ):
        ranged = witness.get_object(Bucket=bucket, Key=key, Range=text)
        assert ranged["ResponseMetadata"]["HTTPStatusCode"] == 206
        assert ranged["Body"].read() == part
    witness.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(ClientError, match="NoSuchKey"):
        witness.get_object(Bucket=bucket, Key=key)


def test_an_empty_object_is_an_object(witness: Any, bucket: str) -> None:
    witness.put_object(Bucket=bucket, Key="empty", Body=b"")
    head = witness.head_object(Bucket=bucket, Key="empty")
    assert (head["ContentLength"], head["ETag"]) == (0, '"d41d8cd98f00b204e9800998ecf8427e"')


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_every_checksum_algorithm_is_verified_and_returned(
    witness: Any, bucket: str, samples: Samples, algorithm: str
) -> None:
    put = witness.put_object(
        Bucket=bucket, Key="sum", Body=io.BytesIO(samples.small), ChecksumAlgorithm=algorithm
    )
    field = f"Checksum{algorithm}"
    got = witness.get_object(Bucket=bucket, Key="sum", ChecksumMode="ENABLED")
    assert got["Body"].read() == samples.small  # botocore verifies what it knows while it reads.
    assert got[field] == put[field]
    with pytest.raises(ClientError, match=r"BadDigest|InvalidRequest"):
        witness.put_object(Bucket=bucket, Key="sum", Body=samples.small[1:], **{field: put[field]})


def test_a_large_upload_goes_in_parts_and_comes_back_whole(
    witness: Any, bucket: str, samples: Samples, stored: Witness
) -> None:
    config = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=4)
    witness.upload_fileobj(io.BytesIO(samples.large), bucket, "large", Config=config)
    assert stored.parts("large") == 4
    sink = io.BytesIO()
    witness.download_fileobj(bucket, "large", sink, Config=config)
    assert sink.getvalue() == samples.large
    second = witness.get_object(Bucket=bucket, Key="large", PartNumber=2)
    assert second["Body"].read() == samples.large[5 * MIB : 10 * MIB]
    assert second["PartsCount"] == 4


def test_an_upload_of_copied_parts_and_an_aborted_one(
    witness: Any, bucket: str, samples: Samples, stored: Witness
) -> None:
    witness.put_object(Bucket=bucket, Key="source", Body=samples.large)
    upload = witness.create_multipart_upload(Bucket=bucket, Key="joined")["UploadId"]
    parts = []
    for number, (first, last) in enumerate([(0, 6 * MIB - 1), (6 * MIB, len(samples.large) - 1)], start=1):
        copied = witness.upload_part_copy(
            Bucket=bucket,
            Key="joined",
            UploadId=upload,
            PartNumber=number,
            CopySource={"Bucket": bucket, "Key": "source"},
            CopySourceRange=f"bytes={first}-{last}",
        )
        parts.append({"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]})
    witness.complete_multipart_upload(
        Bucket=bucket, Key="joined", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    assert stored.content("joined") == samples.large

    upload = witness.create_multipart_upload(Bucket=bucket, Key="dropped")["UploadId"]
    witness.upload_part(Bucket=bucket, Key="dropped", UploadId=upload, PartNumber=1, Body=samples.small)
    assert stored.uploads() == 1
    witness.abort_multipart_upload(Bucket=bucket, Key="dropped", UploadId=upload)
    assert stored.uploads() == 0
    assert stored.content("dropped") is None


def test_a_copy_is_equal_and_may_change_its_metadata(witness: Any, bucket: str, samples: Samples) -> None:
    source = {"Bucket": bucket, "Key": AWKWARD_KEY}
    witness.put_object(Bucket=bucket, Key=AWKWARD_KEY, Body=samples.small, Metadata={"colour": "blue"})
    witness.copy_object(Bucket=bucket, Key="copy", CopySource=source)
    got = witness.get_object(Bucket=bucket, Key="copy")
    assert (got["Body"].read(), got["Metadata"]) == (samples.small, {"colour": "blue"})
    witness.copy_object(
        Bucket=bucket, Key="copy", CopySource=source, MetadataDirective="REPLACE", Metadata={"colour": "red"}
    )
    got = witness.get_object(Bucket=bucket, Key="copy")
    assert (got["Body"].read(), got["Metadata"]) == (samples.small, {"colour": "red"})


def test_lists_are_paged_folded_and_complete(witness: Any, bucket: str, stored: Witness) -> None:
    keys = sorted(f"{folder}/{number:03d}" for folder in ("a", "b ü", "c+") for number in range(9))
    for key in keys:
        witness.put_object(Bucket=bucket, Key=key, Body=key.encode())
    for operation in ("list_objects", "list_objects_v2"):
        paginator = witness.get_paginator(operation)
        pages = list(paginator.paginate(Bucket=bucket, PaginationConfig={"PageSize": 4}))
        assert [entry["Key"] for page in pages for entry in page["Contents"]] == keys
        assert len(pages) == 7
    folded = witness.list_objects_v2(Bucket=bucket, Delimiter="/")
    assert [entry["Prefix"] for entry in folded["CommonPrefixes"]] == ["a/", "b ü/", "c+/"]
    assert "Contents" not in folded

    gone = witness.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
    assert sorted(entry["Key"] for entry in gone["Deleted"]) == keys
    assert stored.keys() == []


def test_conditions_hold(witness: Any, bucket: str, samples: Samples) -> None:
    tag = witness.put_object(Bucket=bucket, Key="once", Body=samples.small, IfNoneMatch="*")["ETag"]
    with pytest.raises(ClientError, match="PreconditionFailed"):
        witness.put_object(Bucket=bucket, Key="once", Body=b"again", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        witness.get_object(Bucket=bucket, Key="once", IfMatch='"0123456789abcdef0123456789abcdef"')
    with pytest.raises(ClientError, match="304"):
        witness.get_object(Bucket=bucket, Key="once", IfNoneMatch=tag)


def test_presigned_addresses_work_without_keys(witness: Any, bucket: str, samples: Samples) -> None:
    where = {"Bucket": bucket, "Key": AWKWARD_KEY}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    put = witness.generate_presigned_url("put_object", Params=where, ExpiresIn=60)
    with opener.open(urllib.request.Request(put, data=samples.small, method="PUT"), timeout=30) as answer:
        assert answer.status == 200
    get = witness.generate_presigned_url("get_object", Params=where, ExpiresIn=60)
    with opener.open(get, timeout=30) as answer:
        assert answer.read() == samples.small


def test_a_wrong_secret_is_refused(server: Server, bucket: str) -> None:
    import boto3

    stranger = boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key="wrong",
        region_name="us-east-1",
    )
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        stranger.list_objects_v2(Bucket=bucket)
