"""The entries of a listing's page, laid out in columns, against one entry after another."""

import random

from objstore.meta.heads import decode_heads
from objstore.meta.schema import CHECKSUMS, Checksum, ObjectRecord, encode
from objstore.objects.values import etag_text
from objstore.s3.listing import _entries
from objstore.s3.xml import timestamp

SEED = 7


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
