"""The entries of a listing's page, laid out in columns, against one entry after another."""

import random
from urllib.parse import unquote

import msgspec

from objstore.meta.heads import decode_heads
from objstore.meta.kv import Transaction
from objstore.meta.schema import (
    CHECKSUMS,
    BucketRecord,
    Checksum,
    Extra,
    ObjectRecord,
    bucket_key,
    decode,
    encode,
    object_key,
)
from objstore.objects.store import Store
from objstore.objects.values import etag_text
from objstore.s3.listing import _entries
from objstore.s3.xml import timestamp
from tests.s3.handlers.client import Answer, Client
from tests.seed import SEED


def one_after_another(
    records: list[ObjectRecord],
    names: list[str],
    classes: dict[int, str],
    head: str,
    middle: str,
    tail: str,
) -> str:
    text = ""
    for index, (name, record) in enumerate(zip(names, records, strict=True)):
        its_tail = tail.replace("STANDARD", classes.get(index, "STANDARD"))
        checksum = Checksum.unpack(record.checksum)
        kind = (
            f"<ChecksumAlgorithm>{checksum.algorithm}</ChecksumAlgorithm>"
            f"<ChecksumType>{checksum.type}</ChecksumType>"
            if checksum
            else ""
        )
        text += (
            f"{head}{name}{middle}{timestamp(record.order)}</LastModified>"
            f"<ETag>&quot;{etag_text(record.etag)}&quot;</ETag>{kind}<Size>{record.size}{its_tail}"
        )
    return text


def random_record(source: random.Random, etag_sizes: list[int]) -> ObjectRecord:
    checksum = b""
    if source.random() < 0.7:
        kind = source.choice(["FULL_OBJECT", "COMPOSITE"])
        checksum = Checksum(source.choice(CHECKSUMS), kind, source.randbytes(8), 3).pack()
    return ObjectRecord(
        format=1,
        order=source.randrange(2**51),
        version=b"",
        size=source.choice([0, 1, 127, 128, 65_536, 5 * 2**40]),
        etag=source.randbytes(source.choice(etag_sizes)),
        checksum=checksum,
        extents=[],
    )


def test_columns_are_the_same_as_one_entry_after_another_whatever_the_mix_of_etags_and_classes() -> None:
    source = random.Random(SEED)
    for count in (0, 1, 2, 3, 50):
        for etag_sizes in ([16], [18], [16, 18]):
            records = [random_record(source, etag_sizes) for _ in range(count)]
            names = [f"key/{source.getrandbits(64)}" for _ in records]
            classes = {
                index: source.choice(["COLD", "IA"]) for index in range(count) if source.random() < 0.3
            }
            head, middle = "<Contents><Key>", "</Key><LastModified>"
            tail = "</Size><StorageClass>STANDARD</StorageClass></Contents>"
            heads = decode_heads([encode(record) for record in records])
            pieces = _entries(heads, names, classes, head=head, middle=middle, tail=tail)
            assert "".join(pieces) == one_after_another(records, names, classes, head, middle, tail), (
                f"seed {SEED}, {count} entries, ETags of {etag_sizes}"
            )


def strange_name(source: random.Random) -> str:
    """A key of letters, or one with what URLs, XML or neither can carry."""
    letters = source.choice(["abc/-_.~*09", "abc &<>\"'+%=?\n\r\t", "aé☃😀\uffff", "a\x00\x01\x1f\x7f"])
    return "".join(source.choices(letters, k=source.randrange(1, 12)))


async def test_a_page_shows_what_was_stored_whatever_the_keys_and_records_are(
    s3: Client, store: Store
) -> None:
    source = random.Random(SEED)
    bucket = decode(await store.kv.get(bucket_key("bkt")) or b"", BucketRecord)
    for plain in (True, False):
        wanted = {}
        for _ in range(60):
            record = random_record(source, [16, 16, 16, 18])
            if source.random() < 0.2:
                extra = Extra(headers={"x-amz-storage-class": "COLD"}, salvaged=source.random() < 0.5)
                record = msgspec.structs.replace(record, extra=extra)
            wanted[f"{plain}/{source.getrandbits(30)}" if plain else strange_name(source)] = record
        put = {object_key(bucket.id, name.encode()): encode(record) for name, record in wanted.items()}
        await store.kv.commit(Transaction(put=put))
        for query in ({"list-type": "2"}, {"versions": ""}, {}):
            for asked in ({}, {"encoding-type": "url"}):
                prefix = {"prefix": f"{plain}/"} if plain else {}
                answer = await s3("GET", "bkt", query={**query, **asked, **prefix})
                assert shown(answer) == [
                    entry(name, record)
                    for name, record in sorted(wanted.items(), key=lambda one: one[0].encode())
                ], f"seed {SEED}, {query}, {asked}"
        await store.kv.commit(Transaction(delete=list(put)))


def entry(name: str, record: ObjectRecord) -> dict[str, str]:
    checksum = Checksum.unpack(record.checksum)
    told = {"ChecksumAlgorithm": checksum.algorithm, "ChecksumType": checksum.type} if checksum else {}
    return {
        "Key": name,
        "LastModified": timestamp(record.order),
        "ETag": f'"{etag_text(record.etag)}"',
        **told,
        "Size": str(record.size),
        "StorageClass": record.extra.headers["x-amz-storage-class"] if record.extra else "STANDARD",
    }


def shown(answer: Answer) -> list[dict[str, str]]:
    encoded = answer.text("EncodingType") == "url"
    found = []
    for element in answer.xml:
        if element.tag in ("Contents", "Version"):
            told = {child.tag: child.text or "" for child in element}
            for beside in ("Owner", "VersionId", "IsLatest"):
                told.pop(beside, None)
            if encoded:
                told["Key"] = unquote(told["Key"])
            found.append(told)
    return found
