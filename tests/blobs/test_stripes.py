"""Stripe geometry and packing."""

import random

import pytest

from objstore.blobs.stripes import (
    ALIGNMENT,
    Piece,
    Slice,
    aligned,
    finish_in_place,
    fragment_size,
    pack,
    slices,
    unpack_directory,
)
from objstore.errors import Corrupt
from objstore.extents import Extent


@pytest.mark.parametrize("k", [1, 2, 3, 4, 8, 16])
def test_every_body_is_where_the_directory_says(k: int) -> None:
    rng = random.Random(k)
    for _ in range(50):
        pieces = [
            Piece(
                rng.randbytes(rng.choice([0, 1, 7, 8, 9, 4096, 5000])),
                rng.randbytes(20),
                rng.randbytes(30),
                5,
            )
            for _ in range(rng.randint(1, 12))
        ]
        packed = pack(pieces, k)
        payload = packed.padded[: packed.payload_size]
        entries = unpack_directory(payload[packed.directory_offset :])
        assert [entry.begin for entry in entries] == packed.begins
        for piece, entry in zip(pieces, entries, strict=True):
            assert payload[entry.begin : entry.begin + entry.length] == piece.body
            assert (entry.home, entry.about, entry.blob_offset) == (piece.home, piece.about, 5)
            assert entry.begin % ALIGNMENT == 0
        assert len(packed.padded) == k * packed.fragment_size
        assert packed.fragment_size % ALIGNMENT == 0
        assert not any(packed.padded[packed.payload_size :])


def test_a_stream_packed_in_place_is_the_same_stripe_as_one_packed_by_copying() -> None:
    body = bytes(range(256)) * 40 + b"odd"
    buffer = bytearray(b"\xff" * 20_000)  # What an earlier stripe left in it must not show.
    buffer[: len(body)] = body
    placed = finish_in_place(buffer, len(body), 4, home=b"home", blob_offset=77, about=b"about", blob=9)
    packed = pack([Piece(body, b"home", b"about", 77, 9)], 4)
    assert placed is not None
    assert bytes(buffer[: 4 * placed.fragment_size]) == packed.padded
    assert placed[1:4] == packed[1:4]


def test_a_directory_that_does_not_fit_is_refused_not_cut() -> None:
    assert finish_in_place(bytearray(100), 90, 4, home=b"h", blob_offset=0, about=b"a" * 50, blob=1) is None


def test_slices_cover_exactly_the_wanted_bytes_in_order() -> None:
    extent = Extent(volume=1, offset=64, fragment_size=1000, begin=900, length=2500)
    assert slices(extent, 0, 2500) == [
        Slice(0, 900, 100),
        Slice(1, 0, 1000),
        Slice(2, 0, 1000),
        Slice(3, 0, 400),
    ]
    assert slices(extent, 50, 10) == [Slice(0, 950, 10)]
    assert slices(extent, 99, 2) == [Slice(0, 999, 1), Slice(1, 0, 1)]


def test_sizes_round_up_and_never_down() -> None:
    assert [aligned(size) for size in (0, 1, 8, 9)] == [0, 8, 8, 16]
    assert fragment_size(1, 4) == 8
    assert fragment_size(32, 4) == 8
    assert fragment_size(33, 4) == 16


def test_bytes_that_are_no_directory_are_corrupt() -> None:
    with pytest.raises(Corrupt):
        unpack_directory(b"\x91\x01")
