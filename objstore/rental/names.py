"""Names and texts that people choose for renting's records: parsed once, within bounds."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from objstore.errors import BadArgument

TEXT_SIZE_MAX: Final = 200  # Bytes of UTF-8 of a name or of a line of an address: 100 Arabic letters.
TEXTS_MAX: Final = 10  # Lines of an address, tax ids, tags.

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)  # As of a tenant (iam/names.py).
_COUNTRY = re.compile(r"[A-Z]{2}", re.ASCII)
_ID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.ASCII)
_FORMULA = re.compile(r"[=+\-@\t\r].")  # What spreadsheets take for the beginning of a formula;
_FIGURE = re.compile(r"[+-][0-9][0-9., ]*(?:[A-Z]{3})?", re.ASCII)  # a number or an amount is none.
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
)  # Also what turns the text's direction.


def check_name(text: str, name: str) -> str:
    """Of a seller, tenant or project. `name` says what it is of. Raises: BadArgument."""
    if not _NAME.fullmatch(text):
        raise BadArgument(
            f"a {name}'s name has 1 to 63 of a-z, 0-9 and inner hyphens: {text!r}", name=name, value=text
        )
    return text


def check_id(text: str, name: str) -> str:
    """Of a document or payment: a ULID (ids.py). Raises: BadArgument."""
    if not _ID.fullmatch(text):
        raise BadArgument(f"a {name}'s id is a ULID: {text[:40]!r}", name=name, value=text[:40])
    return text


def check_text(text: str, name: str, *, size_max: int = TEXT_SIZE_MAX) -> str:
    """One line as it is printed; may be empty. Raises: BadArgument."""
    if _CONTROL.search(text):
        raise BadArgument(f"{name} is one line without control characters", name=name, value=text)
    if len(text.encode("utf-8", "surrogatepass")) > size_max or not _encodes(text):
        raise BadArgument(f"{name} has at most {size_max} bytes of UTF-8", name=name, value=text[:40])
    return text


def check_texts(texts: Sequence[str], name: str) -> list[str]:
    """Lines, as of an address. Raises: BadArgument."""
    _check_count(len(texts), name)
    return [check_text(text, name) for text in texts]


def check_labels(labels: Mapping[str, str], name: str) -> dict[str, str]:
    """Texts by name, as tax ids and tags. Raises: BadArgument."""
    _check_count(len(labels), name)
    if "" in labels:
        raise BadArgument(f"each of {name} has a name", name=name)
    return {check_text(label, name, size_max=64): check_text(text, name) for label, text in labels.items()}


def as_cell(text: str) -> str:
    """A text in a file that people open in a spreadsheet: what that would evaluate begins with an apostrophe.

    Source: OWASP, "CSV Injection".
    """
    return "'" + text if _FORMULA.match(text) and not _FIGURE.fullmatch(text) else text


def check_country(text: str) -> str:
    """Raises: BadArgument."""
    if not _COUNTRY.fullmatch(text):
        raise BadArgument(
            f"a country is two letters of ISO 3166, as DZ: {text!r}", name="country", value=text
        )
    return text


def check_days(days: int, name: str, *, least: int = 0, most: int = 3_660) -> int:
    """Raises: BadArgument."""
    if not least <= days <= most:
        raise BadArgument(f"{name} is {least} to {most}", name=name, value=str(days))
    return days


def _check_count(count: int, name: str) -> None:
    if count > TEXTS_MAX:
        raise BadArgument(f"at most {TEXTS_MAX} of {name}", name=name, value=str(count))


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # A lone surrogate.
        return False
    return True
