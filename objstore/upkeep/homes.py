"""Homes: the metadata record that a stripe's directory names, and whether it still holds the bytes.

Bytes are live if their home holds their address, itself, as its manifest or in its pages, and for no other
reason. So one look at one record decides, and a conditional commit on that record moves them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from objstore.blobs.volumes import Stored
from objstore.errors import Conflict, Corrupt, Overloaded
from objstore.extents import Extent
from objstore.meta.kv import Kv, Transaction
from objstore.meta.schema import (
    ExtentPage,
    Extra,
    ObjectRecord,
    PartRecord,
    decode,
    encode,
    extent_page_key,
    setting_key,
)
from objstore.objects.commits import held
from objstore.objects.ledger import live_adds, publish

SNAPSHOT_HOME: Final = setting_key("snapshot")  # Of the copy of metadata: the one setting that is a home.
ATTEMPTS_MAX = 32
RECORD_SIZE_MAX = 3_800  # Bytes: below the engine's limit of 4,096.

Address = tuple[int, int, int, int]  # Volume, offset, begin, length.


class UnknownHome(Corrupt):
    """A home that this release does not know: its bytes must be left where they are."""


class Place(NamedTuple):
    """Where in its home an extent is held."""

    page: bytes  # The x key, or b"" for the record itself.
    value: bytes  # Of that key, as read.
    at: int  # Index in the list of extents; -1: the manifest.
    extent: Extent


@dataclass(slots=True)
class Home:
    key: bytes
    value: bytes
    record: ObjectRecord | PartRecord
    places: dict[Address, Place]


def address(extent: Extent) -> Address:
    return (extent.volume, extent.offset, extent.begin, extent.length)


def extents_of(key: bytes, value: bytes) -> Sequence[Extent]:
    """What a metadata record holds by itself: a home, or a page of one; nothing if it is neither.

    Raises: msgspec.MsgspecError for a value that cannot be read.
    """
    kind = key[:1]
    if kind == b"o" or key == SNAPSHOT_HOME:
        return held(decode(value, ObjectRecord))
    if kind == b"p":
        return decode(value, PartRecord).extents
    if kind == b"x":
        return decode(value, ExtentPage).extents
    return ()


async def open_home(kv: Kv, key: bytes) -> Home | None:
    """The home and all that it holds; None if there is no such record.

    Raises: UnknownHome if the key is of no kind that can be a home here.
    """
    kind = key[:1]
    if kind not in (b"o", b"p", b"S"):
        raise UnknownHome(f"no home of a known kind: {key[:40]!r}")
    value = await kv.get(key)
    if value is None:
        return None
    record: ObjectRecord | PartRecord
    places: dict[Address, Place] = {}
    manifest: Extent | None = None
    try:
        if kind == b"p":
            record = decode(value, PartRecord)
            blob, pages = record.blob, record.pages
        else:
            record = decode(value, ObjectRecord)
            extra = record.extra
            blob, pages = (extra.blob, extra.pages) if extra else (b"", 0)
            if extra and extra.multipart:
                manifest = extra.multipart.manifest
    except msgspec.MsgspecError as failure:
        raise UnknownHome(f"the home {key[:40]!r} cannot be read: {failure}") from failure
    for index, extent in enumerate(record.extents):
        places[address(extent)] = Place(b"", value, index, extent)
    if manifest is not None:
        places[address(manifest)] = Place(b"", value, -1, manifest)
    if pages:
        keys = [extent_page_key(blob, page) for page in range(pages)]
        for page_key, page_value in zip(keys, await kv.get_many(keys), strict=True):
            if page_value is not None:  # Else it is being swept: the record has just gone.
                for index, extent in enumerate(decode(page_value, ExtentPage).extents):
                    places[address(extent)] = Place(page_key, page_value, index, extent)
    return Home(key, value, record, places)


async def move(kv: Kv, key: bytes, old: Extent, stored: Stored) -> bool:
    """Let the home hold `stored` instead of `old`, in one commit with fences, intents and live bytes.

    Returns: False if the home no longer holds `old`: its bytes have died meanwhile, and the new ones are
    orphans.

    Raises: Conflict on a volume's key (the new volume was sealed: write again); Overloaded; UnknownHome.
    """
    for _ in range(ATTEMPTS_MAX):
        home = await open_home(kv, key)
        place = home.places.get(address(old)) if home is not None else None
        if home is None or place is None:
            return False
        expect, put, _ = publish(stored)
        expect[key] = home.value
        changed = _replaced(home, place, stored.extents)
        if len(changed) > RECORD_SIZE_MAX:
            raise Overloaded("the home's record has no room for more extents")
        if place.page:
            expect[place.page] = place.value
            put[place.page] = changed
        else:
            put[key] = changed
        try:
            await kv.commit(Transaction(expect, put, (), live_adds(stored.extents, [place.extent])))
        except Conflict as conflict:
            if conflict.key[:1] == b"V":
                raise
            continue  # The home changed: look again.
        return True
    raise Overloaded(f"a home kept changing for {ATTEMPTS_MAX} rounds")


def _replaced(home: Home, place: Place, extents: list[Extent]) -> bytes:
    """The encoded record or page with the extent replaced."""
    if place.page:
        page = decode(place.value, ExtentPage)
        return encode(msgspec.structs.replace(page, extents=_spliced(page.extents, place.at, extents)))
    record = home.record
    if place.at >= 0:
        return encode(msgspec.structs.replace(record, extents=_spliced(record.extents, place.at, extents)))
    assert isinstance(record, ObjectRecord)
    assert record.extra is not None
    assert record.extra.multipart is not None
    if len(extents) != 1:
        raise Overloaded("a manifest must stay in one piece")
    multipart = msgspec.structs.replace(record.extra.multipart, manifest=extents[0])
    extra: Extra = msgspec.structs.replace(record.extra, multipart=multipart)
    return encode(msgspec.structs.replace(record, extra=extra))


def _spliced(extents: list[Extent], index: int, new: list[Extent]) -> list[Extent]:
    return [*extents[:index], *new, *extents[index + 1 :]]
