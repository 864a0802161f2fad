"""The blob layer's ledger over metadata. (To come.)"""

from objstore.meta.kv import Kv


class MetaLedger:
    """Implements blobs.volumes.Ledger with V, L, G, R, D and N keys."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv
