"""A store under the recorder, and clients that remember what they were promised.

Every object's bytes follow from its key and a number, so any answer can be judged. What is known at a moment
is written into the recording itself: `try` before a request, `done` after its acknowledgement. `Promises`
reads it back from the marks of any prefix.
"""

import hashlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tests.crash.recorder import Recorder
from tests.server import Server, start_server

BUCKET = "crash"
PART_SIZE = 5 * 1024 * 1024
GONE = 0  # The number of a key that is not there.


def content(key: str, number: int) -> bytes:
    """Of one key; what stands behind a slash makes no difference: a copy is as its source."""
    head = f"{key.partition('/')[0]} {number}\n".encode()
    size = {"small": 700, "page": 4096, "large": 300_000, "parts": PART_SIZE + 1000}[key.split("-")[0]]
    return head + hashlib.shake_128(head).digest(size)


def spread(numbers: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """So many of them, one out of each of as many equal parts."""
    count = min(count, len(numbers))
    edges = [part * len(numbers) // count for part in range(count + 1)]
    return [rng.choice(numbers[begin:end]) for begin, end in pairwise(edges)]


# A store that compacts what is sealed as soon as it can.
COMPACTING = {"OBJSTORE_UPKEEP__PERIOD_FACTOR": "0.01", "OBJSTORE_UPKEEP__GARBAGE_PERCENT": "1"}


def start(
    directory: Path,
    recorder: Recorder | None = None,
    variables: Mapping[str, str] | None = None,
    **options: Any,
) -> Server:
    """A store in directory/data; under the recorder if one is given."""
    given = dict(variables or {})
    if recorder is None:
        return start_server(directory, environment=given, **options)
    given |= recorder.variables()
    preload = Path(given.pop("LD_PRELOAD"))
    return start_server(directory, environment=given, preload=preload, **options)


def compact(server: Server, limit_s: float = 120.0) -> None:
    """The workers die, so that their volumes are sealed; until one with garbage has been compacted."""
    for name, pid in server.children().items():
        if name.startswith("worker"):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + limit_s
    while not any(server.data.rglob("*.retired.*")):  # node/local.py: what compaction has emptied.
        assert time.monotonic() < deadline, f"no volume compacted in {limit_s} s\n{server.text()[-4000:]}"
        time.sleep(0.2)


class Promises:
    """What each key may hold, after the marks so far."""

    def __init__(self, marks: Iterable[str] = ()) -> None:
        self.may_be: dict[str, set[int]] = {}
        self.ready = False
        self.acknowledged = 0
        for mark in marks:
            self.add(mark)

    def add(self, mark: str) -> None:
        if mark == "ready":
            self.ready = True
            return
        what, key, number = json.loads(mark)
        states = self.may_be.setdefault(key, {GONE})
        if what == "try":
            states.add(number)
        else:
            assert what == "done"
            self.may_be[key] = {number}
            self.acknowledged += 1

    def broken(self, server: Server) -> list[str]:
        """Read every key and the listing; what contradicts the promises, in words."""
        s3 = server.boto3(read_timeout=60)
        found: list[str] = []
        listed: set[str] = set()
        try:
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
                listed |= {item["Key"] for item in page.get("Contents", ())}
        except ClientError as failure:
            if failure.response["Error"]["Code"] != "NoSuchBucket":
                found.append(f"listing: {failure}")
            elif self.may_be.get("", {GONE}) == {1}:
                found.append("the bucket is gone")
        for key, states in self.may_be.items():
            if not key:
                continue
            number = self._number(s3, key)
            if number not in states:
                found.append(f"{key} is {number}, may be {sorted(states)}")
            if isinstance(number, int) and (number != GONE) != (key in listed):
                found.append(f"{key} is {number} and {'' if key in listed else 'not '}listed")
        return found

    @staticmethod
    def _number(s3: Any, key: str) -> int | str:
        try:
            body: bytes = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        except ClientError as failure:
            code = failure.response["Error"]["Code"]
            return GONE if code in ("NoSuchKey", "NoSuchBucket") else code
        except BotoCoreError as failure:
            return repr(failure)
        head = body.partition(b"\n")[0].split()
        number = int(head[1]) if len(head) == 2 and head[1].isdigit() else -1
        return number if number > 0 and body == content(key, number) else "other bytes"


class Work:
    """Some clients that do everything so many times, each on its own keys, and then write one over."""

    def __init__(
        self,
        server: Server,
        recorder: Recorder,
        *,
        rounds: int = 2,
        large: bool = True,
        refusals_max: int = 1000,
        timeout_s: float = 60.0,
    ) -> None:
        self.server = server
        self.recorder = recorder
        self.rounds = rounds
        self.large = large
        self.refusals_max = (
            refusals_max  # Then a client gives up: a store that refuses all is slow to say so.
        )
        self.timeout_s = timeout_s  # For an answer; then its outcome is unknown.
        self.slowest_s = 0.0  # Of all requests, refused ones too.
        self.live = Promises()
        self.refused: list[str] = []
        self._lock = threading.Lock()

    def make_bucket(self) -> None:
        s3 = self.server.boto3()
        self._attempt("", 1, lambda: s3.create_bucket(Bucket=BUCKET))

    def run(self) -> None:
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), "a request hangs"

    def _client(self, client: int) -> None:
        s3 = self.server.boto3(read_timeout=self.timeout_s)
        for number in range(1, self.rounds + 1):
            for kind in ("small", "page", "large"):
                self._put(s3, f"{kind}-{client}-stays", number)
            self._put(s3, f"small-{client}-goes", number)
            self._put(s3, f"page-{client}-{number}", 1)
            if client == 0:
                self._put_parts(s3, "parts-0" if self.large else "page-parts", number)
            elif client == 1:
                self._copy(s3, "page-copied", number)
            elif client == 2:
                self._delete_together(s3, [f"{kind}-{client}-together" for kind in ("small", "page")], number)
            else:
                self._abort(s3, "page-never")
            key = f"small-{client}-goes"
            self._attempt(key, GONE, lambda key=key: s3.delete_object(Bucket=BUCKET, Key=key))
        self._put(s3, f"small-{client}-stays", self.rounds + 1)

    def _put(self, s3: Any, key: str, number: int) -> None:
        self._attempt(key, number, lambda: s3.put_object(Bucket=BUCKET, Key=key, Body=content(key, number)))

    def _put_parts(self, s3: Any, key: str, number: int) -> None:
        def put() -> None:
            upload, parts = self._upload(s3, key, number)
            s3.complete_multipart_upload(
                Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
            )

        self._attempt(key, number, put)

    def _abort(self, s3: Any, key: str) -> None:
        """An upload that never becomes an object."""

        def abort() -> None:
            upload, _ = self._upload(s3, key, 1)
            s3.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload)

        self._attempt(key, GONE, abort)

    @staticmethod
    def _upload(s3: Any, key: str, number: int) -> tuple[str, list[dict[str, Any]]]:
        """The upload's id and its parts, all of them sent."""
        upload = s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        body = content(key, number)
        parts = []
        for index, begin in enumerate(range(0, len(body), PART_SIZE), 1):
            piece = body[begin : begin + PART_SIZE]
            tag = s3.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=index, Body=piece)
            parts.append({"PartNumber": index, "ETag": tag["ETag"]})
        return upload, parts

    def _copy(self, s3: Any, key: str, number: int) -> None:
        self._put(s3, f"{key}/source", number)
        # Where that was refused the source may be older: no copy of it could be judged.
        if self.live.may_be.get(f"{key}/source") == {number}:
            source = {"Bucket": BUCKET, "Key": f"{key}/source"}
            self._attempt(
                f"{key}/copy",
                number,
                lambda: s3.copy_object(Bucket=BUCKET, Key=f"{key}/copy", CopySource=source),
            )

    def _delete_together(self, s3: Any, keys: list[str], number: int) -> None:
        for key in keys:
            self._put(s3, key, number)

        def delete() -> None:
            doomed = {"Objects": [{"Key": key} for key in keys]}
            answer = s3.delete_objects(Bucket=BUCKET, Delete=doomed)
            for failure in answer.get("Errors", ()):
                raise ClientError({"Error": failure}, "DeleteObjects")

        self._attempt(keys, GONE, delete)

    def _attempt(self, keys: str | list[str], number: int, request: Any) -> None:
        """One request that gives these keys this number, and what came of it."""
        keys = [keys] if isinstance(keys, str) else keys
        with self._lock:
            if len(self.refused) >= self.refusals_max:
                return
        self._note("try", keys, number)
        began = time.monotonic()
        try:
            request()
        except (ClientError, BotoCoreError) as failure:
            with self._lock:
                self.refused.append(f"{keys} {number}: {failure}")
            return
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self._note("done", keys, number)

    def _note(self, what: str, keys: list[str], number: int) -> None:
        with self._lock:
            for key in keys:
                mark = json.dumps([what, key, number])
                self.recorder.mark(mark)
                self.live.add(mark)
