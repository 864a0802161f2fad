"""Who asks: the result of verifying a request."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks. Anonymous requests never get this far yet."""

    tenant: str
    user: str
    access_key_id: str
    root: bool = False
