"""Secret keys at rest: AES-256-GCM under the cluster's master key, bound to their access key's id.

A signature needs the secret itself, so it cannot be a hash. What lies in metadata is nonce (12 bytes),
ciphertext and tag (16 bytes); moved to another access key's record it no longer opens.
"""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from objstore.errors import Corrupt
from objstore.ids import Randomness

MASTER_KEY_SIZE: Final = 32  # Bytes.
NONCE_SIZE: Final = 12  # Bytes; random: far fewer than 2**32 secrets are ever sealed under one key.


class SecretBox:
    def __init__(self, master_key: bytes, randomness: Randomness) -> None:
        assert len(master_key) == MASTER_KEY_SIZE
        self._cipher = AESGCM(master_key)
        self._randomness = randomness

    def __repr__(self) -> str:
        return "SecretBox(...)"  # Never the key.

    def seal(self, access_key_id: str, secret: str) -> bytes:
        nonce = self._randomness(NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, secret.encode(), access_key_id.encode())

    def open(self, access_key_id: str, sealed: bytes) -> str:
        """Raises: Corrupt if it was sealed under another master key or for another access key."""
        try:
            opened = self._cipher.decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], access_key_id.encode())
        except (InvalidTag, ValueError) as failure:
            raise Corrupt(
                f"the secret of access key {access_key_id} does not open: another master key?"
            ) from failure
        return opened.decode()
