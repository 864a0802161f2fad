"""pyarrow's S3 (the C++ SDK): a multipart upload even for five bytes, chunked bodies with trailers,
Expect."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from tests.clients.conftest import AWKWARD_KEY, MIB, Samples, Server, Witness

pytestmark = pytest.mark.clients


@pytest.fixture
def files(server: Server) -> fs.S3FileSystem:
    return fs.S3FileSystem(
        endpoint_override=server.host,
        scheme="http",
        access_key=server.access_key,
        secret_key=server.secret_key,
        region="us-east-1",
        allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )


def test_pyarrow_writes_reads_seeks_lists_copies_and_deletes(
    files: fs.S3FileSystem, bucket: str, samples: Samples, stored: Witness
) -> None:
    contents = {AWKWARD_KEY: samples.small, "large": samples.large, "five": b"hello", "empty": b""}
    for key, content in contents.items():
        with files.open_output_stream(f"{bucket}/{key}") as out:
            out.write(content)
        assert stored.content(key) == content
        with files.open_input_stream(f"{bucket}/{key}") as stream:
            assert stream.read() == content

    with files.open_input_file(f"{bucket}/large") as file:
        assert file.size() == len(samples.large)
        assert file.read_at(1000, 5 * MIB - 500) == samples.large[5 * MIB - 500 :][:1000]
        file.seek(len(samples.large) - 5)
        assert file.read() == samples.large[-5:]

    files.copy_file(f"{bucket}/{AWKWARD_KEY}", f"{bucket}/copied/small")
    assert stored.content("copied/small") == samples.small
    files.move(f"{bucket}/five", f"{bucket}/six")
    infos = files.get_file_info(fs.FileSelector(bucket, recursive=True))
    here = [info for info in infos if info.type is fs.FileType.File]
    found = {info.path.removeprefix(f"{bucket}/"): info.size for info in here}
    assert found == {
        AWKWARD_KEY: len(samples.small),
        "copied/small": len(samples.small),
        "empty": 0,
        "large": len(samples.large),
        "six": 5,
    }
    files.delete_file(f"{bucket}/six")
    assert files.get_file_info(f"{bucket}/six").type is fs.FileType.NotFound
    files.delete_dir_contents(bucket)
    assert stored.keys() == []
    assert stored.uploads() == 0
    files.delete_dir(bucket)


def test_a_parquet_data_set_is_read_back_column_by_column(
    files: fs.S3FileSystem, bucket: str, samples: Samples
) -> None:
    rows = range(100_000)
    table = pa.table({"n": list(rows), "text": [f"row {n}" for n in rows], "f": [n % 4 for n in rows]})
    pq.write_to_dataset(table, f"{bucket}/set", partition_cols=["f"], filesystem=files)
    back = pq.read_table(f"{bucket}/set", columns=["n"], filters=[("f", "=", 3)], filesystem=files)
    assert sorted(back.column("n").to_pylist()) == list(range(3, 100_000, 4))
