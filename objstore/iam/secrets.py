"""Secret keys at rest: AES-256-GCM under the cluster's master key, bound to their access key's id.

A signature needs the secret itself, so it cannot be a hash. What lies in metadata is nonce (12 bytes),
ciphertext and tag (16 bytes); moved to another access key's record it no longer opens.

There may be several master keys: secrets are sealed under the newest, and opened by whichever sealed them.
"""

from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from objstore.errors import Corrupt
from objstore.ids import Randomness, master_key_id

MASTER_KEY_SIZE: Final = 32  # Bytes.
NONCE_SIZE: Final = 12  # Bytes; random: far fewer than 2**32 secrets are ever sealed under one key.


class SecretBox:
    """
    Args:
        master_key: the newest: what is sealed is sealed under it.
        others: that open what they sealed.
    """

    def __init__(self, master_key: bytes, randomness: Randomness, others: Sequence[bytes] = ()) -> None:
        assert all(len(key) == MASTER_KEY_SIZE for key in (master_key, *others))
        self.newest = master_key_id(master_key)
        self._ciphers = {master_key_id(key): AESGCM(key) for key in (master_key, *others)}
        self.known = tuple(self._ciphers)  # Ids, the newest first.
        self._randomness = randomness

    def __repr__(self) -> str:
        return "SecretBox(...)"  # Never the key.

    def seal(self, access_key_id: str, secret: str) -> bytes:
        """Under the newest master key."""
        nonce = self._randomness(NONCE_SIZE)
        return nonce + self._ciphers[self.newest].encrypt(nonce, secret.encode(), access_key_id.encode())

    def open(self, access_key_id: str, sealed: bytes, under: str = "") -> str:
        """
        Args:
            under: id of the master key that sealed it; empty: not known.

        Raises: Corrupt if it was sealed under another master key or for another access key.
        """
        return self._opened(access_key_id, sealed, under)[1]

    def sealed_under(self, access_key_id: str, sealed: bytes, under: str = "") -> str:
        """The id of the master key that opens it. Raises: Corrupt, as `open` does."""
        return self._opened(access_key_id, sealed, under)[0]

    def _opened(self, access_key_id: str, sealed: bytes, under: str) -> tuple[str, str]:
        if under and under not in self._ciphers:
            raise Corrupt(
                f"the secret of access key {access_key_id} is sealed under another master key, {under}"
            )
        for name in (under,) if under else self._ciphers:
            try:
                opened = self._ciphers[name].decrypt(
                    sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], access_key_id.encode()
                )
            except (InvalidTag, ValueError):
                continue
            return name, opened.decode()
        raise Corrupt(f"the secret of access key {access_key_id} does not open: another master key?")
