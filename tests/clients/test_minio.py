"""minio's client for Python: signed SHA-256, no checksums, composes objects by copying parts."""

import io
import urllib.request

import pytest
from minio import Minio
from minio.commonconfig import ComposeSource, CopySource
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from tests.clients.conftest import AWKWARD_KEY, MIB, Samples, Server, Witness

pytestmark = pytest.mark.clients


def test_minio_puts_gets_ranges_lists_composes_copies_and_deletes(
    server: Server, bucket: str, samples: Samples, stored: Witness
) -> None:
    client = Minio(
        endpoint=server.host,
        access_key=server.access_key,
        secret_key=server.secret_key,
        secure=False,
        region="us-east-1",
    )

    def read(key: str, offset: int = 0, length: int = 0) -> bytes:
        answer = client.get_object(bucket_name=bucket, object_name=key, offset=offset, length=length)
        try:
            return answer.read()
        finally:
            answer.close()
            answer.release_conn()

    client.put_object(
        bucket_name=bucket, object_name=AWKWARD_KEY, data=io.BytesIO(samples.small), length=len(samples.small)
    )
    assert read(AWKWARD_KEY) == samples.small
    # Of unknown length: always in parts.
    client.put_object(
        bucket_name=bucket, object_name="large", data=io.BytesIO(samples.large), length=-1, part_size=5 * MIB
    )
    assert stored.parts("large") == 4
    assert read("large") == samples.large
    assert read("large", offset=5 * MIB - 10, length=20) == samples.large[5 * MIB - 10 : 5 * MIB + 10]
    assert client.stat_object(bucket_name=bucket, object_name="large").size == len(samples.large)

    client.copy_object(
        bucket_name=bucket,
        object_name="copied/small",
        source=CopySource(bucket_name=bucket, object_name=AWKWARD_KEY),
    )
    assert read("copied/small") == samples.small
    client.compose_object(
        bucket_name=bucket,
        object_name="composed",
        sources=[
            ComposeSource(bucket_name=bucket, object_name="large"),
            ComposeSource(bucket_name=bucket, object_name=AWKWARD_KEY),
        ],
    )
    assert read("composed") == samples.large + samples.small

    flat = [entry.object_name for entry in client.list_objects(bucket_name=bucket, recursive=True)]
    assert flat == ["composed", "copied/small", AWKWARD_KEY, "large"]
    folded = [entry.object_name for entry in client.list_objects(bucket_name=bucket)]
    assert sorted(name for name in folded if name) == ["composed", "copied/", "dir with space/", "large"]

    address = client.presigned_get_object(bucket_name=bucket, object_name=AWKWARD_KEY)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=30) as answer:
        assert answer.read() == samples.small

    client.remove_object(bucket_name=bucket, object_name="large")
    with pytest.raises(S3Error, match="NoSuchKey"):
        read("large")
    names = [DeleteObject(name=name) for name in flat]
    assert list(client.remove_objects(bucket_name=bucket, delete_object_list=names)) == []
    assert stored.keys() == []
    client.remove_bucket(bucket_name=bucket)
