"""s3/xml.py: what is refused on the way in, and what is always valid on the way out."""

import random
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime

import pytest

from objstore.meta.schema import Checksum
from objstore.s3 import xml
from objstore.s3.errors import S3Fault, escape
from objstore.s3.xml import (
    DEPTH_MAX,
    ELEMENTS_MAX,
    checksum_element,
    encoder,
    expressible,
    parse,
    timestamp,
    url_encoded,
)


def refused(document: bytes, root: str = "Delete") -> None:
    with pytest.raises(S3Fault) as raised:
        parse(document, root)
    assert (raised.value.code, raised.value.status) == ("MalformedXML", 400)


def test_a_document_is_read_in_the_s3_namespace_in_another_or_in_none() -> None:
    for opening in (
        "<Delete>",
        '<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">',
        '<Delete xmlns="x">',
    ):
        root = parse(f"{opening}<Quiet>true</Quiet></Delete>".encode(), "Delete")
        assert root.get("Quiet") == "true"
    root = parse(b'<s:Delete xmlns:s="x"><s:Quiet>a&amp;b</s:Quiet></s:Delete>', "Delete")
    assert root.get("Quiet") == "a&b"


def test_text_around_children_is_kept_apart() -> None:
    root = parse(b"<Delete> <Object><Key> a\tb </Key></Object> </Delete>", "Delete")
    assert root.children[0].need("Key") == " a\tb "


def test_a_doctype_is_refused() -> None:
    refused(b"<!DOCTYPE Delete><Delete/>")
    refused(b'<!DOCTYPE Delete SYSTEM "file:///etc/passwd"><Delete/>')


def test_entities_are_refused_before_they_are_expanded() -> None:
    refused(b'<!DOCTYPE D [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><Delete>&b;</Delete>')
    refused(b"<Delete>&undefined;</Delete>")


def test_processing_instructions_are_refused() -> None:
    refused(b'<?xml-stylesheet href="x"?><Delete/>')
    refused(b"<Delete><?php echo 1 ?></Delete>")


def test_depth_is_bounded() -> None:
    assert parse(b"<a>" * DEPTH_MAX + b"</a>" * DEPTH_MAX, "a").name == "a"
    refused(b"<a>" * (DEPTH_MAX + 1) + b"</a>" * (DEPTH_MAX + 1), "a")


def test_the_number_of_elements_is_bounded() -> None:
    refused(b"<Delete>" + b"<a/>" * ELEMENTS_MAX + b"</Delete>")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"   ",
        b"<Delete>",
        b"<Delete></Object>",
        b"<Delete/><Delete/>",
        b"<Other/>",
        b"no xml",
        b"<Delete>\x00</Delete>",
        b"<Delete>\xff</Delete>",
        b"<Delete>&#0;</Delete>",
        b"<Delete>&#1;</Delete>",
        '<?xml version="1.0" encoding="UTF-16"?><Delete/>'.encode("utf-16"),
        b'<?xml version="1.1"?><Delete>&#1;</Delete>',
    ],
)
def test_what_is_no_document_is_malformed(document: bytes) -> None:
    refused(document)


def test_a_tag_of_a_hundred_thousand_attributes_is_refused_before_it_is_parsed() -> None:
    def slices(document: bytes) -> int:
        """How many bytes of the document expat was given."""
        given = 0
        real = xml.expat.ParserCreate

        class Parser:
            def __init__(self, *args: object, **named: object) -> None:
                object.__setattr__(self, "real", real(*args, **named))  # type: ignore[arg-type]

            def __getattr__(self, name: str) -> object:
                return getattr(self.real, name)

            def __setattr__(self, name: str, value: object) -> None:
                setattr(self.real, name, value)

            def Parse(self, data: bytes, final: bool) -> object:  # noqa: N802 # expat's name.
                nonlocal given
                given += len(data)
                return self.real.Parse(data, final)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(xml.expat, "ParserCreate", Parser)
            refused(document)
        return given

    attributes = b" ".join(b'a%d=""' % n for n in range(100_000))
    names = b" ".join(b'xmlns:a%d="u"' % n for n in range(100_000))
    for document in (
        b"<Delete " + attributes + b"></Delete>",
        b"<Delete><Object " + names + b"/></Delete>",
        b"<Delete><!--" + b"x" * 1_000_000 + b"--></Delete>",
    ):
        assert slices(document) <= 3 * 64 * 1024


