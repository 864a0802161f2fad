"""What the erasure code promises: zfec's bytes from either engine, and the payload from any k fragments."""

import itertools
import os
import random

import pytest

from objstore.codec import backend, isal
from objstore.codec.reed_solomon import Codec, ZfecCodec, split

PROFILES = [(4, 2), (6, 3), (8, 4), (10, 4), (16, 4), (3, 2), (2, 2), (1, 2)]
PATTERNS_MAX = 60  # Per profile; all of them where there are fewer, all of them in the long form.
SEED = int(os.environ.get("OBJSTORE_SEED", "20261121"))
LONG = bool(os.environ.get("OBJSTORE_LONG"))


@pytest.fixture(scope="module")
def library() -> isal.Library:
    return isal.find_library()  # It comes with our dependencies: its absence is a failure, not a skip.


def survivor_sets(k: int, m: int, rng: random.Random) -> list[tuple[int, ...]]:
    every = list(itertools.combinations(range(k + m), k))
    return every if LONG or len(every) <= PATTERNS_MAX else rng.sample(every, PATTERNS_MAX)


@pytest.mark.parametrize(("k", "m"), PROFILES)
def test_isal_and_zfec_give_the_same_bytes_for_every_size(k: int, m: int, library: isal.Library) -> None:
    rng = random.Random(f"{SEED} {k}+{m}")
    ours, reference = isal.IsalCodec(library, k, m), ZfecCodec(k, m)
    sizes = [*range(1, 200), 4096, 65_537, 300_001, *(rng.randrange(1, 100_000) for _ in range(10))]
    for size in sizes:
        payload = rng.randbytes(size)
        expected = list(map(bytes, reference.encode(payload)))
        assert list(map(bytes, ours.encode(payload))) == expected, f"size {size}, seed {SEED}"


@pytest.mark.parametrize(("k", "m"), PROFILES)
def test_any_k_fragments_give_the_payload_and_every_lost_fragment_back(
    k: int, m: int, library: isal.Library
) -> None:
    rng = random.Random(f"{SEED} {k}+{m}")
    payload = rng.randbytes(rng.randrange(1, 3000))
    engines: list[Codec] = [isal.IsalCodec(library, k, m), ZfecCodec(k, m)]
    fragments = list(map(bytes, ZfecCodec(k, m).encode(payload)))
    for survivors in survivor_sets(k, m, rng):
        present = {index: fragments[index] for index in survivors}
        lost = [index for index in range(k + m) if index not in present]
        for codec in engines:
            where = f"{type(codec).__name__} {k}+{m} survivors {survivors} seed {SEED}"
            decoded = codec.decode(present, len(fragments[0]))
            assert b"".join(decoded)[: len(payload)] == payload, where
            rebuilt = codec.rebuild(present, lost)
            assert {index: bytes(rebuilt[index]) for index in lost} == {i: fragments[i] for i in lost}, where


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_encodes_alike_and_is_left_as_it_was(kind: type, library: isal.Library) -> None:
    payload = os.urandom(10_001)
    given = kind(payload)
    for codec in (isal.IsalCodec(library, 4, 2), ZfecCodec(4, 2)):
        assert list(map(bytes, codec.encode(given))) == list(map(bytes, ZfecCodec(4, 2).encode(payload)))
        assert bytes(given) == payload


def test_a_slice_in_the_middle_of_a_large_buffer_is_encoded_from_its_own_start(library: isal.Library) -> None:
    whole = os.urandom(5000)
    piece = memoryview(whole)[1001:4002]
    expected = list(map(bytes, ZfecCodec(4, 2).encode(bytes(piece))))
    assert list(map(bytes, isal.IsalCodec(library, 4, 2).encode(piece))) == expected


def test_data_fragments_are_views_and_only_the_end_is_copied() -> None:
    payload = bytearray(range(10))
    data = split(payload, 4)
    payload[0] = 99
    assert [bytes(fragment) for fragment in data] == [b"\x63\1\2", b"\3\4\5", b"\6\7\x08", b"\x09\0\0"]


def test_a_payload_shorter_than_k_is_padded_with_zeros() -> None:
    assert [bytes(fragment) for fragment in split(b"ab", 4)] == [b"a", b"b", b"\0", b"\0"]


def test_data_fragments_that_are_present_are_returned_as_they_are(library: isal.Library) -> None:
    for codec in (isal.IsalCodec(library, 4, 2), ZfecCodec(4, 2)):
        fragments = [bytes(fragment) for fragment in codec.encode(os.urandom(400))]
        present = {index: fragments[index] for index in (0, 2, 3, 5)}
        decoded = codec.decode(present, 100)
        assert decoded[0] is present[0]
        assert decoded[2] is present[2]


def test_fewer_than_k_fragments_are_refused_not_guessed(library: isal.Library) -> None:
    for codec in (isal.IsalCodec(library, 4, 2), ZfecCodec(4, 2)):
        with pytest.raises(AssertionError, match="3 fragments, 4 needed"):
            codec.decode({0: b"a", 1: b"b", 5: b"c"}, 1)


def test_fragments_of_unlike_sizes_are_refused_before_the_library_reads_beyond_one(
    library: isal.Library,
) -> None:
    codec = isal.IsalCodec(library, 4, 2)
    fragments = dict(enumerate(codec.encode(os.urandom(400))))
    fragments[1] = fragments[1][:50]
    del fragments[0]
    with pytest.raises(AssertionError):
        codec.decode(fragments, 100)
    with pytest.raises(AssertionError):
        codec.rebuild(fragments, [0])


def test_the_choice_falls_on_isal_and_says_so() -> None:
    chosen = backend.choose()
    assert chosen.accelerated, chosen.note
    assert "identical to zfec" in chosen.name
    assert chosen.codec(4, 2) is chosen.codec(4, 2)


def test_without_a_library_zfec_is_chosen_and_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> isal.Library:
        raise isal.IsalMissing("nowhere")

    monkeypatch.setattr(isal, "find_library", missing)
    chosen = backend.choose()
    assert not chosen.accelerated
    assert "nowhere" in chosen.note
    assert isinstance(chosen.codec(4, 2), ZfecCodec)


def test_a_library_that_computes_other_bytes_is_refused(
    monkeypatch: pytest.MonkeyPatch, library: isal.Library
) -> None:
    real = isal.generator_matrix

    def other(k: int, m: int) -> list[bytes]:  # The code of a library with another parity row.
        rows = real(k, m)
        return [*rows[:-1], bytes((value ^ 1) or 1 for value in rows[-1])]

    monkeypatch.setattr(isal, "generator_matrix", other)
    assert "otherwise than zfec" in backend.self_test(library)
    assert not backend.choose().accelerated
