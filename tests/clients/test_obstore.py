"""obstore (Rust's object_store): conditional creates, many ranges at once, copy and rename."""

import urllib.request
from datetime import timedelta

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from tests.clients.conftest import AWKWARD_KEY, MIB, Samples, Server, Witness

pytestmark = pytest.mark.clients


def test_obstore_puts_gets_ranges_lists_copies_and_deletes(
    server: Server, bucket: str, samples: Samples, stored: Witness
) -> None:
    store = S3Store(
        bucket,
        endpoint=server.url,
        access_key_id=server.access_key,
        secret_access_key=server.secret_key,
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    obstore.put(store, AWKWARD_KEY, samples.small)
    assert stored.content(AWKWARD_KEY) == samples.small
    assert bytes(obstore.get(store, AWKWARD_KEY).bytes()) == samples.small
    obstore.put(store, "large", samples.large, use_multipart=True, chunk_size=5 * MIB)
    assert stored.parts("large") == 4
    assert bytes(obstore.get(store, "large").bytes()) == samples.large

    assert (
        bytes(obstore.get_range(store, "large", start=5 * MIB - 7, length=50))
        == samples.large[5 * MIB - 7 :][:50]
    )
    starts = [0, 3 * MIB, 9 * MIB]
    many = obstore.get_ranges(store, "large", starts=starts, lengths=[1000] * 3)
    assert [bytes(part) for part in many] == [samples.large[start : start + 1000] for start in starts]

    obstore.put(store, "once", b"first", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "once", b"second", mode="create")
    assert stored.content("once") == b"first"

    obstore.copy(store, AWKWARD_KEY, "copied/small")
    assert stored.content("copied/small") == samples.small
    obstore.rename(store, "once", "renamed")
    keys = [entry["path"] for page in obstore.list(store, chunk_size=2) for entry in page]
    assert keys == ["copied/small", AWKWARD_KEY, "large", "renamed"]
    folded = obstore.list_with_delimiter(store)
    assert sorted(folded["common_prefixes"]) == ["copied", "dir with space"]

    address = obstore.sign(store, "GET", AWKWARD_KEY, timedelta(minutes=1))
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=30) as answer:
        assert answer.read() == samples.small
    obstore.delete(store, "large")
    assert stored.content("large") is None
    obstore.delete(store, ["copied/small", AWKWARD_KEY, "renamed"])
    assert stored.keys() == []
    assert stored.uploads() == 0
