"""Keys of any length keep their byte order in LMDB: against a sorted dict."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from objstore.errors import Corrupt
from objstore.meta.kv import KEY_SIZE_MAX
from objstore.meta.kv_lmdb import End, LmdbReader, LmdbState
from objstore.meta.spill import HEAD_SIZE, TAIL_SIZE, seal, unseal

END = End(1, 1, 1, 0, 0)

# Few bytes around few cuts, so that heads are shared, cut exactly, and fall on both sides of a marker.
CUTS = [HEAD_SIZE, HEAD_SIZE + TAIL_SIZE, HEAD_SIZE + 2 * TAIL_SIZE]
LENGTHS = st.sampled_from([1, 2, *(cut + by for cut in CUTS for by in (-1, 0, 1, 2)), KEY_SIZE_MAX])
KEYS = st.builds(
    lambda head, length, tail: (head * length)[: length - len(tail)] + tail,
    st.sampled_from([b"a", b"\x00", b"\xff"]),
    LENGTHS,
    st.sampled_from([b"", b"\x00", b"\xff", b"b", b"b\x00"]),
).filter(lambda key: 1 <= len(key) <= KEY_SIZE_MAX)
OPERATIONS = st.lists(st.tuples(st.sampled_from(["put", "put", "delete"]), KEYS), max_size=40)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS, bounds=st.lists(st.tuples(KEYS, KEYS), max_size=6), limit=st.integers(0, 5))
def test_any_keys_in_any_order_read_back_like_a_sorted_dict(
    operations: list[tuple[str, bytes]],
    bounds: list[tuple[bytes, bytes]],
    limit: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    state = LmdbState.create(tmp_path_factory.mktemp("spill") / "state", b"id")
    try:
        model: dict[bytes, bytes] = {}
        for number, (operation, key) in enumerate(operations):
            value = b"v%d" % number
            if operation == "put":
                state.commit({key: value}, [], END, {})
                model[key] = value
            else:
                state.commit({}, [key], END, {})
                model.pop(key, None)
        ordered = sorted(model.items())
        for start, end in [(b"\x00", b"\xff" * KEY_SIZE_MAX), *bounds]:
            wanted = [pair for pair in ordered if start <= pair[0] < end]
            for most in (limit, 1_000):
                assert state.scan(start, end, most) == wanted[:most]
                assert state.scan(start, end, most, reverse=True) == wanted[::-1][:most]
        for _, key in operations:
            assert state.get(key) == model.get(key)
        assert state.get_many([key for _, key in operations]) == [model.get(key) for _, key in operations]
        for key in model:
            state.commit({}, [key], END, {})
        assert state.entry_count() == 0, "a marker outlived its last key"
    finally:
        state.close()


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(keys=st.sets(KEYS, min_size=1, max_size=30))
def test_loading_in_order_makes_the_same_as_putting_one_by_one(
    keys: set[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = LmdbState.create(tmp_path_factory.mktemp("load") / "state", b"id")
    try:
        pairs = [(key, key[-3:]) for key in sorted(keys)]
        assert state.load(pairs) == len(pairs)
        assert state.scan(b"\x00", b"\xff" * KEY_SIZE_MAX, 1_000) == [
            pair for pair in pairs if pair[0] < b"\xff" * KEY_SIZE_MAX
        ]
        assert state.get_many([key for key, _ in pairs]) == [value for _, value in pairs]
    finally:
        state.close()


def test_many_long_keys_under_one_prefix_are_entries_not_one_growing_value(tmp_path: Path) -> None:
    state = LmdbState.create(tmp_path / "state", b"id")
    try:
        prefix = b"p" * 900
        keys = [prefix + b"%06d" % number for number in range(5_000)]
        state.commit(dict.fromkeys(keys, b"v"), [], END, {})
        assert state.entry_count() == len(keys) + 1  # and the one marker
        assert [key for key, _ in state.scan(keys[1_234], keys[1_237], 10)] == keys[1_234:1_237]
    finally:
        state.close()


def test_pairs_out_of_order_are_a_bug_that_is_noticed_while_loading(tmp_path: Path) -> None:
    state = LmdbState.create(tmp_path / "state", b"id")
    try:
        with pytest.raises(AssertionError, match="out of order"):
            state.load([(b"b", b""), (b"a", b"")])
    finally:
        state.close()


def test_every_flipped_bit_of_a_record_is_detected() -> None:
    key, value = b"key", b"value"
    stored = seal(key, value)
    assert unseal(key, stored) == value
    for at in range(len(stored) * 8):
        damaged = bytearray(stored)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(Corrupt):
            unseal(key, bytes(damaged))
    with pytest.raises(Corrupt):
        unseal(b"kez", stored)


def test_a_rotten_page_is_corrupt_and_never_a_wrong_value(tmp_path: Path) -> None:
    state = LmdbState.create(tmp_path / "state", b"id")
    state.commit({b"k%d" % number: b"value-%d" % number for number in range(50)}, [], END, {})
    state.sync()
    state.close()
    path = tmp_path / "state" / "data.mdb"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"value-17", b"value-71"))
    reader = LmdbReader(tmp_path / "state")
    try:
        with pytest.raises(Corrupt, match="k17"):
            reader.get(b"k17")
        with pytest.raises(Corrupt, match="k17"):
            reader.get_many([b"k17"])
        with pytest.raises(Corrupt, match="k17"):
            reader.scan(b"k", b"l", 100)
        assert reader.get(b"k18") == b"value-18"
    finally:
        reader.close()
