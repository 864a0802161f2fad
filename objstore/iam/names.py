"""Names of tenants and users, access key ids and secrets: parsed once, by anchored ASCII patterns."""

import re
from typing import Final

from objstore.errors import BadArgument
from objstore.ids import Randomness

ID_SIZE: Final = 20  # Characters of an access key id that we make.
SECRET_SIZE: Final = 40  # Characters of a secret that we make.
ID_PREFIX: Final = "OS"

_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@+=,-]{0,126}[A-Za-z0-9])?", re.ASCII)
_ACCESS_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,127}", re.ASCII)
_SECRET = re.compile(r"[\x21-\x7e]{8,128}", re.ASCII)
_EMAIL = re.compile(r"(?=.{0,254}\Z)(?:[\x21-\x3f\x41-\x7e]+@[\x21-\x3f\x41-\x7e]+)?", re.ASCII)

_ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_MIXED_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"  # No / or +: easy to paste.


def _check(pattern: re.Pattern[str], text: str, name: str, rule: str) -> str:
    if not pattern.fullmatch(text):
        raise BadArgument(f"{rule}: {text!r}", name=name, value=text)
    return text


def check_tenant(text: str) -> str:
    """Raises: BadArgument."""
    return _check(_TENANT, text, "tenant", "a tenant's name has 1 to 63 of a-z, 0-9 and inner hyphens")


def check_user(text: str) -> str:
    """Raises: BadArgument."""
    return _check(_USER, text, "user", "a user's name has 1 to 128 of A-Z, a-z, 0-9 and inner ._@+=,-")


def check_access_key_id(text: str) -> str:
    """Raises: BadArgument."""
    return _check(
        _ACCESS_KEY_ID, text, "access key", "an access key id has 3 to 128 of A-Z, a-z, 0-9 and ._-"
    )


def check_secret(text: str) -> str:
    """Raises: BadArgument, which does not repeat the secret."""
    if not _SECRET.fullmatch(text):
        raise BadArgument(
            "a secret key has 8 to 128 printable ASCII characters, no spaces", name="secret key"
        )
    return text


def check_email(text: str) -> str:
    """Empty: there is none. Raises: BadArgument."""
    rule = "an e-mail address is like leila@acme.example, at most 254 printable ASCII characters"
    return _check(_EMAIL, text, "email", rule)


def _letters(alphabet: str, count: int, randomness: Randomness) -> str:
    """Uniformly chosen letters: bytes that would favour some are thrown away."""
    fair = 256 - 256 % len(alphabet)
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += [alphabet[byte % len(alphabet)] for byte in randomness(count) if byte < fair]
    return "".join(chosen[:count])


def new_access_key_id(randomness: Randomness) -> str:
    return ID_PREFIX + _letters(_ID_LETTERS, ID_SIZE - len(ID_PREFIX), randomness)


def new_secret(randomness: Randomness) -> str:
    return _letters(_MIXED_LETTERS, SECRET_SIZE, randomness)
