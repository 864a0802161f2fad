"""What test_s3fs.py runs with s3fs's own interpreter: url, bucket, directory of samples. Prints what it
verified."""

import json
import sys
from pathlib import Path

import s3fs

AWKWARD_KEY = "dir with space/ü+%41&=~'(1)!.txt"


def done(what: str) -> None:
    print(json.dumps(what), flush=True)


def main(url: str, bucket: str, directory: str) -> None:
    small = (Path(directory) / "small").read_bytes()
    large = (Path(directory) / "large").read_bytes()
    files = s3fs.S3FileSystem(
        endpoint_url=url, default_block_size=5 * 2**20, skip_instance_cache=True, use_listings_cache=False
    )
    odd = f"{bucket}/{AWKWARD_KEY}"

    files.pipe(odd, small)
    done("put")
    assert files.cat(odd) == small
    assert files.info(odd)["size"] == len(small)
    done("get")
    assert files.cat_file(odd, start=100, end=60_000) == small[100:60_000]
    with files.open(odd, "rb", cache_type="none") as file:
        file.seek(-9, 2)
        assert file.read() == small[-9:]
    done("range")

    with files.open(f"{bucket}/large", "wb", block_size=5 * 2**20) as file:
        file.write(large)
    assert "-" in files.info(f"{bucket}/large")["ETag"]
    assert files.cat(f"{bucket}/large") == large
    done("multipart")
    files.copy(f"{bucket}/large", f"{bucket}/copied/large")
    assert files.cat(f"{bucket}/copied/large") == large
    files.copy(odd, f"{bucket}/kept")
    done("copy")
    assert files.find(bucket) == sorted([f"{bucket}/copied/large", odd, f"{bucket}/kept", f"{bucket}/large"])
    assert f"{bucket}/copied" in files.ls(bucket, detail=False)
    done("list")
    files.rm(f"{bucket}/large")
    assert not files.exists(f"{bucket}/large")
    files.rm([f"{bucket}/copied/large", odd])
    done("delete")


main(*sys.argv[1:])