@pytest.mark.parametrize("text", ["x" * 3_000_000, "é" * 1_000_000, "&amp;" * 200_000, "a&#10;" * 200_000])
def test_long_texts_and_long_documents_are_read_as_they_are(text: str) -> None:
    document = f"<Delete><Object><Key>{text}</Key></Object><Quiet>true</Quiet></Delete>".encode()
    (key,) = parse(document, "Delete").children[0].children
    assert key.text == text.replace("&amp;", "&").replace("&#10;", "\n")
    objects = "".join(f"<Object><Key>k{n}</Key></Object>" for n in range(20_000))
    found = parse(f"<Delete>{objects}</Delete>".encode(), "Delete").children
    assert [one.get("Key") for one in found] == [f"k{n}" for n in range(20_000)]


def test_a_declared_encoding_does_not_change_how_bytes_are_read() -> None:
    document = '<?xml version="1.0" encoding="ISO-8859-1"?><Delete><Quiet>é</Quiet></Delete>'.encode()
    assert parse(document, "Delete").get("Quiet") == "é"


def test_a_field_named_twice_or_nested_is_malformed() -> None:
    root = parse(b"<Delete><Quiet>1</Quiet><Quiet>2</Quiet></Delete>", "Delete")
    with pytest.raises(S3Fault):
        root.get("Quiet")
    root = parse(b"<Delete><Quiet><x/></Quiet></Delete>", "Delete")
    with pytest.raises(S3Fault):
        root.get("Quiet")
    with pytest.raises(S3Fault):
        root.only(frozenset(("Object",)))
    with pytest.raises(S3Fault):
        root.need("Object")


def test_any_text_gives_valid_xml_and_expressible_text_comes_back() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(2000):
        text = "".join(
            chr(
                rng.choice((rng.randrange(0x30), rng.randrange(0x250), rng.choice((0xFFFE, 0xFFFF, 0x1F600))))
            )
            for _ in range(rng.randrange(8))
        )
        read = ElementTree.fromstring(f"<a>{escape(text)}</a>").text or ""
        if expressible([text]):
            assert read == text
        url = ElementTree.fromstring(f"<a>{encoder(url=True)(text)}</a>").text or ""
        assert url == url_encoded(text)


def test_url_encoding_keeps_slashes_and_writes_a_space_as_percent_20() -> None:
    assert url_encoded("a/b c+d\x01é*") == "a/b%20c%2Bd%01%C3%A9*"


def test_a_timestamp_is_in_whole_seconds() -> None:
    assert timestamp(1_700_000_000_999_999) == "2023-11-14T22:13:20.000Z"
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"
    source = random.Random(4)
    for _ in range(1_000):
        second = source.randrange(2**32)
        moment = datetime.fromtimestamp(second, UTC)
        assert timestamp(second * 1_000_000) == f"{moment:%Y-%m-%dT%H:%M:%S}.000Z", f"seed 4, second {second}"


def test_a_composite_checksum_names_its_parts() -> None:
    assert checksum_element(None) == ""
    assert (
        checksum_element(Checksum("CRC32", "COMPOSITE", b"\x36\x10\xa6\x86", 3))
        == "<ChecksumCRC32>NhCmhg==-3</ChecksumCRC32>"
    )
    assert (
        checksum_element(Checksum("CRC32", "FULL_OBJECT", b"\x36\x10\xa6\x86"))
        == "<ChecksumCRC32>NhCmhg==</ChecksumCRC32>"
    )
