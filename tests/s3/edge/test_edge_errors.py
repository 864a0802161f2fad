"""Every way to fail has one S3 answer, and the answer is well-formed XML with AWS's words."""

import inspect
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from objstore import errors
from objstore.s3.errors import ROWS, S3Fault, escape, fault_of, render


def leaves(kind: type[errors.StoreError]) -> set[type[errors.StoreError]]:
    children = kind.__subclasses__()
    ours = {child for child in children if child.__module__ == "objstore.errors"}
    return {kind} if not ours else set().union(*map(leaves, ours))


def sample(kind: type[errors.StoreError]) -> errors.StoreError:
    """Any instance of a leaf: arguments by their annotations."""
    values: dict[Any, Any] = {str: "<&\x01>", int: 7, bytes: b"k"}
    if kind.__init__ is Exception.__init__ or "__init__" not in kind.__dict__:
        return kind("in words")
    arguments = {
        name: values[parameter.annotation] for name, parameter in inspect.signature(kind).parameters.items()
    }
    return kind(**arguments)


def test_every_way_to_fail_has_exactly_one_s3_answer() -> None:
    assert leaves(errors.StoreError) == ROWS.keys()


@pytest.mark.parametrize("kind", sorted(ROWS, key=lambda kind: kind.__name__))
def test_every_row_renders_well_formed_xml_that_echoes_nothing_raw(kind: type[errors.StoreError]) -> None:
    fault = fault_of(sample(kind))
    assert 300 <= fault.status <= 503
    body = render(fault, resource="/b/<k>\r\x00", request_id="R", host_id="H")
    root = ET.fromstring(body)
    assert root.tag == "Error"
    assert root.findtext("Code") == fault.code
    assert root.findtext("RequestId") == "R"
    assert root.findtext("HostId") == "H"
    assert root.findtext("Resource") == "/b/<k>\r\ufffd"
    for value in fault.headers.values():
        assert "\r" not in value
        assert "\n" not in value


def test_errors_that_can_be_retried_say_when() -> None:
    assert fault_of(errors.Overloaded("queue")).code == "SlowDown"
    assert fault_of(errors.Overloaded("queue")).headers["Retry-After"] == "1"
    assert fault_of(errors.MetaUnavailable("away")).headers["Retry-After"] == "1"


def test_a_class_without_a_row_takes_its_ancestors_answer() -> None:
    class Odd(errors.Rejected): ...

    assert fault_of(Odd("because")).status == 400
    assert fault_of(errors.Unavailable("x")).status == 503
    assert fault_of(errors.StoreError("x")).status == 500


def test_an_s3_fault_is_its_own_answer() -> None:
    fault = S3Fault("Odd", 400, "m")
    assert fault_of(fault) is fault


def test_corruption_does_not_tell_the_client_what_was_corrupt() -> None:
    assert "volume" not in fault_of(errors.Corrupt("volume 7 block 9")).message


@pytest.mark.parametrize("text", ["plain", "a&b", "]]>", "\r\n", "\x00\x1f", "é\U0001f600", "\ufffe", "\x7f"])
def test_escaped_text_survives_an_xml_parser(text: str) -> None:
    back = ET.fromstring(f"<a>{escape(text)}</a>").text
    wanted = "".join("\ufffd" if c in "\x00\x1f\ufffe" else c for c in text)
    assert back == wanted
