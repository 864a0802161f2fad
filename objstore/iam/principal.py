"""Who asks: the result of verifying a request."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """The right of a bucket's source to change its replica: checked against the replica's record."""

    generation: int
    session: int
    order: int = 0  # Of the version that is sent, by its source: the replica's version has the same.


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks. Anonymous requests never get this far yet."""

    tenant: str
    user: str
    access_key_id: str
    root: bool = False
    mirror: Mirror | None = None  # Of a request that a bucket's source sends.
