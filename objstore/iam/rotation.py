"""Another master key: what older ones sealed is opened and sealed anew, page by page.

Nothing is ever without a key that opens it: each record is replaced by its own commit, which expects the old
one. Cut short, it goes on where it was, and what is done twice is done.
"""

from typing import Final

import msgspec

from objstore.errors import Conflict
from objstore.iam.secrets import SecretBox
from objstore.meta.kv import Kv, Transaction, prefix_end
from objstore.meta.schema import AccessKeyRecord, access_key_key, decode, encode

PAGE: Final = 200  # Keys looked at in one call.
ATTEMPTS_MAX: Final = 8  # At one key that keeps changing; the next round finds it again.


async def reseal_keys(kv: Kv, box: SecretBox, after: str) -> tuple[int, str]:
    """A page of access keys > after.

    Returns: how many were sealed anew, and the id to go on after; empty: that was the last page.

    Raises: Corrupt (a secret that no master key given opens), MetaUnavailable.
    """
    start = access_key_key(after) + b"\0" if after else b"k"
    pairs = await kv.scan(start, prefix_end(b"k"), PAGE)
    done = 0
    for key, value in pairs:
        done += await _reseal(kv, box, key, value)
    return done, pairs[-1][0][1:].decode() if len(pairs) == PAGE else ""


async def _reseal(kv: Kv, box: SecretBox, key: bytes, value: bytes | None) -> bool:
    name = key[1:].decode()
    for _ in range(ATTEMPTS_MAX):
        if value is None:
            return False
        record = decode(value, AccessKeyRecord)
        if record.sealed_under == box.newest:
            return False
        fresh = msgspec.structs.replace(
            record,
            secret=box.seal(name, box.open(name, record.secret, record.sealed_under)),
            sealed_under=box.newest,
        )
        try:
            await kv.commit(Transaction(expect={key: value}, put={key: encode(fresh)}))
        except Conflict:
            value = await kv.get(key)
            continue
        return True
    return False
