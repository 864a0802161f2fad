"""polars: writes with CRC64NVME and unsigned payloads, reads a column by ranges, finds files by a pattern."""

from typing import Any

import polars as pl
import pytest

from tests.clients.conftest import MIB, Server, Witness

pytestmark = pytest.mark.clients


def test_polars_writes_scans_by_ranges_lists_by_pattern_and_copies(
    server: Server, bucket: str, stored: Witness, witness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARS_UPLOAD_CHUNK_SIZE", str(5 * MIB))  # Its own, 64 MiB, wants too large a table.
    options = {
        "aws_endpoint_url": server.url,
        "aws_allow_http": "true",
        "aws_access_key_id": server.access_key,
        "aws_secret_access_key": server.secret_key,
        "aws_region": "us-east-1",
    }
    # Random 64-bit numbers do not compress: about 16 MB, so more than one part.
    large = pl.DataFrame({"n": range(1_000_000)}).with_columns(
        a=pl.col("n").hash(seed=1), b=pl.col("n").hash(seed=2)
    )
    small = pl.DataFrame({"n": [1, 2, 3], "text": ["x", "ü", ""]})
    small.write_parquet(f"s3://{bucket}/in/small.parquet", storage_options=options)
    assert pl.read_parquet(f"s3://{bucket}/in/small.parquet", storage_options=options).equals(small)
    large.write_parquet(f"s3://{bucket}/large.parquet", storage_options=options)
    assert stored.parts("large.parquet") > 1

    lazy = pl.scan_parquet(f"s3://{bucket}/large.parquet", storage_options=options)
    part = lazy.select("n", "b").slice(500_000, 10).collect()
    assert part.equals(large.select("n", "b").slice(500_000, 10))
    lazy.sink_parquet(f"s3://{bucket}/copied.parquet", storage_options=options)
    assert pl.read_parquet(f"s3://{bucket}/copied.parquet", storage_options=options).equals(large)

    small.write_csv(f"s3://{bucket}/in/more.csv", storage_options=options)
    assert stored.content("in/more.csv") == b'n,text\n1,x\n2,\xc3\xbc\n3,""\n'
    small.write_parquet(f"s3://{bucket}/in/other.parquet", storage_options=options)
    both = pl.read_parquet(f"s3://{bucket}/in/*.parquet", storage_options=options)
    assert both.height == 6

    left = stored.keys()
    for key in left:
        witness.delete_object(Bucket=bucket, Key=key)  # polars itself deletes nothing.
    with pytest.raises((FileNotFoundError, OSError)):
        pl.read_parquet(f"s3://{bucket}/in/small.parquet", storage_options=options)
    assert stored.uploads() == 0
